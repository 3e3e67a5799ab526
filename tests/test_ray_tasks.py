"""Functions on a cluster."""

import time
from contextlib import closing
from functools import partial

import pytest

from orchestrator.executors.cluster import ClusterError, Machines
from orchestrator.executors.tasks import RayTasks
from orchestrator.runtime import Runtime

RUNTIME = Runtime(workers=1, dashboard=False, auth="disabled")


@pytest.mark.ray
def test_what_is_cut_off_has_a_moment_to_save(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.executors.bell._SECONDS_TO_SAVE", 60.0)

    def work():
        try:
            (tmp_path / "begun").touch()
            time.sleep(100)
        except KeyboardInterrupt:
            (tmp_path / "saved").touch()
            raise

    with closing(RayTasks(RUNTIME)) as tasks:
        for _ in tasks.run([work]):
            if (tmp_path / "begun").exists():
                break
    assert (tmp_path / "saved").exists()


@pytest.mark.ray
def test_it_ends_when_no_machine_is_left(monkeypatch, caplog):
    """Only pretended: Ray's view of its machines is empty."""
    monkeypatch.setattr("orchestrator.executors.cluster._RETURN_SECONDS", 1.0)
    lack = "no machine has room: a task needs 1 CPU; the cluster has 0 CPU"
    with closing(RayTasks(RUNTIME)) as tasks:
        monkeypatch.setattr(Machines, "now", lambda: Machines(()))
        with pytest.raises(ClusterError, match=f"^{lack}$"):
            for _ in tasks.run([partial(time.sleep, 60)]):
                pass
    assert len(caplog.messages) == 1
