"""Where a run happens."""

import pytest

from orchestrator.runtime import Runtime, place_of


@pytest.mark.parametrize(
    ("executor", "gpus", "asked", "expected"),
    [
        ("ray", 0, "auto", "cpu"),
        ("tune", 0, "auto", "cpu"),
        ("ray", 0.25, "auto", "auto"),  # the process sees the GPU that it has, and no other
        ("tune", 1, "auto", "auto"),
        ("local", 0, "auto", "auto"),
        ("ray", 0, "cuda", "cuda"),  # as the user wants it
    ],
)
def test_no_evaluation_takes_a_gpu_that_it_does_not_reserve(executor, gpus, asked, expected):
    runtime = Runtime(executor=executor, gpus_per_eval=gpus, eval_device=asked)
    assert place_of(runtime).device == expected
