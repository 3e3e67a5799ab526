"""What docs/new_search_space.md shows works as shown."""

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_spaces
import torch
from report_page import Page
from scipy.stats import chisquare

import nag.spaces
from nag.checkpoint import load_network
from nag.cli import run
from nag.generator import DiffusionGenerator, GeneratorConfig, Guidance
from nag.predictors.base import Observations
from nag.predictors.gp import GaussianProcess
from nag.properties import Property
from nag.spaces import ABSENT, SPACES, InvalidArchitectureError
from nag.spaces.base import encoding
from trainers.build import EVALUATORS, EvaluatorSettings
from trainers.constraints import PROPERTIES

torch.set_num_threads(1)

DOCS = Path(__file__).parent.parent / "docs"
DOC = (DOCS / "new_search_space.md").read_text()
(
    SPACE,
    STRUCTURE,
    SPACES_LINE,
    GUIDANCE,
    EVALUATOR,
    EVALUATORS_LINE,
    PROPERTIES_LINES,
    PLUGIN_LINES,
) = re.findall(r"^```python\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
(PLUGIN_PROJECT,) = re.findall(r"^```toml\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
COMMANDS = [shlex.split(line) for line in re.findall(r"^    (python -m .*)$", DOC, re.MULTILINE)]
CONTRACT = [
    test
    for name, test in inspect.getmembers(test_spaces, inspect.isfunction)
    if name.startswith("test_")
    and {"space"} <= {*inspect.signature(test).parameters} <= {"space", "rng"}
]


def import_block(name, source, patch):
    """The module whose file is a code block of the document."""
    module = types.ModuleType(name)
    patch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), vars(module))
    return module


QUICK = shlex.split("--budget 10 --n-init 6 --batch-size 2 --pool-size 16 --steps 10")
LOCAL = [*QUICK, "--executor", "local"]


@pytest.fixture(scope="module")
def space():
    """The space, registered with its evaluator as the document says."""
    with pytest.MonkeyPatch.context() as patch:
        space = import_block("nag.spaces.transformer", SPACE, patch).TRANSFORMER
        registry = dict(vars(nag.spaces))
        exec(SPACES_LINE, registry)
        assert registry["SPACES"] == {**SPACES, "transformer": space}
        patch.setitem(SPACES, "transformer", space)
        patch.setitem(test_spaces.SIZES, "transformer", 3 * (9**4 + 9**5 + 9**6))
        evaluator = dict(vars(import_block("trainers.evaluators.transformer", EVALUATOR, patch)))
        exec(f"ENTRIES = {{{EVALUATORS_LINE}}}", evaluator)
        patch.setitem(EVALUATORS, "transformer", evaluator["ENTRIES"]["transformer"])
        names = {**vars(sys.modules["nag.spaces.transformer"]), "np": np, "Property": Property}
        exec(f"ENTRIES = {{{PROPERTIES_LINES}}}", names)
        patch.setitem(PROPERTIES, "transformer", names["ENTRIES"]["transformer"])
        yield space


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def shown(module, *words):
    """The shortest command of the document that runs a module with these words, from there on."""
    return min((c[2:] for c in COMMANDS if c[2] == module and {*words} <= {*c}), key=len)


def run_here(command, *more):
    """Run a command of the document in this process, with more options; it must end well."""
    app = importlib.import_module(command[0]).app
    with pytest.raises(SystemExit) as exit_:
        run(app, [*map(str, command[1:]), *map(str, more)])
    assert exit_.value.code == 0


# The space.


@pytest.mark.parametrize("test", CONTRACT, ids=lambda test: test.__name__)
def test_the_contract_of_search_spaces(space, rng, test):
    test(
        **{name: {"space": space, "rng": rng}[name] for name in inspect.signature(test).parameters}
    )


def test_the_contract_is_there():
    assert len(CONTRACT) >= 10


def test_what_is_stated_of_the_space(space):
    text = "192/4-2,4-3,6-4,2-4"
    assert f"{space.size:,} networks" in DOC
    assert f"one file of {len(SPACE.splitlines())} lines" in " ".join(DOC.split())
    assert f"`{text}`" in DOC
    assert f"`{json.dumps(space.to_config(space.from_str(text)))}`" in DOC


def test_the_structure_that_may_be_added(space, rng):
    names = vars(sys.modules["nag.spaces.transformer"]).copy()
    exec(STRUCTURE, names)
    with_structure = replace(space, structure=(encoding, names["_structure"]))
    test_spaces.test_features_are_smooth_and_tell_architectures_apart(with_structure, rng)
    x = space.encode([space.from_str("192/4-2,4-3,6-4,2-4")])
    _, numbers = with_structure.features(x)
    assert numbers[0].tolist() == [4, 2, 4, 3, 6, 4, 2, 4, 0, 0, 0, 0]
    archs = tuple(space.sample(20, rng))
    predictor = GaussianProcess(with_structure)
    assert predictor.fit(Observations(archs, rng.standard_normal(20)), rng).predict(archs)


