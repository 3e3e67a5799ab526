"""Shared fixtures. Benchmark tables are read from the folder named by NAG_DATA, never shipped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# What a script starts in the background ignores Ctrl-C, and so would the commands of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# By default Ray's workers give way to all other processes: to the tests that run beside them.
os.environ.setdefault("RAY_worker_niceness", "0")
# The same examples in every run, and as much time for each as a busy machine takes.
hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, beside others that only compute: it is slow beside Ray."""
    items.sort(key=lambda item: item.path.stem != "test_cluster_up")


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
