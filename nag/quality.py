"""`python -m nag.quality`: the paper's Table 4, plus the distance to the law."""

import json
import platform
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from nag.checkpoint import CheckpointError, load_network, shipped_weights
from nag.cli import WholeNumber, command_given, command_line, plain_console, progress_bar, run
from nag.devices import resolve_device
from nag.errors import UserError, choose
from nag.exact_score import exact_score, exact_score_of_samples
from nag.files import code_digest, kept
from nag.generate import DEFAULT_SAMPLER, generate
from nag.generator import accelerated
from nag.laws import LARGEST_EXACT, ListLaw, UniformLaw, random_list, sde_of
from nag.metrics import distances, noise, pack, summary
from nag.quality_report import report
from nag.samplers import SAMPLERS
from nag.score_net import ScoreNetConfig, preset
from nag.sde import VESDE, ScoreFn, centre
from nag.spaces import SearchSpace, StagedSpace, find_space
from nag.train import train_network
from nag.training import PAPER_TRAINING, TrainingConfig

app = command_line(
    "python -m nag.quality",
    "python -m nag.quality --space nasbench201 --rows default,exact --out quality",
)

ROWS = (
    "exact",
    "default",
    "shipped",
    "paper",
    "no-positions",
    "undirected",
    "exact-of-list",
)


@dataclass(frozen=True)
class Recipe:
    """How the network of a row is built and trained."""

    training: TrainingConfig
    preset: str = "default"
    positions: bool = True

    def network(self, space: SearchSpace) -> ScoreNetConfig:
        config = preset(self.preset, space)
        return config if self.positions else replace(config, positions="none")


_SAMPLED = TrainingConfig(exact_target=False)
RECIPES = {
    "default": Recipe(_SAMPLED),
    "paper": Recipe(
        replace(PAPER_TRAINING, steps=5_000, batch_size=64, learning_rate=1e-3, decay=True), "paper"
    ),
    "no-positions": Recipe(_SAMPLED, positions=False),
    "undirected": Recipe(_SAMPLED, "undirected"),
}

