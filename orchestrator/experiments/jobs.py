"""The parts of an experiment, searches and commands: each has its own directory under RUNS.

A directory is named after its content, so finished jobs are recognised, whichever file they were
run for. One process at a time works in it; a job that was killed continues when it is run again.
"""

import fcntl
import hashlib
import json
import platform
import subprocess
import sys
import time
import traceback
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch

from nag.errors import UserError, counted
from nag.locks import lock
from orchestrator.build import build_evaluator_here, build_executor, build_optimizer, plan_of
from orchestrator.config import RunConfig, file_name, sha256_or_none
from orchestrator.history.record import DamagedRunError
from orchestrator.history.run import read_run
from orchestrator.methods import METHODS
from orchestrator.runtime import Runtime
from orchestrator.search.loop import End, Observer, run_study
from orchestrator.search.record import provenance, write_record
from orchestrator.search.store import RunStore, num_tabled
from trainers.build import ON_IMAGES
from trainers.constraints import parse_constraint

COMMANDS = ("nag.quality", "orchestrator.guided_quality")
_READ_TABLES = ("orchestrator.guided_quality",)


@dataclass(frozen=True)
class JobPlace:
    """Where and how jobs are run; nothing here changes their results."""

    root: Path  # the directories of all jobs
    device: str
    retries: int
    command: tuple[str, ...]  # the command line of the experiment


@dataclass(frozen=True)
class Result:
    """The outcome of a job."""

    text: str  # the result, or why it failed; one line
    failed: bool = False
    seconds: float = 0.0


