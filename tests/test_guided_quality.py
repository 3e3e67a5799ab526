"""The command `python -m orchestrator.guided_quality`, and the densities it draws.

Tables are synthetic: the accuracy of a cell is a sum over its edges.
"""

import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from nag.cli import run
from nag.generator import DiffusionGenerator
from nag.spaces.nasbench201 import CELL_OPERATORS, NASBENCH201, OPERATORS
from nag.spaces.toy import TOY
from orchestrator.guided_quality import GROUPS, PUBLISHED, Benchmark, app
from orchestrator.reporting.figures import draw_densities
from trainers.evaluators.toy import ToyEvaluator

COMMAND = "python -m orchestrator.guided_quality"
NUMBERS = {"--labels": "20", "--seeds": 2, "--num": 60, "--steps": 10, "--score": "exact"}
TINY = {"--labels": "15", "--seeds": 1, "--num": 20, "--steps": 5, "--score": "exact"}
TOYS = TINY | {"--space": "toy", "--out": "results"}

# Synthetic, in percent: what an operator is worth on the first edge; it rises from edge to edge.
WORTH = {
    "none": 0.0,
    "skip_connect": 3.5,
    "avg_pool_3x3": 8.0,
    "nor_conv_1x1": 7.0,
    "nor_conv_3x3": 10.0,
}


def on_validation(cell):
    operators = re.findall(r"\|?(\w+)~", cell)
    return 20 + sum(WORTH[op] * (0.8 + 0.15 * edge) for edge, op in enumerate(operators))


def on_test(cell):
    return on_validation(cell) - 2.5 + cell.count("skip_connect") / 4


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory):
    """A synthetic table of all 15,625 cells, and its path."""
    inner = itertools.product(map(OPERATORS.index, CELL_OPERATORS), repeat=6)
    cells = [NASBENCH201.render((0, *ops, 1)) for ops in inner]
    frame = pd.DataFrame({"arch": cells})
    frame["c10_valid_200"] = frame.arch.map(on_validation)
    frame["c10_test_200"] = frame.arch.map(on_test)
    frame["c100_valid_200"] = frame.c10_valid_200 / 2
    frame["c100_test_200"] = frame.c10_test_200 / 2
    path = tmp_path_factory.mktemp("table") / "synthetic.parquet"
    frame.to_parquet(path)
    return frame, path


def arguments(settings, **changes):
    settings = settings | {f"--{name}": value for name, value in changes.items()}
    return [str(part) for pair in settings.items() if pair[1] is not None for part in pair]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_here(capsys, settings, **changes):
    """Exit code, stdout and stderr of a command run in this process."""
    with pytest.raises(SystemExit) as exit_:
        run(app, arguments(settings, **changes))
    return exit_.value.code, *capsys.readouterr()


def measure(capsys, settings, **changes):
    """The CSV, the Markdown and the SVG of a command that must end well."""
    code, out, _ = run_here(capsys, settings, **changes)
    assert code == 0
    folder = Path((settings | {f"--{k}": v for k, v in changes.items()})["--out"])
    files = {file.suffix: file for file in folder.iterdir() if file.is_file()}
    assert files.keys() == {".csv", ".md", ".svg"}
    assert files[".md"].read_text() == out
    return pd.read_csv(files[".csv"]), out, files[".svg"].read_text()


def refusal(capsys, settings, **changes):
    """The one line with which a command is refused; not a file is made."""
    before = set(Path.cwd().rglob("*"))
    code, out, err = run_here(capsys, settings, **changes)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert set(Path.cwd().rglob("*")) == before
    return err


def tables(markdown):
    """Every table of a Markdown text: its rows as lists of cells, the header first."""
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in blocks
    ]


# NAS-Bench-201 on a synthetic table


@pytest.fixture(scope="module")
def results(accuracies, tmp_path_factory):
    """Folder, arguments and stdout of the whole command on the synthetic table."""
    out = tmp_path_factory.mktemp("results") / "new" / "folder"
    given = arguments(NUMBERS | {"--table": accuracies[1], "--out": out})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["guided_quality.py", *given])
        with pytest.raises(SystemExit) as exit_:
            run(app, given)
    assert exit_.value.code == 0
    return out, given


@pytest.fixture(scope="module")
def rows(results):
    return pd.read_csv(results[0] / "guided-quality-nasbench201.csv")


@pytest.fixture(scope="module")
def markdown(results):
    return (results[0] / "guided-quality-nasbench201.md").read_text()


