"""Where trials are evaluated, and the one function that turns a trial into its outcome."""

import collections.abc
import faulthandler
import gc
import logging
import math
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Protocol, TypeAlias

import torch

from nag.devices import gpu_reason
from nag.errors import UserError
from nag.generator import Generator
from orchestrator.history.trials import LARGEST, Outcome, Trial
from trainers.base import EvaluationError, Evaluator, Measurement, at_epochs
from trainers.training.loop import out_of_memory

_TAKEN = frozenset(one.name for kind in (Trial, Outcome) for one in fields(kind))
Outcomes: TypeAlias = collections.abc.Generator[Outcome, None, None]
_CONTEXT = 2**29  # bytes of a GPU that CUDA and its libraries take for a process, about
_log = logging.getLogger(__name__)


class Ask(Protocol):
    """Where an executor gets its work from."""

    def __call__(self, room: int) -> Sequence[Trial]:
        """At most `room` trials to begin now; none if outcomes must come first, or at the end."""
        ...


class Executor(Protocol):
    """Where the work is done."""

    @property
    def generator(self) -> Generator:
        """The candidate generator."""
        ...

    @property
    def description(self) -> str:
        """Where the work is done, in words for the user."""
        ...

    def run(self, ask: Ask) -> Outcomes:
        """Evaluate the trials that `ask` returns, yielding outcomes as they come, until the end.

        Asks when there is room, and again after each outcome. Never raises for a failed trial. If
        closed early, it lets running trainings save their progress.
        """
        ...

    def close(self) -> None:
        """Release processes and devices."""
        ...


def evaluate_trial(
    evaluator: Evaluator,
    trial: Trial,
    retries: int,
    timeout: float | None = None,
    last_resort: float | None = None,
) -> Outcome:
    """Evaluate with at most `retries` further attempts after an unexpected exception.

    Not retried are an `EvaluationError`, which is the architecture's own fault; a non-finite value
    and an attempt of more than `timeout` seconds, which would recur; and running out of memory,
    which the executor may be able to remedy.

    last_resort: an attempt that ignores its timeout for this many more seconds ends the process;
        None if the process must not be ended.

    GPU memory that is no longer used is released for others that share the GPU: this process may
    stay idle while an evaluation that ran out of memory is tried again there alone.

    After some errors, such as an illegal memory access, a GPU refuses all further work of a
    process. Then the process ends, so that others do the work, or a UserError is raised.
    """
    held = 0
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    try:
        outcome = _attempts(evaluator, trial, retries, timeout, last_resort)
        return replace(outcome, gpu_memory=_gpu_memory())
    finally:
        _release_gpu(held, may_end=last_resort is not None)


def _release_gpu(held: int, may_end: bool) -> None:
    """held: bytes that were in use before the evaluation."""
    if not torch.cuda.is_initialized():
        return
    if torch.cuda.memory_allocated() > held:  # by a reference cycle, as in kept tracebacks?
        gc.collect()
    try:
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(device):  # others may be full of someone else's work
                torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except torch.AcceleratorError as error:
        reason = gpu_reason(error)
        if may_end:
            _log.error("the process ends because its GPU no longer works: %s", reason)
            os._exit(1)
        raise UserError(
            f"the GPU no longer works in this process ({reason}): repeat the command to continue"
        ) from error


def _gpu_memory() -> float:
    """The largest share of its GPU's memory that this process has held; 0 if it was not used."""
    held = torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else 0
    if not held:
        return 0.0
    return (held + _CONTEXT) / torch.cuda.get_device_properties().total_memory


def _attempts(
    evaluator: Evaluator,
    trial: Trial,
    retries: int,
    timeout: float | None,
    last_resort: float | None,
) -> Outcome:
    started = perf_counter()
    for attempt in range(1, retries + 2):
        try:
            with _deadline(timeout, last_resort):
                found = at_epochs(evaluator, trial.epochs).evaluate(trial.arch, seed=trial.seed)
            return _success(trial, found, attempt)
        except (EvaluationError, MemoryError, torch.OutOfMemoryError) as error:
            return _failed(trial, error, started, attempt)
        except _DeadlineExceeded:
            late = TimeoutError(f"the evaluation took more than {timeout:g} s")
            return _failed(trial, late, started, attempt)
        except Exception as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                return _failed(trial, MemoryError(str(error)), started, attempt)
            if attempt > retries:
                return _failed(trial, error, started, attempt, where=_place(error))
    raise AssertionError("unreachable")


def _success(trial: Trial, found: Measurement, attempts: int) -> Outcome:
    """The outcome of a trial; checks the measurement, because evaluators may be the user's own."""
    if not isinstance(found, Measurement):
        what = type(found).__name__
        raise EvaluationError(f"the evaluator returned a {what}, not a Measurement")
    value = float(found.value)
    if not abs(value) <= LARGEST:
        raise EvaluationError(f"the value is {value}" + ", too large" * math.isfinite(value))
    if taken := sorted(_TAKEN & found.metrics.keys()):
        raise EvaluationError(f"metrics cannot be called {', '.join(taken)}")
    return Outcome(
        trial=trial.trial,
        status="ok",
        value=value,
        metrics={name: float(number) for name, number in found.metrics.items()},
        seconds=float(found.seconds),
        attempts=attempts,
        curve=tuple(map(float, found.curve)),
        device=str(found.device),
    )


class _DeadlineExceeded(BaseException):
    """Not an Exception, which an evaluation might mistake for one of its own and catch."""


@contextmanager
def _deadline(seconds: float | None, last_resort: float | None) -> Iterator[None]:
    """Raise _DeadlineExceeded in the block once that many seconds have passed.

    Uses a signal, which reaches only the main thread, and only once control is back in Python. If
    that takes more than `last_resort` seconds, the process ends.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise _DeadlineExceeded

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if last_resort is not None:
        faulthandler.dump_traceback_later(seconds + last_resort, exit=True)
    try:
        yield
    finally:
        if last_resort is not None:
            faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _place(error: Exception) -> str:
    """Where the error was raised, for the author of the evaluator."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _failed(
    trial: Trial, error: Exception, started: float, attempts: int, where: str = ""
) -> Outcome:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{where}"
    text = text.encode(errors="replace").decode()  # file names need not be UTF-8
    seconds = perf_counter() - started
    return Outcome(trial.trial, "failed", seconds=seconds, error=text, attempts=attempts)
