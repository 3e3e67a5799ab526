"""`python -m orchestrator.guided_quality`: the paper's Table 3 and Figure 2.

How good are generated architectures, without any search? One thousand each are drawn at random,
generated without guidance, generated without guidance and then sorted by a predictor, and generated
with guidance from the same predictor, which has seen a few labels.
"""

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy
import torch
from numpy.typing import NDArray

from nag.calibration import Calibrated
from nag.cli import WholeNumber, command_given, command_line, plain_console, run
from nag.errors import UserError, counted
from nag.files import code_digest, kept, write_text
from nag.generate import Samples
from nag.generator import DiffusionGenerator, Guidance
from nag.laws import random_list
from nag.predictors.base import Observations
from nag.predictors.gp import FittedGaussianProcess, GaussianProcess
from nag.spaces import Architecture, StagedSpace, find_space
from orchestrator.config import RunConfig
from orchestrator.reporting.figures import draw_densities
from trainers.base import EvaluationError, Evaluator, Measurement
from trainers.build import EvaluatorSettings, build_evaluator

GROUPS = (
    "random",
    "unconditional",
    "uncond+sort",
    "guided",
    "guided, noise-aware",
    "uncond+sort, distinct",
    "guided+sort, distinct",
)
_OVERSAMPLE = 10  # samples for each one kept by sorting
_MAX_LISTED = 20_000  # largest space to evaluate completely, in architectures

PUBLISHED = {  # Table 3: max / mean / min, percent
    "cifar10": {
        "oracle top-1,000": "94.37 / 93.50 / 93.18",
        "random": "94.37 / 87.12 / 10.00",
        "MetaD2A": "94.37 / 91.52 / 10.00",
        "uncond. + sorting": "94.37 / 90.77 / 10.00",
        "conditional": "94.37 / 93.13 / 86.44",
    },
    "cifar100": {
        "oracle top-1,000": "73.51 / 70.62 / 69.91",
        "random": "72.74 / 61.59 / 1.00",
        "MetaD2A": "73.51 / 67.14 / 1.00",
        "uncond. + sorting": "73.16 / 66.37 / 1.00",
        "conditional": "73.51 / 70.34 / 58.09",
    },
}

app = command_line(
    "python -m orchestrator.guided_quality",
    "python -m orchestrator.guided_quality --space mobilenetv3 --out quality",
    "python -m orchestrator.guided_quality --table nb201.parquet --dataset cifar10 --out quality",
)


@app.default
def main(
    *,
    out: Path,
    space: str = "nasbench201",
    table: Path | None = None,
    dataset: str | None = None,
    labels: str = "50,100,200",
    seeds: WholeNumber = 5,
    num: WholeNumber = 1000,
    progress: float = 0.8,
    score: Literal["network", "exact"] = "network",
    weights: Path | None = None,
    steps: WholeNumber = 20,
    device: str = "auto",
    threads: WholeNumber = 1,
) -> None:
    """Generate architectures with and without guidance and compare their accuracies.

    Writes guided-quality-NAME.csv (one row per group, number of labels and seed), .md and .svg to
    OUT; the table also goes to stdout. Labels are the values that a search would see (validation);
    the test accuracy is reported, if there is one. Repeating an interrupted command continues it:
    its measurements are kept in OUT/guided-quality-groups. Those made by another version of the
    program are repeated.

    Parameters
    ----------
    out
        Folder for the results.
    space
        Search space: nasbench201 (needs --table) or mobilenetv3.
    table
        Parquet file of accuracies.
    dataset
        Data set of the table: cifar10 (default), cifar100 or imagenet16-120.
    labels
        Numbers of labelled architectures, separated by commas.
    seeds
        Number of repeats, each with its own labelled architectures and samples.
    num
        Architectures per group.
    progress
        Strength of guidance, in (0, 1): how far it moves from random architectures to the best it
        can reach.
    score
        Score of the diffusion model: the trained network, or the closed form.
    weights
        Score-network weights, instead of those that come with the package.
    steps
        Number of noise levels of the sampler.
    device
        cpu, cuda, or auto (cuda if available).
    threads
        CPU threads.
    """
    search_space = find_space(space)
    try:
        counts = list(dict.fromkeys(int(count) for count in labels.split(",")))
    except ValueError:
        counts = [0]
    if min([*counts, seeds, num, steps, threads]) < 1 or min(counts) < 2:
        raise UserError(
            "--labels must be at least 2; --seeds, --num, --steps, --threads at least 1"
        )
    config = RunConfig(
        space=space,
        table=table,
        dataset=dataset,
        score=score,
        score_weights=weights,
        steps=steps,
        threads=threads,
    )
    settings = EvaluatorSettings(table=table, dataset=dataset)
    evaluator = build_evaluator(search_space, config.evaluator_name, settings)
    generator = DiffusionGenerator(config.generator(device))
    bench = Benchmark(search_space, evaluator, generator, Calibrated(progress, progress), num)
    out.mkdir(parents=True, exist_ok=True)
    console = plain_console()
    stem = out / "-".join(["guided-quality", space, *([dataset] if dataset else [])])
    asked = {
        **config.identity(),
        "num": num,
        "progress": progress,
        "device": str(generator.device),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "code": code_digest("nag", "trainers", "orchestrator"),
    }
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for seed in range(seeds):
        unguided = cache(partial(bench.unguided, seed))
        for count in counts:
            what = f"{count} labels, seed {seed}"
            with console.status(what):
                found[count, seed] = kept(
                    out / "guided-quality-groups",
                    f"{stem.name}-{count}-labels-seed{seed}",
                    {**asked, "labels": count, "seed": seed},
                    partial(bench.groups, count, seed, unguided),
                    console.print,
                )
            console.print(f"{what}: {len(found)} of {len(counts) * seeds}")
    in_order = {(count, seed): found[count, seed] for count in counts for seed in range(seeds)}
    write_results(in_order, dataset or "cifar10", bench, stem)


