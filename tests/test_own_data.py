"""A network trained on a list of architectures: it generates what is in the list, and drives a
search. The list is a corner of the toy space; values are synthetic."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from report_page import undrawn
from toy_law import ARCHS, law

from nag.checkpoint import load_network
from nag.cli import run
from nag.exact_score import exact_score_of_samples
from nag.generate import generate
from nag.generator import DiffusionGenerator
from nag.laws import ListLaw, UniformLaw, sde_of
from nag.sample import app as sample_app
from nag.sde import centre
from nag.spaces.toy import TOY
from nag.train import app as train_app
from orchestrator.config import RunConfig
from orchestrator.propose import app as propose_app
from orchestrator.run_bo import app as search_app
from trainers.evaluate import app as evaluate_app

torch.set_num_threads(1)

# The first layer is "a" and the third is not: 32 architectures, poor ones, of which the list holds
# 30. A uniform draw is among them with probability 2/9.
CORNER = [arch for arch in ARCHS if arch.ops[0] == 0 and arch.ops[2] != 0]
LIST = CORNER[:30]

INDEX = {arch: i for i, arch in enumerate(ARCHS)}
SEARCH = ["--space", "toy", "--executor", "local", "--pool-size", 10, "--batch-size", 10]


def shares(archs):
    """Share of each of the 144 architectures, (144,); what is invalid is missing from the sum."""
    found = torch.tensor([INDEX[arch] for arch in archs if arch is not None])
    return torch.bincount(found, minlength=144).double() / len(archs)


def variation(p, q):
    """Total variation of two laws, of which one may lack invalid samples."""
    return 0.5 * ((p - q).abs().sum() + (p.sum() - q.sum()).abs()).item()


def command(app, *arguments):
    with pytest.raises(SystemExit) as exit_:
        run(app, [str(argument) for argument in arguments])
    assert exit_.value.code == 0


def in_corner(texts):
    """Share of published strings that are in the corner; an invalid one is not."""
    names = {TOY.to_str(arch) for arch in CORNER}
    return np.mean([text in names for text in texts])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a small training on the list."""
    folder = tmp_path_factory.mktemp("own")
    path, out = folder / "list.txt", folder / "W.safetensors"
    path.write_text("".join(TOY.to_str(arch) + "\n" for arch in LIST))
    steps = ["--steps", 400, "--batch-size", 64, "--report-every", 400, "--threads", 1]
    command(train_app, "--space", "toy", "--archs", path, "--out", out, *steps)
    return out


def test_the_list_is_a_corner():
    assert len(CORNER) == 32
    assert law()[[INDEX[arch] for arch in CORNER]].sum().item() == pytest.approx(2 / 9)
    assert variation(law(), shares(LIST)) > 0.75


# Trained


def test_samples_follow_the_list(weights):
    """Three in four of the uniform law would be elsewhere."""
    network = load_network(weights, TOY)
    samples = generate(TOY, network, network.sde, 2000, seed=0)
    assert samples.validity > 0.97
    p = shares(samples.archs)
    assert p[[INDEX[arch] for arch in CORNER]].sum() > 0.9
    assert variation(p, shares(LIST)) < 0.25 < variation(law(), shares(LIST)) / 3
    assert (p[[INDEX[arch] for arch in LIST]] > 0).all()  # none is forgotten


def test_the_prior_is_at_the_mean_of_the_list(weights):
    """Also where a search or a sampler loads the weights."""
    sde = sde_of(ListLaw(TOY, tuple(LIST), {}))
    config = RunConfig(space="toy", score_weights=weights).generator("cpu")
    for loaded in (load_network(weights, TOY).sde, DiffusionGenerator(config).sde):
        torch.testing.assert_close(torch.tensor(loaded.mean), torch.tensor(sde.mean))
    assert loaded.mean[0] == (1, -1, -1)
    assert np.abs(np.subtract(loaded.mean, sde_of(UniformLaw(TOY)).mean)).max() > 0.5


def test_the_record_says_how_far_samples_are_from_the_list(weights):
    final = json.loads(weights.with_suffix(".json").read_text())["training"]["final"]
    assert final["validity"] > 0.97
    assert 0 <= final["novelty"] < 0.8  # of distinct ones: each stray sample counts as much
    assert final["distance_to_exact"] < 0.1


# Used


def test_sampling_with_these_weights(weights, tmp_path):
    path = tmp_path / "samples.txt"
    command(sample_app, "--space", "toy", "--weights", weights, "--num", 500, "--out", path)
    assert in_corner(path.read_text().splitlines()) > 0.9