_LARGEST_LIST = 500_000  # architectures to train on, or half of the space if that is less


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on, apart from the weights."""

    space: str
    seeds: int
    num: int
    distance_num: int
    sampler: str
    steps: int
    device: str
    threads: int
    machine: str = field(default_factory=platform.machine)
    torch: str = torch.__version__


@dataclass(frozen=True)
class Source:
    """Where the samples of a row come from.

    known: the packed architectures that novelty is measured against.
    weights: from their record; empty without weights.
    """

    score: ScoreFn
    sde: VESDE
    known: Callable[[], Set[bytes]]
    weights: Mapping[str, Any] = field(default_factory=dict)


@app.default
def main(
    *,
    space: str,
    out: Path,
    networks: Path | None = None,
    rows: str | None = None,
    seeds: WholeNumber = 3,
    num: WholeNumber = 1000,
    distance_num: WholeNumber = 10_000,
    sampler: str = DEFAULT_SAMPLER,
    steps: WholeNumber | None = None,
    device: str = "auto",
    threads: WholeNumber = 1,
) -> None:
    """Validity, uniqueness and novelty of samples, and their distance to the uniform law.

    Writes quality-SPACE.csv, .json and .md to OUT, and prints the last to stdout. Missing networks
    are trained first, on a random list: half of the space, or 500,000 architectures. Repeat an
    interrupted command to continue row by row; rows measured by another version of the program are
    measured again.

    Parameters
    ----------
    space
        Search space: mobilenetv3, nasbench201 or toy.
    out
        Folder of the results.
    networks
        Folder of the networks, SPACE-ROW.safetensors; by default OUT/networks.
    rows
        Rows of the table, separated by commas; by default all that the space supports: exact,
        default, shipped, paper, no-positions, undirected, exact-of-list.
    seeds
        Repeats, with seeds 0, 1, ...
    num
        Samples per repeat.
    distance_num
        Samples for the distances, drawn once.
    sampler
        predictor-corrector (the reference), ancestral, heun (EDM), dpm++2m or dpm++2m-sde.
    steps
        Noise levels; by default those of the sampler.
    device
        cpu, cuda, or auto (cuda if available).
    threads
        CPU threads.
    """
    search_space = find_space(space)
    choose("sampler", sampler, SAMPLERS)
    if min(seeds, num, distance_num, threads, 1 if steps is None else steps) < 1:
        raise UserError("--seeds, --num, --distance-num, --steps and --threads must be at least 1")
    if networks is not None and not networks.is_dir():
        raise UserError(f"--networks: no such folder: {networks}")
    steps = steps or SAMPLERS[sampler].steps
    size = min(_LARGEST_LIST, search_space.size // 2)
    chosen = choose_rows(rows, search_space, size)
    found_device = resolve_device(device)
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(space, seeds, num, distance_num, sampler, steps, str(found_device), threads)
    bench = Benchmark(
        settings, search_space, random_list(search_space, size, 0), networks or out / "networks"
    )
    sources = {name: bench.source(name) for name in chosen}  # fail before the long work
    results = [bench.row(name, sources[name], out / "quality-rows") for name in chosen]
    found = {
        "command": command_given("nag.quality"),
        "settings": asdict(settings),
        "list": bench.law_record,
        "noise": asdict(noise(search_space, distance_num, np.random.default_rng(0))),
        "rows": results,
    }
    report(found, out / f"quality-{space}")


def choose_rows(text: str | None, space: SearchSpace, size: int) -> list[str]:
    """The requested rows, in table order; `size` is the length of the training list."""
    impossible = {}
    try:
        shipped_weights(space)
    except CheckpointError:
        impossible["shipped"] = f"no trained weights ship for space {space.name!r}"
    if size > LARGEST_EXACT:
        impossible["exact-of-list"] = (
            f"its list may have at most {LARGEST_EXACT:,} architectures, not {size:,}"
        )
    if text is None:
        return [row for row in ROWS if row not in impossible]
    wanted = {choose("row", name.strip(), ROWS) for name in text.split(",")}
    for row, reason in impossible.items():
        if row in wanted:
            raise UserError(f"no row {row!r} for this space: {reason}")
    return [row for row in ROWS if row in wanted]


@dataclass(frozen=True)
class Benchmark:
    """The rows of one table. Raises UserError for weights that a row cannot use."""

    settings: Settings
    space: StagedSpace
    law: ListLaw
    networks: Path
    console: Console = field(default_factory=plain_console)

    @cached_property
    def law_record(self) -> dict[str, Any]:
        return self.law.to_json()

    @cached_property
    def listed(self) -> Set[bytes]:
        return {pack(arch) for arch in self.law.archs}

    def row(self, name: str, source: Source, cache: Path) -> dict[str, Any]:
        """Measure a row, or read it if an earlier command with equal settings measured it."""
        row = {"row": name, "weights": source.weights}
        return kept(
            cache,
            f"{self.space.name}-{name}",
            {
                **asdict(self.settings),
                **row,
                "list": self.law_record,
                "code": code_digest("nag"),
            },
            lambda: row | self._measure(name, source),
            lambda told: self.console.print(f"{name}: {told}"),
        )

    def _measure(self, name: str, source: Source) -> dict[str, Any]:
        known, of = source.known(), self.settings
        total = (of.seeds * of.num + of.distance_num) * of.steps
        with progress_bar(self.console, name, total) as advance:
            draw = partial(
                generate,
                self.space,
                source.score,
                source.sde,
                sampler=of.sampler,
                steps=of.steps,
                device=of.device,
                progress=advance,
            )
            repeats = []
            for seed in range(of.seeds):
                samples = draw(of.num, seed=seed)
                found = {**asdict(summary(samples, known)), "seconds": round(samples.seconds, 3)}
                repeats.append({"seed": seed, **found})
            distance = distances(self.space, draw(of.distance_num, seed=of.seeds).archs)
        self.console.print(f"{name}: measured")
        return {"repeats": repeats, "distances": asdict(distance)}

    def source(self, name: str) -> Source:
        """What a row samples from; trains its network if there is none."""
        if name == "exact":
            sde = sde_of(UniformLaw(self.space))
            return Source(exact_score(self.space, sde), sde, lambda: self.listed)
        if name == "exact-of-list":
            sde, points = sde_of(self.law), centre(self.space.encode(self.law.archs))
            points = points.to(self.settings.device)
            return Source(exact_score_of_samples(points, sde), sde, lambda: self.listed)
        if name == "shipped":
            return self._shipped()
        path = self.networks / f"{self.space.name}-{name}.safetensors"
        if not path.exists():
            self._train(name, path)
        source = self._load(path, RECIPES[name].network(self.space))
        data = source.weights["data"]
        if not isinstance(data, dict) or data.get("sha256") != self.law_record["sha256"]:
            raise UserError(
                f"{path} was not trained on the {len(self.law.archs):,} random architectures of "
                "this table: remove it or choose another --networks"
            )
        return source

    def _shipped(self) -> Source:
        path = shipped_weights(self.space)
        source = self._load(path)
        if source.weights["data"] != UniformLaw(self.space).to_json():
            raise UserError(f"{path} was not trained on uniform architectures")
        seed, steps, batch_size = (source.weights[key] for key in ("seed", "steps", "batch_size"))
        return replace(source, known=partial(uniform_draws, self.space, seed, steps, batch_size))

    def _load(self, path: Path, expected: ScoreNetConfig | None = None) -> Source:
        """Weights on disk as a source whose known architectures are those of the list."""
        device = torch.device(self.settings.device)
        network = load_network(path, self.space, device=device)
        if expected is not None and network.config != expected:
            raise UserError(f"{path} does not hold the network that its row requires")
        record = json.loads(path.with_suffix(".json").read_text())
        try:
            weights = {key: record[key] for key in ("sha256", "parameters")}
            made = record["training"]
            weights |= {key: made[key] for key in ("seed", "data", "steps", "batch_size")}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path.with_suffix('.json')} does not record how the network was trained"
            ) from error
        return Source(accelerated(network, device), network.sde, lambda: self.listed, weights)

    def _train(self, name: str, path: Path) -> None:
        recipe = RECIPES[name]
        self.console.print(f"{name}: no {path} yet, training it for {recipe.training.steps} steps")
        train_network(
            self.law,
            recipe.network(self.space),
            recipe.training,
            path,
            sde=sde_of(self.law),
            seed=0,
            device=torch.device(self.settings.device),
            report_every=500,
            record={"command": command_given("nag.quality"), "preset": recipe.preset},
        )


def uniform_draws(space: SearchSpace, seed: int, steps: int, batch_size: int) -> set[bytes]:
    """All architectures that `nag.training.train` drew from the uniform law, packed."""
    drawn: set[bytes] = set()
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        rng.integers(2**62), rng.integers(2**62)  # seeds of noise and dropout
        drawn.update(map(pack, space.sample(batch_size, rng)))
    return drawn


if __name__ == "__main__":
    run(app)
