"""The commands `python -m nag.train` and `python -m nag.sample`."""

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nag.checkpoint import load_network, save_tensors
from nag.cli import progress_bar, read_architectures, run
from nag.errors import counted
from nag.files import write_bytes
from nag.generate import generate
from nag.laws import random_list
from nag.quality import app as quality_app
from nag.sample import app as sample_app
from nag.spaces import SPACES
from nag.spaces.toy import TOY
from nag.train import app as train_app

ROOT = Path(__file__).parent.parent
BRIEFLY = ["--space", "toy", "--batch-size", "16", "--device", "cpu", "--threads", "1"]
TRAIN = [*BRIEFLY, "--steps", "20", "--report-every", "10"]


def start(module, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(module, *arguments):
    """Exit code, stdout and stderr of a command that is left to finish."""
    process = start(module, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def run_here(capsys, app, *arguments):
    """Exit code, stdout and stderr of a command run in this process."""
    with pytest.raises(SystemExit) as exit_:
        run(app, [str(argument) for argument in arguments])
    return exit_.value.code, *capsys.readouterr()


def test_one_thing_is_not_several():
    assert [counted(n, "trial") for n in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
    assert counted(1, "class", "classes") == "1 class"
    assert counted(1000, "class", "classes") == "1,000 classes"


def test_an_error_that_names_a_whole_file_is_cut(tmp_path, capsys):
    (tmp_path / "archs.txt").write_text("ab" * 100_000)
    argv = [
        "--space",
        "toy",
        "--archs",
        tmp_path / "archs.txt",
        "--out",
        tmp_path / "W.safetensors",
    ]
    err = refusal(capsys, train_app, *argv)
    assert err.startswith(f"error: {tmp_path / 'archs.txt'}, line 1: 'abab")
    assert err.endswith("is not a toy architecture, e.g. 'ab/c-'\n")
    assert len(err) < 1000


def test_a_uri_is_no_local_path(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = refusal(capsys, quality_app, "--space", "toy", "--out", "s3://bucket/quality")
    assert err.startswith("error: Invalid value")
    assert "--out" in err
    assert "must be a local path, not a URI" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_a_terminal(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with progress_bar(console, "sampling", 20) as advance:
        advance(5)
        advance(3)
    shown = console.file.getvalue()
    assert ("sampling" in shown, " 8/20" in shown) == (terminal, terminal)


def refusal(capsys, app, *arguments):
    code, out, err = run_here(capsys, app, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of an uninterrupted training of 20 steps."""
    path = tmp_path_factory.mktemp("trained") / "W.safetensors"
    with pytest.raises(SystemExit) as exit_:
        run(train_app, [*TRAIN, "--out", str(path)])
    assert exit_.value.code == 0
    return path


# nag.train


def test_training_writes_weights_and_their_record(trained):
    assert {file.name for file in trained.parent.iterdir()} == {"W.safetensors", "W.json"}
    assert load_network(trained, TOY).num_parameters() > 0
    record = json.loads(trained.with_suffix(".json").read_text())["training"]
    assert record["steps"] == 20
    assert record["seed"] == 0
    assert record["command"].startswith("python -m nag.train")
    assert record["final"].keys() == {"loss", "distance_to_exact", "validity"}
    assert record["data"] == {"law": "uniform"}
    assert record["exact_target"] is True


def test_the_command_in_a_record_can_be_typed_again(tmp_path, monkeypatch):
    argv = ["--archs", "my list.txt", "--out", "it's.safetensors"]
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    command = train_briefly(tmp_path / "W.safetensors")["training"]["command"]
    assert shlex.split(command) == ["python", "-m", "nag.train", *argv]


def test_quality_is_of_samples_made_where_the_network_is(tmp_path, capsys, monkeypatch):
    devices = []

    def generated(*args, device, **options):
        devices.append(device)
        return generate(*args, device=device, **options)

    monkeypatch.setattr("nag.train.generate", generated)
    out = tmp_path / "W.safetensors"
    code, _, _ = run_here(capsys, train_app, *BRIEFLY, "--steps", "1", "--out", out)
    assert code == 0
    assert devices == [torch.device("cpu")]


def continue_and_compare(out, trained, capsys):
    """Repeat the command of an interrupted training: it ends as if nothing had happened."""
    restart = out.with_suffix(".train.safetensors")
    assert restart.exists()
    assert not out.exists()
    code, _, err = run_here(capsys, train_app, *TRAIN, "--out", out)
    assert code == 0
    assert "continuing at step 10" in err
    assert sha256(out) == sha256(trained)
    records = [json.loads(p.with_suffix(".json").read_text()) for p in (out, trained)]
    assert records[0]["training"]["final"] == records[1]["training"]["final"]
    assert not restart.exists()


def interrupt_at_the_first_save(out):
    """Exit code of a training that is interrupted after 10 steps."""

    def save_then_interrupt(*arguments):
        save_tensors(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nag.train.save_tensors", save_then_interrupt)
        with pytest.raises(SystemExit) as exit_:
            run(train_app, [*TRAIN, "--out", str(out)])
    return exit_.value.code


def test_interrupted_training_continues_to_the_same_file(trained, tmp_path, capsys):
    out = tmp_path / "W.safetensors"
    assert interrupt_at_the_first_save(out) == 130
    assert capsys.readouterr().err.endswith("interrupted: repeat the command to continue\n")
    continue_and_compare(out, trained, capsys)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_training_stopped_while_it_writes_its_result_continues(trained, tmp_path, suffix, capsys):
    """Only whole weights with their record count as trained."""
    out, write = tmp_path / "W.safetensors", write_bytes

    def stop(path, data):
        if path == out.with_suffix(suffix):
            raise KeyboardInterrupt
        write(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nag.checkpoint.write_bytes", stop)
        patch.setattr("nag.files.write_bytes", stop)
        assert run_here(capsys, train_app, *TRAIN, "--out", out)[0] == 130
    continue_and_compare(out, trained, capsys)


STOPPED_AT_ITS_FIRST_SAVE = """
import os, sys
from nag import train
from nag.cli import run

save = train.save_tensors

def save_and_stop(*arguments):
    save(*arguments)
    os.kill(os.getpid(), int(sys.argv[1]))

train.save_tensors = save_and_stop
run(train.app, sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_killed_training_continues_to_the_same_file(trained, tmp_path, kill, capsys):
    out = tmp_path / "W.safetensors"
    process = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_ITS_FIRST_SAVE, str(int(kill)), *TRAIN, "--out", out],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    err = process.stderr
    assert process.returncode == (130 if kill == signal.SIGINT else -kill)
    assert "Traceback" not in err
    continue_and_compare(out, trained, capsys)


def train_briefly(out, *options):
    """The record of a network trained for two steps, and reported on from five sampler steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nag.train.generate", partial(generate, steps=5))
        with pytest.raises(SystemExit) as exit_:
            run(train_app, [*BRIEFLY, "--steps", "2", *map(str, options), "--out", str(out)])
    assert exit_.value.code == 0
    return json.loads(out.with_suffix(".json").read_text())


def test_training_on_a_list_of_architectures(tmp_path):
    """Blank lines and invalid samples count for nothing, repeats for themselves; the record says
    which list."""
    path, out = tmp_path / "list.txt", tmp_path / "W.safetensors"
    path.write_text("ab/c-\n\nINVALID\n  a-/a-\n INVALID \nab/c-\n")
    made = train_briefly(out, "--archs", path)
    data = made["training"]["data"]
    assert data["law"] == "list"
    assert data["num"] == 3
    assert data["file"] == str(path)
    assert made["training"]["exact_target"] is False
    assert made["training"]["final"].keys() == {
        "loss",
        "validity",
        "novelty",
        "distance_to_exact",
    }
    assert load_network(out, TOY).sde.mean[0] == pytest.approx((1, -1, -1))
    assert load_network(out, TOY).sde.mean[2] == pytest.approx((-1 / 3, -1, 1 / 3), abs=1e-5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_list_is_read_back_as_written(space, encoding, tmp_path, rng):
    """With the gaps that invalid samples leave, and the mark that Windows puts first."""
    archs = space.sample(20, rng)
    lines = [space.to_str(arch) for arch in archs]
    path = tmp_path / "list.txt"
    path.write_text("\n".join(["INVALID", *lines[:10], "", "INVALID", *lines[10:]]), encoding)
    assert read_architectures(path, space) == archs


def test_training_on_a_random_part_of_the_space(tmp_path):
    options = ["--num-archs", "20", "--seed", "3", "--target", "exact"]
    made = train_briefly(tmp_path / "W.safetensors", *options)
    assert made["training"]["data"] == random_list(TOY, 20, seed=3).to_json()
    assert made["training"]["data"]["random"] == 20
    assert made["training"]["exact_target"] is True
    assert made["training"]["final"].keys() >= {"novelty", "distance_to_exact"}


def test_training_the_undirected_baseline(tmp_path):
    out = tmp_path / "W.safetensors"
    made = train_briefly(out, "--preset", "undirected")
    assert made["training"]["preset"] == "undirected"
    assert made["training"]["data"] == {"law": "uniform"}
    assert made["training"]["exact_target"] is False
    assert made["network"]["mask"] == "undirected"
    assert load_network(out, TOY).config.positions == "none"


def test_what_is_trained_is_left_as_it_is(tmp_path, capsys):
    out = tmp_path / "W[" / "b].safetensors"  # as markup an error
    out.parent.mkdir(parents=True)
    train_briefly(out)
    record = out.with_suffix(".json")
    before = out.read_bytes(), record.read_bytes()
    capsys.readouterr()
    again = [*BRIEFLY, "--steps", "2", "--out", str(out)]
    code, _, err = run_here(capsys, train_app, *again)
    assert (code, err) == (0, f"{out} already exists, trained with these settings\n")
    code, _, err = run_here(capsys, train_app, *again, "--sigma-max", "4")
    assert code == 2
    assert err == (
        f"error: {out} was trained with other settings (sigma_max is 5.0 there, 4.0 here): "
        "choose another --out\n"
    )
    assert (out.read_bytes(), record.read_bytes()) == before
    out.write_bytes(before[0][:-9])
    code, _, err = run_here(capsys, train_app, *again)
    assert code == 2
    assert "does not match the hash in its JSON: remove it or choose another --out" in err
    record.unlink()
    code, _, err = run_here(capsys, train_app, *again)
    assert code == 2
    assert "without a readable record: choose another --out" in err


def test_a_training_that_diverges_ends_in_one_line_and_writes_nothing(tmp_path, capsys):
    """The square of this sigma_min is zero in single precision."""
    options = ["--sigma-min", "1e-30", "--out", tmp_path / "W.safetensors"]
    message = refusal(capsys, train_app, *TRAIN, *options)
    assert message.startswith(
        "error: the loss of step 1 is nan, the norm of its gradient nan: lower --learni"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The state of a training that stopped at step 10."""
    out = tmp_path_factory.mktemp("interrupted") / "W.safetensors"
    interrupt_at_the_first_save(out)
    return out.with_suffix(".train.safetensors")


@pytest.mark.parametrize(
    ("options", "differences"),
    [
        (["--learning-rate", "0.01"], "learning_rate is 0.003 there, 0.01 here"),
        (["--seed", "1"], "seed is 0 there, 1 here"),
        (["--sigma-max", "4"], "sigma_max is 5.0 there, 4.0 here"),
        (["--no-positions"], "positions is 'learned' there, 'none' here"),
        (["--target", "sampled"], "exact_target is True there, False here"),
        (
            ["--num-archs", "20", "--target", "exact"],
            "data is {'law': 'uniform'} there, {'law': 'list', 'num': 20, 'sha256': ",
        ),
        (["--space", "nasbench201"], "space is 'toy' there, 'nasbench201' here"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_interrupted_training_continues_as_configured_or_not_at_all(
    options, differences, interrupted, tmp_path, capsys
):
    restart = shutil.copy(interrupted, tmp_path / "W.train.safetensors")
    argv = TRAIN if "--space" not in options else TRAIN[2:]
    message = refusal(capsys, train_app, *argv, *options, "--out", tmp_path / "W.safetensors")
    assert "W.train.safetensors has other settings (" in message
    assert differences in message
    assert message.endswith("): remove it or choose another --out\n")
    assert [file.name for file in tmp_path.iterdir()] == ["W.train.safetensors"]
    assert sha256(restart) == sha256(interrupted)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"junk" * 9])
def test_a_damaged_state_of_a_training_is_refused(damage, interrupted, tmp_path, capsys):
    restart = tmp_path / "W.train.safetensors"
    restart.write_bytes(damage(interrupted.read_bytes()))
    message = refusal(capsys, train_app, *TRAIN, "--out", tmp_path / "W.safetensors")
    assert (
        f"{restart} does not hold an interrupted training: remove it or choose another" in message
    )


def test_tensors_of_something_else_are_no_interrupted_training(tmp_path, capsys):
    save_tensors({"step": torch.tensor(1)}, tmp_path / "W.train.safetensors")
    message = refusal(capsys, train_app, *TRAIN, "--out", tmp_path / "W.safetensors")
    assert "does not hold an interrupted training" in message


# nag.sample


def test_sampling_writes_a_line_per_sample_and_its_statistics(tmp_path):
    path = tmp_path / "samples.txt"
    options = ["--space", "toy", "--num", "200", "--seed", "1", "--score", "exact", "--out", path]
    code, out, _ = command("nag.sample", *options, "--sampler", "ancestral", "--steps", "20")
    assert code == 0
    found = json.loads(out)
    lines = path.read_text().splitlines()
    assert len(lines) == found["generated"] == 200
    valid = [TOY.from_str(line) for line in lines if line != "INVALID"]
    assert found["validity"] == len(valid) / 200
    assert found["uniqueness"] == pytest.approx(len(set(valid)) / len(valid))
    assert found["score_evaluations"] == 20
    assert sum(found["operator_shares"].values()) == pytest.approx(1, abs=1e-5)
    assert [sum(shares.values()) for shares in found["depth_shares"]] == pytest.approx([1, 1])


def test_invalid_samples_are_written_as_such(tmp_path, trained, capsys):
    """Weights of 20 steps: many samples are invalid."""
    path = tmp_path / "samples.txt"
    options = ["--space", "toy", "--num", "300", "--weights", trained, "--out", path]
    code, out, _ = run_here(capsys, sample_app, *options)
    assert code == 0
    lines, found = path.read_text().splitlines(), json.loads(out)
    invalid = lines.count("INVALID")
    assert 0 < invalid < 300
    assert found["validity"] == pytest.approx(1 - invalid / 300)
    assert sum(found["invalid"].values()) == invalid


@pytest.mark.parametrize(("sampler", "evaluations"), [("heun", 5), ("dpm++2m", 3)])
def test_samplers_and_schedules_are_chosen_by_name(sampler, evaluations, tmp_path, capsys):
    texts = []
    for schedule in ("geometric", "karras"):
        path = tmp_path / f"{schedule}.txt"
        options = ["--space", "toy", "--num", "300", "--score", "exact", "--steps", "3"]
        options += ["--sampler", sampler, "--schedule", schedule, "--out", path]
        code, out, _ = run_here(capsys, sample_app, *options)
        assert code == 0
        assert json.loads(out)["score_evaluations"] == evaluations
        texts.append(path.read_text())
    assert texts[0] != texts[1]


def test_samples_are_a_function_of_the_seed(tmp_path, capsys):
    texts = []
    for i, seed in enumerate((5, 5, 6)):
        path = tmp_path / f"{i}.txt"
        options = ["--space", "toy", "--num", "40", "--score", "exact", "--seed", seed]
        assert run_here(capsys, sample_app, *options, "--out", path)[0] == 0
        texts.append(path.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_a_gpu_without_memory_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("nag.sample.generate", full)
    options = ["--space", "toy", "--score", "exact", "--num", "4", "--out", tmp_path / "toy.txt"]
    assert "the GPU of the generator failed (CUDA out of" in refusal(capsys, sample_app, *options)


# Bad input: exit code 2 and one line.


@pytest.mark.parametrize("module", ["nag.train", "nag.sample"])
def test_bad_input_as_seen_by_the_shell(module, tmp_path):
    options = ["--num", "3"] if module == "nag.sample" else []
    out = tmp_path / "W.safetensors"
    code, stdout, stderr = command(module, "--space", "nowhere", *options, "--out", out)
    assert (code, stdout) == (2, "")
    assert stderr == f"error: unknown space 'nowhere': choose from {', '.join(SPACES)}\n"


@pytest.mark.parametrize(("space", "code"), [("toy", 0), ("nowhere", 2)])
def test_a_command_without_standard_streams(tmp_path, space, code):
    """Nor does a file get the number of one, which libraries print to."""
    out, opened = tmp_path / "samples.txt", tmp_path / "opened"
    program = f"""
from nag import sample
from nag.cli import run

def check_new(out):
    with open({str(opened)!r}, "w") as file:
        file.write(str(file.fileno()))

sample.check_new = check_new
run(sample.app)
"""
    options = ["--space", space, "--score", "exact", "--num", "2", "--out", str(out)]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program, *options]
    assert subprocess.run(shell, cwd=ROOT, timeout=300).returncode == code
    assert out.exists() == (code == 0)
    if code == 0:
        assert int(opened.read_text()) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--space", "nowhere"], "unknown space 'nowhere': choose from mobilenetv3, nasbench201"),
        (["--space", "toy", "--out", "W.pt"], "--out W.pt must end in .safetensors"),
        (["--space", "toy", "--steps", "0"], "must be at least 1"),
        (["--space", "toy", "--steps", "many"], "many"),
        (["--space", "toy", "--steps", "1", "2", "a b"], "unexpected argument 2 'a b': see"),
        (["--space", "toy", "--sigma-min", "9"], "sigma_min 9 must be positive and below"),
        (["--space", "toy", "--sigma-max", "inf"], "which must be finite"),
        (["--space", "toy", "--device", "warp"], "device 'warp' is not available"),
        (["--space", "toy", "--preset", "huge"], "huge"),
        (["--space", "toy", "--target", "guess"], "guess"),
        (["--space", "toy", "--archs", "none.txt"], "cannot read none.txt: "),
        (["--space", "toy", "--seed", "-1"], "--seed -1 must be at least 0 and below"),
        (["--space", "toy", "--seed", "9" * 20], "and below 2^63"),
        (
            ["--space", "toy", "--num-archs", "145"],
            "found fewer than 145 distinct architectures in toy",
        ),
        (["--space", "toy", "--num-archs", "0"], "must be at least 1"),
        (["--space", "toy", "--num-archs", "-3"], "must be at least 1"),
        (["--space", "toy", "--report-every", "0"], "must be at least 1"),
        (["--space", "toy", "--threads", "0"], "must be at least 1"),
        (["--space", "toy", "--threads", "-1"], "must be at least 1"),
        *(
            (["--space", "toy", "--learning-rate", rate], f"--learning-rate {rate} must be above 0")
            for rate in ("nan", "inf", "0", "-0.1", "1.5")
        ),
        (["--space", "toy", "--colour", "red"], "--colour"),
        ([], "--space"),
    ],
)
def test_bad_training_options(options, message, tmp_path, capsys):
    if "--out" not in options:
        options = [*options, "--out", tmp_path / "W.safetensors"]
    assert message in refusal(capsys, train_app, *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "list.txt lists no architecture"),
        (b"\n  \n", "list.txt lists no architecture"),
        (b"INVALID\n\nINVALID\n", "list.txt lists no architecture"),
        (b"invalid\n", "list.txt, line 1: 'invalid' is not a toy architecture"),
        (b"INVALID\nab/d-\n", "list.txt, line 2: 'ab/d-' is not a toy architecture"),
        (b"ab/c-\n\nab/d-\n", "list.txt, line 3: 'ab/d-' is not a toy architecture"),
        (b"ab/c-\n-b/c-\n", "list.txt, line 2: '-b/c-' is not an architecture of toy"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_bad_lists_of_architectures(content, message, tmp_path, capsys):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    options = ["--space", "toy", "--archs", path, "--out", tmp_path / "W.safetensors"]
    assert message in refusal(capsys, train_app, *options)
    both = refusal(capsys, train_app, *options, "--num-archs", "5")
    assert both == "error: give --archs or --num-archs, not both\n"
    assert [file.name for file in tmp_path.iterdir()] == ["list.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--space", "nowhere"], "unknown space 'nowhere'"),
        (["--space", "toy"], "no trained weights ship for space 'toy'"),
        (["--space", "toy", "--weights", "nothing.safetensors"], "no such file: nothing.safe"),
        (["--space", "toy", "--sampler", "magic"], "unknown sampler 'magic': choose from predict"),
        (["--space", "toy", "--schedule", "odd"], "unknown schedule 'odd': choose from geometric,"),
        (["--space", "toy", "--score", "guess"], "guess"),
        (["--space", "toy", "--num", "0"], "must be at least 1"),
        (["--space", "toy", "--score", "exact", "--steps", "0"], "must be at least 1"),
        (["--space", "toy", "--score", "exact", "--sigma-min", "-1"], "sigma_min -1 must be pos"),
        (["--space", "toy", "--score", "exact", "--device", "meta"], "device 'meta' is not avail"),
        (["--space", "toy", "--seed", "-1"], "--seed -1 must be at least 0 and below"),
        (["--space", "toy", "--seed", "9" * 20], "and below 2^63"),
        (["--space", "toy", "--out", "no/such/folder/s.txt"], "no such folder: no/such/folder"),
        (["--space", "toy", "--out", "."], "--out . is a folder"),
        (["--space", "toy", "--out", "s.parquet"], "--out s.parquet: samples are written as text"),
        (["--space", "toy", "--score", "exact", "--weights", "W"], "the exact score takes no we"),
    ],
)
def test_bad_sampling_options(options, message, tmp_path, capsys):
    defaults = {"--num": "3", "--out": str(tmp_path / "samples.txt")}
    for name, value in defaults.items():
        if name not in options:
            options = [*options, name, value]
    assert message in refusal(capsys, sample_app, *options)
    assert not list(tmp_path.iterdir())


def test_samples_that_are_there_are_not_overwritten(tmp_path, capsys):
    out = tmp_path / "samples.txt"
    out.write_text("mine")
    options = ["--space", "toy", "--num", "3", "--score", "exact", "--out", out]
    assert f"--out {out} already exists: delete it" in refusal(capsys, sample_app, *options)
    assert out.read_text() == "mine"


def test_weights_of_another_space_or_sigma(trained, tmp_path, capsys):
    options = ["--num", "3", "--weights", trained, "--out", tmp_path / "samples.txt"]
    message = refusal(capsys, sample_app, "--space", "nasbench201", *options)
    assert "holds weights of space 'toy', not 'nasbench201'" in message
    message = refusal(capsys, sample_app, "--space", "toy", "--sigma-max", "20", *options)
    assert "but sigma 0.1..20 is asked for" in message