def test_every_group_has_a_row_per_seed(rows):
    assert [tuple(row) for row in rows[["labels", "seed", "group"]].itertuples(index=False)] == [
        (20, seed, group) for seed in (0, 1) for group in GROUPS
    ]
    assert ((rows["min"] <= rows["mean"]) & (rows["mean"] <= rows["max"])).all()
    assert (rows.validity == 1).all()
    assert not rows.isna().any(axis=None)


def test_guidance_beats_sorting_beats_chance(rows):
    """In every seed: with 20 labels a predictor of sums knows the way, and 600 samples do not."""
    for _, part in rows.groupby("seed"):
        mean = part.set_index("group")["mean"]
        for name in ("guided", "guided, noise-aware", "guided+sort, distinct"):
            assert mean[name] > mean["uncond+sort"] + 2
            assert mean[name] > mean["uncond+sort, distinct"] + 2
        assert mean["uncond+sort"] > mean["random"] + 5
        assert mean["uncond+sort"] >= mean["uncond+sort, distinct"] > mean["unconditional"] + 5
        assert abs(mean["unconditional"] - mean["random"]) < 6


def test_what_is_reported_is_the_test_accuracy(rows):
    for _, row in rows[rows.group == "random"].iterrows():
        drawn = NASBENCH201.sample(60, np.random.default_rng([row.seed, 1]))
        expected = [on_test(NASBENCH201.to_str(arch)) for arch in drawn]
        found = row[["max", "mean", "min"]].astype(float)
        np.testing.assert_allclose(found, [f(expected) for f in (np.max, np.mean, np.min)], 1e-4)


def test_effort_and_repeats(rows):
    """Ten samples are generated per one that is kept by sorting, at a call of the score a step."""
    of = rows.groupby("group").mean(numeric_only=True)
    assert of.score_evaluations.to_dict() == {
        "random": 0,
        "unconditional": 100,
        "uncond+sort": 100,
        "guided": 10,
        "guided, noise-aware": 10,
        "uncond+sort, distinct": 100,
        "guided+sort, distinct": 100,
    }
    assert of.uniqueness["uncond+sort, distinct"] == of.uniqueness["guided+sort, distinct"] == 1
    assert of.uniqueness["guided"] < of.uniqueness["unconditional"]
    assert of.seconds["random"] == 0
    assert (of.seconds.drop("random") > 0).all()


def test_the_table_in_markdown(results, rows, markdown):
    """It says how it was made, and what the CSV says."""
    assert markdown.splitlines()[0] == f"`{COMMAND} {' '.join(results[1])}`"
    assert "60 architectures per group; means over 2 seeds, in percent" in markdown
    header, _, oracle, *groups = tables(markdown)[0]
    assert header[:5] == ["labels", "group", "max", "mean", "min"]
    assert all(len(row) == len(header) for row in (oracle, *groups))
    assert [row[:2] for row in groups] == [["20", group] for group in GROUPS]
    for row in groups:
        of = rows[rows.group == row[1]]
        assert float(row[2]) == pytest.approx(of["max"].mean(), abs=0.006)
        mean, std = map(float, row[3].split(" ± "))
        assert mean == pytest.approx(of["mean"].mean(), abs=0.006)
        assert std == pytest.approx(of["mean"].std(), abs=0.006)
        assert float(row[4]) == pytest.approx(of["min"].min(), abs=0.006)
        assert float(row[5]) == 100
        assert float(row[6]) == pytest.approx(100 * of.uniqueness.mean(), abs=0.06)
        assert float(row[7]) == of.score_evaluations.mean()
    p = {row[1]: row[8] for row in groups}
    assert {name for name, text in p.items() if text != "–"} == {
        name for name in GROUPS if name.startswith("guided")
    }
    assert p["guided"] == "0.250"  # the least that two seeds can tell


def test_the_best_of_the_space(accuracies, markdown):
    best = accuracies[0].c10_test_200.nlargest(60)
    expected = [f"{x:.2f}" for x in (best.max(), best.mean(), best.min())]
    assert tables(markdown)[0][2] == (
        ["–", "best 60 of the space", *expected, "–", "100.0", "–", "–"]
    )


def test_published_numbers_stand_in_a_table_of_their_own(markdown):
    measured, published = tables(markdown)
    assert published[0] == ["published (paper)", "max / mean / min"]
    assert dict(published[2:]) == PUBLISHED["cifar10"]
    assert ["conditional", "94.37 / 93.13 / 86.44"] in published
    cells = {cell for row in measured for cell in row}
    assert not cells & {cell for row in published for cell in row} - {"---", "random"}


def test_the_figure_stands_by_itself(results):
    text = (results[0] / "guided-quality-nasbench201.svg").read_text()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text
    assert "nan" not in text.lower()
    for name in ("best 60 of the space", *GROUPS[:5]):
        assert f">{name}<" in text


