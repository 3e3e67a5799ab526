"""Re-using earlier runs: the extra feature of the Gaussian process, and `--prior RUN`."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from report_page import undrawn
from scipy.stats import kendalltau

from nag.cli import run
from nag.errors import UserError
from nag.predictors.base import Observations
from nag.predictors.gp import Features, GaussianProcess
from nag.spaces.mobilenetv3 import MOBILENETV3
from orchestrator.comparison.panels import make_panels
from orchestrator.config import RunConfig
from orchestrator.experiments.file import Data, read_experiment
from orchestrator.experiments.jobs import Search
from orchestrator.history.earlier import read_earlier_run
from orchestrator.history.find import find_runs, read_runs
from orchestrator.run_bo import app
from orchestrator.search.store import RunStore
from trainers.evaluators.surrogate import SurrogateEvaluator

torch.set_num_threads(1)

SPACE = MOBILENETV3
SETTINGS = ["--space", "toy", "--n-init", "4", "--pool-size", "10"]
MUTATION = ["--strategy", "mutation"]
LOCAL = ["--executor", "local"]


def rng(seed=0):
    return np.random.default_rng(seed)


def values(archs):
    return SurrogateEvaluator().predict(archs)


def noise(archs):
    """Synthetic values that depend on nothing."""
    return rng(9).standard_normal(len(archs))


def observe(n, seed, function=values):
    archs = tuple(dict.fromkeys(SPACE.sample(n, rng(seed))))
    return Observations(archs, function(archs))


def earlier_process(n=60, function=values):
    return GaussianProcess(SPACE).fit(observe(n, 1, function), rng())


@pytest.fixture(scope="module")
def prior():
    return earlier_process()


@pytest.fixture(scope="module")
def fitted(prior):
    return GaussianProcess(SPACE, (prior,)).fit(observe(15, 2), rng())


class TestProcess:
    def test_the_extra_feature_is_the_mean_of_the_prior(self, prior, fitted):
        """Centred and scaled by its law under uniform draws."""
        x = SPACE.encode(SPACE.sample(50, rng(3))).double()
        reference = SPACE.encode(SPACE.sample(1000, rng(0))).double()
        known = prior.relaxed(reference)[0]
        expected = (prior.relaxed(x)[0] - known.mean()) / known.std(correction=0)
        *others, extra = fitted.features.groups(fitted.features(SPACE, x))
        torch.testing.assert_close(extra, expected[:, None])
        plain = Features.of(SPACE)
        for group, same in zip(others, plain.groups(plain(SPACE, x)), strict=True):
            assert torch.equal(group, same)

    def test_the_mean_alone_is_that_of_relaxed(self, fitted):
        x = SPACE.encode(SPACE.sample(20, rng(3)))
        for queries in (x, x.double()):
            assert torch.equal(fitted.mean(queries), fitted.relaxed(queries)[0])

    def test_without_priors_nothing_changes(self):
        plain = GaussianProcess(SPACE).fit(observe(15, 2), rng())
        assert plain.features.sizes == tuple(
            group.shape[1] for group in SPACE.features(SPACE.encode(SPACE.sample(1, rng())))
        )
        assert torch.equal(plain.features(SPACE, SPACE.encode(plain_archs())), raw_features(plain))

    def test_gradient_by_finite_differences(self, fitted, rng):
        x = torch.from_numpy(rng.uniform(size=(1, *SPACE.shape))).requires_grad_()
        (gradient,) = torch.autograd.grad(fitted.relaxed(x)[0].sum(), x)
        step = torch.from_numpy(rng.standard_normal(x.shape))
        with torch.no_grad():
            ends = [fitted.relaxed(x + h * step)[0].item() for h in (1e-5, -1e-5)]
        assert (gradient * step).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)

    def test_pickled_it_predicts_the_same(self, fitted):
        queries = SPACE.sample(20, rng(3))
        again = pickle.loads(pickle.dumps(fitted))
        for name in ("mean", "std"):
            expected = getattr(fitted.predict(queries), name)
            assert np.array_equal(getattr(again.predict(queries), name), expected)

    def test_pending_points_leave_the_mean_and_take_the_uncertainty(self, fitted):
        pending = SPACE.sample(3, rng(4))
        before = fitted.predict(pending)
        after = fitted.condition(pending).predict(pending)
        np.testing.assert_allclose(after.mean, before.mean, atol=1e-4)
        assert (after.std < before.std).all()

    def test_an_informative_prior_helps_and_one_of_noise_does_little_harm(self, prior):
        """Kendall's tau after 12 observations, means over 4 sets of them."""
        queries = SPACE.sample(200, rng(5))
        truth = values(queries)
        priors = {"none": (), "same": (prior,), "noise": (earlier_process(function=noise),)}

        def tau(name, seed):
            fitted = GaussianProcess(SPACE, priors[name]).fit(observe(12, seed), rng())
            return kendalltau(fitted.predict(queries).mean, truth).statistic

        found = {name: np.mean([tau(name, 10 + seed) for seed in range(4)]) for name in priors}
        assert found["same"] > found["none"] + 0.1
        assert found["noise"] > found["none"] - 0.07


