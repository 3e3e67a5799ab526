"""Functions on a cluster."""

import time
from contextlib import closing

import pytest

from orchestrator.executors.tasks import RayTasks
from orchestrator.runtime import Runtime


@pytest.mark.ray
def test_what_is_cut_off_has_a_moment_to_save(tmp_path):
    def work():
        (tmp_path / "begun").touch()
        try:
            while True:
                time.sleep(0.05)
        except KeyboardInterrupt:
            (tmp_path / "saved").touch()
            raise

    with closing(RayTasks(Runtime(workers=1, dashboard=False))) as tasks:
        for _ in tasks.run([work]):
            if (tmp_path / "begun").exists():
                break
    assert (tmp_path / "saved").exists()
