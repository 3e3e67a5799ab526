"""The command `python -m orchestrator.propose`, on synthetic values and on those of real runs."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm
from toy_law import ARCHS

from nag.sample import app as sample_app
from nag.spaces import SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.propose import COLUMNS, app
from orchestrator.run_bo import app as search_app
from trainers.cost import cost_property
from trainers.evaluate import app as evaluate_app
from trainers.evaluators.surrogate import SurrogateEvaluator
from trainers.evaluators.toy import ToyEvaluator
from trainers.rows import write_rows

ROOT = Path(__file__).parent.parent
QUICK = {
    "--values": "values.parquet",
    "--out": "next.parquet",
    "--space": "toy",
    "--score": "exact",
    "--steps": 5,
    "--pool-size": 20,
    "--batch-size": 8,
}
# All of the pool is written, so that what is written tells what was generated.
MOBILE = QUICK | {"--space": "mobilenetv3", "--pool-size": 15, "--batch-size": 15, "--steps": 10}

run_here, refusal = partial(commands.run_here, app), partial(commands.refusal, app)


@pytest.fixture(autouse=True)
def _values(tmp_path, monkeypatch):
    """An empty working directory, but for the values of 29 toy architectures."""
    monkeypatch.chdir(tmp_path)
    write_values(TOY, ARCHS[::5], [toy_value(arch) for arch in ARCHS[::5]])


def toy_value(arch):
    """Synthetic, in percent."""
    return 100 * ToyEvaluator().evaluate(arch, seed=0).value


def write_values(space, archs, values, path="values.parquet"):
    """What trainers.evaluate writes, as far as it is read."""
    rows = [
        {"arch": space.to_str(arch), "value": value}
        for arch, value in zip(archs, values, strict=True)
    ]
    write_rows(rows, ("arch", "value"), Path(path))


@pytest.fixture
def mobile_values():
    """The surrogate's estimates, in percent, of 40 random networks."""
    archs = MOBILENETV3.sample(40, np.random.default_rng(0))
    values = 100 * SurrogateEvaluator().predict(archs)
    write_values(MOBILENETV3, archs, values)
    return values


def propose(capsys, settings=QUICK, **changes):
    """The table and the statistics of a command that must end well."""
    code, out, err = run_here(capsys, settings, **changes)
    assert (code, err) == (0, "")
    return pd.read_parquet(changes.get("out", "next.parquet")), json.loads(out)


# What is written


def test_the_table_of_proposals(capsys):
    table, _ = propose(capsys)
    assert tuple(table.columns) == COLUMNS == ("arch", "predicted_mean", "predicted_std")
    assert [str(field.type) for field in pq.read_schema("next.parquet")] == [
        "string",
        "double",
        "double",
    ]
    assert len(table) == 8
    assert table.arch.is_unique
    known = set(pd.read_parquet("values.parquet").arch)
    assert not known & set(table.arch)
    assert {file.name for file in Path().iterdir()} == {"values.parquet", "next.parquet"}


def test_predictions_are_percent(capsys):
    table, _ = propose(capsys)
    truth = np.array([toy_value(TOY.from_str(arch)) for arch in table.arch])
    assert table.predicted_mean.between(30, 100).all()
    assert table.predicted_std.between(0.1, 20).all()
    assert np.abs(table.predicted_mean - truth).mean() < 8
    assert (np.abs(table.predicted_mean - truth) < 4 * table.predicted_std).all()


def test_values_in_another_unit_change_the_predictions_alone(capsys):
    """Nothing is assumed of values but that the larger is the better."""
    table, _ = propose(capsys)
    frame = pd.read_parquet("values.parquet")
    frame.assign(value=frame.value / 10 - 3).to_parquet("values.parquet")
    scaled, _ = propose(capsys, out="scaled.parquet")
    assert set(scaled.arch) == set(table.arch)
    merged = table.merge(scaled, on="arch")
    np.testing.assert_allclose(
        merged.predicted_mean_y, merged.predicted_mean_x / 10 - 3, rtol=0, atol=1e-2
    )
    np.testing.assert_allclose(merged.predicted_std_y, merged.predicted_std_x / 10, rtol=1e-2)


