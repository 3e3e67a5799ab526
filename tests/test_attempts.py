"""Which trials are tried again, and which of them are alone."""

from collections import deque

import pytest

from nag.spaces.toy import TOY
from orchestrator.executors.attempts import Attempt, to_begin
from orchestrator.history.trials import Outcome, Trial

FIRST, SECOND, THIRD = (Attempt(Trial(i, 0, TOY.from_str("aa/aa"), "initial", i)) for i in range(3))
NO_MEMORY = Outcome(0, "failed", error="MemoryError: too large")
LOST = Outcome(0, "failed", error="WorkerCrashedError: the worker was lost")


def begun(running, again, limit=2):
    """What begins, where new trials are asked for as `room` says, and the room that was told."""
    rooms = []

    def ask(room):
        rooms.append(room)
        return [THIRD.trial]

    return [*to_begin(ask, limit, running, again)], rooms


def test_new_trials_begin_after_those_that_are_tried_again():
    assert begun([FIRST], deque()) == ([THIRD], [1])
    assert begun([FIRST, SECOND], deque()) == ([], [])
    again = deque([SECOND])
    assert begun([], again) == ([SECOND, THIRD], [2])
    assert not again


def test_what_must_be_alone_begins_alone():
    alone = FIRST.result(NO_MEMORY)
    assert alone == Attempt(FIRST.trial, number=2, alone=True)
    again = deque([SECOND, alone])
    assert begun([THIRD], again) == ([], [])  # nothing more, until it is empty
    assert begun([], again) == ([alone], [])
    assert begun([alone], again) == ([], [])
    assert begun([], again) == ([SECOND, THIRD], [2])


def test_a_second_lack_of_memory_is_the_outcome():
    alone = FIRST.result(NO_MEMORY)
    found = alone.result(NO_MEMORY)
    assert (found.status, found.error, found.attempts) == ("failed", NO_MEMORY.error, 2)
    of_ray = Outcome(0, "failed", error="OutOfMemoryError: the worker was lost")
    assert FIRST.result(of_ray, lost=True, retries=0) == alone
    assert alone.result(of_ray, lost=True, retries=5).status == "failed"


def test_a_lost_worker_is_an_attempt():
    second = FIRST.result(LOST, lost=True, retries=1)
    assert second == Attempt(FIRST.trial, number=2)
    assert second.result(LOST, lost=True, retries=1).attempts == 2


@pytest.mark.parametrize(
    ("workers", "room", "submitted", "limit"),
    [
        (None, 0, 0, 1),
        (None, 1, 0, 1),
        (None, 1, 1, 1),
        (None, 7, 7, 7),
        (None, 16, 16, 18),
        (None, 16, 17, 17),
        (None, 64, 0, 72),
        (None, 64, 64, 72),
        (None, 64, 65, 65),
        (16, 16, 16, 18),
        (16, 4, 0, 18),  # the autoscaler sees what machines that are to come would be used for
        (16, 17, 0, 16),  # one more would be evaluated
        (16, 17, 16, 16),
    ],
)
def test_an_asynchronous_queue_is_filled_when_it_is_empty(workers, room, submitted, limit):
    pytest.importorskip("ray")
    from orchestrator.executors.ray_core import in_flight

    assert in_flight(workers, room, submitted) == limit