def plain_archs():
    return SPACE.sample(20, rng(3))


def raw_features(plain):
    raw = torch.cat(SPACE.features(SPACE.encode(plain_archs())), dim=1)
    return (raw - plain.features.centre.to(raw)) * plain.features.scale.to(raw)


# The command


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(capsys, *arguments):
    strategy = () if "--strategy" in arguments else MUTATION
    with pytest.raises(SystemExit) as exit_:
        run(app, [str(argument) for argument in (*SETTINGS, *strategy, *arguments)])
    return exit_.value.code, *capsys.readouterr()


def search(capsys, out, *arguments, budget=6):
    """The folder of a run; nobody looks at the figures of its report."""
    with undrawn():
        code, _, err = command(capsys, *LOCAL, "--budget", budget, "--out", out, *arguments)
    assert (code, err) == (0, "")
    return Path(out)


def refusal(capsys, *arguments):
    code, out, err = command(capsys, *LOCAL, "--budget", 6, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err


def trials(out):
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def proposed(out):
    return [e["trials"] for e in trials(out) if e["event"] == "proposed"]


@pytest.fixture
def earlier(capsys):
    return search(capsys, "earlier", "--seed", 1, budget=8)


def test_a_run_with_a_prior_is_another_one_and_says_so(earlier, capsys):
    plain = search(capsys, "plain")
    out = search(capsys, "run", "--prior", earlier)
    configs = [json.loads((o / "config.json").read_text())["config"] for o in (plain, out)]
    (content,) = configs[1].pop("prior")
    assert content == read_earlier_run(earlier).content
    assert content.startswith("toy (8 trials, ")
    assert configs[0] == configs[1]  # without one, a record is as it always was
    assert f"prior {content}" in (out / "report.html").read_text()
    assert proposed(out)[0] == proposed(plain)[0]  # the initial design
    assert proposed(out)[1] != proposed(plain)[1]
    message = refusal(capsys, "--out", out)
    assert f"prior is ['{content}'] there, None here" in message


def test_it_continues_whatever_became_of_the_path(earlier, capsys):
    whole = search(capsys, "whole", "--prior", earlier, budget=8)
    search(capsys, "parts", "--prior", earlier, budget=6)
    earlier.rename("moved")
    assert proposed(search(capsys, "parts", "--prior", "moved", budget=8)) == proposed(whole)


def test_another_content_is_another_run(earlier, capsys):
    out = search(capsys, "run", "--prior", earlier)
    search(capsys, earlier, "--seed", 1, budget=9)
    assert "toy (9 trials, " in refusal(capsys, "--out", out, "--prior", earlier)


def test_several_earlier_runs(earlier, capsys):
    other = search(capsys, "other", "--seed", 2)
    out = search(capsys, "run", "--prior", earlier, "--prior", other)
    record = json.loads((out / "config.json").read_text())["config"]["prior"]
    assert record == [read_earlier_run(path).content for path in (earlier, other)]


def test_by_default_the_folder_names_the_prior(earlier, capsys):
    code, _, _ = command(capsys, *LOCAL, "--budget", 5, "--prior", earlier)
    assert code == 0
    assert Path("runs/toy-mutation-ei-prior-toy-seed0/report.html").exists()


def test_what_is_refused(earlier, capsys, tmp_path):
    def message(*arguments):
        return refusal(capsys, "--out", "run", *arguments)

    assert "none is not a run (No such file or directory)" in message("--prior", "none")
    (tmp_path / "folder").mkdir()
    assert "folder is not a run" in message("--prior", "folder")
    assert "is the run itself" in refusal(capsys, "--out", earlier, "--prior", earlier)
    assert "--prior requires --surrogate gp, not none" in message(
        "--prior", earlier, "--surrogate", "none", "--strategy", "random"
    )
    assert f"--prior {earlier} is given twice" in message("--prior", earlier, "--prior", earlier)
    lines = (earlier / "journal.jsonl").read_text().splitlines(keepends=True)
    (earlier / "journal.jsonl").write_text("".join(lines[:2]))
    assert "has 1 successful trial: at least 2 are needed" in message("--prior", earlier)
    (earlier / "journal.jsonl").write_text("{}\n")
    assert "not a run (journal.jsonl, line 1 is damaged)" in message("--prior", earlier)
    assert not Path("run").exists()


def test_a_run_of_another_space_is_refused(earlier):
    with pytest.raises(UserError, match="earlier is a run in toy, not in nasbench201"):
        RunConfig(space="nasbench201", prior=(read_earlier_run(earlier),))


def test_a_run_that_goes_on_is_refused(earlier, capsys):
    config = RunConfig(space="toy", n_init=4, pool_size=10, strategy="mutation", seed=1)
    store = RunStore.open(earlier, config)
    try:
        assert "is in use by another process" in refusal(capsys, "--prior", earlier)
    finally:
        store.close()


def test_an_unfinished_run_gives_what_it_has(earlier):
    lines = (earlier / "journal.jsonl").read_text().splitlines(keepends=True)
    (earlier / "journal.jsonl").write_text("".join(lines[:-1]))
    assert len(read_earlier_run(earlier).values) == 7


# Comparisons and experiments


def labels(*runs):
    (panel,) = make_panels(read_runs(find_runs(runs))[0])[0]
    return {method.label: sorted(method.runs) for method in panel.methods}


def test_runs_with_a_prior_are_a_method_of_their_own(earlier, capsys):
    """Each seed may have an earlier run of its own; two of one seed are told apart."""
    other = search(capsys, "other", "--seed", 2)
    a = search(capsys, "a", "--prior", earlier)
    b = search(capsys, "b", "--prior", other, "--seed", 5)
    assert labels(earlier, a, b) == {"mutation": [1], "mutation · prior toy": [0, 5]}
    c = search(capsys, "c", "--prior", other)
    first, second = (read_earlier_run(path).content for path in (earlier, other))
    assert labels(a, b, c) == {
        f"mutation · prior {first}": [0],
        f"mutation · prior {second}": [0, 5],
    }


def test_in_an_experiment(earlier, tmp_path):
    text = "[settings]\nspace = 'toy'\n[[runs]]\nsettings.prior = ['../earlier']\n"
    text += "[[runs]]\ngrid.prior = [[], '../earlier']\n"
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "e.toml").write_text(text)
    members = read_experiment(folder / "e.toml", Data()).members
    found = [m.job.config.prior for m in members if isinstance(m.job, Search)]
    run_ = read_earlier_run(earlier)
    assert found == [(run_,), (), (run_,)]
    assert found[0][0].path == earlier.resolve()
    assert members[0].job.name == "toy-guided-ei-prior-toy-seed0"
    (folder / "e.toml").write_text(text.replace("['../earlier']", "['../none']"))
    with pytest.raises(UserError, match=r"\[\[runs\]\] 1: .*none' is not a run"):
        read_experiment(folder / "e.toml", Data())


