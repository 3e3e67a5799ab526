"""Shared fixtures. Benchmark tables are read from the folder named by NAG_DATA, never shipped."""

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

# What a script starts in the background ignores Ctrl-C, and so would the commands of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# By default Ray's workers give way to all other processes: to the tests that run beside them.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for Ray take minutes. Three others come before each, the remaining ones last.

    With what waits beside what computes, all cores are busy, and all processes end together.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waits = {path for path in files if any(item.get_closest_marker("ray") for item in files[path])}
    others = (path for path in files if path not in waits)
    order: list[Path] = []
    for path in files:
        if path in waits:
            order += [*islice(others, 3), path]
    items[:] = [item for path in (*order, *others) for item in files[path]]


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    """Commands that run in this process take SIGTERM for Ctrl-C, each test anew."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of benchmark tables; tests that need it are skipped where it is not given."""
    folder = os.environ.get("NAG_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("NAG_DATA does not name a folder of benchmark tables")
    return Path(folder)