@dataclass(frozen=True)
class Benchmark:
    """Makes the groups, which depend on (number of labels, seed) and nothing else."""

    space: StagedSpace
    evaluator: Evaluator
    generator: DiffusionGenerator
    scale: Calibrated
    num: int

    def unguided(self, seed: int) -> Samples:
        """The samples that unconditional groups are taken from."""
        return self.generator.generate(_OVERSAMPLE * self.num, seed=seed)

    def groups(
        self, labels: int, seed: int, unguided: Callable[[], Samples]
    ) -> dict[str, dict[str, Any]]:
        """The groups as JSON, by name, in the order of GROUPS."""
        rng = np.random.default_rng([seed, labels])
        archs = random_list(self.space, labels, seed).archs
        values = np.array([self._evaluate(arch).value for arch in archs])
        observations = Observations(archs, values)
        predictor = GaussianProcess(self.space).fit(observations, rng)
        plain = unguided()

        guidance = Guidance(predictor, observations, optimism=0.0, scale=self.scale)
        noise_aware = replace(guidance, kind="noise-aware")
        weaker = replace(guidance, scale=Calibrated(self.scale.low / 2, self.scale.high))
        wide = self.generator.generate(_OVERSAMPLE * self.num, seed=seed, guidance=weaker)

        random = self.space.sample(self.num, np.random.default_rng([seed, 1]))
        found = (
            self._record(random),
            self._group(plain, lambda archs: archs[: self.num]),
            self._group(plain, lambda archs: self._best(predictor, archs)),
            self._group(self.generator.generate(self.num, seed=seed, guidance=guidance)),
            self._group(self.generator.generate(self.num, seed=seed, guidance=noise_aware)),
            self._group(plain, lambda archs: self._best(predictor, list(dict.fromkeys(archs)))),
            self._group(wide, lambda archs: self._best(predictor, list(dict.fromkeys(archs)))),
        )
        return dict(zip(GROUPS, found, strict=True))

    def oracle(self) -> NDArray[np.float64] | None:
        """The best `num` accuracies of a space that is small enough to evaluate completely."""
        if self.space.size > _MAX_LISTED:
            return None
        every = random_list(self.space, self.space.size, 0).archs
        return np.sort(self._accuracies(every))[-self.num :]

    def _best(
        self, predictor: FittedGaussianProcess, archs: Sequence[Architecture]
    ) -> Sequence[Architecture]:
        order = np.argsort(-predictor.predict(archs).mean, kind="stable")
        return [archs[i] for i in order[: self.num]]

    def _group(
        self,
        samples: Samples,
        keep: Callable[[Sequence[Architecture]], Sequence[Architecture]] = lambda archs: archs,
    ) -> dict[str, Any]:
        """A group of those valid samples that `keep` returns."""
        if not samples.valid:
            raise UserError(
                f"none of {counted(len(samples.archs), 'sample')} is valid: raise --steps"
            )
        kept = keep(samples.valid)
        evaluations = samples.score_evaluations * len(samples.archs) // len(kept)
        return self._record(kept, samples.validity, evaluations, samples.seconds)

    def _record(
        self,
        archs: Sequence[Architecture],
        validity: float = 1.0,
        score_evaluations: int = 0,
        seconds: float = 0.0,
    ) -> dict[str, Any]:
        """A group as JSON: its row of the table, and the accuracies that it summarises.

        archs: from one source, duplicates included.
        score_evaluations: calls of the score per architecture kept.
        """
        accuracies = self._accuracies(archs)
        percent = 100 * accuracies
        row = {
            "max": float(percent.max()),
            "mean": float(percent.mean()),
            "min": float(percent.min()),
            "validity": validity,
            "uniqueness": len(set(archs)) / len(archs),
            "score_evaluations": score_evaluations,
            "seconds": seconds,
        }
        return {"row": row, "accuracies": accuracies.tolist()}

    def _accuracies(self, archs: Sequence[Architecture]) -> NDArray[np.float64]:
        """(B,) test accuracies, or values if there is no test accuracy."""
        found = [self._evaluate(arch) for arch in archs]
        return np.array([one.metrics.get("test", one.value) for one in found])

    def _evaluate(self, arch: Architecture) -> Measurement:
        try:
            return self.evaluator.evaluate(arch, seed=0)
        except EvaluationError as error:
            raise UserError(str(error)) from error


