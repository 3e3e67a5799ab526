"""Methods by name: what they stand for, what can be mixed, and that each runs."""

import pickle
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from report_page import undrawn
from test_run_bo import UNUSED

from acquisition.strategies import STRATEGIES
from nag.cli import run
from nag.errors import UserError
from nag.predictors.registry import Surrogate
from nag.spaces.toy import TOY
from orchestrator import build
from orchestrator.build import build_predictor
from orchestrator.config import RunConfig
from orchestrator.methods import METHODS
from orchestrator.parts import CHOICES, resolve
from orchestrator.run_bo import app

MODEL_FREE = {
    "random-search": "random",
    "rea": "rea",
    "local-search": "local-search",
    "reinforce": "reinforce",
}
MULTI_FIDELITY = {"bohb": "bohb"}  # on the toy space there is none: see test_bohb.py
ON_TOY = [name for name in METHODS if name not in MULTI_FIDELITY]
WITH_SURROGATE = {
    "guided": ("gp", "guided", "ei"),
    "gp-ucb": ("gp-plain", "mutation+random", "ucb"),
    "bananas": ("ensemble", "mutation", "its"),
    "nasbowl": ("wl-gp", "mutation-top10+random", "ei"),
    "hebo": ("hebo-gp", "mutation-top10+random", "mace"),
}
NEED_EXTRA = {"gp-ucb", "hebo"}
GENERATING = ["guided", "guided-gen", "uncond+sort"]

needs_extra = pytest.mark.skipif(not find_spec("botorch"), reason="needs the extra baselines")


def parts(**settings):
    return tuple(RunConfig(space="toy", **settings).parts)


# Names.


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_parts_that_there_are(name):
    expected = WITH_SURROGATE.get(name) or ("none", (MODEL_FREE | MULTI_FIDELITY)[name], "none")
    assert tuple(METHODS[name].parts) == expected
    assert parts(method=name) == expected
    assert METHODS[name].what


def test_every_method_is_documented():
    text = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
    for name in METHODS:
        assert f"## `{name}`" in text


# What is named takes precedence.


def test_without_a_name_it_is_the_guided_method():
    assert parts() == ("gp", "guided", "ei") == parts(method="guided")
    assert RunConfig() == RunConfig(method="guided") == RunConfig(strategy="guided", acq="ei")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy": "mutation"}, ("gp", "mutation", "ei")),
        ({"acq": "ucb"}, ("gp", "guided", "ucb")),
        ({"strategy": "rea"}, ("gp", "rea", "ei")),
        ({"method": "bananas", "acq": "ei"}, ("ensemble", "mutation", "ei")),
        ({"method": "bananas", "surrogate": "gp"}, ("gp", "mutation", "its")),
        ({"method": "nasbowl", "strategy": "random"}, ("wl-gp", "random", "ei")),
        ({"method": "rea", "surrogate": "gp"}, ("gp", "rea", "ei")),
        ({"method": "rea", "surrogate": "gp", "acq": "pi"}, ("gp", "rea", "pi")),
        ({"surrogate": "none", "strategy": "mutation"}, ("none", "mutation", "none")),
        ({"method": "rea", "acq": "pi"}, ("none", "rea", "none")),
    ],
    ids=str,
)
def test_parts_that_are_named_override_the_method(settings, expected):
    assert parts(**settings) == expected


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_has_its_parts_and_no_method(name):
    config = RunConfig(method=name)
    assert (config.surrogate, config.strategy, config.acq) == METHODS[name].parts
    assert config.method is None
    assert pickle.loads(pickle.dumps(config)) == config
    assert replace(config, seed=3) == RunConfig(method=name, seed=3)


def test_equal_parts_are_equal_runs_whatever_they_were_called():
    named = RunConfig(method="bananas")
    spelled = RunConfig(surrogate="ensemble", strategy="mutation", acq="its")
    assert named == spelled
    assert named.identity() == spelled.identity()
    assert named.hash() == spelled.hash() != RunConfig().hash()
    assert "method" not in named.identity()
    assert RunConfig(method="rea", acq="pi").hash() == RunConfig(method="rea").hash()


