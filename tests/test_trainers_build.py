"""Evaluators by name, the synthetic toy objective, and the command that evaluates a list."""

import itertools
import os
import subprocess
import sys

import pandas as pd
import pytest

from nag.cli import run
from nag.spaces import SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.toy import TOY
from trainers.base import EvaluatorConfigError
from trainers.build import EVALUATORS, Settings, build_evaluator
from trainers.evaluate import app

TOY_TEXTS = [
    f"{''.join(first)}/{''.join(second)}"
    for first, second in itertools.product(itertools.product("abc", "abc-"), repeat=2)
]


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (
            "toy",
            {"evaluator": "oracle"},
            "unknown evaluator 'oracle'.*surrogate, table, toy, supernet, train",
        ),
        ("toy", {"evaluator": "surrogate"}, "knows the space mobilenetv3, not toy"),
        ("nasbench201", {"evaluator": "table"}, "needs --table"),
        ("mobilenetv3", {"evaluator": "surrogate", "dataset": "cifar10"}, "choose from imagenet"),
        ("mobilenetv3", {"evaluator": "surrogate", "objective": "test"}, "choose from valid"),
        ("mobilenetv3", {"evaluator": "surrogate", "table": "t.parquet"}, "reads no table"),
    ],
)
def test_arguments_that_do_not_fit(space, arguments, message):
    with pytest.raises(EvaluatorConfigError, match=message):
        build_evaluator(SPACES[space], arguments.pop("evaluator"), Settings(**arguments))


def test_every_evaluator_names_a_space():
    assert {space for spaces, _ in EVALUATORS.values() for space in spaces} <= set(SPACES)


def test_toy_values_have_one_optimum_that_an_additive_model_misses():
    evaluator = build_evaluator(TOY, "toy")
    values = {t: evaluator.evaluate(TOY.from_str(t), seed=0).value for t in TOY_TEXTS}
    assert all(0 < value < 1 for value in values.values())
    ranked = sorted(values, key=values.__getitem__)
    assert ranked[-1] == "ca/bc"
    assert values[ranked[-1]] > values[ranked[-2]]


def evaluate(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "trainers.evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_command_keeps_order_and_writes_percent(tmp_path, rng):
    networks = MOBILENETV3.sample(20, rng)
    networks.append(networks[0])  # repeats stay
    archs, out = tmp_path / "archs.txt", tmp_path / "out.parquet"
    archs.write_text("".join(MOBILENETV3.to_str(network) + "\n" for network in networks))
    done = evaluate(
        *("--space", "mobilenetv3", "--evaluator", "surrogate", "--archs", archs, "--out", out)
    )
    assert done.returncode == 0, done.stderr
    assert "21 evaluated, 0 failed" in done.stderr
    assert "\x1b" not in done.stderr

    frame = pd.read_parquet(out)
    assert list(frame) == ["arch", "value", "status", "error", "seconds", "macs", "params"]
    assert frame.arch.tolist() == [MOBILENETV3.to_str(network) for network in networks]
    evaluator = build_evaluator(MOBILENETV3, "surrogate")
    expected = [100 * evaluator.evaluate(network, seed=0).value for network in networks]
    assert frame.value.tolist() == pytest.approx(expected)
    assert (frame.status == "ok").all()
    assert frame.error.isna().all()
    assert [path.name for path in tmp_path.glob("out*")] == ["out.parquet"]


def test_command_keeps_failures_as_rows(tmp_path):
    space = SPACES["nasbench201"]
    known = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    unknown = known.replace("none~2", "skip_connect~2")
    table, archs, out = (tmp_path / name for name in ("synthetic.parquet", "archs", "out.parquet"))
    pd.DataFrame({"arch": [known], "c100_valid_200": [10.0], "c100_test_200": [11.0]}).to_parquet(
        table
    )
    archs.write_text(f"{unknown}\n\n{known}\n")
    done = evaluate(
        *("--space", space.name, "--evaluator", "table", "--table", table),
        *("--dataset", "cifar100", "--archs", archs, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(out)
    assert frame.status.tolist() == ["failed", "ok"]
    assert "is not in" in frame.error[0]
    assert frame.value.isna().tolist() == [True, False]
    assert (frame.value[1], frame.test[1]) == pytest.approx((10.0, 11.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--space": "nowhere"}, "unknown space 'nowhere'"),
        ({"--evaluator": "oracle"}, "unknown evaluator 'oracle'"),
        ({"--evaluator": "table"}, "knows the space nasbench201, not toy"),
        ({"--archs": "absent.txt"}, "cannot read absent.txt"),
        ({"--archs": "bad.txt"}, "bad.txt, line 2: "),
        ({"--archs": "empty.txt"}, "lists no architecture"),
        ({"--out": "nowhere/out.parquet"}, "no such folder"),
        ({"--seed": "many"}, "--seed"),
        ({"--colour": "red"}, "--colour"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, monkeypatch, capsys, changed, message):
    for name, text in {"good": "ab/c-\n", "bad": "ab/c-\n-a/bc\n", "empty": "\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    options = {"--space": "toy", "--evaluator": "toy", "--archs": "good.txt", "--out": "o.parquet"}
    with pytest.raises(SystemExit) as left:
        run(app, [*itertools.chain.from_iterable((options | changed).items())])
    assert left.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "o.parquet").exists()


def test_bad_input_from_a_shell():
    done = evaluate("--space", "toy", "--evaluator", "toy", "--archs", "absent", "--out", "o")
    assert done.returncode == 2
    assert done.stderr == "error: cannot read absent: No such file or directory\n"
