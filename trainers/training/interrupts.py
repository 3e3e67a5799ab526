"""Delays Ctrl-C and SIGTERM until a step has ended."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the block has ended."""
    asked: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # other threads get no signals
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda n, _: asked.append(n))
    try:
        yield
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
        for caught in asked:
            signal.raise_signal(caught)
