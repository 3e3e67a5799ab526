"""Evaluations that share a GPU, by the memory that earlier ones took; none of it is real here."""

import pytest
import torch

from nag.spaces.toy import TOY
from orchestrator.executors.cluster import Machines
from orchestrator.executors.packing import GPUShare, Room
from orchestrator.history.trials import Outcome, Trial
from orchestrator.runtime import Runtime
from orchestrator.search.trial import evaluate_trial
from trainers.evaluators.toy import ToyEvaluator


def share(*memory, asked="auto", whole=1.0):
    found = GPUShare(asked)
    for taken in memory:
        found.saw(Outcome(0, "ok", 0.5, gpu_memory=taken))
    return found.now(whole)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ((), 1.0),
        ((0.0,), 1.0),  # nothing is known yet
        ((0.1,), 1 / 8),
        ((0.1, 0.3, 0.2), 1 / 2),
        ((0.26,), 0.3333),  # three of these are a whole GPU for Ray, of one third they are not
        ((0.5,), 1.0),
        ((0.9,), 1.0),
    ],
)
def test_as_many_as_the_hungriest_leaves_room_for(memory, expected):
    assert share(*memory) == expected


def test_beside_a_generator_they_share_what_it_leaves():
    assert share(whole=0.8) == 0.8
    assert share(0.3, whole=0.8) == 0.4
    assert share(0.7, whole=0.8) == 0.8


@pytest.mark.parametrize(
    ("gpus", "generators", "expected"),
    [
        (1, [{"GPU": 0.2}], (0.8, 1)),
        (1, [{"GPU": 0.2}] * 2, (0.6, 1)),
        (1, [{}], (1.0, 1)),
        (3, [{"GPU": 0.2}], (1.0, 2)),
        (1, [{"GPU": 1.0}], (1.0, 0)),  # no room: the run says so
        (1, [{"GPU": 0.5}] * 2, (1.0, 0)),
    ],
)
def test_the_first_have_as_much_of_a_gpu_as_there_is(monkeypatch, gpus, generators, expected):
    machines = Machines(({"CPU": 8.0, "GPU": float(gpus)},))
    monkeypatch.setattr(Machines, "now", lambda: machines)
    room = Room(Runtime(gpus_per_eval="auto"), generators)
    assert (room.request["GPU"], room.size) == expected


def test_what_the_user_says_is_done():
    assert share(0.1, asked=0.5) == 0.5
    assert share(0.1, asked=None) == 0


def test_the_peak_of_an_evaluation_is_measured_from_its_beginning(monkeypatch):
    """PyTorch's counters of a GPU are pretended."""
    peak = [0.9]

    class Hungry(ToyEvaluator):
        def evaluate(self, arch, *, seed):
            peak[0] = max(peak[0], 0.4)
            return super().evaluate(arch, seed=seed)

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 0.0))
    monkeypatch.setattr(cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(cuda, "max_memory_reserved", lambda: 80e9 * peak[0])
    monkeypatch.setattr(cuda, "device_count", lambda: 0)
    monkeypatch.setattr(cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda: type("Properties", (), {"total_memory": 80e9})
    )
    trial = Trial(0, 0, TOY.from_str("a-/a-"), "initial", seed=0)
    expected = 0.4 + 0.5 * 2**30 / 80e9  # CUDA itself takes half a GiB or so
    assert evaluate_trial(Hungry(), trial, retries=0).gpu_memory == pytest.approx(expected)
    assert evaluate_trial(ToyEvaluator(), trial, retries=0).gpu_memory == 0.0, "computed nothing"


def test_without_a_gpu_nothing_is_said():
    trial = Trial(0, 0, TOY.from_str("a-/a-"), "initial", seed=0)
    assert evaluate_trial(ToyEvaluator(), trial, retries=0).gpu_memory == 0.0
