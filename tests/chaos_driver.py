"""The driver of `test_ray_nodes.py`, a process of its own: a search whose evaluations take time.

python tests/chaos_driver.py ray|local OUT [ADDRESS]

Where there is a file OUT.hold, evaluations wait after 150 outcomes until it is gone.
"""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nag.spaces import Architecture
from orchestrator.build import build_optimizer, plan_of
from orchestrator.config import RunConfig
from orchestrator.executors.local import LocalExecutor
from orchestrator.runtime import Runtime
from orchestrator.search.loop import run_study
from orchestrator.search.store import RunStore
from trainers.base import Measurement
from trainers.evaluators.surrogate import SurrogateEvaluator

CONFIG = RunConfig(score="exact", budget=200, batch_size=20, pool_size=30, steps=3)


@dataclass(frozen=True)
class Slow:
    """Synthetic: the embedded surrogate, which then sleeps."""

    evaluator: SurrogateEvaluator
    out: Path
    seconds: float

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        time.sleep(self.seconds)
        while self.out.with_suffix(".hold").exists() and finished(self.out) >= 150:
            time.sleep(0.1)
        return self.evaluator.evaluate(arch, seed=seed)


def make(out: Path, seconds: float) -> Slow:
    return Slow(SurrogateEvaluator(), out, seconds)


def finished(out: Path) -> int:
    """Outcomes in a journal."""
    try:
        return (out / "journal.jsonl").read_bytes().count(b'"event": "finished"')
    except FileNotFoundError:
        return 0


def main(kind: str, out: str, address: str | None = None) -> None:
    if kind == "local":
        executor = LocalExecutor(CONFIG.generator("cpu"), make(Path(out), 0), retries=0)
    else:
        from orchestrator.executors.ray_core import RayExecutor

        runtime = Runtime(address=address, auth="disabled", device="cpu", retries=20)
        executor = RayExecutor(CONFIG, runtime, partial(make, Path(out), 0.3))
    with (
        closing(executor),
        closing(RunStore.open(Path(out), CONFIG)) as store,
    ):
        run_study(build_optimizer(CONFIG, executor.generator), executor, store, plan_of(CONFIG))


if __name__ == "__main__":
    main(*sys.argv[1:])