def test_only_encodings_are_valid(space, rng):
    """Encodings of which up to three entries were set at random, checked row by row."""
    x = space.encode(space.sample(3000, rng))
    for _ in range(3):
        node, op = (torch.from_numpy(rng.integers(n, size=len(x))) for n in space.shape)
        x[torch.arange(len(x)), node, op] = torch.from_numpy(rng.integers(2, size=len(x))).float()
    valid = [
        row.sum(1).max() <= 1
        and row[0, :3].any()
        and not row[1:, :3].any()
        and (depth := int(row[1:, 3:].sum())) in (4, 5, 6)
        and row[1 : 1 + depth, 3:].any(1).all()
        for row in x.numpy()
    ]
    assert 0.1 < np.mean(valid) < 0.9
    codes = space.check(x)
    assert (codes == 0).tolist() == valid
    assert {0, *space.errors} == {*codes.tolist()}


def test_any_text_is_read_or_refused(space, rng):
    texts = ["", "/", "192", "192/4-2", "4-2,4-2/4-2,4-2,4-2", "192/" + ",".join(["4-2"] * 7)]
    for arch in space.sample(300, rng):
        text = list(space.to_str(arch))
        text[rng.integers(len(text))] = str(rng.choice([*"0123469-,/ ", ""]))
        texts.append("".join(text))
    refused = 0
    for text in texts:
        try:
            assert space.to_str(space.from_str(text)) == text.strip()
        except InvalidArchitectureError:
            refused += 1
    assert 6 <= refused < len(texts)


# What follows.


def test_samples_of_the_exact_score_are_valid_and_uniform(space, capsys):
    run_here(shown("nag.sample", "exact"), "--threads", 1)
    found = json.loads(capsys.readouterr().out)
    assert found["generated"] == 1000
    assert found["validity"] >= 0.99
    lines = Path("samples.txt").read_text().splitlines()
    ops = np.array([space.from_str(line).ops for line in lines if line != "INVALID"])
    p_values = [chisquare(np.unique((ops[:, 1:] != ABSENT).sum(1), return_counts=True)[1]).pvalue]
    for node, column in enumerate(ops.T):
        drawn, counts = np.unique(column[column != ABSENT], return_counts=True)
        assert len(drawn) == (9 if node else 3)
        p_values.append(chisquare(counts).pvalue)
    assert min(p_values) > 1e-3 / len(p_values)


def test_a_score_network_trains_and_samples(space, capsys):
    train = shown("nag.train")
    run_here(train, "--steps", 4, "--batch-size", 16, "--device", "cpu", "--threads", 1)
    assert load_network(Path("transformer.safetensors"), space).num_parameters() > 0
    sample = shown("nag.sample", "--weights")
    capsys.readouterr()
    run_here(sample, "--sampler", "ancestral", "--steps", 5, "--device", "cpu")
    assert json.loads(capsys.readouterr().out)["generated"] == 1000


def test_guidance_raises_a_synthetic_additive_value(space, rng):
    """A Gaussian process fitted on 30 values, in standard deviations over the space."""
    reward = rng.standard_normal(space.shape)

    def value(archs):
        return (space.encode(archs).numpy() * reward).sum((1, 2))

    uniform = value(space.sample(2000, rng))
    archs = tuple(space.sample(30, rng))
    observations = Observations(archs, (value(archs) - uniform.mean()) / uniform.std())
    predictor = GaussianProcess(space).fit(observations, rng)
    generator = DiffusionGenerator(GeneratorConfig("transformer", "exact", steps=20, device="cpu"))
    guidance = Guidance(predictor, observations)
    plain, steered = (generator.generate(128, seed=0, guidance=g) for g in (None, guidance))
    assert min(plain.validity, steered.validity) >= 0.99
    gain = (value(steered.valid).mean() - value(plain.valid).mean()) / uniform.std()
    assert gain > 0.8


def test_guidance_as_shown(space):
    names = {}
    exec(GUIDANCE, names)
    archs, evaluator = names["samples"].valid, names["evaluator"]
    assert len(archs) >= 99
    found = [evaluator.evaluate(arch, seed=0).value for arch in archs]
    assert np.mean(found) > np.mean(names["values"])


@pytest.mark.parametrize("word", ["exact", "rea"])
def test_a_search(space, word, capsys):
    run_here(shown("orchestrator.run_bo", word), *LOCAL, "--out", "run")
    trials = pd.read_parquet("run/trials.parquet")
    assert (trials["status"] == "ok").all()
    assert len({*trials["arch"]}) == 10
    assert (trials["params"] > 0).all()
    assert "<svg" in Path("run/report.html").read_text()


