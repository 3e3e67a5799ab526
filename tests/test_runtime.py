"""Where a run happens, and what the driver checks of it."""

import pytest
import torch
from pictures import colours

from nag.errors import UserError
from orchestrator import build
from orchestrator.build import build_evaluator_here, build_executor, sharing_gpus
from orchestrator.config import RunConfig
from orchestrator.runtime import Runtime, place_of
from trainers.training.task import NetworkOptions


@pytest.mark.parametrize(
    ("executor", "gpus", "asked", "expected"),
    [
        ("ray", 0, "auto", "cpu"),
        ("tune", 0, "auto", "cpu"),
        ("ray", 0.25, "auto", "auto"),  # the process sees the GPU that it has, and no other
        ("tune", 1, "auto", "auto"),
        ("ray", "auto", "auto", "auto"),
        ("local", 0, "auto", "auto"),
        ("ray", 0, "cuda", "cuda"),  # as the user wants it
    ],
)
def test_no_evaluation_takes_a_gpu_that_it_does_not_reserve(executor, gpus, asked, expected):
    runtime = Runtime(executor=executor, gpus_per_eval=gpus, eval_device=asked)
    assert place_of(runtime).device == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_driver_needs_no_gpu_for_those_of_the_workers(tmp_path):
    networks = NetworkOptions(data=colours(tmp_path / "colours"), recipe="small", held_out=3)
    config = RunConfig(space="nasbench201", evaluator="train", networks=networks)
    on_gpu = {"gpus_per_eval": 1.0, "eval_device": "cuda"}
    evaluator = build_evaluator_here(config, Runtime(executor="ray", **on_gpu))
    assert str(evaluator.task.device) == "cpu"
    with pytest.raises(UserError, match="device 'cuda' is not available"):
        build_evaluator_here(config, Runtime(executor="local", **on_gpu))


def test_one_process_is_on_no_cluster():
    with pytest.raises(UserError, match=r"^--address cannot be used with --executor local"):
        Runtime(executor="local", address="127.0.0.1:1")


def test_what_an_evaluation_reserves():
    with pytest.raises(UserError, match=r"^--gpus-per-eval must be 0 to 1 or a whole number"):
        Runtime(gpus_per_eval=1.5)


TRAINED = {"space": "nasbench201", "evaluator": "train"}


@pytest.mark.parametrize(
    ("settings", "asked", "gpus", "expected"),
    [
        (TRAINED, {}, 1, ("auto", 0.2)),
        (TRAINED, {"executor": "tune"}, 1, ("auto", 0.2)),
        (TRAINED, {"generator_gpus": 0.5}, 1, ("auto", 0.5)),
        (TRAINED, {"gpus_per_eval": 0}, 1, (0, None)),
        (TRAINED, {"eval_device": "cpu"}, 1, (None, None)),
        (TRAINED, {"address": "127.0.0.1:1"}, 1, (None, None)),  # may start a machine there
        (TRAINED, {}, 0, (None, None)),
        ({"space": "toy"}, {}, 1, (None, None)),  # looks its values up
    ],
)
def test_networks_are_trained_on_the_gpus_of_this_machine(
    monkeypatch, settings, asked, gpus, expected
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    runtime = sharing_gpus(RunConfig(**settings), Runtime(**asked))
    assert (runtime.gpus_per_eval, runtime.generator_gpus) == expected


def test_several_generators_are_on_a_cluster():
    with pytest.raises(UserError, match=r"^--generators must be at least 1"):
        Runtime(generators=0)
    with pytest.raises(
        UserError, match=r"^--executor local has only one generator, in this process"
    ):
        Runtime(executor="local", generators=2)


def test_a_device_that_there_is_nowhere():
    for name in ("warp", "meta", "cuda:x"):
        with pytest.raises(UserError, match=f"^--eval-device '{name}' must be auto, cpu, cuda or"):
            Runtime(eval_device=name)


def test_a_bug_is_no_error_of_the_user(monkeypatch):
    """It is to be seen with its traceback."""
    pytest.importorskip("ray")

    def broken(*settings):
        raise ValueError("not enough values to unpack")

    config, runtime = RunConfig(space="toy", score="exact"), Runtime(device="cpu")
    evaluator = build_evaluator_here(config, runtime)
    monkeypatch.setattr("orchestrator.executors.ray_core.RayExecutor", broken)
    with pytest.raises(ValueError, match="not enough values") as found:
        build_executor(config, runtime, evaluator)
    assert not isinstance(found.value, UserError)
    monkeypatch.setattr(build, "build_evaluator", broken)
    with pytest.raises(ValueError, match="not enough values") as found:
        build_evaluator_here(config, runtime)
    assert not isinstance(found.value, UserError)
    monkeypatch.setattr(build, "DiffusionGenerator", broken)
    with pytest.raises(ValueError, match="not enough values") as found:
        build_executor(config, runtime, evaluator)
    assert not isinstance(found.value, UserError)
