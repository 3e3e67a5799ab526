"""A share of the time, with a clock that is set by hand."""

from itertools import pairwise

import pytest

from orchestrator.search import pace


@pytest.mark.parametrize(("share", "after"), [(0.1, 0.0), (0.5, 30.0)])
def test_no_more_than_the_share_of_the_time(monkeypatch, share, after):
    clock, calls = [100.0], []
    monkeypatch.setattr(pace, "perf_counter", lambda: clock[0])

    def work():
        calls.append(clock[0] - 100)
        clock[0] += 3.0

    now_and_then = pace.NowAndThen(work, share, after)
    for _ in range(500):
        now_and_then()
        clock[0] += 1.0
    assert calls[0] == after
    gaps = {later - call for call, later in pairwise(calls)}
    assert gaps == {3.0 / share + 3.0}
