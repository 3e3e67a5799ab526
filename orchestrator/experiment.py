"""`python -m orchestrator.experiment`: run everything that a file asks for."""

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from nag.cli import WholeNumber, command_line, end_interrupted, plain_console, run
from nag.errors import UserError, counted
from orchestrator.experiments.file import Data, Experiment, read_experiment
from orchestrator.experiments.jobs import Job, JobPlace, Result, check, execute
from orchestrator.experiments.view import Board, Heartbeat, Watch
from orchestrator.runtime import Auth, Runtime
from orchestrator.search.record import provenance, write_record

SCHEMA = 1

app = command_line(
    "python -m orchestrator.experiment",
    "python -m orchestrator.experiment experiments/smoke.toml",
    "python -m orchestrator.experiment experiments/figure4.toml --out RUNS --jobs 8",
    "python -m orchestrator.experiment experiments/figure3.toml --table nb201.parquet --dry-run",
)


@app.default
def main(
    file: Path,
    *,
    out: Path = Path("runs/experiments"),
    table: Path | None = None,
    latency_table: str | None = None,
    data: Path | None = None,
    weights: Path | None = None,
    dry_run: bool = False,
    executor: Literal["ray", "local"] = "ray",
    jobs: WholeNumber | None = None,
    gpu: float = 0.0,
    address: str | None = None,
    auth: Auth | None = None,
    retries: WholeNumber = 2,
) -> int:
    """Run every search and command that an experiment file asks for, in parallel on Ray.

    Each has its own directory in --out, named after its content. Finished ones are skipped and
    interrupted ones continue, so experiments can share one --out, and repeating the command
    continues an interrupted experiment.

    Parameters
    ----------
    file
        The experiment: a TOML file.
    out
        Folder of the runs. On a cluster all machines must share it.
    table
        Parquet file of a benchmark table, for the runs that need one.
    latency_table
        Block latencies on your device, for runs with a latency constraint: FILE or FILE:KEY.
    data
        Images, for the runs that train or measure networks.
    weights
        Supernet weights, for the same runs.
    dry_run
        List what would be run and what is finished, and stop.
    executor
        ray: one Ray task per run. local: one run after the other in this process.
    jobs
        Runs at a time on Ray; by default as many as the cluster has room for.
    gpu
        Share of a GPU for each run; with 0 all run on the CPU.
    address
        Ray cluster to join: host:port or auto; by default RAY_ADDRESS, else start a local Ray.
    auth
        Ray's token authentication; by default RAY_AUTH_MODE, else token.
    retries
        How often to retry an evaluation after an error, or a run after a lost worker.
    """
    if jobs is not None and jobs < 1:
        raise UserError("--jobs must be at least 1")
    if executor == "local" and jobs not in (None, 1):
        raise UserError("--executor local does one run after the other: --jobs requires ray")
    if not 0 <= gpu <= 1:
        raise UserError(f"--gpu {gpu:g} must be between 0 and 1")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is not a folder")
    runtime = Runtime(
        executor=executor,
        address=address,
        auth=auth,
        workers=jobs,
        retries=retries,
        gpus_per_eval=gpu,
        dashboard=False,
    )
    console = plain_console(stderr=False)
    experiment = read_experiment(file, Data(table, latency_table, data, weights, out))
    if dry_run:
        todo = list_jobs(console, experiment, out)
        check([job for job in todo if not job.missing], "cpu")
        return 0
    refuse_missing(experiment)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    place = JobPlace(out.resolve(), "cuda" if gpu else "cpu", retries, tuple(sys.orig_argv))
    return run_experiment(console, experiment, place, runtime)


