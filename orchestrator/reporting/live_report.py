"""The report of a run in progress, rewritten now and then; the page reloads itself."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nag.errors import UserError
from orchestrator.history.trials import Outcome
from orchestrator.search.bayesopt import Suggestion
from orchestrator.search.pace import NowAndThen
from orchestrator.search.store import RunStore

_SHARE = 0.02  # of the time, at most, is spent on it
_AFTER = 20.0  # seconds; shorter runs get their report at the end


class LiveReport:
    """An `Observer` that rewrites the report now and then."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._rewrite = NowAndThen(self._write, _SHARE, _AFTER)
        self.written = False

    def proposed(self, store: RunStore, suggestion: Suggestion) -> None:
        """Nothing: there is no new outcome."""

    def finished(self, store: RunStore, outcome: Outcome) -> None:
        del store, outcome
        self._rewrite()

    def _write(self) -> None:
        _write_report(self._store, live=True)
        self.written = True


@contextmanager
def live_report(store: RunStore) -> Iterator[LiveReport]:
    """An observer for the run in this block; if that is interrupted, the page stops reloading."""
    report = LiveReport(store)
    try:
        yield report
    except BaseException:
        if report.written:
            with suppress(UserError):  # for the same reason, perhaps, such as a full disk
                _write_report(store)
        raise


def _write_report(store: RunStore, live: bool = False) -> None:
    from orchestrator.reporting.run_report import write_report  # slow to import: it draws

    write_report(store, live)
