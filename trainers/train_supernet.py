"""Train a once-for-all supernet on images: `python -m trainers.train_supernet --help`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from rich.console import Console
from torch import nn

from nag.cli import UserError, WholeNumber, command_line, run, user_errors
from nag.spaces.mobilenetv3 import MOBILENETV3
from trainers.inherited import SupernetEvaluator
from trainers.ofa import LARGEST, Supernet, save_supernet
from trainers.recipe import Recipe, find_recipe
from trainers.sandwich import SMALLEST, sandwich
from trainers.task import ImageOptions, ImageTask, Place
from trainers.training import Epoch, NoCheckpointError, Training

app = command_line("python -m trainers.train_supernet")


@app.default
def main(
    *,
    out: Path,
    images: ImageOptions = ImageOptions(),
    place: Annotated[Place, Parameter(name="*")] = Place(),
    recipe: str = "imagenet",
    epochs: WholeNumber | None = None,
    batch_size: WholeNumber | None = None,
    learning_rate: float | None = None,
    width: float = 1.0,
    random: WholeNumber = 2,
    seed: WholeNumber = 0,
) -> None:
    """Train all networks of the once-for-all MobileNetV3 space at once, in one set of weights.

    Every step trains the largest network on the labels and, on what that predicts, the smallest
    and some random ones. The training is saved every five minutes and after every epoch in
    OUT.training; a command that was interrupted continues when it is repeated. OUT.jsonl gets a
    line for each epoch. OUT is for --evaluator supernet, which needs no more options than --data.

    Examples:

    python -m trainers.train_supernet --data DIR --resolution 64 --recipe small --out W.pt

    Parameters
    ----------
    out
        File for the weights: safetensors where it ends so, else the format of official
        checkpoints.
    recipe
        Recipe of training: imagenet, or small for thousands of small pictures.
    epochs
        Epochs, instead of the recipe's.
    batch_size
        Images per step, instead of the recipe's.
    learning_rate
        Largest learning rate, instead of the recipe's, in proportion to the batch size.
    width
        Multiplier of all channels.
    random
        Random networks that a step trains besides the largest and the smallest.
    seed
        Seed of the training.
    """
    if random < 0 or seed < 0:
        raise UserError("--random and --seed must not be negative")
    if not 0 < width <= 4 or width != round(width, 2):
        raise UserError("--width must be more than 0, at most 4, and in hundredths")
    if not out.parent.is_dir():
        raise UserError(f"no such folder: {out.parent}")
    if images.data is None:
        raise UserError("--data is needed: a folder with train/CLASS/ and val/CLASS/")
    task: ImageTask = user_errors(ImageTask, images, MOBILENETV3, place)
    chosen = _recipe(recipe, epochs, batch_size, learning_rate)
    made = {
        "recipe": recipe,
        "epochs": chosen.epochs,
        "batch_size": chosen.batch_size,
        "learning_rate": chosen.learning_rate,
        "width": width,
        "random": random,
        "seed": seed,
        "resolution": task.resolution,
        "held_out": len(task.held_out),
        "train": len(task.train),
        "images": task.digest,
        "classes": list(task.classes),
    }
    console = Console(stderr=True, highlight=False)
    state = out.with_name(out.name + ".training")
    try:
        supernet = _train(task, chosen, made, state, out, console)
    except KeyboardInterrupt:
        console.print("interrupted: repeat the command to continue", soft_wrap=True)
        sys.exit(130)
    save_supernet(supernet, out, made)
    state.unlink(missing_ok=True)
    console.print(f"weights: {out}", soft_wrap=True)


def _recipe(
    name: str, epochs: int | None, batch_size: int | None, learning_rate: float | None
) -> Recipe:
    recipe: Recipe = user_errors(find_recipe, name, epochs)
    changes: dict[str, object] = {"drop_path": 0.0, "dropout": 0.0, "policy": "none"}
    if batch_size is not None:
        if batch_size < 2:
            raise UserError("--batch-size must be at least 2")
        changes["batch_size"] = batch_size
        changes["learning_rate"] = recipe.learning_rate * batch_size / recipe.batch_size
    if learning_rate is not None:
        if not 0 < learning_rate < float("inf"):
            raise UserError("--learning-rate must be more than 0")
        changes["learning_rate"] = learning_rate
    return replace(recipe, **changes)  # type: ignore[arg-type]


def _train(
    task: ImageTask,
    recipe: Recipe,
    made: dict[str, object],
    state: Path,
    out: Path,
    console: Console,
) -> Supernet:
    """The supernet at the end of its training, which goes on where `state` has left it."""
    seed = int(str(made["seed"]))
    torch.manual_seed(seed)
    supernet = Supernet(len(task.classes), float(str(made["width"]))).to(task.device)

    def measure(network: nn.Module) -> float:
        assert isinstance(network, Supernet)
        evaluator = SupernetEvaluator(task, recipe, network)
        return evaluator.evaluate(LARGEST, seed=0).value

    training = Training(
        supernet,
        recipe,
        task.training_set(recipe, seed),
        seed,
        backward=sandwich(int(str(made["random"])), recipe.label_smoothing),
        measure=measure,
        identity=json.dumps(made, sort_keys=True),
    )
    log = out.with_name(out.name + ".jsonl")
    if state.exists():
        try:
            training.load(state)
        except NoCheckpointError as error:
            raise UserError(f"{error}: delete it to start again") from None
        console.print(f"continuing after {len(training.curve)} epochs", soft_wrap=True)
    console.print(
        f"supernet of width {supernet.width:g} on {task.device}: {len(task.train)} images of "
        f"{len(task.classes)} classes, {task.resolution} x {task.resolution} pixels",
        soft_wrap=True,
    )
    for line in _lines(training, recipe.epochs, state, task):
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        console.print(
            f"epoch {line['epoch']} of {recipe.epochs}: loss {line['loss']:.3f}, largest "
            f"{line['largest']:.2f} %, smallest {line['smallest']:.2f} %, {line['seconds']:.0f} s",
            soft_wrap=True,
        )
    with training.averaged() as network:
        assert isinstance(network, Supernet)
        trained = Supernet(network.num_classes, network.width)
        trained.load_state_dict(network.state_dict())
    return trained


def _lines(
    training: Training, epochs: int, state: Path, task: ImageTask
) -> Iterator[dict[str, float]]:
    for epoch in training.run(epochs, state):
        with training.averaged() as network:
            assert isinstance(network, Supernet)
            found = SupernetEvaluator(task, training.recipe, network).evaluate(SMALLEST, seed=0)
        yield _line(epoch, found.value)


def _line(epoch: Epoch, smallest: float) -> dict[str, float]:
    return {
        "epoch": epoch.epoch,
        "loss": round(epoch.loss, 4),
        "largest": round(100 * epoch.accuracy, 2),
        "smallest": round(100 * smallest, 2),
        "seconds": round(epoch.seconds, 1),
    }


if __name__ == "__main__":
    run(app)