def list_jobs(console: Console, experiment: Experiment, out: Path) -> list[Job]:
    """Print what is to do and what is done, and return the former; needs none of the data."""
    todo: list[Job] = []
    done = 0
    for job in experiment.jobs:
        trials, complete = job.progress(out)
        done += trials
        todo += [] if complete else [job]
        state = "finished" if complete else "begun" if trials else "to do"
        count = f"{trials:>6}/{job.trials:<6}" if job.trials else " " * 13
        needs = f"{job.name}, needs {job.missing}" if job.missing else job.label
        console.print(f"{state:<8} {count} {needs}")
    total, runs = sum(job.trials for job in experiment.jobs), len(experiment.jobs)
    console.print(
        f"{experiment.title}: {counted(runs, 'run')}, {runs - len(todo)} finished; "
        f"{counted(total, 'trial')}, {total - done:,} to do"
    )
    return todo


def refuse_missing(experiment: Experiment) -> None:
    """Raise UserError if runs need files that were not named."""
    missing = Counter(job.missing for job in experiment.jobs if job.missing)
    if missing:
        runs = counted(len(experiment.jobs), "run")
        needs = ", ".join(f"{option} FILE for {n} of {runs}" for option, n in missing.items())
        raise UserError(f"{experiment.file} needs {needs}")


def write_manifest(console: Console, experiment: Experiment, root: Path) -> None:
    """Write what the experiment consists of, for the report: experiment-NAME.json beside the runs.

    Warns if it replaces the manifest of another file of the same name.
    """
    manifest = root / f"experiment-{experiment.file.stem}.json"
    record = {
        "schema": SCHEMA,
        "title": experiment.title,
        "file": str(experiment.file.resolve()),
        "sha256": experiment.sha256,
        **provenance(sys.orig_argv),
        "runs": [
            {"panel": member.panel, "label": member.job.label, **member.job.record}
            for member in experiment.members
        ],
    }
    with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged
        before = json.loads(manifest.read_bytes())
        if all(before[key] != record[key] for key in ("file", "sha256")):
            console.print(
                f"warning: {manifest} described {before['file']} and is replaced: to keep "
                "both, rename one of the files or choose another --out"
            )
    write_record(manifest, record)


def run_experiment(
    console: Console, experiment: Experiment, place: JobPlace, runtime: Runtime
) -> int:
    """Run what is not finished; returns the exit code."""
    board = Board(console, experiment.jobs, place.root)
    todo = board.unfinished
    if board.num_finished:
        runs = counted(len(experiment.jobs), "run")
        console.print(f"{board.num_finished} of {runs} already finished")
    failures: list[tuple[Job, Result]] = []
    try:
        here = runtime.executor == "local"
        check(todo, place.device if here else "cpu")
        place.root.mkdir(parents=True, exist_ok=True)
        write_manifest(console, experiment, place.root)
        if todo:
            results = (
                run_here(todo, place, board.watch)
                if here
                else run_on_ray(todo, place, runtime, board.watch)
            )
            with board.live():
                for job, result in results:
                    board.ended(job, result)
                    failures += [(job, result)] if result.failed else []
    except KeyboardInterrupt:
        board.watch(todo)
        end_interrupted(f"{board}; repeat the command to continue", stderr=False)
    for job, result in failures:
        console.print(f"failed: {job.label}: {result.text}")
    console.print(str(board))
    return 1 if failures else 0


def run_here(jobs: Sequence[Job], place: JobPlace, watch: Watch) -> Iterator[tuple[Job, Result]]:
    """One after the other in this process."""
    for job in jobs:
        yield job, execute(job, place, (Heartbeat(partial(watch, [job])),))


def run_on_ray(
    jobs: Sequence[Job], place: JobPlace, runtime: Runtime, watch: Watch
) -> Iterator[tuple[Job, Result]]:
    """One Ray task each."""
    from orchestrator.executors.cluster import ClusterError  # Ray is slow to import
    from orchestrator.executors.tasks import RayTasks

    with closing(RayTasks(runtime)) as tasks:
        for running, ended in tasks.run([partial(execute, job, place) for job in jobs]):
            watch([jobs[i] for i in running])
            for i, result in ended:
                lost = isinstance(result, ClusterError)
                yield jobs[i], Result(str(result), failed=True) if lost else result


if __name__ == "__main__":
    run(app)