def test_the_most_promising_comes_first(capsys):
    """By expected improvement, computed here from what is written."""
    table, _ = propose(capsys, batch_size=20)
    best = pd.read_parquet("values.parquet").value.max()
    gain, std = table.predicted_mean - best, table.predicted_std
    expected = gain * norm.cdf(gain / std) + std * norm.pdf(gain / std)
    assert expected.argmax() == 0
    assert expected.iloc[:5].mean() > expected.iloc[-5:].mean()


def test_proposals_are_better_than_what_was_known(capsys):
    table, _ = propose(capsys)
    truth = [toy_value(TOY.from_str(arch)) for arch in table.arch]
    assert np.mean(truth) > pd.read_parquet("values.parquet").value.mean() + 8


def test_the_statistics(capsys):
    _, found = propose(capsys)
    assert (found["observations"], found["proposed"]) == (29, 8)
    assert 8 <= found["pool"] <= 20
    assert found["generated"] % 20 == 0
    assert found["validity"] == 1
    assert found["seconds"].keys() == {"fit", "propose", "select", "all"}
    parts = sum(found["seconds"][phase] for phase in ("fit", "propose", "select"))
    assert 0 < parts <= found["seconds"]["all"] + 0.002


def test_rows_are_in_no_order_so_none_of_them_is_a_failure(capsys):
    """run_bo would mutate the best, found long before the last."""
    archs = tuple(ARCHS[:29])
    write_values(TOY, archs, np.linspace(90, 60, len(archs)))
    _, found = propose(capsys, batch_size=1)
    assert found["generated"] > 0
    assert "near" not in found
    again = propose(capsys, batch_size=1, strategy="guided-gen", out="again.parquet")
    assert again[0].equals(pd.read_parquet("next.parquet"))


def test_equal_seeds_give_equal_files(capsys):
    for name, seed in (("a.parquet", 3), ("b.parquet", 3), ("c.parquet", 4)):
        propose(capsys, seed=seed, out=name)
    first, again, other = (Path(f"{name}.parquet").read_bytes() for name in "abc")
    assert first == again != other


def test_rows_without_a_value_are_skipped(capsys):
    """Whatever they hold: a failed evaluation has no value."""
    propose(capsys, out="expected.parquet")
    rows = pd.read_parquet("values.parquet").to_dict("records")
    nothing = (("a", None), ("no such", np.nan), (None, np.inf), ("-b/c-/", -1e200))
    failed = [{"arch": arch, "value": value} for arch, value in nothing]
    mixed = failed[:2] + rows[:7] + failed[2:] + rows[7:]
    write_rows(mixed, ("arch", "value"), Path("values.parquet"))
    _, found = propose(capsys)
    assert found["observations"] == len(rows)
    assert Path("next.parquet").read_bytes() == Path("expected.parquet").read_bytes()


def test_what_has_failed_is_not_proposed_again(capsys):
    first, _ = propose(capsys)
    rows = pd.read_parquet("values.parquet").to_dict("records")
    failed = [{"arch": arch, "value": None} for arch in first.arch]
    write_rows(rows + failed, ("arch", "value"), Path("values.parquet"))
    second, found = propose(capsys, out="second.parquet")
    assert found["observations"] == len(rows)
    assert not set(first.arch) & set(second.arch)


def test_what_is_left_of_a_space_may_be_little(capsys):
    left = {TOY.to_str(arch) for arch in ARCHS[:3]}
    write_values(TOY, ARCHS[3:], [toy_value(arch) for arch in ARCHS[3:]])
    table, found = propose(capsys)
    assert set(table.arch) == left
    assert found["proposed"] == 3
    write_values(TOY, ARCHS, [toy_value(arch) for arch in ARCHS])
    table, found = propose(capsys, out="nothing.parquet")
    assert (len(table), found["proposed"]) == (0, 0)
    assert tuple(table.columns) == COLUMNS