def test_a_value_that_is_no_accuracy_is_shown_as_it_is(space, capsys):
    run_here(shown("orchestrator.run_bo", "rea"), *LOCAL, "--out", "run")
    said = capsys.readouterr().out
    trials = pd.read_parquet("run/trials.parquet")
    evaluator = EVALUATORS["transformer"][1](space, EvaluatorSettings())
    values = [evaluator.evaluate(space.from_str(text), seed=0).value for text in trials["arch"]]
    assert trials["value"].tolist() == values
    best = f"{max(values):.6g}"
    assert f"value {best}, params " in said
    assert f"best {best}" in said
    html = Path("run/report.html").read_text()
    page = Page(html)
    assert best in page.sections["headline"]
    assert "%" not in page.sections["headline"] + page.sections["progress"]
    assert not re.search(r"(?i)value, %|accuracy", html)
    assert "the value of the evaluator transformer" in page.sections["checklist"]
    run_here(["orchestrator.status", "run"])
    said = capsys.readouterr().out
    assert f"{best}, trial" in said
    assert "%" not in said
    run_here(["orchestrator.report", "run", "--out", "compared", "--target", max(values)])
    html = Path("compared/report.html").read_text()
    assert not re.search(r"(?i)value[^.]{0,20}, %|@\d+, %|percent|points|accuracy", html)
    assert f"to reach {best} (given)" in html
    summary = pd.read_csv("compared/summary.csv").set_index("quantity")
    assert summary.loc["best value", "mean"] == pytest.approx(max(values), rel=1e-6)
    assert summary.loc["evaluations to target", "median"] == 1 + np.argmax(values)


def test_a_value_that_is_an_accuracy_is_shown_in_percent(space, monkeypatch, capsys):
    monkeypatch.setattr("trainers.build.OF_ACCURACIES", ("transformer",))
    run_here(shown("orchestrator.run_bo", "rea"), *LOCAL, "--out", "run")
    best = pd.read_parquet("run/trials.parquet")["value"].max()
    assert f"value {best:.3f} %, params" in capsys.readouterr().out
    assert "value, %" in Path("run/report.html").read_text()


def test_a_constraint(space, capsys):
    run_here(shown("orchestrator.run_bo", "heads<=16"), *LOCAL, "--out", "run")
    trials = pd.read_parquet("run/trials.parquet")
    numbers = [map(int, re.findall(r"(\d)-", text)) for text in trials["arch"]]
    assert trials["heads"].tolist() == [sum(found) for found in numbers]
    assert trials["heads"].max() <= 16
    page = Page(Path("run/report.html").read_text())
    assert "Limits: heads ≤ 16." in page.sections["pareto"]
    best = trials.loc[trials["value"].idxmax()]
    assert f"heads{best['heads']:g}" in "".join(page.sections["headline"].split())
    assert f", heads {best['heads']:g}" in capsys.readouterr().out


def test_a_constraint_on_what_is_not_known_of_the_space(space, capsys):
    command = [*shown("orchestrator.run_bo", "heads<=16")[:-1], "macs<=3e8"]
    with pytest.raises(SystemExit) as exit_:
        run(importlib.import_module(command[0]).app, [*command[1:], *LOCAL, "--out", "run"])
    assert exit_.value.code == 2
    said = "unknown quantity 'macs' of the space transformer: choose from heads\n"
    assert said in capsys.readouterr().err


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The space and its evaluator as an installed package of somebody else."""
    project = tomllib.loads(PLUGIN_PROJECT)
    ((group, points),) = project["project"]["entry-points"].items()
    (module,) = project["tool"]["setuptools"]["py-modules"]
    assert [*points.values()] == [module]
    package = tmp_path / "site"
    evaluator = EVALUATOR.replace("from nag.spaces.transformer import LAYERS, WIDTHS\n", "")
    package.mkdir()
    (package / f"{module}.py").write_text(SPACE + evaluator + PLUGIN_LINES)
    info = package / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformer-space\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name in points]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), str(DOCS.parent)]))


def of_the_plugin(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
def test_outside_the_project(plugin):
    search = [*shown("orchestrator.run_bo", "exact"), *QUICK, "--out", "run"]
    assert "\n[10/10] trial " in of_the_plugin("-m", *search, "--no-dashboard")
    assert "10 of 10 evaluations" in of_the_plugin("-m", "orchestrator.status", "run")
    of_the_plugin("-m", "orchestrator.report", "run", "--out", "compared")
    assert "transformer" in Path("compared/report.html").read_text()


# The commands.


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[2:]))
def test_modules_and_options_exist(space, command):
    module = importlib.import_module(command[2])
    if command[2] != "pytest":
        module.app.parse_args(command[3:], exit_on_error=False, print_error=False)
