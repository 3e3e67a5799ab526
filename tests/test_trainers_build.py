"""Evaluators by name, the synthetic toy objective, and the command that evaluates a list."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from pictures import encoded, folder

from nag.cli import run
from nag.errors import UserError
from nag.spaces import SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.toy import TOY
from trainers.base import EvaluationError
from trainers.build import EVALUATORS, EvaluatorSettings, build_evaluator
from trainers.evaluate import app, conditions
from trainers.images import LoaderError
from trainers.rows import write_rows
from trainers.training.task import NetworkOptions, known_of_images

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
        ("toy", {"evaluator": "surrogate"}, "supports the space mobilenetv3, not toy"),
        ("nasbench201", {"evaluator": "table"}, "needs --table"),
        ("mobilenetv3", {"evaluator": "surrogate", "dataset": "cifar10"}, "choose from imagenet"),
        ("mobilenetv3", {"evaluator": "surrogate", "objective": "test"}, "choose from valid"),
        ("mobilenetv3", {"evaluator": "surrogate", "table": "t.parquet"}, "takes no --table"),
    ],
)
def test_arguments_that_do_not_fit(space, arguments, message):
    with pytest.raises(UserError, match=message):
        build_evaluator(SPACES[space], arguments.pop("evaluator"), EvaluatorSettings(**arguments))


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


class Flaky:
    """The toy evaluator (synthetic), which raises what it is told when it meets an architecture."""

    def __init__(self, faults=()):
        self.faults, self.met = dict(faults), []
        self._toy = build_evaluator(TOY, "toy")

    def evaluate(self, arch, *, seed):
        self.met.append(TOY.to_str(arch))
        if (fault := self.faults.get(self.met[-1])) is not None:
            raise fault
        return self._toy.evaluate(arch, seed=seed)


@pytest.fixture
def flaky(tmp_path, monkeypatch, capsys):
    """Evaluates TOY_TEXTS[:6] into OUT with faults; exit code, lines of stderr, what was met."""
    (tmp_path / "archs.txt").write_text("\n".join(TOY_TEXTS[:6]))
    monkeypatch.chdir(tmp_path)

    def command(faults=(), *more, archs="archs.txt", out="out.parquet"):
        evaluator = Flaky(faults)
        monkeypatch.setattr("trainers.evaluate.build_evaluator", lambda *arguments: evaluator)
        argv = ["--space", "toy", "--evaluator", "toy", "--archs", archs, "--out", out, *more]
        with pytest.raises(SystemExit) as left:
            run(app, argv)
        return left.value.code, capsys.readouterr().err.splitlines(), evaluator.met

    return command


def without_seconds(path):
    return pd.read_parquet(path).drop(columns="seconds")


def test_an_interrupted_command_continues(flaky, tmp_path):
    code, err, met = flaky({TOY_TEXTS[3]: KeyboardInterrupt()})
    assert (code, err) == (130, ["interrupted: repeat the command to continue"])
    assert met == TOY_TEXTS[:4]
    assert not (tmp_path / "out.parquet").exists()
    with (tmp_path / "out.parquet.partial").open("a") as file:
        file.write('{"arch": "')  # torn, as by a full disk

    code, err, met = flaky((), "--seed", "1")
    assert (code, met) == (2, [])
    assert (
        "was started with other settings (seed is 0 there, 1 here): delete it to start again"
        in err[0]
    )

    code, err, met = flaky()
    assert (code, met) == (0, TOY_TEXTS[3:6])
    assert err[0] == "continuing from out.parquet.partial: 3 of 6 left"
    assert err[1].startswith("6 evaluated, 0 failed")
    flaky(out="whole.parquet")
    pd.testing.assert_frame_equal(
        without_seconds("out.parquet"), without_seconds("whole.parquet"), check_exact=True
    )
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_command_has_kept_its_rows(flaky, tmp_path):
    """A crash stands for `kill -9`: nothing is written after it."""
    with pytest.raises(ZeroDivisionError):
        flaky({TOY_TEXTS[5]: ZeroDivisionError()})
    code, _, met = flaky()
    assert (code, met) == (0, TOY_TEXTS[5:6])


def test_what_the_machine_failed_is_a_row_and_is_tried_again(flaky, tmp_path):
    faults = {
        TOY_TEXTS[0]: LoaderError("a process that loads images has died"),
        TOY_TEXTS[1]: torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 GiB"),
        TOY_TEXTS[2]: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        TOY_TEXTS[3]: MemoryError(),
        TOY_TEXTS[4]: EvaluationError("not in the table"),
    }
    code, err, _ = flaky(faults)
    assert code == 0
    assert err[0].startswith("6 evaluated, 5 failed")
    first = "first failure, " + TOY_TEXTS[0]
    assert err[1] == f"{first}: a process that loads images has died"
    assert err[2] == "repeat the command to retry the 4 that failed because of the machine"
    frame = pd.read_parquet("out.parquet")
    assert frame.status.tolist() == ["failed"] * 5 + ["ok"]
    assert frame.error.tolist()[:5] == [
        "a process that loads images has died",
        "CUDA out of memory. Tried to allocate 3 GiB",
        "DefaultCPUAllocator: can't allocate memory",
        "MemoryError",
        "not in the table",
    ]
    code, err, met = flaky()
    assert (code, met) == (0, TOY_TEXTS[:4])  # the table would say the same again
    assert pd.read_parquet("out.parquet").status.tolist() == ["ok"] * 4 + ["failed", "ok"]
    assert not list(tmp_path.glob("*.partial"))


def test_where_all_failed_the_command_failed(flaky):
    code, err, _ = flaky({text: EvaluationError("not in the table") for text in TOY_TEXTS[:6]})
    assert (code, err[1]) == (1, f"first failure, {TOY_TEXTS[0]}: not in the table")


def test_what_is_finished_is_not_overwritten(flaky):
    flaky()
    before = Path("out.parquet").read_bytes()
    code, err, met = flaky((), "--seed", "1")
    assert (code, met) == (2, [])
    assert err == ["error: --out out.parquet already exists: delete it or choose another"]
    assert Path("out.parquet").read_bytes() == before


@pytest.mark.parametrize("name", ["archs", "table", "weights"])
def test_what_is_read_is_not_overwritten(name, flaky):
    write_rows([{"arch": text} for text in TOY_TEXTS[:6]], ["arch"], Path("in.parquet"))
    before = Path("in.parquet").read_bytes()
    more = () if name == "archs" else (f"--{name}", "in.parquet")
    archs = "in.parquet" if name == "archs" else "archs.txt"
    code, err, _ = flaky((), *more, archs=archs, out="./in.parquet")
    assert (code, len(err)) == (2, 1)
    assert "--out in.parquet is also an input and would be overwritten" in err[0]
    assert Path("in.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        (["ab/d-"], "in.parquet, row 0: 'ab/d-' is not a toy arch"),
        ([None], "in.parquet lists no architecture"),
        ([1], "in.parquet: column arch does not hold text"),
    ],
)
def test_bad_tables_of_architectures(archs, message, flaky):
    pd.DataFrame({"arch": archs}).to_parquet("in.parquet")
    code, err, _ = flaky(archs="in.parquet")
    assert (code, len(err)) == (2, 1)
    assert message in err[0]


def test_other_errors_are_not_hidden(flaky):
    with pytest.raises(RuntimeError, match="a defect"):
        flaky({TOY_TEXTS[0]: RuntimeError("a defect")})


def test_images_that_are_gone_are_one_line(flaky):
    code, err, _ = flaky({TOY_TEXTS[1]: UserError("cannot read 1.jpeg: gone")})
    assert (code, err) == (2, ["error: cannot read 1.jpeg: gone"])
    assert flaky()[2] == TOY_TEXTS[1:6]


def test_an_architecture_listed_twice_is_evaluated_once(flaky, tmp_path):
    (tmp_path / "twice.txt").write_text("\n".join([*TOY_TEXTS[:2], TOY_TEXTS[0]]))
    code, _, met = flaky(archs="twice.txt")
    assert (code, met) == (0, TOY_TEXTS[:2])
    assert pd.read_parquet("out.parquet").arch.tolist() == [*TOY_TEXTS[:2], TOY_TEXTS[0]]


def test_progress_without_a_terminal_is_a_line_now_and_then(flaky, monkeypatch):
    assert len(flaky()[1]) == 1
    monkeypatch.setattr("trainers.evaluate._SAY_SECONDS", 0)
    lines = flaky(out="other.parquet")[1]
    assert len(lines) == 7
    assert lines[1].startswith("2 of 6 evaluated, ")


@pytest.mark.parametrize("name", ["table", "weights", "data"])
def test_what_values_depend_on_is_told_apart_by_contents(tmp_path, name):
    path = folder(tmp_path / "data") if name == "data" else tmp_path / name

    def found():
        known_of_images.cache_clear()
        options = {name: path}
        settings = (
            EvaluatorSettings(**options)
            if name == "table"
            else EvaluatorSettings(networks=NetworkOptions(**options))
        )
        return json.loads(json.dumps(conditions(settings)))

    if name != "data":
        path.write_bytes(b"one")
    before = found()
    assert found() == before
    if name == "data":
        (path / "train" / "cat" / "more.jpeg").write_bytes(encoded())
    else:
        path.write_bytes(b"other")
    after = found()
    assert {key for key in before if before[key] != after[key]} == {name}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--space": "nowhere"}, "unknown space 'nowhere'"),
        ({"--evaluator": "oracle"}, "unknown evaluator 'oracle'"),
        ({"--evaluator": "table"}, "supports the space nasbench201, not toy"),
        ({"--archs": "absent.txt"}, "cannot read absent.txt"),
        ({"--archs": "bad.txt"}, "bad.txt, line 2: "),
        ({"--archs": "empty.txt"}, "lists no architecture"),
        ({"--out": "nowhere/out.parquet"}, "no such folder"),
        ({"--out": "out.csv"}, "--out out.csv must end in .parquet"),
        ({"--seed": "many"}, "--seed"),
        ({"--seed": "-1"}, "--seed -1 must be at least 0"),
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