def test_replacing_a_part_replaces_nothing_else():
    base = RunConfig(method="bananas")
    assert tuple(replace(base, acq="ei").parts) == ("ensemble", "mutation", "ei")
    assert tuple(replace(base, strategy="random").parts) == ("ensemble", "random", "its")
    model_free = RunConfig(method="rea")
    assert tuple(replace(model_free, surrogate="gp").parts) == ("gp", "rea", "ei")
    nothing = {"surrogate": None, "strategy": None, "acq": None}
    assert replace(base, method="rea", **nothing) == model_free


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "luck"}, "unknown method 'luck': choose from guided, random-search, rea, "),
        ({"surrogate": "luck"}, "unknown surrogate 'luck': choose from gp, gp-plain, ensemble, "),
        (
            {"strategy": "luck"},
            "unknown strategy 'luck': choose from guided, guided-gen, uncond+sort, ",
        ),
        ({"acq": "luck"}, "unknown acquisition function 'luck': choose from ei, pi, its, ucb"),
        (
            {"surrogate": "wl-gp"},
            "--strategy guided needs the surrogate's gradient, --surrogate wl-gp has no",
        ),
        ({"surrogate": "none"}, "--surrogate none has no gradient: choose --surrogate gp, or"),
        ({"method": "rea", "strategy": "guided"}, "--surrogate none has no gradient"),
        (
            {"strategy": "bohb"},
            "--strategy bohb has its own model: choose --surrogate none, or",
        ),
        ({"method": "rea", "strategy": "uncond+sort"}, "uncond+sort needs a surrogate"),
        (
            {"method": "rea", "surrogate": "gp", "strategy": "random", "acq": "ei"},
            "--method rea has no effect with --surrogate gp, --strategy random and --acq ei",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together(settings, message):
    with pytest.raises(UserError) as caught:
        RunConfig(space="toy", **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_replacing_the_method_alone_is_refused():
    """The parts that a configuration has would win, in silence."""
    with pytest.raises(UserError, match="--method rea has no effect"):
        replace(RunConfig(), method="rea")
    assert replace(RunConfig(), method="guided") == RunConfig()


def test_every_other_pair_of_surrogate_and_strategy_goes_together():
    for surrogate in CHOICES["surrogate"]:
        for strategy in {*STRATEGIES} - {*GENERATING, "bohb"}:
            found = resolve(None, surrogate, strategy, None)
            assert found.acq == ("none" if surrogate == "none" else "ei")


def test_the_parts_that_are_shown():
    assert RunConfig().parts.shown == ("guided", "ei")
    assert RunConfig(method="rea").parts.shown == ("rea",)
    assert RunConfig(method="bananas").parts.shown == ("ensemble", "mutation", "its")


def test_only_a_surrogate_needs_a_pool():
    assert RunConfig(method="rea", batch_size=200).pool_size == 100
    with pytest.raises(UserError, match="--pool-size 100 is smaller than --batch-size 200"):
        RunConfig(batch_size=200)


def test_an_extra_that_is_not_installed(monkeypatch):
    def missing(space):
        raise UserError("this surrogate needs botorch: pip install 'diffusionnag-bo[baselines]'")

    monkeypatch.setattr(build, "SURROGATES", {"gp-plain": Surrogate(missing, "")})
    with pytest.raises(UserError, match=r"pip install 'diffusionnag-bo\[baselines\]'"):
        build_predictor("gp-plain", TOY)
    assert build_predictor("none", TOY) is None


# The command line.


QUICK = [
    "--space",
    "toy",
    "--score",
    "exact",
    "--executor",
    "local",
    "--n-init",
    "5",
    "--steps",
    "5",
    "--pool-size",
    "20",
]


NETWORK = [option for option in QUICK if option not in ("--score", "exact")]  # toy has none


def drawn_search(capsys, *options, settings=QUICK):
    """stdout of a command that must end well."""
    with pytest.raises(SystemExit) as exit_:
        run(app, [*settings, *options])
    captured = capsys.readouterr()
    assert (exit_.value.code, UNUSED.sub("", captured.err)) == (0, "")
    return captured.out


def search(capsys, *options, settings=QUICK):
    """The same, where nobody looks at the figures of the report."""
    with undrawn():
        return drawn_search(capsys, *options, settings=settings)


def refusal(capsys, *options, settings=QUICK):
    with pytest.raises(SystemExit) as exit_:
        run(app, [*settings, *options])
    captured = capsys.readouterr()
    assert (exit_.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert not list(Path.cwd().iterdir())
    return captured.err


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_extra if name in NEED_EXTRA else ()) for name in ON_TOY],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_method_completes(name, batch, capsys):
    sizes = ["--budget", "11", "--batch-size", str(batch), "--out", "run"]
    first = drawn_search(capsys, "--method", name, *sizes).splitlines()[0]
    shown = METHODS[name].parts.shown
    assert first == f"toy, toy, {', '.join(shown)}: in this process, generator on cpu"
    table = pd.read_parquet("run/trials.parquet")
    assert list(table.strategy) == ["initial"] * 5 + [METHODS[name].parts.strategy] * 6
    assert table.arch.is_unique
    assert table.predicted_mean[5:].isna().all() == (name in MODEL_FREE)
    assert Path("run/report.html").exists()


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {*GENERATING, "bohb"}))
def test_a_strategy_that_never_generates_needs_no_weights(strategy, capsys):
    """Its trials are those of any score; with a constraint it may have to generate."""
    sizes = ["--strategy", strategy, "--budget", "7"]
    search(capsys, *sizes, "--out", "exact")
    search(capsys, *sizes, "--out", "network", settings=NETWORK)
    exact, network = (pd.read_parquet(f"{out}/trials.parquet") for out in ("exact", "network"))
    assert list(exact.arch) == list(network.arch)
    constrained = RunConfig(strategy=strategy, constraint=("macs<=3e8",))
    assert constrained.generator("cpu").score == "network"


