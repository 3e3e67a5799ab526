"""Experiment files: TOML, expanded into jobs (docs/experiments.md)."""

import hashlib
import importlib
import inspect
import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from glob import glob
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError

from nag.errors import UserError, choose
from orchestrator.config import PATHS, RunConfig
from orchestrator.experiments.jobs import COMMANDS, Command, Job, Search, needed_files
from orchestrator.history.earlier import EarlierRun, read_earlier_run
from orchestrator.typed import path_names
from trainers.training.task import NetworkOptions

_FILE = ("title", "seeds", "settings", "grid", "runs", "commands")
_SHARED = ("settings", "grid", "seeds")  # by all runs
_RUNS = ("panel", "seeds", "settings", "grid")
_COMMANDS = ("panel", "module", "settings", "grid")
_SETTINGS = tuple(  # the options of run_bo that decide what is searched; seeds are separate
    field.name
    for kind in (RunConfig, NetworkOptions)
    for field in fields(kind)
    if field.name not in ("networks", "seed")
)
_LISTS = ("constraint", "prior")

Settings = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Files that an experiment does not name because their location differs between machines."""

    table: Path | None = None
    latency_table: str | None = None
    data: Path | None = None  # images
    weights: Path | None = None  # of a supernet
    runs: Path | None = None  # where earlier runs may be, in addition to the folder of the file


@dataclass(frozen=True)
class Member:
    """A job and the panel of the experiment that it belongs to."""

    panel: str
    job: Job


@dataclass(frozen=True)
class Experiment:
    """What a file asks for. A job may be in several panels: it is run once."""

    title: str
    file: Path
    sha256: str
    members: tuple[Member, ...]

    @property
    def jobs(self) -> list[Job]:
        """All jobs, each once; of runs that differ only in budget, the longest."""
        found: dict[str, Job] = {}
        for member in self.members:
            other = found.setdefault(member.job.label, member.job)
            if member.job.trials > other.trials:
                found[member.job.label] = member.job
        return list(found.values())


def read_experiment(file: Path, data: Data) -> Experiment:
    """Read and expand a file. Raises UserError, which names the file, the block and the key.

    Searches come seed by seed, so that the finished ones can be compared if an experiment is
    stopped early; commands come last.
    """
    try:
        content = file.read_bytes()
        top = tomllib.loads(content.decode())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UserError(f"{file}: {error}") from None
    reader = _Reader(file.parent, data)
    with _within(str(file)):
        _check_keys(top, _FILE)
        title = _typed(top, "title", str, file.stem)
        blocks, commands = (_tables(top, name) for name in ("runs", "commands"))
        if not blocks and (of_runs := [key for key in _SHARED if key in top]):
            if commands:
                raise UserError(
                    f"{of_runs[0]} applies to [[runs]], of which there are none: add one, or put "
                    "the settings into [[commands]]"
                )
            blocks = [{}]
        shared = _Block.read(top)
    members: list[tuple[int, Member]] = []
    for number, block in enumerate(blocks, start=1):
        with _within(_where(file, "runs", number, block)):
            _check_keys(block, _RUNS)
            panel = _typed(block, "panel", str, title)
            searches = reader.searches(_Block.read(block).over(shared))
            members += [(job.config.seed, Member(panel, job)) for job in searches]
    members.sort(key=lambda pair: pair[0])
    found = [member for _, member in members]
    for number, block in enumerate(commands, start=1):
        with _within(_where(file, "commands", number, block)):
            _check_keys(block, _COMMANDS)
            panel = _typed(block, "panel", str, title)
            module = choose("module", _typed(block, "module", str, ""), COMMANDS)
            found += [Member(panel, job) for job in reader.commands(module, _Block.read(block))]
    if not found:
        raise UserError(f"{file} lists nothing to run: it needs settings, grid, runs or commands")
    return Experiment(title, file, hashlib.sha256(content).hexdigest(), tuple(found))


@dataclass(frozen=True)
class _Block:
    """Settings common to all runs, settings to combine, and seeds."""

    settings: Settings
    grid: dict[str, list[Any]]
    seeds: Sequence[int] | None

    @classmethod
    def read(cls, table: Settings) -> "_Block":
        settings, grid = (_typed(table, name, dict, {}) for name in ("settings", "grid"))
        for key, value in settings.items():
            if isinstance(value, dict) or (isinstance(value, list) and key not in _LISTS):
                raise UserError(f"settings.{key} must be one value; several belong in grid.{key}")
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise UserError(f"grid.{key} must be a list of values")
            if key in settings:
                raise UserError(f"{key} is in both settings and grid: choose one")
        if "seed" in settings or "seed" in grid:
            raise UserError("seed: write seeds = NUMBER or seeds = [SEED, ...] outside settings")
        return cls(settings, grid, _seeds(table))

    def over(self, shared: "_Block") -> "_Block":
        """This block plus what the whole file shares; the block's own settings take precedence."""
        mine = self.settings.keys() | self.grid.keys()
        settings = {key: x for key, x in shared.settings.items() if key not in mine}
        grid = {key: x for key, x in shared.grid.items() if key not in mine}
        seeds = self.seeds if self.seeds is not None else shared.seeds
        return _Block(settings | self.settings, grid | self.grid, seeds)

    def points(self) -> Iterator[Settings]:
        """All combinations."""
        axes = [[(key, value) for value in values] for key, values in self.grid.items()]
        return (self.settings | dict(point) for point in itertools.product(*axes))


