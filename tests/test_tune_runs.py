"""Searches by Ray Tune in processes of their own: one that is killed, and the example."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tune_toy import NUM_SAMPLES

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **{name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "disabled",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
}


def start(*command):
    return subprocess.Popen(
        [sys.executable, "tests/patiently.py", *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, start):
    """The last line it writes that starts so; those of its workers may come later."""
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return [line for line in output.splitlines() if line.startswith(start)][-1]


def trials(folder):
    """Those of the last state that the searcher saved."""
    states = sorted(folder.glob("toy/searcher-state-*.json"))
    try:
        return json.loads(states[-1].read_text())["trials"]
    except (IndexError, ValueError):  # Tune is about to copy it there
        return {}


def test_a_killed_search_is_restored(tmp_path):
    hold = tmp_path / "hold"
    hold.touch()  # it cannot end before it is killed
    process = start("tests/tune_toy.py", str(tmp_path))
    while sum(trial["state"] == "ended" for trial in trials(tmp_path).values()) < 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hold.unlink()
    before = trials(tmp_path)
    assert len(before) < NUM_SAMPLES
    archs = json.loads(finish(start("tests/tune_toy.py", str(tmp_path)), '["'))
    after = trials(tmp_path)
    assert len({*archs}) == NUM_SAMPLES
    assert {trial["arch"] for trial in after.values()} == {*archs}
    assert all(trial["state"] == "ended" for trial in after.values())
    ended = {name: trial for name, trial in before.items() if trial["state"] == "ended"}
    assert ended.items() <= after.items()
    assert {trial["time"] for trial in after.values()} > {1.0}  # some were stopped early, not all


def test_the_example_searches_and_continues(tmp_path):
    pytest.importorskip("sklearn")
    command = ["examples/tune_own_trainable.py", "--num-samples", "8", "--out", str(tmp_path)]
    best = finish(start(*command), "best: 0.")
    assert float(best.split()[1]) > 0.5  # a tenth is chance
    assert finish(start(*command), "best: ") == best  # nothing is left to do
