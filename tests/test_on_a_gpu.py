"""What is to run on a GPU, on a pretended one: nothing is left behind on the CPU."""

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import colours
from pretend_gpu import OnGPU, pretended_gpu

from nag.devices import resolve_device
from nag.generator import DiffusionGenerator, GeneratorConfig, Guidance
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.spaces import SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.train import app as train_score
from orchestrator.run_bo import app as run_bo
from trainers.constraints import build_constraints
from trainers.evaluate import app as evaluate
from trainers.ofa import Supernet, load_supernet, save_supernet
from trainers.train_supernet import app as train_supernet


@pytest.fixture
def gpu():
    with pretended_gpu() as device:
        yield device


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"), train=10)


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """An untrained one of a quarter of the width, for 32 pixels."""
    out = tmp_path_factory.mktemp("supernet") / "W.pt"
    torch.manual_seed(0)
    save_supernet(Supernet(3, width=0.25), out, {"resolution": 32, "recipe": "small"})
    return out


def command(app, *argv):
    app(
        [str(x) for x in argv], exit_on_error=False, print_error=False, result_action="return_value"
    )


class TestThePretendedGPU:
    """It refuses what a real one does."""

    def test_tensors_of_both_devices(self, gpu):
        x = torch.ones(3, device=gpu)
        assert (x.device, float((x * 2).sum())) == (gpu, 6)
        assert not isinstance((x + 1).cpu(), OnGPU)
        for do in (lambda: x + torch.ones(3), lambda: torch.ones(3, 3) @ x):
            with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
                do()

    def test_arrays(self, gpu):
        with pytest.raises(TypeError, match="cuda:0"):
            torch.ones(3, device=gpu).numpy()
        with pytest.raises(TypeError, match="cuda:0"):
            np.asarray(torch.ones(3, device=gpu))

    def test_generators_of_the_other_device(self, gpu):
        for fill, draw in ((gpu, "cpu"), ("cpu", gpu)):
            with pytest.raises(RuntimeError, match="generator of"):
                torch.randn(3, device=fill, generator=torch.Generator(draw))
        torch.randn(3, device=gpu, generator=torch.Generator(gpu))

    def test_gradients(self, gpu):
        layer = torch.nn.Linear(3, 1).to("cuda")
        layer(torch.ones(2, 3, device=gpu)).sum().backward()
        assert (layer.weight.grad.device, layer.weight.grad.tolist()) == (gpu, [[2, 2, 2]])


def test_it_is_taken(gpu):
    assert resolve_device("auto") == gpu


@pytest.mark.parametrize(
    ("space", "score", "form"),
    [
        ("toy", "exact", "value"),
        ("toy", "exact", "improvement"),
        ("toy", "exact", "target"),
        ("nasbench201", "network", "value"),
    ],
)
def test_guided_generation(gpu, space, score, form):
    space = SPACES[space]
    archs = space.sample(12, np.random.default_rng(0))
    observations = Observations(tuple(archs), np.linspace(0.1, 0.9, len(archs)))
    predictor = GaussianProcess(space).fit(observations, np.random.default_rng(0))
    target = 0.5 if form == "target" else None
    guidance = Guidance(predictor, observations, form=form, target=target)
    generator = DiffusionGenerator(GeneratorConfig(space.name, score, steps=3))
    assert generator.device == gpu
    assert len(generator.generate(8, seed=0, guidance=guidance).archs) == 8


def test_noise_aware_guidance(gpu):
    space = SPACES["toy"]
    archs = space.sample(12, np.random.default_rng(0))
    observations = Observations(tuple(archs), np.linspace(0.1, 0.9, len(archs)))
    predictor = GaussianProcess(space).fit(observations, np.random.default_rng(0))
    guidance = Guidance(predictor, observations, kind="noise-aware")
    generator = DiffusionGenerator(GeneratorConfig("toy", "exact", steps=3))
    assert len(generator.generate(8, seed=0, guidance=guidance).archs) == 8


def test_constraints(gpu):
    constraints = build_constraints(MOBILENETV3, ("macs<=400e6", "params<=6e6"), None, None)
    guidance = Guidance(None, Observations((), np.zeros(0)), constraints=constraints)
    generator = DiffusionGenerator(GeneratorConfig("mobilenetv3", "exact", steps=3))
    assert len(generator.generate(8, seed=0, guidance=guidance).archs) == 8


def test_training_a_score_network(gpu, tmp_path):
    out = tmp_path / "W.safetensors"
    command(train_score, "--space", "toy", "--steps", 2, "--out", out, "--device", "cuda")
    assert out.exists()


@pytest.mark.parametrize("recipe", ["imagenet", "transfer"])
def test_training(gpu, data, supernet, tmp_path, recipe):
    pytest.importorskip("kornia")
    evaluated(
        tmp_path,
        "mobilenetv3",
        data,
        "train",
        "--weights",
        supernet,
        "--recipe",
        recipe,
        "--epochs",
        1,
    )


def test_training_a_cell(gpu, data, tmp_path):
    evaluated(tmp_path, "nasbench201", data, "train", "--epochs", 1, "--resolution", 16)


def test_a_subnet_and_its_latency(gpu, data, supernet, tmp_path):
    evaluated(
        tmp_path, "mobilenetv3", data, "supernet", "--weights", supernet, "--latency-batch", 1
    )


def evaluated(folder, space, data, evaluator, *options):
    arch = SPACES[space].sample(1, np.random.default_rng(0))[0]
    (folder / "archs.txt").write_text(SPACES[space].to_str(arch))
    argv = ("--space", space, "--evaluator", evaluator, "--data", data, "--device", "cuda")
    out = folder / "values.parquet"
    command(evaluate, *argv, "--archs", folder / "archs.txt", "--out", out, *options)
    (row,) = pd.read_parquet(out).to_dict("records")
    assert row["status"] == "ok", row


def test_training_a_supernet(gpu, data, tmp_path):
    argv = ("--resolution", 32, "--recipe", "small", "--batch-size", 18, "--random", 1)
    argv += ("--epochs", 1, "--width", 0.25, "--device", "cuda")
    command(train_supernet, "--data", data, *argv, "--out", tmp_path / "W.pt")
    assert load_supernet(tmp_path / "W.pt").num_classes == 3


def test_a_search(gpu, tmp_path):
    argv = ("--space", "toy", "--score", "exact", "--budget", 5, "--n-init", 4)
    argv += ("--executor", "local", "--device", "cuda", "--out", tmp_path / "run")
    command(run_bo, *argv)
    trials = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    assert list(trials.status) == ["ok"] * 5
    assert trials.strategy.iloc[-1] == "guided"
