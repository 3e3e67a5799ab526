"""How fast does a score network learn? Steps per second by preset, space and threads.

    python benchmarks/training.py

Uniform architectures, as `python -m nag.train` draws them, at the batch size and with the target
of each preset. A second, instrumented run shows where the time of a step goes: drawing data
(architectures, noise levels, noise), forward and backward pass, and the rest (clipping, optimiser,
EMA). Medians over steps, not counting the first ones, which warm up.
"""

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from publish import machine, publish
from torch import nn

from nag.cli import command_line, run
from nag.devices import resolve_device
from nag.errors import UserError
from nag.laws import UniformLaw, sde_of
from nag.score_net import ScoreNetwork, preset
from nag.spaces import find_space
from nag.training import (
    PAPER_TRAINING,
    TrainingConfig,
    TrainingState,
    score_matching_loss,
    train,
)

SPACES = ("mobilenetv3", "nasbench201")
PRESETS = {"default": TrainingConfig(), "paper": PAPER_TRAINING}

app = command_line("python benchmarks/training.py")


@app.default
def main(
    *,
    steps: int = 30,
    warm_up: int = 5,
    threads: tuple[int, ...] = (1, 2),
    device: str = "auto",
) -> None:
    """Time training steps and write benchmarks/results/training.md.

    Parameters
    ----------
    steps
        Steps to time.
    warm_up
        Untimed steps before them.
    threads
        Numbers of CPU threads, one row each.
    device
        cpu, cuda, or auto (cuda if available).
    """
    if min(steps, *threads) < 1 or warm_up < 0:
        raise UserError("--steps and --threads must be at least 1, --warm-up at least 0")
    chosen = resolve_device(device)
    about = f"{machine(chosen)}; medians of {steps} steps."
    publish("training", about, _table(steps, warm_up, threads, chosen))


def _table(
    steps: int, warm_up: int, threads: tuple[int, ...], device: torch.device
) -> Iterator[str]:
    yield (
        "| space | preset | parameters | batch | threads | steps / s | architectures / s "
        "| drawing data, % | forward + backward, % | optimiser + EMA, % |"
    )
    yield "|" + "---|" * 10
    for space in SPACES:
        for name in PRESETS:
            for count in threads:
                torch.set_num_threads(count)
                yield _row(space, name, count, steps, warm_up, device)


def _row(
    space: str, name: str, threads: int, steps: int, warm_up: int, device: torch.device
) -> str:
    law, config = UniformLaw(find_space(space)), PRESETS[name]
    torch.manual_seed(0)
    network = ScoreNetwork(law.space, sde_of(law), preset(name, law.space)).to(device)
    trained = train(TrainingState.start(network), law, config, seed=0)
    for _ in range(warm_up):
        next(trained)
    seconds = median(_seconds_of_step(trained) for _ in range(steps))
    parts = np.median([_parts_of_step(trained, device) for _ in range(steps)], axis=0)
    shares = " | ".join(f"{100 * share:.1f}" for share in parts / parts.sum())
    return (
        f"| {space} | {name} | {network.num_parameters():,} | {config.batch_size} | {threads} "
        f"| {1 / seconds:.3g} | {config.batch_size / seconds:,.0f} | {shares} |"
    )


def _seconds_of_step(trained: Any) -> float:
    """Seconds of one step. It returns its loss as a number, so it has ended on a GPU, too."""
    started = perf_counter()
    next(trained)
    return perf_counter() - started


def _parts_of_step(trained: Any, device: torch.device) -> list[float]:
    """Seconds before the loss, from there to gradient clipping, and after."""
    marks: list[float] = []

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(perf_counter())

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            mark()
            return function(*args, **kwargs)

        return called

    mark()
    with (
        patch("nag.training.score_matching_loss", marked(score_matching_loss)),
        patch("torch.nn.utils.clip_grad_norm_", marked(nn.utils.clip_grad_norm_)),
    ):
        next(trained)
    mark()
    return np.diff(marks).tolist()


if __name__ == "__main__":
    run(app)