@dataclass(frozen=True)
class _Reader:
    """Turns settings into jobs, by the rules of the command line."""

    folder: Path  # that paths in the file are relative to
    data: Data

    def searches(self, block: _Block) -> Iterator[Search]:
        for settings in block.points():
            for key in settings:
                choose("setting", key, _SETTINGS, see="docs/experiments.md")
            earlier = settings.pop("prior", [])
            config = self._with_data(self._resolved(settings, PATHS))
            for seed in block.seeds if block.seeds is not None else (0,):
                yield Search(replace(config, seed=seed, prior=self._prior(earlier, seed)))

    def commands(self, module: str, block: _Block) -> Iterator[Command]:
        program = importlib.import_module(module)
        names = [name for name in inspect.signature(program.main).parameters if name != "out"]
        paths = path_names(program.main)
        for settings in block.points():
            for key in settings:
                choose("setting", key, names)
            given = {key: str(value) for key, value in self._resolved(settings, paths).items()}
            command = Command(module, tuple(sorted(given.items())), paths)
            if command.reads_table and self.data.table:
                given["table"] = str(self.data.table.resolve())
                command = replace(command, options=tuple(sorted(given.items())))
            arguments = [*command.arguments, "--out=."]
            program.app.parse_args(arguments, exit_on_error=False, print_error=False)
            yield command

    def _prior(self, patterns: Any, seed: int) -> tuple[EarlierRun, ...]:
        """The earlier runs of a seed; patterns may contain {seed} and wildcards."""
        found = []
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if not isinstance(pattern, str):
                raise UserError(f"prior {pattern!r} must be the folder of a run")
            name = pattern.replace("{seed}", str(seed))
            places = [folder / name for folder in (self.data.runs, self.folder) if folder]
            matches = next(filter(None, (sorted(glob(str(place))) for place in places)), [])
            if len(matches) > 1:
                names = " and ".join(Path(path).name for path in matches[:2])
                raise UserError(f"prior {pattern!r} must name one run of seed {seed}, not {names}")
            if not matches:
                tried = " or ".join(dict.fromkeys(map(str, places)))
                raise UserError(f"prior {pattern!r} is not a run: there is no {tried}")
            found.append(read_earlier_run(Path(matches[0]).resolve()))
        return tuple(found)

    def _with_data(self, settings: Settings) -> RunConfig:
        """The configuration, with the files named by the user where a run needs them."""
        needed = needed_files(_run_config(settings))
        named = {name: str(file) for name in needed if (file := getattr(self.data, name))}
        return _run_config(settings | named).absolute()

    def _resolved(self, settings: Settings, paths: Sequence[str]) -> Settings:
        """The settings with absolute paths, resolved relative to the folder of the file."""
        return {
            key: str((self.folder / value).resolve())
            if key in paths and isinstance(value, str)
            else value
            for key, value in settings.items()
        }


_parser = App()


@_parser.default
def _configuration(config: RunConfig = RunConfig()) -> RunConfig:  # noqa: B008
    return config


def _run_config(settings: Settings) -> RunConfig:
    """The configuration that a command line with these options would give."""
    arguments = [
        f"--{key.replace('_', '-')}={item}"
        for key, value in settings.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    config: RunConfig = _parser(
        arguments, exit_on_error=False, print_error=False, result_action="return_value"
    )
    return config


def _seeds(table: Mapping[str, Any]) -> Sequence[int] | None:
    """`seeds = 20` means 0 to 19."""
    seeds = table.get("seeds")
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return range(seeds)
    if isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds):
        return seeds
    if seeds is not None:
        raise UserError(
            f"seeds {seeds!r} must be a positive number of seeds, or a list of whole numbers"
        )
    return None


def _tables(table: Mapping[str, Any], key: str) -> list[Settings]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(block, dict) for block in found):
        raise UserError(f"{key} must be written [[{key}]]")
    return found


def _typed(table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise UserError(f"{key} must be a {'table' if kind is dict else 'string'}")
    return value


def _check_keys(table: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in table:
        choose("key", key, allowed)


def _where(file: Path, kind: str, number: int, block: Mapping[str, Any]) -> str:
    panel = block.get("panel")
    return f"{file}, [[{kind}]] {number}" + (f" ({panel})" if isinstance(panel, str) else "")


@contextmanager
def _within(where: str) -> Iterator[None]:
    """Prefix errors in the block with where they occurred."""
    try:
        yield
    except (ValueError, CycloptsError) as error:
        raise UserError(f"{where}: {error}") from error