def search(out, *options):
    """The trials of a run of eight random architectures and a batch of all that was generated."""
    with undrawn():
        command(search_app, *SEARCH, "--n-init", 8, "--budget", 18, "--out", out, *options)
    return pd.read_parquet(out / "trials.parquet")


def test_a_search_with_these_weights(weights, tmp_path):
    """Guided so weakly that what is proposed tells what the network generates."""
    weakly = ["--guidance-scale", 0.01]
    trials = search(tmp_path / "own", "--score-weights", weights, *weakly)
    assert set(trials.status) == {"ok"}
    assert list(trials.strategy) == ["initial"] * 8 + ["guided"] * 10
    assert trials.arch.is_unique
    assert in_corner(trials.arch[8:]) >= 0.8
    uniform = search(tmp_path / "uniform", "--score", "exact", *weakly)
    assert list(uniform.arch[:8]) == list(trials.arch[:8])
    assert in_corner(uniform.arch[8:]) <= 0.6


def test_a_guided_search_with_these_weights(weights, tmp_path):
    """The default guidance: proposals are better than the list is."""
    trials = search(tmp_path / "run", "--score-weights", weights)
    path, out = tmp_path / "list.txt", tmp_path / "values.parquet"
    path.write_text("".join(TOY.to_str(arch) + "\n" for arch in LIST))
    command(evaluate_app, *("--space", "toy", "--evaluator", "toy", "--archs", path, "--out", out))
    assert trials.value[8:].mean() > pd.read_parquet(out).value.mean()


def test_from_samples_to_proposals(weights, tmp_path):
    """All of the commands in a row: sample, evaluate, propose. A file of samples is a list."""
    samples, values, out = (tmp_path / name for name in ("s.txt", "v.parquet", "next.parquet"))
    space = ["--space", "toy"]
    command(sample_app, *space, "--weights", weights, "--num", 40, "--out", samples)
    samples.write_text("INVALID\n" + samples.read_text())
    command(evaluate_app, *space, "--evaluator", "toy", "--archs", samples, "--out", values)
    options = ["--score-weights", weights, "--pool-size", 8, "--batch-size", 8]
    command(propose_app, *space, "--values", values, "--out", out, *options)
    assert not set(pd.read_parquet(out).arch) & set(pd.read_parquet(values).arch)


# The closed form


@pytest.mark.parametrize(
    "archs",
    [
        LIST,
        LIST[:5] * 4 + LIST[5:20] + ARCHS[140:] * 3,  # repeats weigh
        [ARCHS[i] for i in (3, 50, 50, 100, 143)],
        [ARCHS[7]],
    ],
    ids=["corner", "repeats", "far apart", "one"],
)
def test_the_exact_score_of_a_list_reproduces_its_law(archs):
    """With the sampler and the levels that are the default: to Monte-Carlo noise."""
    n, q = 10_000, shares(archs)
    sde = sde_of(ListLaw(TOY, tuple(archs), {}))
    score = exact_score_of_samples(centre(TOY.encode(archs)), sde)
    samples = generate(TOY, score, sde, n, seed=0)
    p = shares(samples.archs)
    assert samples.validity == 1
    assert (p[q == 0] == 0).all()
    assert ((p - q).abs() <= 4.5 * (q * (1 - q) / n).sqrt()).all()
    rng = np.random.default_rng(1)
    drawn = [
        variation(shares([archs[i] for i in rng.integers(len(archs), size=n)]), q)
        for _ in range(20)
    ]
    assert variation(p, q) <= 1.5 * max(drawn)


def test_the_law_of_a_list_is_what_its_exact_posterior_knows():
    """ListLaw.posterior and exact_score_of_samples are one: E[x_0 | x_t] by Tweedie."""
    sde = sde_of(ListLaw(TOY, tuple(LIST), {}))
    x = centre(TOY.encode(ARCHS)) + torch.randn(
        144, 4, 3, generator=torch.Generator().manual_seed(0)
    )
    t = torch.linspace(0.1, 1, 144)
    sigma = sde.sigma(t)
    score = exact_score_of_samples(centre(TOY.encode(LIST)), sde)(x, t)
    posterior = ListLaw(TOY, tuple(LIST), {}).posterior(x, sigma)
    mean = x + sigma[:, None, None] ** 2 * score
    torch.testing.assert_close(mean, centre(posterior), atol=1e-4, rtol=0)