def write_results(
    found: Mapping[tuple[int, int], Mapping[str, Any]], dataset: str, bench: Benchmark, stem: Path
) -> None:
    """Write STEM.csv, .svg and .md; print the last to stdout as well.

    found: the groups of each (number of labels, seed), in the order of the table.
    """
    rows, accuracies = [], {}
    for (labels, seed), groups in found.items():
        for name, group in groups.items():
            rows.append({"group": name, "labels": labels, "seed": seed, **group["row"]})
            accuracies[name] = np.array(group["accuracies"])  # plot the last ones
    frame = pd.DataFrame(rows)
    write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, float_format="%.6g"))
    oracle = bench.oracle()
    if oracle is not None:
        accuracies = {f"best {bench.num:,} of the space": oracle, **accuracies}
    drawn = {name: each for name, each in accuracies.items() if not name.endswith("distinct")}
    svg = draw_densities(drawn).replace("var(--ink)", "#444")  # it is not in a page
    svg = svg.replace("<svg ", '<svg style="font-family: sans-serif; background: white" ', 1)
    write_text(stem.with_suffix(".svg"), svg)
    text = "\n".join(report(frame, oracle, dataset, bench))
    write_text(stem.with_suffix(".md"), text)
    sys.stdout.write(text + "\n")


def report(
    frame: pd.DataFrame, oracle: NDArray[np.float64] | None, dataset: str, bench: Benchmark
) -> list[str]:
    """The lines of the Markdown table."""
    seeds = frame["seed"].nunique()
    lines = [
        f"`{command_given('orchestrator.guided_quality')}`",
        "",
        f"{platform.machine()}, torch {torch.__version__}, "
        f"{counted(bench.generator.config.threads, 'thread')}.",
        "",
        f"{counted(bench.num, 'architecture')} per group; means over {counted(seeds, 'seed')}, in "
        "percent; min is the smallest over all seeds. Guided groups also need score evaluations "
        "for the pilot, less than one per architecture. p: one-sided Wilcoxon signed-rank test of "
        "the mean against uncond+sort with the same predictor (for distinct groups, uncond+sort, "
        "distinct).",
        "",
        "| labels | group | max | mean | min | validity | uniqueness | score evaluations per "
        "architecture | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    if oracle is not None:
        best, mean, least = (100 * f(oracle) for f in (np.max, np.mean, np.min))
        lines.append(
            f"| – | best {bench.num:,} of the space | {best:.2f} | {mean:.2f} | {least:.2f} "
            "| – | 100.0 | – | – |"
        )
    for count, part in frame.groupby("labels"):
        means = part.pivot(index="seed", columns="group", values="mean")
        for name in GROUPS:
            of = part[part["group"] == name]
            p = "–"
            if name.startswith("guided") and seeds > 1:
                rival = "uncond+sort, distinct" if name.endswith("distinct") else "uncond+sort"
                gain = means[name] - means[rival]
                p = f"{scipy.stats.wilcoxon(gain, alternative='greater').pvalue:.3f}"
            spread = f" ± {of['mean'].std():.2f}" if seeds > 1 else ""
            lines.append(
                f"| {count} | {name} | {of['max'].mean():.2f} | {of['mean'].mean():.2f}{spread} "
                f"| {of['min'].min():.2f} "
                f"| {100 * of['validity'].mean():.2f} | {100 * of['uniqueness'].mean():.1f} "
                f"| {of['score_evaluations'].mean():.0f} | {p} |"
            )
    if bench.space.name == "nasbench201" and dataset in PUBLISHED:
        lines += ["", "| published (paper) | max / mean / min |", "|---|---|"]
        lines += [f"| {name} | {cells} |" for name, cells in PUBLISHED[dataset].items()]
    return lines


if __name__ == "__main__":
    run(app)
