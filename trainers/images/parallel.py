"""Work on many images in several processes."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
CHUNK = 256
_work: Callable[[np.ndarray], Any]  # the task of a worker process


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    work: Callable[[np.ndarray], T], n: int, workers: int | None = None
) -> Iterator[tuple[np.ndarray, T]]:
    """Yield (rows, work(rows)) for chunks of range(n), as they finish.

    work: sent to each process once. An interrupt ends all processes.
    """
    chunks: Iterator[np.ndarray] = (np.arange(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK))
    workers = workers or cores()
    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(work,))
    try:
        waiting = {}
        for rows in islice(chunks, 3 * workers):
            waiting[pool.submit(_run, rows)] = rows
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
                for rows in islice(chunks, 1):
                    waiting[pool.submit(_run, rows)] = rows
    except BrokenProcessPool:
        raise OSError(
            None, "a worker process died, perhaps out of memory: try fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[np.ndarray], Any]) -> None:
    global _work
    gc.freeze()  # never collect objects of the parent, such as PyTorch's loaders
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the waiting parent ends us
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit with the parent; otherwise a worker would outlive a killed parent."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _run(rows: np.ndarray) -> Any:
    return _work(rows)
