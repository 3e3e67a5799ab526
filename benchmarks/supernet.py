"""Do networks rank the same with supernet weights as when each is trained from scratch?

    python benchmarks/supernet.py --data tiny-imagenet-20.tar --weights W.safetensors

Random networks of once-for-all MobileNetV3 are measured twice on the same held-out images: with the
weights of the supernet, and after training from scratch on the same images as the supernet.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import run_all
from matplotlib import rc_context
from matplotlib.figure import Figure
from publish import RESULTS, machine, publish
from scipy.stats import spearmanr

from nag.cli import command_line, run
from nag.errors import UserError
from nag.spaces.mobilenetv3 import MOBILENETV3
from orchestrator.reporting.figures import BLUE, GREY, STYLE, standalone, to_svg
from trainers.base import Measurement
from trainers.build import EvaluatorSettings, build_evaluator
from trainers.evaluators.supernet import SupernetEvaluator
from trainers.training.task import NetworkOptions, Place

RESAMPLES = 10_000
CORRELATED = (
    ("inherited", "trained"),
    ("inherited_val", "trained_val"),
    ("inherited_both", "trained_both"),
    ("macs", "trained"),
    ("macs", "inherited"),
    ("trained", "trained_val"),
    ("inherited", "inherited_val"),
)

app = command_line("python benchmarks/supernet.py")


def inherited(text: str, settings: EvaluatorSettings) -> Measurement:
    torch.set_num_threads(1)
    evaluator = build_evaluator(MOBILENETV3, "supernet", settings)
    return evaluator.evaluate(MOBILENETV3.from_str(text), seed=0)


def trained(text: str, settings: EvaluatorSettings, width: float) -> Measurement:
    torch.set_num_threads(1)
    networks = replace(settings.networks, weights=None, width=width)
    evaluator = build_evaluator(MOBILENETV3, "train", replace(settings, networks=networks))
    return evaluator.evaluate(MOBILENETV3.from_str(text), seed=0)


@app.default
def main(
    *,
    data: Path,
    weights: Path,
    resolution: int = 64,
    networks: int = 30,
    recipe: str = "small",
    epochs: int = 20,
    jobs: int | None = None,
    keep: Path = Path("supernet-runs"),
    name: str = "supernet",
) -> None:
    """Run the comparison and write its table, rank correlations and figures.

    Parameters
    ----------
    data
        Images.
    weights
        Weights of the supernet that was trained on them.
    resolution
        Side of the images, pixels.
    networks
        Number of random networks.
    recipe
        Recipe for training from scratch.
    epochs
        Epochs of training from scratch.
    jobs
        Networks at a time; by default one per CPU.
    keep
        Folder for checkpoints and decoded images; repeating the command with it continues.
    name
        Folder for the results, in benchmarks/results.
    """
    if networks < 5:
        raise UserError("--networks must be at least 5")
    settings = EvaluatorSettings(
        networks=NetworkOptions(
            data=data.resolve(),
            weights=weights.resolve(),
            resolution=resolution,
            recipe=recipe,
            epochs=epochs,
        ),
        place=Place(
            workers=0, cache=(keep / "cache").resolve(), checkpoints=(keep / "nets").resolve()
        ),
    )
    supernet = build_evaluator(MOBILENETV3, "supernet", settings)
    assert isinstance(supernet, SupernetEvaluator)
    archs = MOBILENETV3.sample(networks, np.random.default_rng(0))
    texts = [MOBILENETV3.to_str(arch) for arch in archs]
    with_weights = [partial(inherited, text, settings) for text in texts]
    from_scratch = [partial(trained, text, settings, supernet.width) for text in texts]
    found = run_all([*with_weights, *from_scratch], jobs, "networks")
    shared, alone = found[:networks], found[networks:]
    rows = [
        {
            "arch": text,
            "macs": int(one.metrics["macs"]),
            "inherited": round(100 * one.value, 3),
            "inherited_val": round(100 * one.metrics["test"], 3),
            "inherited_both": round(50 * (one.value + one.metrics["test"]), 3),
            "trained": round(100 * other.value, 3),
            "trained_val": round(100 * other.metrics["test"], 3),
            "trained_both": round(50 * (other.value + other.metrics["test"]), 3),
            "curve": " ".join(f"{100 * value:.2f}" for value in other.curve),
        }
        for text, one, other in zip(texts, shared, alone, strict=True)
    ]
    out = RESULTS / name
    out.mkdir(parents=True, exist_ok=True)
    with (out / "networks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "scatter.svg").write_text(standalone(_scatter(rows)))
    (out / "curves.svg").write_text(standalone(_curves(alone)))
    about = (
        f"{networks} random networks of width {supernet.width:g}, {epochs} epochs from scratch "
        f"each; {machine()}."
    )
    publish(f"{name}/correlation", about, _table(rows))


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| x | y | Spearman | 95 %, bootstrap over the networks |"
    yield "|---|---|---|---|"
    for x, y in CORRELATED:
        value, low, high = _spearman(rows, x, y)
        yield f"| {x} | {y} | {value:.2f} | {low:.2f} to {high:.2f} |"


def _spearman(rows: list[dict[str, Any]], x: str, y: str) -> tuple[float, float, float]:
    pairs = np.array([(row[x], row[y]) for row in rows], dtype=float)
    rng = np.random.default_rng(0)
    resampled = [
        spearmanr(*pairs[rng.integers(len(pairs), size=len(pairs))].T).statistic
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    return float(spearmanr(*pairs.T).statistic), float(low), float(high)


def _scatter(rows: list[dict[str, Any]]) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=(5, 3.6))
        axes = figure.subplots()
        axes.plot(
            [row["inherited"] for row in rows], [row["trained"] for row in rows], "o", color=BLUE
        )
        axes.set(xlabel="accuracy with the supernet's weights, %", ylabel="trained by itself, %")
        return to_svg(figure, "scatter")


def _curves(alone: list[Measurement]) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=(5, 3.6))
        axes = figure.subplots()
        for found in alone:
            axes.plot([100 * value for value in found.curve], color=GREY, lw=0.8)
        axes.set(xlabel="epoch", ylabel="accuracy on held-out images, %")
        return to_svg(figure, "curves")


if __name__ == "__main__":
    run(app)