@pytest.mark.parametrize(
    "changes",
    [
        {"acq": "ucb"},
        {"strategy": "uncond+sort"},
        {"strategy": "mutation"},
        {"guidance_form": "improvement"},
        {"guidance_form": "target", "target": 60},
        {"guidance_scale": "1,20"},
        pytest.param({"guidance": "noise-aware"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_settings_complete_too(changes, capsys):
    table, _ = propose(capsys, **changes)
    assert len(table) == 8


def test_two_equal_values_are_enough(capsys):
    write_values(TOY, ARCHS[:2], [50.0, 50.0])
    table, found = propose(capsys)
    assert (len(table), found["observations"]) == (8, 2)
    assert table.predicted_mean.notna().all()


@pytest.mark.parametrize("values", [[], [None], [50.0], [50.0, None]], ids=str)
def test_fewer_values_than_a_fit_needs_are_followed_by_random_candidates(values, capsys):
    write_values(TOY, ARCHS[: len(values)], values)
    table, found = propose(capsys)
    assert len(table) == 8
    assert found.keys() == {"observations", "proposed", "seconds"}
    assert table.predicted_mean.isna().all()
    assert table.predicted_std.isna().all()
    assert not set(table.arch) & {TOY.to_str(arch) for arch in ARCHS[: len(values)]}


def test_random_candidates_keep_the_constraints(capsys):
    write_values(MOBILENETV3, [], [])
    table, _ = propose(capsys, MOBILE, constraint="macs<=250e6")
    assert len(table) == 15
    assert (table.macs <= 250e6).all()


@pytest.mark.parametrize(
    ("rounds", "unused"),
    [
        ({"budget": 5}, "--budget"),
        ({"n_init": 200}, "--n-init"),
        ({"budget": 40, "n_init": 30, "window": 2}, "--budget, --n-init, --window"),
    ],
    ids=str,
)
def test_settings_of_many_rounds_change_nothing(rounds, unused, capsys):
    """So the settings of a run may be kept: what is at hand may be more, or less, than they say."""
    propose(capsys, out="plain.parquet")
    code, _, err = run_here(capsys, QUICK, **rounds)
    assert (code, err) == (0, f"warning: no effect here: {unused}\n")
    assert Path("next.parquet").read_bytes() == Path("plain.parquet").read_bytes()


# MobileNetV3: guidance, constraints


def test_guidance_goes_where_its_form_says(mobile_values, capsys):
    """`value` climbs beyond all that is known; `target` goes to the value that is named."""
    means = {}
    for target in (None, 74, 76):
        form = {} if target is None else {"guidance_form": "target", "target": target}
        table, _ = propose(capsys, MOBILE, guidance_scale=10, out=f"{target}.parquet", **form)
        assert len(table) == 15
        means[target] = table.predicted_mean
    assert means[None].mean() > mobile_values.max()
    assert np.abs(means[74] - 74).mean() < 0.5
    assert np.abs(means[76] - 76).mean() < 0.5


def test_constraints_are_kept_and_written(mobile_values, capsys):
    """Four in five random networks break the first one."""
    constraints = ("macs<=250e6", "params>=5e6")
    table, found = propose(capsys, MOBILE, constraint=constraints)
    assert tuple(table.columns) == (*COLUMNS, "macs", "params")
    assert len(table) == 15
    assert (table.macs <= 250e6).all()
    assert (table.params >= 5e6).all()
    archs = [MOBILENETV3.from_str(arch) for arch in table.arch]
    for name in ("macs", "params"):
        known = cost_property(MOBILENETV3, name, "imagenet")(archs)
        np.testing.assert_allclose(table[name], known, rtol=1e-12)
    assert 0 < found["feasible"] <= 1


def test_a_constraint_that_no_given_network_keeps(capsys):
    """The generator is steered to where the values say nothing."""
    archs = MOBILENETV3.sample(200, np.random.default_rng(0))
    macs = cost_property(MOBILENETV3, "macs", "imagenet")(archs)
    archs = [archs[i] for i in np.argsort(-macs)[:30]]
    write_values(MOBILENETV3, archs, 100 * SurrogateEvaluator().predict(archs))
    table, _ = propose(capsys, MOBILE, constraint="macs<=200e6")
    assert len(table) == 15
    assert (table.macs <= 200e6).all()


def test_a_pareto_front(mobile_values, capsys):
    """From cheap to expensive networks, and better than known ones that are as cheap."""
    table, found = propose(capsys, MOBILE, pareto="macs")
    assert tuple(table.columns) == (*COLUMNS, "macs")
    assert len(table) == 15
    assert table.arch.is_unique
    assert table.macs.max() > 1.5 * table.macs.min()
    known = MOBILENETV3.sample(40, np.random.default_rng(0))
    macs = cost_property(MOBILENETV3, "macs", "imagenet")(known)
    values = 100 * SurrogateEvaluator().predict([MOBILENETV3.from_str(a) for a in table.arch])
    best = [mobile_values[macs <= most].max(initial=0) for most in table.macs]
    assert np.mean(values > best) > 0.6
    assert found["proposed"] == 15


# From other commands


def test_the_trials_of_a_run(capsys):
    """Of which propose makes the next round."""
    settings = {"--space": "toy", "--score": "exact", "--steps": 5, "--pool-size": 10}
    sizes = {"budget": 7, "n_init": 4, "executor": "local", "out": "run"}
    assert commands.run_here(search_app, capsys, settings, **sizes)[0] == 0
    table, found = propose(capsys, values="run/trials.parquet")
    assert (len(table), found["observations"]) == (8, 7)
    assert not set(table.arch) & set(pd.read_parquet("run/trials.parquet").arch)


def test_what_was_sampled_and_evaluated(capsys):
    space = {"--space": "mobilenetv3"}
    sampled = {"score": "exact", "steps": 5, "num": 12, "out": "samples.txt"}
    assert commands.run_here(sample_app, capsys, space, **sampled)[0] == 0
    evaluated = {"evaluator": "surrogate", "archs": "samples.txt", "out": "v.parquet"}
    assert commands.run_here(evaluate_app, capsys, space, **evaluated)[0] == 0
    table, found = propose(capsys, MOBILE, values="v.parquet")
    assert (len(table), found["observations"]) == (15, 12)


def test_what_is_proposed_is_evaluated_and_both_are_values_of_the_next_round(capsys):
    first, _ = propose(capsys)
    evaluated = {"--space": "toy", "--evaluator": "toy", "--archs": "next.parquet"}
    assert commands.run_here(evaluate_app, capsys, evaluated, out="more.parquet")[0] == 0
    assert pd.read_parquet("more.parquet").arch.tolist() == first.arch.tolist()
    values = ("values.parquet", "more.parquet")
    second, found = propose(capsys, values=values, out="second.parquet")
    assert found["observations"] == 29 + len(first)
    assert not set(second.arch) & set(first.arch)


# Bad input: exit code 2, one line, and nothing is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": "none.parquet"}, "no such table: none.parquet\n"),
        ({"values": "."}, ". is not a readable parquet file\n"),
        ({"values": "notes.txt"}, "notes.txt is not a readable parquet file\n"),
        ({"values": "values.csv"}, "values.csv is not a readable parquet file: convert it, e.g. w"),
        ({"values": None}, "--values"),
        ({"out": None}, "--out"),
        ({"out": "no/such/next.parquet"}, "no such folder: no/such\n"),
        (
            {"out": "values.parquet"},
            "--out values.parquet is also an input and would be overwritten",
        ),
        ({"method": "rea"}, "needs a surrogate, not --surrogate none or a method without one"),
        ({"out": "next.csv"}, "--out next.csv must end in .parquet\n"),
        ({"space": "nowhere"}, f"unknown space 'nowhere': choose from {', '.join(SPACES)}\n"),
        ({"space": "nasbench201"}, "values.parquet, row 0: 'a-/a-' is not a NAS-Bench-201 cell"),
        ({"score": "network"}, "no trained weights ship for space 'toy'"),
        ({"score_weights": "W.safetensors", "score": "network"}, "no such file: W.safetensors"),
        ({"device": "luck"}, "device 'luck' is not available"),
        ({"sampler": "luck"}, "unknown sampler 'luck'"),
        ({"acq": "luck"}, "unknown acquisition function 'luck'"),
        ({"batch_size": 21}, "--pool-size 20 is smaller than --batch-size 21"),
        ({"pool_size": "6.5"}, "6.5"),
        ({"guidance_form": "target"}, "--target requires --guidance-form target, and vice versa"),
        ({"guidance_scale": "strong"}, "--guidance-scale 'strong' must be auto"),
        ({"constraint": "macs<=300e6"}, "unknown quantity 'macs' of the space toy: it has none\n"),
        ({"colour": "red"}, "--colour"),
    ],
    ids=str,
)
def test_bad_settings(changes, message, capsys):
    Path("notes.txt").write_text("not a table\n")
    Path("values.csv").write_text("arch,value\nab/c-,50.0\n")
    assert message in refusal(capsys, QUICK, **changes)


def test_what_was_proposed_is_not_overwritten(capsys):
    propose(capsys)
    said = "error: --out next.parquet already exists: delete it or choose another\n"
    assert refusal(capsys, QUICK, seed=1) == said


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("macs", "'macs' is not a constraint: expected QUANTITY<=NUMBER"),
        ("macs<=100e6", "no architecture of mobilenetv3 satisfies 'macs<=100e6'"),
        ("latency<=25", "latency needs --latency-table"),
    ],
)
def test_bad_constraints(constraint, message, mobile_values, capsys):
    assert message in refusal(capsys, MOBILE, constraint=constraint)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"value": [50.0, 60.0]}, "values.parquet has no column arch; it has value\n"),
        ({"arch": ["ab/c-", "aa/aa"]}, "values.parquet has no column value; it has arch\n"),
        ({"arch": ["ab/c-", "ab/d-"], "value": [50.0, 60.0]}, "row 1: 'ab/d-' is not a toy arch"),
        ({"arch": ["-b/c-", "ab/c-"], "value": [50.0, 60.0]}, "row 0: '-b/c-' is not an archit"),
        ({"arch": ["ab/c-", None], "value": [50.0, 60.0]}, "values.parquet, row 1: "),
        ({"arch": [1, 2], "value": [50.0, 60.0]}, "column arch does not hold text\n"),
        ({"arch": [b"ab/c-", b"aa/aa"], "value": [50.0, 60.0]}, "arch does not hold text\n"),
        ({"arch": ["ab/c-", "aa/aa"], "value": ["50", "60"]}, "value does not hold numbers\n"),
    ],
    ids=str,
)
def test_bad_values(columns, message, capsys):
    pd.DataFrame(columns).to_parquet("values.parquet")
    assert message in refusal(capsys, QUICK)


@pytest.mark.slow
def test_bad_input_as_the_shell_sees_it(tmp_path):
    files = ["--values", tmp_path / "none.parquet", "--out", tmp_path / "next.parquet"]
    process = subprocess.run(
        [sys.executable, "-m", "orchestrator.propose", "--space", "toy", *files],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"error: no such table: {tmp_path / 'none.parquet'}\n"


def test_help_names_every_option_that_has_an_effect(capsys):
    code, out, err = run_here(capsys, {}, help="")
    assert (code, err) == (0, "")
    named = set(re.findall(r"^│[ *]+--([\w-]+) ", out, re.MULTILINE))
    options = {name.replace("_", "-") for name in RunConfig.__dataclass_fields__}
    rounds = {"budget", "n-init", "schedule", "window", "early-stopping", "grace-epochs"}
    assert named >= {"values", "out", "device"} | options - rounds - {"networks"}
    assert not named & rounds