def test_another_data_set_has_its_own_files_and_published_numbers(accuracies, tmp_path, capsys):
    settings = TINY | {"--table": accuracies[1], "--out": "results"}
    rows, markdown, _ = measure(capsys, settings, dataset="cifar100")
    assert {file.stem for file in Path("results").iterdir() if file.is_file()} == {
        "guided-quality-nasbench201-cifar100"
    }
    assert rows["max"].max() <= accuracies[0].c100_test_200.max() + 1e-3
    assert tables(markdown)[0][2][2] == f"{accuracies[0].c100_test_200.max():.2f}"
    assert dict(tables(markdown)[1][2:]) == PUBLISHED["cifar100"]
    message = refusal(capsys, settings, dataset="imagenet16-120")
    assert "synthetic.parquet has no column in16_valid_200" in message


# Other spaces


def test_mobilenetv3_needs_no_table(capsys):
    """The trained network that comes with the package, and the embedded surrogate."""
    settings = TINY | {"--space": "mobilenetv3", "--score": None, "--out": "results"}
    rows, markdown, svg = measure(capsys, settings)
    mean = rows.set_index("group")["mean"]
    assert list(mean.index) == list(GROUPS)
    assert mean["guided"] > mean["uncond+sort"] > mean["unconditional"]
    assert rows["max"].max() < 80
    assert len(tables(markdown)) == 1
    assert "best" not in markdown
    ElementTree.fromstring(svg)


def test_the_toy_space_is_listed_as_a_whole(capsys):
    _, markdown, _ = measure(capsys, TOYS)
    best = 100 * ToyEvaluator().evaluate(TOY.from_str("ca/bc"), seed=0).value
    assert tables(markdown)[0][2][1:3] == ["best 20 of the space", f"{best:.2f}"]
    assert len(tables(markdown)) == 1


def test_the_same_command_measures_the_same(capsys):
    first, again, other = (
        measure(capsys, TOYS, **changes)[0].drop(columns="seconds")
        for changes in ({"out": "a"}, {"out": "b"}, {"out": "c", "seeds": 2})
    )
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, other[other.seed == 0])
    assert not np.allclose(other[other.seed == 1]["mean"], first["mean"])


def test_an_interrupted_command_goes_on_where_it_was(capsys, monkeypatch):
    """Groups that were measured are read, those of other settings are not."""
    settings = TOYS | {"--seeds": 2, "--labels": "15,20"}
    whole, _, _ = measure(capsys, settings, out="undisturbed")
    measured = []

    def groups(bench, labels, seed, unguided):
        measured.append((labels, seed))
        if measured[-1] == (15, 1) and len(measured) == 3:
            raise KeyboardInterrupt
        return real(bench, labels, seed, unguided)

    real = Benchmark.groups
    monkeypatch.setattr(Benchmark, "groups", groups)
    code, *_ = run_here(capsys, settings)
    assert code == 130
    assert not list(Path("results").glob("*.csv"))
    rows, _, _ = measure(capsys, settings)
    assert measured == [(15, 0), (20, 0), (15, 1), (15, 1), (20, 1)]
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), whole.drop(columns="seconds"))
    pd.testing.assert_frame_equal(rows, measure(capsys, settings)[0])
    measure(capsys, settings, labels="15", progress=0.5)
    assert measured[5:] == [(15, 0), (15, 1)]
    monkeypatch.setattr("orchestrator.guided_quality.code_digest", lambda *_: "another version")
    measure(capsys, settings, labels="15")
    assert measured[7:] == [(15, 0), (15, 1)]


def test_several_numbers_of_labels(capsys):
    """In any order, each once; more labels are more rows and change none of the others."""
    rows, markdown, _ = measure(capsys, TOYS, labels="30,5,30")
    assert rows.labels.to_list() == [30] * 7 + [5] * 7
    assert sorted(row[0] for row in tables(markdown)[0][3:]) == ["30"] * 7 + ["5"] * 7
    alone, _, _ = measure(capsys, TOYS, labels="5", out="alone")
    of = rows[rows.labels == 5].reset_index(drop=True)
    pd.testing.assert_frame_equal(of.drop(columns="seconds"), alone.drop(columns="seconds"))


def test_more_progress_is_stronger_guidance(capsys):
    means = []
    for progress in (0.05, 0.5, 0.95):
        rows, _, _ = measure(capsys, TOYS, progress=progress, num=60, out=str(progress))
        means.append(rows.set_index("group")["mean"])
    for name in ("guided", "guided, noise-aware"):
        assert means[0][name] < means[1][name] < means[2][name]
    for name in ("random", "unconditional", "uncond+sort"):
        assert means[0][name] == means[2][name]