class Job(Protocol):
    """A part of an experiment."""

    @property
    def name(self) -> str:
        """A readable description."""
        ...

    @property
    def label(self) -> str:
        """The name of its directory: `name` and the first digits of the hash of its content."""
        ...

    @property
    def trials(self) -> int:
        """Total full-fidelity evaluations, as far as they are counted."""
        ...

    @property
    def missing(self) -> str | None:
        """The option for data that it needs but does not have."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """The whole job, as JSON."""
        ...

    def progress(self, root: Path) -> tuple[int, bool]:
        """Trials finished so far, and whether the job is complete and succeeded; read from disk."""
        ...

    def run(self, place: JobPlace, observers: tuple[Observer, ...] = ()) -> str:
        """Run or continue it; returns the result, in one line. Raises UserError."""
        ...


@dataclass(frozen=True)
class Search:
    """A run of the search, like one of `orchestrator.run_bo`; raises UserError if invalid."""

    config: RunConfig

    def __post_init__(self) -> None:
        plan_of(self.config)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def label(self) -> str:
        return f"{self.name}-{self.config.hash()[:8]}"

    @property
    def trials(self) -> int:
        return self.config.budget

    @property
    def missing(self) -> str | None:
        required = (name for name, must in needed_files(self.config).items() if must)
        missing = next((name for name in required if name not in self.config.paths), None)
        return missing and f"--{missing.replace('_', '-')}"

    @property
    def record(self) -> dict[str, Any]:
        config = self.config.identity() | {"budget": self.config.budget}
        methods = [name for name, m in METHODS.items() if m.parts == self.config.parts]
        method = methods[0] if methods else None
        return {"kind": "search", "hash": self.config.hash(), "method": method, "config": config}

    def progress(self, root: Path) -> tuple[int, bool]:
        out = root / self.label
        try:
            run, tabled = read_run(out), num_tabled(out)
        except (DamagedRunError, OSError):  # which `run` will report
            return 0, False
        if run.record["hash"] != self.config.hash():
            return 0, False
        ended = len(run) >= self.trials or run.exhausted
        is_tabled = min(self.trials, run.num_finished) <= tabled <= run.num_finished
        succeeded = bool(np.isfinite(run.columns["value"]).any())
        return min(len(run), self.trials), ended and is_tabled and succeeded

    def run(self, place: JobPlace, observers: tuple[Observer, ...] = ()) -> str:
        config, out = self.config, place.root / self.label
        _wait_until_free(out)
        torch.set_num_threads(config.threads)
        runtime = Runtime(
            executor="local",
            device=place.device,
            retries=place.retries,
            out=out,
            eval_device=place.device,
            image_workers=0,
            cache=place.root / "images",
        )
        executor = build_executor(config, runtime, build_evaluator_here(config, runtime))
        with (
            closing(executor),
            closing(RunStore.open(out, config, place.command)) as store,
        ):
            try:
                ended = run_study(
                    build_optimizer(config, executor.generator),
                    executor,
                    store,
                    plan_of(config),
                    observers=observers,
                )
            except KeyboardInterrupt:
                store.compact()
                raise
            return _found(store, ended)

    def check(self, device: str) -> None:
        """Raise UserError if the run cannot be built, before anything runs."""
        config, runtime = self.config, Runtime(executor="local", device=device)
        executor = build_executor(config, runtime, build_evaluator_here(config, runtime))
        with closing(executor):
            build_optimizer(config, executor.generator)


@dataclass(frozen=True)
class Command:
    """Another command of this package, one of COMMANDS; its --out is the directory.

    paths: the options that name files and folders. Files are identified by name and content. The
        command itself may fill a folder of networks: that is identified by name, and if the
        networks in it change, the command is run again.
    """

    module: str
    options: tuple[tuple[str, str], ...]
    paths: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        given = dict(self.options)
        return file_name(self.module.split(".")[-1], given.get("space"), given.get("dataset"))

    @property
    def label(self) -> str:
        given: dict[str, Any] = dict(self.options)
        for name in given.keys() & set(self.paths):
            path = Path(given[name])
            given[name] = [path.name, sha256_or_none(path)]
        text = json.dumps([self.module, sorted(given.items())])
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def trials(self) -> int:
        return 0

    @property
    def arguments(self) -> list[str]:
        return [f"--{name.replace('_', '-')}={value}" for name, value in self.options]

    @property
    def reads_table(self) -> bool:
        space = dict(self.options).get("space", "nasbench201")
        return self.module in _READ_TABLES and space == "nasbench201"

    @property
    def missing(self) -> str | None:
        return "--table" if self.reads_table and "table" not in dict(self.options) else None

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": "command", "module": self.module, "options": dict(self.options)}

    def progress(self, root: Path) -> tuple[int, bool]:
        try:
            record = json.loads((root / self.label / "command.json").read_bytes())
        except (OSError, ValueError):
            return 0, False
        return 0, record.get("networks", {}) == self._networks()

    def _networks(self) -> dict[str, str | None]:
        """The hashes of the networks that it reads, those for its space."""
        given = dict(self.options)
        if "networks" not in given:
            return {}
        found = Path(given["networks"]).glob(f"{given['space']}-*.safetensors")
        return {path.name: sha256_or_none(path) for path in sorted(found)}

    def run(self, place: JobPlace, observers: tuple[Observer, ...] = ()) -> str:
        del observers
        out = place.root / self.label
        out.mkdir(exist_ok=True)
        with (out / "command.lock").open("w") as file:
            lock(file, fcntl.LOCK_EX, out)
            if not self.progress(place.root)[1]:  # nobody else did it in the meantime
                self._run_locked(out, file)
        return f"see {out}"

    def _run_locked(self, out: Path, locked: IO[Any]) -> None:
        """Run it in a process that inherits the lock, as it may outlive this one if killed."""
        arguments = ["-m", self.module, *self.arguments, f"--out={out}"]
        started, log = time.monotonic(), out / "command.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[locked.fileno()],
            )
            try:
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if code:
            last = (log.read_text(errors="replace").splitlines() or ["no output"])[-1]
            raise UserError(f"{last.removeprefix('error: ')} (exit code {code}, see {log})")
        record = provenance(["python", *arguments])
        found = {"seconds": time.monotonic() - started, "networks": self._networks()}
        write_record(out / "command.json", record | found)


def execute(job: Job, place: JobPlace, observers: tuple[Observer, ...] = ()) -> Result:
    """Run a job in this process; an exception that it raises becomes its result.

    Tracebacks of errors that are not the user's fault are left beside the job's directory.
    """
    started = time.monotonic()
    trace = place.root / f"{job.label}.error"
    try:
        if not place.root.is_dir():
            raise UserError(
                f"there is no {place.root} on {platform.node()}: all machines must share it"
            )
        text, failed = job.run(place, observers), False
        trace.unlink(missing_ok=True)
    except UserError as error:
        text, failed = str(error), True
    except Exception as error:
        trace.write_text(traceback.format_exc())
        text, failed = f"{type(error).__name__}: {error} (see {trace})", True
    return Result(" ".join(text.split()), failed, time.monotonic() - started)


def check(jobs: list[Job], device: str) -> None:
    """Raise UserError for jobs that cannot start; checks searches once, whatever the seed."""
    searches = [replace(job.config, seed=0) for job in jobs if isinstance(job, Search)]
    for config in dict.fromkeys(searches):
        Search(config).check(device)


def needed_files(config: RunConfig) -> dict[str, bool]:
    """The files that a run reads, by setting, and whether each is required.

    Raises ValueError for an invalid constraint.
    """
    needed = {"table": True} if config.evaluator_name == "table" else {}
    limited = [parse_constraint(text)[0] for text in config.constraint]
    if "latency" in (*limited, config.pareto):
        needed["latency_table"] = True
    if config.evaluator_name in ON_IMAGES:
        needed |= {"data": True, "weights": config.evaluator_name == "supernet"}
    return needed


def _found(store: RunStore, ended: End) -> str:
    """The result of a search; raises UserError if there is none."""
    if store.best is None:
        raise UserError(f"no evaluation succeeded, see {store.out / 'trials.parquet'}")
    best = f"best {store.unit.text(store.best[1])}"
    if ended == "exhausted":
        return f"{best}, the space is exhausted after {counted(store.num_finished, 'trial')}"
    return best


def _wait_until_free(out: Path) -> None:
    """Wait until the lock of a run is free: `RunStore.open` does not wait for it."""
    with suppress(FileNotFoundError), (out / "journal.jsonl").open("rb") as journal:
        lock(journal, fcntl.LOCK_SH, out)
