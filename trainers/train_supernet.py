"""Train a once-for-all supernet on images: `python -m trainers.train_supernet --help`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cyclopts import Parameter
from rich.console import Console
from torch import nn

from nag.cli import (
    WholeNumber,
    check_output,
    check_seed,
    command_line,
    difference,
    end_interrupted,
    plain_console,
    run,
    section,
)
from nag.errors import UserError, counted
from nag.spaces import Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3
from trainers.evaluators.supernet import SupernetEvaluator
from trainers.ofa import LARGEST, Supernet, load_supernet, save_supernet
from trainers.plans import check_width
from trainers.training import parallel
from trainers.training.checkpoint import NoCheckpointError
from trainers.training.loop import Epoch, Training
from trainers.training.recipe import Recipe, find_recipe
from trainers.training.sandwich import SMALLEST, sandwich
from trainers.training.task import ImageOptions, ImageTask, Machine

app = command_line(
    "python -m trainers.train_supernet",
    "python -m trainers.train_supernet --data DIR --resolution 64 --recipe small --out W.pt",
    "torchrun --nproc-per-node 8 -m trainers.train_supernet --data DIR --batch-size 2048 "
    "--out W.pt",
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SupernetOptions:
    """How a supernet is trained.

    Parameters
    ----------
    out
        File for the weights: safetensors if it has that suffix, else the format of official
        checkpoints.
    recipe
        Training recipe: imagenet, or small for thousands of small images.
    epochs
        Epochs, instead of the recipe's.
    batch_size
        Images per step over all processes, instead of the recipe's.
    learning_rate
        Peak learning rate, instead of the recipe's, which scales with the batch size.
    width
        Multiplier of all channels.
    random
        Random networks trained per step, in addition to the largest and the smallest.
    seed
        Seed of the training.
    """

    out: Path
    recipe: str = "imagenet"
    epochs: WholeNumber | None = None
    batch_size: WholeNumber | None = None
    learning_rate: float | None = None
    width: float = 1.0
    random: WholeNumber = 2
    seed: WholeNumber = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.random < 0:
            raise UserError("--random must not be negative")
        check_width(self.width)
        check_output(self.out)
        if self.batch_size is not None and self.batch_size < 2:
            raise UserError("--batch-size must be at least 2")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UserError("--learning-rate must be more than 0")

    def recipe_in(self, processes: int) -> Recipe:
        """The recipe of `processes` processes together; raises UserError."""
        recipe = find_recipe(self.recipe, self.epochs)
        batch_size = self.batch_size or recipe.batch_size
        if batch_size % processes:
            raise UserError(
                f"--batch-size {batch_size} is not divisible by the {processes} processes"
            )
        rate = self.learning_rate or recipe.learning_rate * batch_size / recipe.batch_size
        return replace(
            recipe,
            batch_size=batch_size,
            learning_rate=rate,
            drop_path=0.0,
            dropout=0.0,
            policy="none",
        )


@Parameter(name="*", group=section("Images and networks"))
@dataclass(frozen=True, kw_only=True)
class SupernetImages(ImageOptions):
    """What a supernet is trained and measured on."""

    data: Path = field()  # required here


@app.default
def main(
    options: SupernetOptions,
    images: SupernetImages,
    place: Machine = Machine(),
) -> None:
    """Train all networks of the once-for-all MobileNetV3 space at once, with shared weights.

    Every step trains the largest network on the labels, and the smallest and some random ones on
    its predictions. The training is saved in OUT.training every five minutes and after every
    epoch. Repeat an interrupted command to continue it; repeating a finished one does nothing.
    OUT.jsonl gets one line per epoch. Use OUT with --evaluator supernet, which needs no other
    option than --data.
    """
    parallel.join(place.device)
    console = plain_console(quiet=parallel.rank() > 0)
    try:
        train_supernet(options, images, place, console)
    except KeyboardInterrupt:
        end_interrupted(quiet=console.quiet)


def train_supernet(
    options: SupernetOptions, images: ImageOptions, place: Machine, console: Console
) -> None:
    """What `main` does, in each of the cooperating processes; raises UserError."""
    task = ImageTask(images, MOBILENETV3, place)
    recipe = options.recipe_in(parallel.world())
    made = how_made(options, task, parallel.world())
    if is_there(options.out, made, console):
        return
    state = _state(options.out)
    training = _begin(task, recipe, options, made)
    if state.exists():
        try:
            training.load(state)
        except NoCheckpointError as error:
            raise UserError(f"{error}: delete it to start again") from None
        console.print(f"continuing after {counted(len(training.curve), 'epoch')}")
    console.print(
        f"supernet of width {options.width:g} on {task.device}, "
        f"{counted(parallel.world(), 'process', 'processes')}: "
        f"{counted(len(task.train), 'image')} of {counted(len(task.classes), 'class', 'classes')}, "
        f"{task.resolution} x {task.resolution} pixels"
    )
    for epoch in training.run(recipe.epochs, state):
        if parallel.rank() == 0:
            _report(epoch, training, task, options.out, console)
    if parallel.rank() == 0:
        with training.averaged() as network:
            assert isinstance(network, Supernet)
            save_supernet(network, options.out, made | {"train_images": task.train_digest})
        state.unlink(missing_ok=True)
        console.print(f"weights: {options.out}")


def how_made(options: SupernetOptions, task: ImageTask, processes: int) -> dict[str, Any]:
    """A complete description of a supernet; kept with its weights."""
    recipe = options.recipe_in(processes)
    return {
        "recipe": options.recipe,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "width": options.width,
        "random": options.random,
        "seed": options.seed,
        "processes": processes,
        "resolution": task.resolution,
        "held_out": len(task.held_out),
        "train": len(task.train),
        "images": task.digest,
        "classes": list(task.classes),
    }


def is_there(out: Path, made: Mapping[str, Any], console: Console) -> bool:
    """Whether OUT is already this supernet (then says so); raises UserError for another one."""
    if not out.exists():
        return False
    found = load_supernet(out).meta
    if others := difference({name: found.get(name) for name in made}, made):
        raise UserError(
            f"{out} was trained with other settings ({others}): delete it or choose another --out"
        )
    _state(out).unlink(missing_ok=True)
    console.print(f"{out} already exists: nothing to train")
    return True


def _state(out: Path) -> Path:
    """Path at which its training is saved."""
    return out.with_name(out.name + ".training")


def _begin(
    task: ImageTask, recipe: Recipe, options: SupernetOptions, identity: Mapping[str, Any]
) -> Training:
    torch.manual_seed(options.seed)
    supernet = Supernet(len(task.classes), options.width).to(task.device)
    return Training(
        supernet,
        recipe,
        task.training_set(recipe, options.seed),
        options.seed,
        backward=sandwich(options.random, recipe.label_smoothing),
        measure=partial(_accuracy, task, recipe, LARGEST),
        identity=identity,
    )


def _accuracy(task: ImageTask, recipe: Recipe, arch: Architecture, network: nn.Module) -> float:
    assert isinstance(network, Supernet)
    return SupernetEvaluator(task, recipe, network).held_out_accuracy(arch)


def _report(epoch: Epoch, training: Training, task: ImageTask, out: Path, console: Console) -> None:
    """Write a line to OUT.jsonl, and one to the console."""
    with training.averaged() as network:
        smallest = _accuracy(task, training.recipe, SMALLEST, network)
    line = {
        "epoch": epoch.epoch,
        "loss": round(epoch.loss, 4),
        "largest": round(100 * epoch.accuracy, 2),
        "smallest": round(100 * smallest, 2),
        "seconds": round(epoch.seconds, 1),
    }
    with out.with_name(out.name + ".jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    console.print(
        f"epoch {line['epoch']} of {training.recipe.epochs}: loss {line['loss']:.3f}, largest "
        f"{line['largest']:.2f} %, smallest {line['smallest']:.2f} %, {line['seconds']:.0f} s"
    )


if __name__ == "__main__":
    run(app)
