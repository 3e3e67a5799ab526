"""Commands that train and measure real networks, on made pictures. Synthetic, and tiny."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import colours

from nag.cli import run
from nag.errors import UserError
from nag.spaces.mobilenetv3 import LAYERS, MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from orchestrator.experiment import app as experiment
from orchestrator.run_bo import app as run_bo
from orchestrator.train_supernet import app as train_on_ray
from trainers.build import EvaluatorSettings, build_evaluator, network_task
from trainers.cost import Task, cost, cost_property
from trainers.evaluate import app as evaluate
from trainers.latency.tables import once_for_all_block, once_for_all_ends
from trainers.ofa import LARGEST, Supernet, load_supernet, save_supernet
from trainers.plans import mobilenetv3_plan
from trainers.train_supernet import app as train_supernet
from trainers.training.sandwich import SMALLEST
from trainers.training.task import ImageTask, NetworkOptions, Place

ROOT = Path(__file__).parent.parent
TRAIN = ("--resolution", 32, "--recipe", "small", "--batch-size", 6, "--random", 1)
SEARCH = ("--executor", "local", "--strategy", "random", "--surrogate", "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def supernet(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("supernet") / "W.pt"
    code, _, err = outcome(train_supernet, "--data", data, *TRAIN, "--epochs", 1, "--out", out)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def quarter(tmp_path_factory):
    """An untrained supernet of a quarter of the width, for 32 pixels."""
    out = tmp_path_factory.mktemp("quarter") / "W.pt"
    torch.manual_seed(0)
    save_supernet(Supernet(3, width=0.25), out, {"resolution": 32, "recipe": "small"})
    return out


def outcome(command, *argv):
    """Exit code, stdout and stderr of a command run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        out, err = Captured(), Captured()
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as exit_:
            run(command, [str(argument) for argument in argv])
    return exit_.value.code, out.text, err.text


class Captured:
    text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return False


