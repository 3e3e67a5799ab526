"""A folder for each finished network: weights, exports, and a model card."""

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from nag.cli import difference, package_version
from nag.errors import UserError
from nag.spaces import SearchSpace
from trainers.evaluators.supernet import SupernetEvaluator
from trainers.evaluators.training import TrainingEvaluator
from trainers.finished.card import accuracy, model_card
from trainers.finished.classifier import CONFIG, Classifier, Spec, save_classifier
from trainers.finished.export import ONNX, PACKAGES, PROGRAM, ExportError, can_write_onnx, export
from trainers.finished.finalists import Finalist, Search
from trainers.finished.finish import (
    Finished,
    some_images,
    take_from_search,
    take_from_supernet,
    train_anew,
)
from trainers.ofa import Supernet
from trainers.rows import PERCENT
from trainers.training.loop import Epoch

How = Literal["train", "search", "supernet"]


@dataclass(frozen=True)
class Packaging:
    """What all networks of a command have in common.

    how: weights from a new training, from the search, or from a supernet.
    weights: file of the supernet that the weights come from, and its SHA-256.
    seeds: number of trainings.
    measured_by_held_out: False if held-out images are trained on.
    checkpoints: folder of trainings; not used by `supernet`.
    """

    space: SearchSpace
    evaluator: TrainingEvaluator | SupernetEvaluator
    how: How
    weights: Mapping[str, str] | None
    seeds: int
    measured_by_held_out: bool
    search: Search | None
    out: Path
    checkpoints: Path

    def package(self, rank: int, finalist: Finalist, console: Console) -> str:
        """Make the folder OUT/RANK atomically, unless it exists; returns a summary of it.

        Raises UserError if it holds something else, EvaluationError, and ExportError, also if all
        but model.onnx was written.
        """
        folder = self.out / str(rank)
        _recover(folder)
        there = self.there(rank, finalist)
        if there is not None and ((folder / ONNX).exists() or not can_write_onnx()):
            return f"{_summary(there)}: {folder} already exists"
        finished = self._finish(rank, finalist, console)
        classifier = self._classifier(finalist, finished)
        aside = self.out / f".{rank}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        images = some_images(self.evaluator.task, self.evaluator.recipe)
        differences, problem = export(classifier, images, aside)
        about = {
            "rank": rank,
            **self._about(finalist, finished),
            "export": differences,
            "tried_on": len(images),
            "asked": self._asked(finalist),
        }
        save_classifier(classifier, aside, about)
        card = model_card(asdict(classifier.spec), about)
        (aside / "README.md").write_text(card, encoding="utf-8")
        _replace(folder, aside)
        if problem:
            raise ExportError(f"{folder} was written without {ONNX}: {problem}")
        worst = max(differences.values())
        files = " and ".join(differences)
        return (
            f"{_summary(about)}: {folder}; outputs of {files} differ from the network's by at most "
            f"{worst:.1g}"
        )

    def there(self, rank: int, finalist: Finalist) -> Mapping[str, Any] | None:
        """The config.json of OUT/RANK, if there is one; UserError if it is of something else."""
        folder = self.out / str(rank)
        record = _read(folder)
        if record is not None:
            asked = json.loads(json.dumps(self._asked(finalist)))
            if others := difference(_flat(record["asked"]), _flat(asked)):
                raise UserError(f"{folder} holds another network ({others}): choose another --out")
        return record

    def _finish(self, rank: int, finalist: Finalist, console: Console) -> Finished:
        evaluator, arch = self.evaluator, finalist.arch
        if isinstance(evaluator, SupernetEvaluator):
            return take_from_supernet(evaluator, arch)
        if self.how == "search":
            return take_from_search(evaluator, arch, self.checkpoints)
        epochs = evaluator.epochs

        def progress(seed: int, epoch: Epoch) -> None:
            held_out = f", held out {100 * epoch.accuracy:.2f} %" * self.measured_by_held_out
            console.print(
                f"network {rank}, seed {seed}, epoch {epoch.epoch} of {epochs}: loss "
                f"{epoch.loss:.3f}{held_out}, {epoch.seconds:.0f} s"
            )

        return train_anew(evaluator, arch, self.seeds, self.checkpoints, progress)

    def _classifier(self, finalist: Finalist, finished: Finished) -> Classifier:
        """The network with the preprocessing used in its measurements."""
        task = self.evaluator.task
        spec = Spec(
            space=self.space.name,
            arch=self.space.to_str(finalist.arch),
            classes=task.classes,
            resolution=task.resolution,
            crop_ratio=self.evaluator.recipe.centre.ratio,
            width=self.evaluator.width,
            mean=finished.normalise.mean,
            std=finished.normalise.std,
        )
        return Classifier(finished.network, spec)

    def _asked(self, finalist: Finalist) -> dict[str, Any]:
        """Everything that determines the result: equal for equal work."""
        evaluator = self.evaluator
        return {
            "space": self.space.name,
            "arch": self.space.to_str(finalist.arch),
            "how": self.how,
            "recipe": asdict(evaluator.recipe),
            "images": evaluator.task.identity,
            "weights": self.weights and self.weights["sha256"],
            "seeds": self.seeds,
            "calibration": getattr(evaluator, "calibration", None),
        }

    def _about(self, finalist: Finalist, finished: Finished) -> dict[str, Any]:
        task = self.evaluator.task
        packages = ("diffusionnag-bo", "torch", *(PACKAGES if can_write_onnx() else ()))
        return {
            "how": self.how,
            "seeds": list(range(self.seeds)) if self.how == "train" else [],
            "data": {
                "name": task.path.name,
                "digest": task.digest,
                "train": len(task.train),
                "held_out": len(task.held_out),
            },
            "recipe": self.evaluator.recipe.name,
            "weights": self.weights,
            "seen_held_out": self._may_have_seen_held_out(),
            "results": self._results(finished),
            "search": self.search and self._found(self.search, finalist),
            "versions": {
                "Python": platform.python_version(),
                **{name: package_version(name) for name in packages},
            },
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
        }

    def _results(self, finished: Finished) -> dict[str, Any]:
        """Accuracies (percent) and seconds of each training; `macs` and `params`."""
        first = finished.measurements[0].metrics
        metrics = [PERCENT.written(one.metrics) for one in finished.measurements]
        found: dict[str, Any] = {name: first[name] for name in ("macs", "params")}
        found["seconds"] = [one.seconds for one in finished.measurements]
        if self.measured_by_held_out:
            found["held_out"] = [100 * one.value for one in finished.measurements]
        tests = [name for name in ("test", "test_top5") if name in first]
        return found | {name: [one[name] for one in metrics] for name in tests}

    def _found(self, search: Search, finalist: Finalist) -> dict[str, Any]:
        """How the search found it."""
        assert finalist.value is not None
        names = ("evaluator", "objective", "target", "surrogate", "strategy", "acq", "seed")
        return {
            "run": search.path.name,
            "trial": finalist.trial,
            "value": 100 * finalist.value,
            "trials": search.trials,
            "searched_on": search.searched_on,
            "same_images": search.sha256.get("data") == self.evaluator.task.digest,
            **{name: search.config.get(name) for name in names},
            "command": search.command,
            "versions": dict(search.versions),
        }

    def _may_have_seen_held_out(self) -> bool:
        supernet: Supernet | None = self.evaluator.supernet
        return supernet is not None and not self.evaluator.task.unseen_by(supernet.meta)


