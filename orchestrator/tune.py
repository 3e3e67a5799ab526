"""The interface to Ray Tune: `BOSearcher` chooses the architectures of a `ray.tune.Tuner`.

    config = RunConfig(space="nasbench201", n_init=8)
    searcher = BOSearcher(config, metric="accuracy", mode="max", max_t=27, grace_period=3)
    scheduler = ASHAScheduler(max_t=27, grace_period=3)
    tune.TuneConfig(search_alg=searcher, scheduler=scheduler, metric="accuracy", mode="max", ...)

Trials end in full, early, or with an error. A Gaussian process treats those that ended early as an
earlier run on another task (`nag/predictors/gp.py`): it learns what a value at `grace_period`,
which all of them have, says about one at `max_t`, and never mistakes one for the other. See
docs/tune.md.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ray.tune.search import Searcher

from nag.errors import UserError, choose
from nag.generator import DiffusionGenerator
from nag.predictors.base import Observations
from nag.spaces import Architecture, find_space
from orchestrator.build import build_single_fidelity
from orchestrator.config import RunConfig
from orchestrator.history.trials import LARGEST
from orchestrator.parts import MULTI_FIDELITY
from orchestrator.search.bayesopt import BayesianOptimizer, with_early_values
from trainers.constraints import nothing_satisfies


@dataclass
class _Trial:
    """What is known of a trial. Values are to be maximised, whatever the mode of the metric."""

    arch: Architecture
    state: Literal["running", "ended", "failed"] = "running"
    time: float = 0.0  # how far its training has got, in time_attr
    value: float | None = None  # the last
    early: float | None = None  # the first at grace_period or later

    def report(self, time: float, value: float, grace_period: float) -> None:
        self.state, self.time, self.value = "running", time, value
        if self.early is None and time >= grace_period:
            self.early = value


class BOSearcher(Searcher):
    """Bayesian optimisation over a search space, one architecture for each trial.

    The config of a trial holds its architecture: as a published string in `config["arch"]`, and as
    a JSON object that the space's own tools can read in `config["arch_config"]`.

    Running trials are pending: they are not proposed again, and the surrogate is conditioned on
    them. Equal configurations and an equal history of suggestions and results give equal
    suggestions; with one trial at a time they are those of `run_bo --batch-size 1`.

    config: of the search. Settings of the evaluation (evaluator, table, objective) and the budget
        (see num_samples of TuneConfig) are ignored.
    metric, mode: what the trials report, in any unit, and whether to optimise for "max" or "min".
    max_t, grace_period, time_attr: as in ASHAScheduler. A trial that ends before `max_t` was
        stopped early; None if no trial is.
    device: of the generator, which runs in the process of the Tuner.

    Raises UserError for invalid settings.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"

    def __init__(
        self,
        config: RunConfig,
        *,
        metric: str,
        mode: Literal["max", "min"],
        max_t: float | None,
        grace_period: float = 1,
        time_attr: str = "training_iteration",
        device: str = "cpu",
    ) -> None:
        choose("mode", mode, ("max", "min"))
        if not metric:
            raise UserError("metric must be the name of a metric that the trials report")
        if not 0 < grace_period < math.inf:
            raise UserError(f"grace_period {grace_period} must be positive and finite")
        if max_t is not None and not max_t >= grace_period:
            raise UserError(f"max_t {max_t} must be at least grace_period {grace_period}")
        if config.strategy == MULTI_FIDELITY:
            raise UserError(
                f"the strategy {MULTI_FIDELITY} schedules brief trainings itself: choose another "
                "one, and a Tune scheduler to stop trials early"
            )
        if config.target is not None:
            raise UserError(
                "a target is not supported: it is in percent, but the metric may have any unit"
            )
        super().__init__(metric=metric, mode=mode)
        self._config, self._device = config.absolute(), device
        self._max_t, self._grace_period, self._time_attr = max_t, grace_period, time_attr
        self._trials: dict[str, _Trial] = {}  # in the order they were suggested
        self._max_concurrent = math.inf
        rng = np.random.default_rng([config.seed, 0])
        # Building the optimizer here reveals bad settings before a search begins.
        self._design = self._optimizer.initial(frozenset(), config.n_init, rng).archs
        if not self._design:
            raise nothing_satisfies(config.constraint)

    @cached_property
    def _optimizer(self) -> BayesianOptimizer:
        generator = DiffusionGenerator(self._config.generator(self._device))
        return build_single_fidelity(self._config, generator)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the optimizer, which any process can rebuild."""
        return {name: part for name, part in vars(self).items() if name != "_optimizer"}

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Does the job of ConcurrencyLimiter, which hides the end of resumed trials from us."""
        self._max_concurrent = max_concurrent
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Config of a new trial, or `Searcher.FINISHED` if no architecture is left.

        None while the maximum number of trials is running.
        """
        if sum(t.state == "running" for t in self._trials.values()) >= self._max_concurrent:
            return None
        number, design = len(self._trials), self._design
        found = design[number:] or self._propose(number - len(design) + 1)
        if not found:
            return Searcher.FINISHED
        arch, space = found[0], self._optimizer.space
        self._trials[trial_id] = _Trial(arch)
        return {"arch": space.to_str(arch), "arch_config": space.to_config(arch)}

    def _propose(self, iteration: int) -> tuple[Architecture, ...]:
        """One architecture, or none."""
        optimizer, trials = self._optimizer, self._trials.values()
        full = _observations((t.arch, t.value) for t in trials if self._is_full(t))
        early = _observations(
            (t.arch, t.early) for t in trials if t.state != "failed" and self._max_t is not None
        )
        optimizer, known = with_early_values(optimizer, full, early)
        pending = (t.arch for t in trials if t.state == "running")
        return optimizer.suggest(
            known,
            frozenset(t.arch for t in trials),
            1,
            np.random.default_rng([self._config.seed, iteration]),
            tuple(arch for arch in pending if arch not in known.archs),
        ).archs

    def _is_full(self, trial: _Trial) -> bool:
        return trial.state == "ended" and (self._max_t is None or trial.time >= self._max_t)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record what a running trial reports; results without the metric are ignored."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        if self._time_attr not in result:
            raise UserError(f"the trials do not report the time_attr {self._time_attr}")
        value = result.get(self.metric)
        if value is None:
            return
        if abs(value) <= LARGEST:
            sign = 1 if self.mode == "max" else -1
            trial.report(float(result[self._time_attr]), sign * float(value), self._grace_period)
        else:
            trial.value = None

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end of a trial; with an error, or without a finite last value, it has failed.

        A second end replaces the first: `Tuner.restore` may resume failed trials.
        """
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        if result:
            self.on_trial_result(trial_id, result)
        last = result.get(self.metric) if result else trial.value
        failed = error or last is None or not abs(last) <= LARGEST  # also if it is NaN
        trial.state = "failed" if failed else "ended"

    def save(self, checkpoint_path: str) -> None:
        """Write the trials as JSON; everything else follows from them."""
        space = self._optimizer.space
        trials = {
            name: asdict(trial) | {"arch": space.to_str(trial.arch)}
            for name, trial in self._trials.items()
        }
        Path(checkpoint_path).write_text(json.dumps({**self._objective(), "trials": trials}))

    def restore(self, checkpoint_path: str) -> None:
        """Continue from the trials of `save`; raises UserError if their objective differs."""
        space = find_space(self._config.space)
        try:
            stored = json.loads(Path(checkpoint_path).read_text())
            rows = stored.pop("trials")
            if stored != self._objective():
                raise UserError(f"its trials have {stored}, not {self._objective()}")
            self._trials = {
                name: _Trial(**row | {"arch": space.from_str(row["arch"])})
                for name, row in rows.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"cannot restore from {checkpoint_path}: {error}") from error

    def _objective(self) -> dict[str, Any]:
        """What the values of trials mean; a searcher with another objective cannot use them."""
        return {
            "space": self._config.space,
            "metric": self.metric,
            "mode": self.mode,
            "time_attr": self._time_attr,
            "grace_period": self._grace_period,
        }


def _observations(pairs: Iterable[tuple[Architecture, float | None]]) -> Observations:
    """Those that have a value."""
    found = [(arch, value) for arch, value in pairs if value is not None]
    return Observations(tuple(arch for arch, _ in found), np.array([v for _, v in found], float))