def lines(out):
    found = [json.loads(line) for line in out.with_name(f"{out.name}.jsonl").open()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def test_a_supernet_says_how_it_was_made(supernet, data):
    made = load_supernet(supernet).meta
    assert made["classes"] == ["blue", "green", "red"]
    assert (made["resolution"], made["held_out"], made["train"]) == (32, 9, 36)
    (line,) = lines(supernet)
    assert line.keys() == {"epoch", "loss", "largest", "smallest"}
    assert not supernet.with_name("W.pt.training").exists()


def test_a_supernet_that_is_there_is_not_trained_again(supernet, data):
    before = supernet.read_bytes(), len(lines(supernet))
    argv = ["--data", data, *TRAIN, "--out", supernet]
    code, _, err = outcome(train_supernet, *argv, "--epochs", 2, "--seed", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "W.pt was trained with other settings (epochs is 1 there, 2 here, seed is 0 " in err
    argv += ["--epochs", 1]
    code, _, err = outcome(train_supernet, *argv)
    assert (code, "already exists: nothing to train" in err) == (0, True)
    code, _, err = outcome(train_on_ray, *argv, "--workers", 1)  # found before Ray is started
    assert (code, "already exists: nothing to train" in err) == (0, True)
    code, _, err = outcome(train_on_ray, *argv, "--workers", 2)
    assert (code, "with other settings (processes is 1 there, 2 here): delete it or ch" in err) == (
        2,
        True,
    )
    assert (supernet.read_bytes(), len(lines(supernet))) == before


def test_images_of_val_are_no_part_of_training_a_supernet(data, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageTask, "_test_images", None)  # to call it raises TypeError
    argv = ("--data", data, *TRAIN, "--epochs", 1, "--width", 0.25, "--out", tmp_path / "W.pt")
    code, _, err = outcome(train_supernet, *argv)
    assert code == 0, err
    assert lines(tmp_path / "W.pt")[0]["smallest"] >= 0


KILLED_AT_ITS_FIRST_SAVE = """
import os, signal, sys
from nag.cli import run
from trainers.train_supernet import app
from trainers.training.loop import Training

save = Training.save

def save_and_die(training, path):
    save(training, path)
    os.kill(os.getpid(), signal.SIGKILL)

Training.save = save_and_die
run(app, sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_supernet_training_continues_to_the_same_weights(data, tmp_path):
    argv = ["--data", data, *TRAIN, "--epochs", 2, "--cache", tmp_path / "cache", "--width", 0.25]
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    assert outcome(train_supernet, *argv, "--out", whole)[0] == 0
    process = subprocess.run(
        [sys.executable, "-c", KILLED_AT_ITS_FIRST_SAVE, *map(str, argv), "--out", killed],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.DEVNULL,
    )
    assert process.returncode == -signal.SIGKILL
    code, _, err = outcome(train_supernet, *argv, "--out", killed)
    assert (code, "continuing after 1 epoch\n" in err) == (0, True)
    first, second = (load_supernet(path).state_dict() for path in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert lines(whole)[-1] == lines(killed)[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--random": -1}, "--random must not be negative"),
        ({"--seed": -1}, "--seed -1 must be at least 0"),
        ({"--width": 0.123}, "--width must be more than 0, at most 4, and a multiple of 0.01"),
        ({"--recipe": "tasty"}, "unknown recipe 'tasty': choose from nasbench201, transfer, "),
        ({"--data": "nowhere"}, "nowhere"),
        ({"--out": "no/where.pt"}, "no such folder: no"),
        ({"--held-out": 45}, "cannot hold out 45 of 45 images"),
        ({"--held-out": 0}, "--held-out must be at least 1"),
        ({"--held-out": 3.6}, "'3.6' is not a whole number"),
        ({"--resolution": 64.7}, "'64.7' is not a whole number"),
        ({"--image-workers": 0.5}, "'0.5' is not a whole number"),
        ({"--image-workers": -1}, "--image-workers must not be negative"),
        ({"--device": "luck"}, "device 'luck' is not available: use cpu, cuda or auto"),
        ({"--device": "meta"}, "device 'meta' is not available: use cpu, cuda or auto"),
        ({"--checkpoints": "kept"}, "Unknown option: --checkpoints"),
    ],
)
def test_bad_settings_of_a_supernet_training(data, changes, message):
    settings = {"--data": data, "--out": "W.pt", **changes}
    code, out, err = outcome(train_supernet, *itertools.chain(*settings.items()))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("app", [train_supernet, train_on_ray])
def test_a_supernet_training_requires_images(app):
    assert outcome(app, "--out", "W.pt") == (2, "", "error: --data is required: see --help\n")
    assert "--out PATH --data PATH [OPTIONS]" in outcome(app, "--help")[1]


def test_training_from_a_supernet_is_at_its_resolution(supernet, data):
    for resolution, expected in ((None, 32), (64, 64)):
        networks = NetworkOptions(data=data, weights=supernet, resolution=resolution)
        evaluator = build_evaluator(MOBILENETV3, "train", EvaluatorSettings(networks=networks))
        assert evaluator.task.resolution == expected


def test_evaluate_by_a_supernet(supernet, data, tmp_path):
    archs, out = tmp_path / "archs.txt", tmp_path / "found.parquet"
    archs.write_text("".join(MOBILENETV3.to_str(a) + "\n" for a in (SMALLEST, LARGEST)))
    argv = ["--space", "mobilenetv3", "--evaluator", "supernet", "--archs", archs, "--out", out]
    code, _, err = outcome(evaluate, *argv, "--weights", supernet, "--data", data)
    assert code == 0, err
    found = pd.read_parquet(out)
    assert list(found["status"]) == ["ok", "ok"]
    (line,) = lines(supernet)
    assert found["value"].tolist() == pytest.approx([line["smallest"], line["largest"]], abs=0.01)
    assert found["macs"].is_monotonic_increasing
    assert found["test"].between(0, 100).all()


def test_seeds_have_trainings_of_their_own(data, tmp_path):
    """Also where they are kept in one folder; a seed that is repeated goes on with its own."""
    (tmp_path / "archs.txt").write_text(
        "|nor_conv_1x1~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    )
    argv = ["--space", "nasbench201", "--evaluator", "train", "--archs", tmp_path / "archs.txt"]
    argv += ["--data", data, "--resolution", 8, "--epochs", 1, "--checkpoints", tmp_path / "kept"]
    argv += ["--image-workers", 0]
    losses = []
    for number, seed in enumerate((0, 1, 0)):
        out = tmp_path / f"found-{number}.parquet"
        code, _, err = outcome(evaluate, *argv, "--seed", seed, "--out", out)
        assert code == 0, err
        losses += pd.read_parquet(out)["loss"].tolist()
    assert losses[0] == losses[2] != losses[1]
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 2


class TestSupernetsThatDoNotFit:
    ARGV = ("--evaluator", "supernet", *SEARCH)

    def refusal(self, *argv):
        code, out, err = outcome(run_bo, *self.ARGV, "--out", "run", *argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    def test_none(self, data):
        assert "the supernet evaluator needs --weights" in self.refusal("--data", data)

    def test_no_images(self, supernet):
        assert "images are required: --data" in self.refusal("--weights", supernet)

    def test_nothing_to_calibrate_or_to_measure_by(self, supernet, data):
        argv = ("--weights", supernet, "--data", data)
        for option in ("--calibration", "--held-out"):
            for number in (0, -1):
                assert f"{option} must be at least 1" in self.refusal(*argv, option, number)

    def test_another_number_of_classes(self, data, tmp_path):
        path = tmp_path / "W.pt"
        save_supernet(Supernet(7), path, {})
        message = self.refusal("--weights", path, "--data", data)
        assert f"{path} has 7 classes, {data} has 3: train a supernet on it" in message

    def test_images_that_it_has_seen(self, supernet, data):
        message = self.refusal("--weights", supernet, "--data", data, "--held-out", 12)
        assert "was trained with 9 of these images held out: --held-out 12 would" in message

    def test_images_that_what_trainings_begin_with_has_seen(self, supernet, data):
        argv = ("--evaluator", "train", "--data", data, "--weights", supernet, "--held-out", 12)
        code, _, err = outcome(run_bo, *argv, *SEARCH)
        assert (code, err.count("\n")) == (2, 1)
        assert "was trained with 9 of these images held out: --held-out 12 would" in err

    def test_images_that_it_has_seen_where_val_has_gone(self, supernet, data, tmp_path):
        (tmp_path / "train").symlink_to(data / "train")
        message = self.refusal("--weights", supernet, "--data", tmp_path, "--held-out", 12)
        assert "was trained with 9 of these images held out: --held-out 12 would" in message

    @pytest.mark.parametrize("change", ["of another picture", "by an earlier version"])
    @pytest.mark.parametrize("evaluator", ["supernet", "train"])
    def test_images_that_it_may_have_seen(
        self, supernet, data, tmp_path, caplog, evaluator, change
    ):
        weights = supernet
        shutil.copytree(data / "train", tmp_path / "train")
        if change == "of another picture":
            (tmp_path / "train/red/0.png").unlink()
        else:
            weights, found = tmp_path / "W.pt", load_supernet(supernet)
            del found.meta["train_images"]
            save_supernet(found, weights, found.meta)
        for path, warned in ((data, False), (tmp_path, True)):
            caplog.clear()
            networks = NetworkOptions(data=path, weights=weights, held_out=9)
            build_evaluator(MOBILENETV3, evaluator, EvaluatorSettings(networks=networks))
            assert ("it may include some held out here" in caplog.text) == warned

    def test_no_checkpoint(self, data, tmp_path):
        path = tmp_path / "notes.txt"
        path.write_text("hello")
        assert f"{path} is damaged, or not a file" in self.refusal(
            "--weights", path, "--data", data
        )

    def test_images_for_a_table(self, data):
        code, _, err = outcome(run_bo, "--evaluator", "surrogate", "--data", data, *SEARCH)
        assert (code, err.count("\n")) == (2, 1)
        assert "the surrogate evaluator uses no images" in err


def test_a_search_by_a_supernet(supernet, data, tmp_path):
    out = tmp_path / "run"
    argv = ("--evaluator", "supernet", "--weights", supernet, "--data", data, "--out", out)
    code, said, err = outcome(run_bo, *argv, *SEARCH, "--budget", 3, "--n-init", 2)
    assert code == 0, said + err
    found = pd.read_parquet(out / "trials.parquet")
    assert len(found) == 3
    assert {"value", "test", "test_top5", "macs", "params"} <= set(found.columns)
    assert json.loads((out / "config.json").read_text())["config"]["weights"] == "W.pt"


@pytest.mark.parametrize(
    ("evaluator", "space", "options"),
    [
        ("supernet", MOBILENETV3, {"weights": "quarter.pt"}),
        ("supernet", MOBILENETV3, {"weights": "quarter.pt", "resolution": 48}),
        ("train", MOBILENETV3, {"weights": "quarter.pt"}),
        ("train", MOBILENETV3, {}),
        ("train", MOBILENETV3, {"width": 0.5}),
        ("train", NASBENCH201, {}),
        ("train", NASBENCH201, {"resolution": 16}),
    ],
)
def test_networks_are_counted_as_they_are_measured(evaluator, space, options, data, quarter):
    paths = {"weights": quarter} if "weights" in options else {}
    networks = NetworkOptions(data=data, **{**options, **paths})
    settings = EvaluatorSettings(networks=networks, place=Place(device="cpu"))
    built = build_evaluator(space, evaluator, settings)
    task = network_task(space, evaluator, settings)
    assert task == built.task.network_task(built.width)
    if evaluator == "train":
        arch = space.sample(1, np.random.default_rng(0))[0]
        network = built._network(arch)
        assert sum(p.numel() for p in network.parameters()) == cost(arch, task)["params"]


@pytest.mark.parametrize(
    ("evaluator", "space", "weights", "width", "message"),
    [
        ("train", NASBENCH201, False, 0.5, "--width is for the space mobilenetv3"),
        ("train", MOBILENETV3, False, 0.0, "--width must be more than 0"),
        ("train", MOBILENETV3, True, 0.5, "--width 0.5: the networks of .* have width 0.25"),
        ("supernet", MOBILENETV3, True, 0.5, "--width 0.5: the networks of .* have width 0.25"),
    ],
)
def test_widths_that_do_not_fit(evaluator, space, weights, width, message, data, quarter):
    networks = NetworkOptions(data=data, weights=quarter if weights else None, width=width)
    settings = EvaluatorSettings(networks=networks, place=Place(device="cpu"))
    for use in (build_evaluator, network_task):
        with pytest.raises(UserError, match=message):
            use(space, evaluator, settings)


def test_what_networks_are_counted_for_needs_images_and_weights(data, quarter):
    assert network_task(MOBILENETV3, "surrogate", EvaluatorSettings()) is None
    for options, message in (
        ({"weights": quarter}, "images are required: --data"),
        ({"data": data}, "the supernet evaluator needs --weights"),
    ):
        with pytest.raises(UserError, match=message):
            network_task(
                MOBILENETV3, "supernet", EvaluatorSettings(networks=NetworkOptions(**options))
            )


def test_a_constraint_is_on_the_networks_that_are_measured(data, quarter, tmp_path):
    """Of a quarter of the width, on images of 32 pixels: none has a tenth of the least at 224."""
    task, out = Task(3, 32, 0.25), tmp_path / "run"
    macs = cost_property(MOBILENETV3, "macs", task)
    limit = sum(macs.extremes) / 2
    argv = ["--evaluator", "supernet", "--weights", quarter, "--data", data, *SEARCH]
    argv += ["--calibration", 12, "--budget", 3, "--n-init", 3, "--out", out]
    argv += ["--constraint", f"macs<={limit}"]
    code, said, err = outcome(run_bo, *argv)
    assert code == 0, said + err
    trials = pd.read_parquet(out / "trials.parquet")
    archs = [MOBILENETV3.from_str(text) for text in trials["arch"]]
    assert trials["macs"].tolist() == [cost(arch, task)["macs"] for arch in archs]
    assert trials["macs"].max() <= limit < 12e6


def test_a_latency_table_of_other_networks_is_refused(data, quarter, tmp_path):
    plan = mobilenetv3_plan(32, 1.0)
    blocks = [once_for_all_block(slot, k, e) for slot in plan.slots for k, e in LAYERS]
    times = dict.fromkeys([*once_for_all_ends(plan), *blocks], 1.0)
    table = tmp_path / "phone.json"
    table.write_text(json.dumps({"width": 1.0, "tables": {"32": times}}))
    argv = ["--evaluator", "supernet", "--weights", quarter, "--data", data, *SEARCH]
    argv += ["--constraint", "latency<=20", "--latency-table", f"{table}:32"]
    assert outcome(run_bo, *argv, "--out", tmp_path / "run") == (
        2,
        "",
        f"error: {table} is for networks of width 1, but those evaluated are of width 0.25\n",
    )
    table.write_text(json.dumps({"width": 0.25, "tables": {"224": times}}))
    argv[-1] = table
    assert outcome(run_bo, *argv, "--out", tmp_path / "run") == (
        2,
        "",
        f"error: {table} has no resolution '32': choose from 224\n",
    )


def test_a_search_by_training(data, tmp_path):
    out = tmp_path / "run"
    argv = ["--space", "nasbench201", "--evaluator", "train", "--data", data, "--resolution", 8]
    argv += ["--recipe", "small", "--epochs", 2, *SEARCH, "--n-init", 2, "--out", out]
    code, said, err = outcome(run_bo, *argv, "--budget", 2)
    assert code == 0, said + err
    found = pd.read_parquet(out / "trials.parquet")
    assert [len(curve) for curve in found["curve"]] == [2, 2]
    assert [curve[-1] for curve in found["curve"]] == pytest.approx(found["value"].tolist())
    assert len(list((out / "checkpoints").iterdir())) == 2
    assert "Learning curves" in (out / "report.html").read_text()
    assert outcome(run_bo, *argv, "--budget", 3)[0] == 0
    again = pd.read_parquet(out / "trials.parquet")
    assert again["value"].tolist()[:2] == found["value"].tolist()


def test_a_search_by_training_that_needs_what_is_not_there(data, tmp_path, monkeypatch):
    """It does not begin: every trial would fail, and none would be proposed again."""
    monkeypatch.setitem(sys.modules, "kornia.augmentation.auto", None)
    out = tmp_path / "run"
    argv = ["--evaluator", "train", "--data", data, *SEARCH, "--n-init", 2]
    code, _, err = outcome(run_bo, *argv, "--budget", 2, "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "randaugment needs kornia: pip install 'diffusionnag-bo[imagenet]'" in err
    assert not out.exists()


def test_what_is_promoted_goes_on_where_it_was(data, tmp_path):
    """Successive halving, with real trainings: the best of three after one epoch of four."""
    out = tmp_path / "run"
    argv = ["--space", "nasbench201", "--evaluator", "train", "--data", data, "--resolution", 8]
    argv += ["--recipe", "small", "--epochs", 4, "--executor", "local", "--method", "bohb"]
    code, said, err = outcome(run_bo, *argv, "--n-init", 2, "--budget", 4, "--out", out)
    assert code == 0, said + err
    found = pd.read_parquet(out / "trials.parquet")
    brief = found[found["epochs"].notna()].set_index("arch")
    whole = found[found["epochs"].isna()].iloc[2:]
    assert len(brief) >= 3
    assert len(whole) >= 1
    assert {len(curve) for curve in brief["curve"]} == {1}
    for row in whole.itertuples():
        assert len(row.curve) == 4
        assert row.curve[0] == brief.loc[row.arch, "value"]


def test_an_experiment_on_images(supernet, data, tmp_path):
    file = tmp_path / "e.toml"
    text = (ROOT / "experiments" / "supernet.toml").read_text()
    for old, new in (("seeds = 5", "seeds = 1"), ("budget = 40", "budget = 4")):
        text = text.replace(old, new)
    file.write_text(text.replace("n_init = 10", "n_init = 3"))
    argv = [file, "--out", tmp_path / "runs", "--executor", "local"]
    code, _, err = outcome(experiment, *argv)
    assert (code, "--data" in err) == (2, True)
    code, _, err = outcome(experiment, *argv, "--data", data)
    assert (code, "--weights" in err) == (2, True)
    code, said, err = outcome(experiment, *argv, "--data", data, "--weights", supernet)
    assert code == 0, said + err
    runs = sorted((tmp_path / "runs").glob("mobilenetv3-*/trials.parquet"))
    assert [len(pd.read_parquet(path)) for path in runs] == [4, 4]