# Bad input: exit code 2, one line, and nothing is written


@pytest.mark.parametrize("labels", ["1", "0", "-5", "20,1", "many", "", "20,", "2.5", "20;30"])
def test_bad_numbers_of_labels(labels, capsys):
    assert "--labels must be at least 2" in refusal(capsys, TOYS, labels=labels)


@pytest.mark.parametrize("progress", ["0", "1", "1.5", "-0.1", "nan", "inf"])
def test_progress_is_within_0_and_1(progress, capsys):
    assert "progress must satisfy 0 < low <= high < 1" in refusal(capsys, TOYS, progress=progress)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "nowhere"}, "unknown space 'nowhere'"),
        ({"space": "nasbench201"}, "the table evaluator needs --table"),
        ({"space": "nasbench201", "table": "none.parquet"}, "no such table: none.parquet"),
        ({"table": "none.parquet"}, "the toy evaluator takes no --table"),
        ({"space": "mobilenetv3", "dataset": "cifar10"}, "has no data set 'cifar10'"),
        ({"seeds": 0}, "--seeds, --num, --steps, --threads at least 1"),
        ({"num": 0}, "--seeds, --num, --steps, --threads at least 1"),
        ({"steps": 0}, "--seeds, --num, --steps, --threads at least 1"),
        ({"threads": -1}, "--seeds, --num, --steps, --threads at least 1"),
        ({"num": "2.5"}, "2.5"),
        ({"progress": "much"}, "much"),
        ({"score": "luck"}, '"luck" for --score'),
        ({"score": "network"}, "no trained weights ship for space 'toy'"),
        ({"score": "network", "weights": "W.safetensors"}, "no such file: W.safetensors"),
        ({"device": "luck"}, "device 'luck' is not available"),
        ({"colour": "red"}, "--colour"),
        ({"out": None}, "--out"),
    ],
    ids=str,
)
def test_bad_settings(changes, message, capsys):
    assert message in refusal(capsys, TOYS, **changes)


def test_more_labels_than_the_space_holds(capsys):
    code, out, err = run_here(capsys, TOYS, labels="145")
    assert (code, out) == (2, "")
    assert err == "error: found fewer than 145 distinct architectures in toy\n"


def test_too_few_steps_for_a_valid_sample(capsys, monkeypatch):
    """Synthetic: no sample is valid."""
    generate = DiffusionGenerator.generate

    def invalid(self, *given, **more):
        samples = generate(self, *given, **more)
        return replace(samples, archs=(None,) * len(samples.archs))

    monkeypatch.setattr(DiffusionGenerator, "generate", invalid)
    code, out, err = run_here(capsys, TOYS)
    assert (code, out) == (2, "")
    assert err == "error: none of 200 samples is valid: raise --steps\n"


def test_a_folder_that_is_a_file(capsys):
    Path("results").write_text("years of work")
    assert "results" in refusal(capsys, TOYS)
    assert Path("results").read_text() == "years of work"


# Densities


def curves(svg):
    """The points of every curve and line that a legend could name, as (n, 2)."""
    found = re.findall(r'<path d="([^"]*)" clip-path', svg)
    return [np.array(re.findall(r"[ML] ?(\S+) (\S+)", path), dtype=float) for path in found]


def test_densities_stand_where_the_accuracies_are(rng):
    groups = {"low": rng.normal(0.5, 0.01, 500), "high": rng.normal(0.8, 0.01, 500)}
    low, high = curves(draw_densities(groups))
    assert low[low[:, 1].argmin(), 0] < high[high[:, 1].argmin(), 0]  # y falls upwards


@pytest.mark.parametrize(
    "groups",
    [
        {"constant": [0.9] * 5},
        {"constant": [0.9] * 5, "another": [0.8] * 5},
        {"the same": [0.9] * 5, "once more": [0.9] * 3},
        {"one": [0.5], "another": [0.6]},
        {"constant": [0.9] * 5, "varied": [0.5, 0.6, 0.9]},
        {"varied": [0.5, 0.6], "most are the best": [0.9] * 100},
        {"to the last bit": [0.5, 0.5 + 2e-16, 0.5], "varied": [0.4, 0.6]},
    ],
    ids=lambda groups: ", ".join(groups),
)
@pytest.mark.filterwarnings("error")
def test_densities_of_constants(groups):
    svg = draw_densities({name: np.array(values) for name, values in groups.items()})
    ElementTree.fromstring(svg)
    assert "nan" not in svg.lower()
    for name in groups:
        assert f">{name}<" in svg
    assert len(curves(svg)) == len(groups)
    assert all(np.isfinite(curve).all() for curve in curves(svg))