def test_each_seed_of_an_experiment_has_its_earlier_run(earlier, tmp_path):
    runs = tmp_path / "RUNS"
    for seed in range(2):
        shutil.copytree(earlier, runs / f"toy-seed{seed}-ab12")
    file = tmp_path / "e.toml"
    file.write_text("seeds = 2\n[settings]\nspace = 'toy'\nprior = 'toy-seed{seed}-*'\n")
    members = read_experiment(file, Data(runs=runs)).members
    found = [m.job.config for m in members if isinstance(m.job, Search)]
    assert [(c.seed, c.prior[0].path.name) for c in found] == [
        (0, "toy-seed0-ab12"),
        (1, "toy-seed1-ab12"),
    ]
    shutil.copytree(earlier, runs / "toy-seed1-cd34")
    with pytest.raises(UserError, match="one run of seed 1, not toy-seed1-ab12 and toy-seed1-cd34"):
        read_experiment(file, Data(runs=runs))
    file.write_text("[settings]\nspace = 'toy'\nprior = [3]\n")
    with pytest.raises(UserError, match="prior 3 must be the folder of a run"):
        read_experiment(file, Data())


def test_equal_content_makes_equal_configurations(earlier):
    known = read_earlier_run(earlier)
    one = RunConfig(space="toy", prior=(known,))
    other = RunConfig(space="toy", prior=(replace(known, path=Path("elsewhere")),))
    assert one == other
    assert one.hash() == other.hash() != RunConfig(space="toy").hash()


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_the_trials_are_those_of_a_local_run(earlier, capsys, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    guided = ["--strategy", "guided", "--score", "exact", "--steps", 5]
    settings = ["--prior", earlier, *guided, "--batch-size", 2]
    local = search(capsys, "local", *settings, budget=8)
    ray = ["--executor", "ray", "--auth", "disabled", "--no-dashboard", "--workers", 1]
    code, _, err = command(capsys, *settings, "--budget", 8, "--out", "ray", *ray)
    assert (code, err) == (0, "")
    assert proposed(Path("ray")) == proposed(local)