@pytest.mark.parametrize("strategy", GENERATING)
def test_a_strategy_that_generates_needs_weights(strategy, capsys):
    message = refusal(capsys, "--strategy", strategy, "--budget", "7", settings=NETWORK)
    assert "no trained weights ship for space 'toy'" in message


@pytest.mark.parametrize("name", MODEL_FREE)
def test_a_run_without_a_surrogate_that_is_continued(name, capsys):
    """All that a strategy remembers is in the observations."""
    settings = ["--method", name, "--batch-size", "2"]
    search(capsys, *settings, "--budget", "30", "--out", "at once")
    for budget in (6, 12, 13, 30):
        search(capsys, *settings, "--budget", str(budget), "--out", "in parts")
    once, parts = (pd.read_parquet(f"{out}/trials.parquet") for out in ("at once", "in parts"))
    assert list(once.arch) == list(parts.arch)


@pytest.mark.parametrize("name", MODEL_FREE)
def test_a_run_without_a_surrogate_may_exhaust_the_space(name, capsys):
    out = search(capsys, "--method", name, "--budget", "200", "--batch-size", "7", "--out", "run")
    assert "the space is exhausted after 144 trials\n" in out
    assert pd.read_parquet("run/trials.parquet").arch.is_unique


def test_the_default_directory_names_the_parts(capsys):
    search(capsys, "--method", "rea", "--budget", "5")
    search(capsys, "--method", "rea", "--budget", "5", "--batch-size", "2")
    search(capsys, "--method", "bananas", "--budget", "5")
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {"toy-rea-seed0", "toy-rea-batch2-seed0", "toy-ensemble-mutation-its-seed0"}


def test_a_method_and_its_parts_continue_each_other(capsys):
    search(capsys, "--method", "rea", "--budget", "6", "--out", "run")
    search(capsys, "--surrogate", "none", "--strategy", "rea", "--budget", "8", "--out", "run")
    assert len(pd.read_parquet("run/trials.parquet")) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method luck", "unknown method 'luck': choose from guided, random-search"),
        ("--surrogate luck", "unknown surrogate 'luck': choose from gp, gp-plain"),
        ("--surrogate ensemble", "--strategy guided needs the surrogate's gradient"),
        ("--method rea --strategy uncond+sort", "needs a surrogate"),
        (
            "--method bohb",
            "no accuracies after 12 epochs: choose --evaluator train, or a benchmark table",
        ),
    ],
)
def test_bad_methods(options, message, capsys):
    assert message in refusal(capsys, "--out", "run", *options.split())


@needs_extra
def test_a_missing_extra_is_found_before_anything_is_made(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "botorch", None)
    message = refusal(capsys, "--method", "gp-ucb", "--out", "run")
    assert "pip install 'diffusionnag-bo[baselines]'" in message


def test_help_says_what_each_choice_is(capsys):
    text = " ".join(search(capsys, "--help").replace("│", " ").split())
    for choices in CHOICES.values():
        for name, what in choices.items():
            assert f"{name}: {what}" in text
