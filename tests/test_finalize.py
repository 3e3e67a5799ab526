"""After a search: training, exports and model cards, on made pictures. Synthetic, and tiny."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from ofa_package import OFAMobileNetV3
from pictures import colours
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from nag.cli import run
from nag.errors import UserError
from nag.locks import claim
from nag.spaces.mobilenetv3 import DEPTHS, EXPANDS, KERNELS, MOBILENETV3
from orchestrator.run_bo import app as run_bo
from trainers.build import EvaluatorSettings, build_evaluator
from trainers.finalize import app
from trainers.finished import export as export_module
from trainers.finished.card import accuracy, caveats
from trainers.finished.classifier import Classifier, load_classifier
from trainers.finished.finalists import read_search
from trainers.ofa import Supernet, save_supernet
from trainers.rows import write_rows
from trainers.training.augment import Normalisation
from trainers.training.loop import DivergedError, Training
from trainers.training.sandwich import SMALLEST
from trainers.training.task import NetworkOptions, digest_of_images

ROOT = Path(__file__).parent.parent
POOL, SKIP, CONV = (
    f"|{op}~0|+|none~0|none~1|+|{op}~0|none~1|none~2|"
    for op in ("avg_pool_3x3", "skip_connect", "nor_conv_1x1")
)
CELLS = ("--space", "nasbench201", "--resolution", "8", "--recipe", "small", "--held-out", "9")
ONE = ("--top", 1, "--epochs", 2)
FILES = {
    *("README.md", "arch.json", "config.json", "model.pt2", "model.safetensors"),
    *("preprocessing.json", "model.onnx"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    """A run that has trained two cells for two epochs."""
    out = tmp_path_factory.mktemp("search") / "run"
    argv = [*CELLS, "--evaluator", "train", "--data", data, "--epochs", 2, "--out", out]
    argv += ["--executor", "local", "--strategy", "random", "--surrogate", "none"]
    code = exit_code(run_bo, *argv, "--n-init", 2, "--budget", 2)
    assert code == 0
    return out


@pytest.fixture(scope="module")
def finished(searched, data, tmp_path_factory):
    """Its best cell, trained with two seeds for longer."""
    out = tmp_path_factory.mktemp("finished") / "out"
    argv = ("--data", data, "--top", 1, "--seeds", 2, "--epochs", 4, "--out", out)
    argv += ("--recipe", "nasbench201")  # which normalises by the statistics of the images
    assert exit_code(app, searched, *argv) == 0
    return out / "1"


@pytest.fixture
def cells(tmp_path):
    """The part of a command line that gives two cells."""
    path = tmp_path / "cells.txt"
    path.write_text(f"{POOL}\n{CONV}\n")
    return ("--archs", path, *CELLS)


@pytest.fixture
def no_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)


def exit_code(command, *argv):
    with pytest.raises(SystemExit) as exit_:
        run(command, [str(argument) for argument in argv])
    return exit_.value.code


def refusal(capsys, *argv):
    """The one line that a command ends with which cannot be done."""
    code = exit_code(app, *argv)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def config(folder):
    return json.loads((folder / "config.json").read_text())


def pictures(data, split="val"):
    """The pictures of a split as (n, 8, 8, 3) uint8, and their labels, without our loader."""
    files = sorted((data / split).rglob("*.png"))
    squares = [Image.open(file).resize((8, 8), Image.Resampling.BILINEAR) for file in files]
    names = ["blue", "green", "red"]
    return np.stack(squares), np.array([names.index(file.parent.name) for file in files])


def written_run(path, trials, partial="epochs", **changes):
    """The folder of a run with made trials: number, architecture, value in percent, epochs."""
    path.mkdir()
    config = {"space": "nasbench201", "evaluator": "table", "objective": "valid", **changes}
    (path / "config.json").write_text(json.dumps({"config": config, "command": "python x"}))
    names = ("trial", "arch", "value", partial)
    write_rows(
        [dict(zip(names, row, strict=True)) for row in trials], names, path / "trials.parquet"
    )
    return path


class TestReadingARun:
    def test_best_first_and_of_equals_the_earlier(self, tmp_path):
        rows = [(0, POOL, 50.0, None), (1, CONV, 60.0, None), (2, SKIP, 60.0, None)]
        search = read_search(written_run(tmp_path / "run", rows), top=2)
        assert [(one.trial, one.value) for one in search.finalists] == [(1, 0.6), (2, 0.6)]
        assert search.trials == 3

    def test_of_a_search_for_a_target_the_nearest_first(self, tmp_path):
        rows = [(0, POOL, 50.0, None), (1, CONV, 62.0, None), (2, SKIP, 70.0, None)]
        search = read_search(written_run(tmp_path / "run", rows, target=58), top=2)
        assert [one.trial for one in search.finalists] == [1, 0]

    @pytest.mark.parametrize("partial", ["epochs", "stopped"])
    def test_failures_and_low_fidelity_do_not_count(self, tmp_path, partial):
        rows = [(0, POOL, 50.0, None), (1, CONV, None, None), (2, SKIP, 99.0, 12)]
        search = read_search(written_run(tmp_path / "run", rows, partial), top=3)
        assert [one.trial for one in search.finalists] == [0]

    def test_a_table_that_lags_behind_the_journal(self, tmp_path):
        """A run that was killed: what is best is not in the table yet."""
        path = written_run(tmp_path / "run", [(0, POOL, 50.0, None)])
        events = [{"event": "proposed", "trials": []}]
        events += [{"event": "finished", "trial": trial} for trial in (0, 0, 1)]
        lines = [json.dumps(event) for event in events]
        (path / "journal.jsonl").write_text("\n".join([*lines[:3], '{"event": "fini']))
        assert read_search(path, top=1).trials == 1
        (path / "journal.jsonl").write_text("\n".join(lines))
        with pytest.raises(UserError, match=r"has 1 of 2 trials: .*repeat its command"):
            read_search(path, top=1)

    def test_architectures_of_another_space(self, tmp_path):
        path = written_run(tmp_path / "run", [(7, "nonsense", 50.0, None)])
        with pytest.raises(UserError, match=r"trial 7: .*nonsense"):
            read_search(path, top=1)


def test_the_best_of_a_run_is_trained_with_every_seed(searched, finished):
    trials = pd.read_parquet(searched / "trials.parquet")
    best = trials.loc[trials["value"].idxmax()]
    found = config(finished)
    assert {path.name for path in finished.iterdir()} == FILES
    assert found["network"]["arch"] == best["arch"]
    assert (found["search"]["trial"], found["search"]["value"]) == (best["trial"], best["value"])
    assert found["search"]["same_images"]
    assert len(found["results"]["held_out"]) == len(found["results"]["test"]) == 2
    assert found["asked"]["recipe"]["epochs"] == 4
    assert found["network"]["resolution"] == 8
    kept = finished.parent / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["seed-0", "seed-1"]


def test_all_files_compute_the_same_for_any_number_of_pictures(finished, data):
    images, labels = pictures(data)
    session = onnxruntime.InferenceSession(finished / "model.onnx")
    program = torch.export.load(finished / "model.pt2").module()
    classifier = load_classifier(finished)
    assert not classifier.training
    normalise = Normalisation(classifier.spec.mean, classifier.spec.std)
    with torch.no_grad():
        expected = classifier.network(normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))
        torch.testing.assert_close(classifier(torch.from_numpy(images)), expected)
    means = pictures(data, "train")[0].mean((0, 1, 2)) / 255
    assert classifier.spec.mean == pytest.approx(means, abs=0.01)
    for batch in (images, images[:1], images[:5]):
        with torch.no_grad():
            expected = classifier(torch.from_numpy(batch)).numpy()
        (found,) = session.run(None, {"images": batch})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        found = program(torch.from_numpy(batch)).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    (logits,) = session.run(None, {"images": images})
    right = 100 * (logits.argmax(1) == labels).mean()
    assert right == pytest.approx(config(finished)["results"]["test"][0])
    assert np.ptp(logits, axis=0).min() > 0.1  # pictures do matter


def test_what_the_card_says_to_run_does_run(finished, data, tmp_path):
    card = (finished / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in finished.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    Image.open(data / "val" / "red" / "0.png").save(folder / "picture.jpg", quality=100)
    said = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    image = torch.from_numpy(np.array(Image.open(folder / "picture.jpg").resize((8, 8), 2)))
    best = load_classifier(folder)(image[None]).argmax()
    assert said.stdout.split() == [("blue", "green", "red")[best]] * 3


def test_the_card_tells_seeds_search_and_what_not_to_believe(finished):
    card = (finished / "README.md").read_text()
    assert accuracy(config(finished)["results"]["test"]) in card
    for said in (
        "Trial ",
        "number 1 of 2 by value",
        "by the evaluator train",
        "36 trained on, 9 held out",
    ):
        assert said in card
    assert "The search chose this architecture out of 2" in card
    assert not re.search(
        r"\{[{%]|None|Undefined", card.replace("[None]", "").replace("run(None", "")
    )


def test_an_interval_of_seeds():
    assert accuracy([2.0]) == "2.00"
    assert accuracy([1.0, 2.0, 3.0]) == "2.00 ± 2.48 (1.00, 2.00, 3.00)"  # 4.303 / sqrt(3)


def test_as_the_search_has_trained_it(searched, data, tmp_path, capsys, no_onnx):
    argv = ("--data", data, "--no-train", "--top", 1, "--out", tmp_path / "out")
    assert exit_code(app, searched, *argv) == 0
    found = config(tmp_path / "out" / "1")
    assert found["results"]["held_out"] == [pytest.approx(found["search"]["value"])]
    checkpoints = [load_file(path) for path in (searched / "checkpoints").iterdir()]
    weights = load_file(tmp_path / "out" / "1" / "model.safetensors")
    same = [
        kept.keys() >= {f"network.{name}" for name in weights}
        and all(torch.equal(kept[f"network.{name}"], value) for name, value in weights.items())
        for kept in checkpoints
    ]
    assert sum(same) == 1
    argv = (*argv[:-1], tmp_path / "other", "--epochs", 3)
    capsys.readouterr()
    assert "holds no training of 3 epochs of |" in refusal(capsys, searched, *argv)


def test_a_network_of_a_supernet(data, tmp_path):
    width = 0.5
    torch.manual_seed(0)
    save_supernet(Supernet(3, width), tmp_path / "W.pt", {"resolution": 32})
    (tmp_path / "archs.txt").write_text(MOBILENETV3.to_str(SMALLEST))
    argv = ["--archs", tmp_path / "archs.txt", "--weights", tmp_path / "W.pt", "--no-train"]
    assert exit_code(app, *argv, "--data", data, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / "1"
    assert {path.name for path in folder.iterdir()} == FILES
    found, arch = config(folder), json.loads((folder / "arch.json").read_text())
    assert (found["network"]["width"], arch["w"], arch["r"]) == (width, width, [32])
    classifier = load_classifier(folder)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(None, {"images": images})
    with torch.no_grad():
        expected = classifier(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    official = OFAMobileNetV3(
        n_classes=3,
        width_mult=arch["w"],
        ks_list=list(KERNELS),
        expand_ratio_list=list(EXPANDS),
        depth_list=list(DEPTHS),
    )
    official.set_active_subnet(ks=arch["ks"], e=arch["e"], d=arch["d"])
    subnet = official.get_active_subnet(preserve_weight=False)
    counts = [sum(p.numel() for p in net.parameters()) for net in (subnet, classifier)]
    assert counts[0] == counts[1] == found["results"]["params"]


class TestRepeatedCommands:
    def test_what_is_there_is_left(self, cells, data, tmp_path, capsys, no_onnx):
        argv = (*cells, *ONE, "--data", data, "--out", tmp_path / "out")
        assert exit_code(app, *argv) == 0
        before = (tmp_path / "out" / "1" / "config.json").stat().st_mtime_ns
        capsys.readouterr()
        assert exit_code(app, *argv) == 0
        said = capsys.readouterr().err
        assert "1 already exists" in said
        assert "epoch" not in said
        assert (tmp_path / "out" / "1" / "config.json").stat().st_mtime_ns == before
        other = ("--top", 1, "--epochs", 3, "--seeds", 2)
        error = refusal(capsys, *cells, *other, "--data", data, "--out", tmp_path / "out")
        assert "1 holds another network (recipe.epochs is 2 there, 3 here, " in error
        assert "seeds is 1 there, 2 here): choose another --out" in error

    def test_onnx_comes_when_it_is_installed(self, cells, data, tmp_path, capsys):
        argv = (*cells, *ONE, "--data", data, "--out", tmp_path / "out")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "onnxruntime", None)
            patch.setattr(sys, "orig_argv", ["python"])  # the card quotes it: pytest -k onnx
            assert exit_code(app, *argv) == 0
        folder = tmp_path / "out" / "1"
        said = capsys.readouterr().err
        assert "model.onnx was not written: pip install 'diffusionnag-bo[export]'\n" in said
        assert {path.name for path in folder.iterdir()} == FILES - {"model.onnx"}
        assert "onnx" not in (folder / "README.md").read_text()
        weights = (folder / "model.safetensors").read_bytes()
        assert exit_code(app, *argv) == 0
        assert "epoch" not in capsys.readouterr().err  # it was trained before
        assert {path.name for path in folder.iterdir()} == FILES
        assert (folder / "model.safetensors").read_bytes() == weights

    @pytest.mark.parametrize("at", [1, 2])
    def test_an_interrupted_replacement_loses_nothing(self, cells, data, tmp_path, capsys, at):
        out = tmp_path / "out"
        argv = (*cells, *ONE, "--data", data, "--out", out)
        rename, renamed = Path.rename, []

        def interrupted(path, target):
            renamed.append(path)
            if len(renamed) == at:
                raise KeyboardInterrupt
            return rename(path, target)

        with pytest.MonkeyPatch.context() as without_onnx:
            without_onnx.setitem(sys.modules, "onnxruntime", None)
            assert exit_code(app, *argv) == 0
            weights = (out / "1" / "model.safetensors").read_bytes()
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(sys.modules, "onnxruntime", onnxruntime)
                patch.setattr(Path, "rename", interrupted)
                assert exit_code(app, *argv) == 130
            assert renamed[:2] == [out / "1", out / ".1.tmp"][:at]
            capsys.readouterr()
            assert exit_code(app, *argv) == 0
        assert "1 already exists" in capsys.readouterr().err
        assert (out / "1" / "model.safetensors").read_bytes() == weights
        assert exit_code(app, *argv) == 0
        assert {path.name for path in (out / "1").iterdir()} == FILES
        assert {path.name for path in out.iterdir()} == {"1", "checkpoints"}

    def test_a_second_command_is_refused(self, cells, data, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("nag.locks._PATIENCE", 0.1)
        (tmp_path / "out").mkdir()
        with claim(tmp_path / "out"):
            said = refusal(capsys, *cells, "--data", data, "--out", tmp_path / "out")
        assert said == f"error: {tmp_path / 'out'} is in use by another process\n"

    def test_after_an_interruption(self, cells, data, tmp_path, capsys, monkeypatch, no_onnx):
        argv = (*cells, "--data", data, "--seeds", 2, "--epochs", 2)
        assert exit_code(app, *argv, "--out", tmp_path / "whole") == 0
        capsys.readouterr()
        one_step, steps = Training._one_step, []

        def interrupted(self, images, labels):
            steps.append(self.step)
            if len(steps) == 6:  # of 2 networks, 2 seeds, 2 epochs of 1 step
                raise KeyboardInterrupt
            return one_step(self, images, labels)

        monkeypatch.setattr(Training, "_one_step", interrupted)
        assert exit_code(app, *argv, "--out", tmp_path / "cut") == 130
        assert capsys.readouterr().err.endswith("interrupted: repeat the command to continue\n")
        assert {path.name for path in (tmp_path / "cut").iterdir()} == {"1", "checkpoints"}
        assert exit_code(app, *argv, "--out", tmp_path / "cut") == 0
        assert len(steps) == 6 + 3  # the one that was interrupted, and the two of seed 1
        for rank in ("1", "2"):
            whole, cut = (tmp_path / name / rank for name in ("whole", "cut"))
            name = "model.safetensors"
            assert (whole / name).read_bytes() == (cut / name).read_bytes()
            assert config(whole)["results"]["test"] == config(cut)["results"]["test"]


class TestExportsThatFail:
    def test_one_that_computes_something_else(self, finished, tmp_path, monkeypatch):
        real = export_module._onnx
        monkeypatch.setattr(
            export_module, "_onnx", lambda path: lambda images: 1.001 * real(path)(images)
        )
        spec = load_classifier(finished).spec
        linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
        images = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
        found, problem = export_module.export(Classifier(linear, spec), images, tmp_path)
        assert problem.startswith("model.onnx does not compute the same as the network: ")
        assert found.keys() == {"model.pt2"}
        assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]

    def test_one_that_cannot_be_written(self, cells, data, tmp_path, capsys, monkeypatch):
        def broken(*arguments):
            raise RuntimeError("no such\noperator")

        monkeypatch.setattr(export_module, "_write_onnx", broken)
        assert exit_code(app, *cells, *ONE, "--data", data, "--out", tmp_path / "out") == 1
        folder = tmp_path / "out" / "1"
        assert (
            f"{folder} was written without model.onnx: no such operator" in capsys.readouterr().err
        )
        assert {path.name for path in folder.iterdir()} == FILES - {"model.onnx"}


def test_training_on_held_out_images_too(cells, data, tmp_path, no_onnx):
    argv = (*cells, *ONE, "--data", data, "--with-held-out", "--out", tmp_path / "out")
    assert exit_code(app, *argv) == 0
    found = config(tmp_path / "out" / "1")
    assert found["data"]["train"] == 45
    assert "held_out" not in found["results"]
    assert len(found["results"]["test"]) == 1
    card = (tmp_path / "out" / "1" / "README.md").read_text()
    assert "45 trained on, none held out" in card


class TestCommandsThatCannotBeDone:
    def argv(self, *argv):
        return (*argv, "--out", "out")

    def test_no_run(self, capsys):
        assert "no run in nowhere: give the folder that was --out of a run" in refusal(
            capsys, *self.argv("nowhere")
        )

    def test_neither_run_nor_list(self, capsys):
        assert "give either the folder of a run or --archs" in refusal(capsys, *self.argv())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--top", 0), "--top and --seeds must be at least 1"),
            (("--seeds", 0), "--top and --seeds must be at least 1"),
            (("--no-train", "--seeds", 2), "cannot be combined with --no-train"),
            (("--no-train", "--with-held-out"), "cannot be combined with --no-train"),
            (("--recipe", "tasty"), "unknown recipe 'tasty': choose from nasbench201"),
            (("--device", "luck"), "device 'luck' is not available: use cpu, cuda or auto"),
        ],
    )
    def test_options(self, capsys, searched, data, options, message):
        argv = self.argv(searched, "--data", data, *options)
        assert message in refusal(capsys, *argv)

    def test_a_run_as_output(self, capsys, searched, data):
        argv = (searched, "--data", data, "--out", searched)
        assert "is a run: choose another folder" in refusal(capsys, *argv)

    def test_a_recipe_that_needs_what_is_not_there(
        self, capsys, monkeypatch, searched, data, tmp_path
    ):
        monkeypatch.setitem(sys.modules, "kornia.augmentation.auto", None)
        argv = (searched, "--data", data, "--recipe", "imagenet", "--out", tmp_path / "out")
        assert "needs kornia: pip install 'diffusionnag-bo[imagenet]'" in refusal(capsys, *argv)

    def test_no_images(self, capsys, searched):
        assert "images are required: --data" in refusal(capsys, *self.argv(searched))

    def test_other_images(self, capsys, searched, tmp_path):
        other = colours(tmp_path / "other", train=16)
        err = refusal(capsys, *self.argv(searched, "--data", other))
        assert f"{other} does not hold the images that {searched} used" in err

    def test_a_run_whose_trials_failed(self, capsys, data, tmp_path):
        path = written_run(tmp_path / "run", [(0, POOL, None, None)])
        err = refusal(capsys, *self.argv(path, "--data", data))
        assert f"{path} has no successful trial" in err

    def test_a_space_without_networks(self, capsys, data, tmp_path):
        rows = [(0, "ca/bc", 50.0, None)]
        path = written_run(tmp_path / "run", rows, space="toy", evaluator="toy")
        err = refusal(capsys, *self.argv(path, "--data", data))
        assert "the train evaluator supports the space mobilenetv3 and nasbench201, not toy" in err

    @pytest.mark.parametrize("damage", ["", "{}", '{"config": 3}', '{"config": {"space": "toy"}}'])
    def test_a_damaged_record(self, capsys, tmp_path, damage):
        path = written_run(tmp_path / "run", [(0, POOL, 50.0, None)])
        (path / "config.json").write_text(damage)
        assert f"{path / 'config.json'} is damaged" in refusal(capsys, *self.argv(path))

    def test_damaged_trials(self, capsys, tmp_path):
        path = written_run(tmp_path / "run", [(0, POOL, 50.0, None)])
        (path / "trials.parquet").write_text("PAR1")
        assert "trials.parquet is damaged" in refusal(capsys, *self.argv(path))
        trials = {"trial": [0, 1], "arch": [POOL, POOL], "value": [50.0, 60.0]}
        for other, message in (
            ({"value": ["many", "few"]}, "trials.parquet is damaged"),
            ({"arch": [None, POOL]}, "trial 0: '' is not a NAS-Bench-201 cell"),
            ({"arch": [3, 4]}, "trial 1: '4' is not a NAS-Bench-201 cell"),
        ):
            pd.DataFrame(trials | other).to_parquet(path / "trials.parquet")
            assert message in refusal(capsys, *self.argv(path))
        (path / "trials.parquet").unlink()
        assert "repeat the command of the run" in refusal(capsys, *self.argv(path))

    def test_weights_of_the_run(self, capsys, data, tmp_path):
        rows = [(0, MOBILENETV3.to_str(SMALLEST), 50.0, None)]
        about = {"evaluator": "supernet", "weights": "W.pt", "sha256": {"weights": "0" * 64}}
        path = written_run(tmp_path / "run", rows, space="mobilenetv3", **about)
        argv = self.argv(path, "--data", data, "--no-train")
        assert f"{path} took weights from W.pt: give --weights" in refusal(capsys, *argv)
        other = tmp_path / "other.pt"
        save_supernet(Supernet(3), other, {})
        err = refusal(capsys, *argv, "--weights", other, "--resolution", 32)
        assert f"{other} is not the file that {path} took weights from" in err
        save_supernet(Supernet(7), other, {})
        err = refusal(capsys, *argv, "--weights", other)
        assert "has 7 classes" in err

    @pytest.mark.parametrize("train", [True, False])
    def test_a_supernet_that_has_seen_what_is_held_out(self, capsys, data, tmp_path, train):
        made = {"images": digest_of_images(data), "held_out": 9, "resolution": 32}
        save_supernet(Supernet(3, width=0.25), tmp_path / "W.pt", made)
        (tmp_path / "archs.txt").write_text(MOBILENETV3.to_str(SMALLEST))
        argv = ["--archs", tmp_path / "archs.txt", "--weights", tmp_path / "W.pt", "--data", data]
        argv += [] if train else ["--no-train"]
        err = refusal(capsys, *self.argv(*argv, "--held-out", 12))
        assert "was trained with 9 of these images held out: --held-out 12 would" in err
        networks = NetworkOptions(data=data, weights=tmp_path / "W.pt", held_out=12)
        settings = EvaluatorSettings(
            networks=networks, with_held_out=True
        )  # measures by none of them
        assert len(build_evaluator(MOBILENETV3, "train", settings).task.train) == 45

    def test_nothing_to_report(self, capsys, cells, data, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        (other / "train").symlink_to(data / "train")
        argv = self.argv(*cells, "--data", other, "--with-held-out")
        assert "--with-held-out would leave no images to measure" in refusal(capsys, *argv)

    def test_a_folder_of_something_else(self, capsys, cells, data, tmp_path):
        (tmp_path / "out" / "1").mkdir(parents=True)
        err = refusal(capsys, *cells, "--data", data, "--out", tmp_path / "out")
        assert "exists and is not a finished network" in err


@pytest.mark.parametrize(
    "error",
    [
        DivergedError("the loss is nan in epoch 1"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("too many images"),
    ],
)
def test_a_training_that_fails_fails_its_own_network(cells, data, tmp_path, capsys, no_onnx, error):
    one_step, diverged = Training._one_step, []

    def diverging(self, images, labels):
        if not diverged:
            diverged.append(True)
            raise error
        return one_step(self, images, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_one_step", diverging)
        argv = (*cells, "--data", data, "--epochs", 1, "--out", tmp_path / "out")
        assert exit_code(app, *argv) == 1
    assert f"1 of 2: failed: {error}\n" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"2", "checkpoints"}


def test_models_that_are_not_there(finished, tmp_path):
    with pytest.raises(UserError, match=f"no model in {tmp_path}"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(UserError, match="is damaged"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"how": "supernet"}, "shared with all networks of a supernet"),
        ({"how": "search"}, "favours lucky trainings"),
        ({"search": {"same_images": True}}, "that accuracy is too high"),
        ({"search": {"objective": "test"}}, "no accuracy on those test images is a fair estimate"),
        ({"search": {"evaluator": "surrogate"}}, "estimate of a surrogate"),
        ({"seen_held_out": True}, "It is not known whether the supernet"),
        ({"results": {"held_out": [1.0]}}, "no images in val"),
        ({"seeds": [0]}, "only one training"),
    ],
)
def test_caveats(changes, said):
    assert said not in " ".join(caveats(about()))
    assert said in " ".join(caveats(about(**changes)))


def test_the_nearest_to_a_target_is_not_called_too_high():
    """The architecture was not chosen for the highest of the values."""
    aimed = about(how="search", search={"same_images": True, "target": 70.0})
    said = " ".join(caveats(aimed))
    assert "too high" not in said
    assert "lucky" not in said


def about(search=None, **changes):
    """What a card is made from, as far as its caveats depend on it."""
    found = {"same_images": False, "objective": "valid", "evaluator": "table", "trials": 3}
    return {
        "search": found | {"searched_on": "cifar10", "target": None} | (search or {}),
        "results": {"held_out": [1.0], "test": [1.0]},
        "how": "train",
        "seeds": [0, 1],
        "seen_held_out": False,
    } | changes
