"""`python -m orchestrator.run_bo`: search a space for its best architecture."""

import math
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from nag.cli import command_line, end_interrupted, plain_console, run
from nag.errors import UserError, counted
from orchestrator.build import (
    build_evaluator_here,
    build_executor,
    build_observers,
    build_optimizer,
    plan_of,
    without_effect,
)
from orchestrator.config import RunConfig
from orchestrator.reporting.live_report import live_report
from orchestrator.reporting.view import View, print_result
from orchestrator.runtime import Runtime
from orchestrator.search.loop import Observer, Plan, run_study
from orchestrator.search.record import check_same_run
from orchestrator.search.store import RunStore
from orchestrator.search.trial import Executor

app = command_line(
    "python -m orchestrator.run_bo",
    "python -m orchestrator.run_bo --acq ei",
    "python -m orchestrator.run_bo --space nasbench201 --table nb201.parquet --dataset cifar100",
    "python -m orchestrator.run_bo --method rea --budget 200",
    "python -m orchestrator.run_bo --acq ucb --constraint 'macs<=300e6' --batch-size 8",
    "python -m orchestrator.run_bo --pareto macs",
)

_ENDS = {
    "exhausted": "the space is exhausted after {trials}",
    "patience": "stopped after {trials}: --patience {patience} is exhausted; to continue, "
    "repeat the command with more",
    "time": "stopped after {trials}: --max-hours {max_hours:g} are over; to continue, repeat the "
    "command",
}


@app.default
def main(config: RunConfig = RunConfig(), runtime: Runtime = Runtime()) -> int:  # noqa: B008
    """Bayesian-optimisation architecture search with a guided diffusion generator, on Ray.

    Without options it maximises ImageNet-1K top-1 (embedded estimate) over the once-for-all
    MobileNetV3 space. All results go to --out; to continue an interrupted run, repeat its command.
    """
    ends_at = time.time() + 3600 * (runtime.max_hours or math.inf)
    plan = plan_of(config)
    out = runtime.out or Path("runs", config.name)
    console = plain_console(stderr=False)
    for earlier in config.prior:
        if earlier.path.resolve() == out.resolve():
            raise UserError(f"--prior {earlier.path} is the run itself")
    if runtime.patience is not None and config.pareto is not None:
        raise UserError("--patience waits for a larger value: it cannot be used with --pareto")
    check_same_run(out, config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    torch.set_num_threads(config.threads)
    runtime = replace(runtime, out=out, ends_at=ends_at)
    with console.status("preparing the evaluator"):
        evaluator = build_evaluator_here(config, runtime)
    with console.status("starting generator and workers"):
        executor = build_executor(config, runtime, evaluator)
    with closing(executor), closing(RunStore.open(out, config)) as store:
        observers = build_observers(out.resolve().name, config, runtime, executor, evaluator, store)
        return _search(config, plan, runtime, executor, store, observers, console)


def _search(
    config: RunConfig,
    plan: Plan,
    runtime: Runtime,
    executor: Executor,
    store: RunStore,
    observers: tuple[Observer, ...],
    console: Console,
) -> int:
    shown = [config.space, config.evaluator_name, *([config.dataset] if config.dataset else [])]
    shown += ["test"] if config.objective == "test" else []
    shown += [*config.parts.shown, *config.constraint]
    shown += [f"pareto {config.pareto}"] if config.pareto else []
    shown += [f"prior {earlier.content}" for earlier in config.prior]
    console.print(f"{', '.join(shown)}: {executor.description}")
    if store.num_finished:
        finished = counted(store.num_finished, "trial is", "trials are")
        console.print(f"continuing {store.out}: {finished} finished")
    if options := without_effect(config):
        plain_console().print(f"warning: no effect on this search: {', '.join(options)}")
    optimizer = build_optimizer(config, executor.generator)
    view = View(console, config.budget)
    try:
        with view.live(store), live_report(store) as report:
            ended = run_study(
                optimizer,
                executor,
                store,
                plan,
                observers=(view, report, *observers),
                patience=runtime.patience,
                ends_at=runtime.ends_at,
            )
    except KeyboardInterrupt:
        store.compact()
        saved = counted(store.num_finished, "trial is", "trials are")
        end_interrupted(
            f"{saved} saved in {store.out}; repeat the command to continue", stderr=False
        )
    if ended != "budget":
        trials = counted(store.num_finished, "trial")
        console.print(_ENDS[ended].format(trials=trials, **vars(runtime)))
    from orchestrator.reporting.run_report import write_report  # slow to import: it draws

    print_result(console, store, write_report(store))
    return 0 if store.best else 1


if __name__ == "__main__":
    run(app)
