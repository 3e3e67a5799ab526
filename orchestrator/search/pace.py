"""Doing something now and then."""

from collections.abc import Callable
from time import perf_counter


class NowAndThen:
    """Calls a function whenever it is called itself, but for at most a share of the time.

    after: seconds before the first call.
    """

    def __init__(self, function: Callable[[], object], share: float, after: float = 0.0) -> None:
        self._function, self._share = function, share
        self._next = perf_counter() + after

    def __call__(self) -> None:
        if (started := perf_counter()) >= self._next:
            self._function()
            ended = perf_counter()
            self._next = ended + (ended - started) / self._share