def _read(folder: Path) -> Mapping[str, Any] | None:
    """The config.json; None if there is no folder."""
    if not folder.exists():
        return None
    try:
        record: Mapping[str, Any] = json.loads((folder / CONFIG).read_bytes())
        if {"asked", "results"} <= record.keys() and (folder / PROGRAM).exists():
            return record
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(f"{folder} exists and is not a finished network: choose another --out")


def _flat(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, with each setting of the recipe on its own."""
    recipe = {f"recipe.{name}": value for name, value in asked["recipe"].items()}
    return {name: value for name, value in asked.items() if name != "recipe"} | recipe


def _replace(folder: Path, new: Path) -> None:
    """Put a new folder in the place of another, if there is one, which is not lost in a crash."""
    if folder.exists():
        folder.rename(_old(folder))
    new.rename(folder)
    shutil.rmtree(_old(folder), ignore_errors=True)


def _recover(folder: Path) -> None:
    """End a replacement that was interrupted, with the new folder if that is in place."""
    if folder.exists():
        shutil.rmtree(_old(folder), ignore_errors=True)
    elif _old(folder).exists():
        _old(folder).rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _summary(about: Mapping[str, Any]) -> str:
    results = about["results"]
    said = [
        f"{name} {accuracy(results[key])} %"
        for key, name in (("test", "val"), ("held_out", "held out"))
        if key in results
    ]
    return ", ".join([*said, f"{results['macs'] / 1e6:.3g} M MACs"])
