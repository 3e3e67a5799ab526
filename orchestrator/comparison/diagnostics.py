"""How a run arrived at its trials: predictions, pools and time, in windows of evaluations.

R rounds, W windows of evaluations.
"""

import numpy as np
import scipy

from orchestrator.comparison.statistics import Numbers
from orchestrator.history.run import Run
from orchestrator.history.trials import PHASES, SEARCH
from trainers.build import unit_of

WINDOW = 10  # evaluations in a window
RATES = ("validity", "uniqueness", "novelty")


def diagnose(run: Run, initial: int, count: int) -> dict[str, Numbers]:
    """Numbers (W,) of each window of WINDOW evaluations after the initial design.

    tau: Kendall's rank correlation of predicted and observed values.
    within 1 std, within 2 std: share of values that close to their prediction.
    nll: mean negative log-likelihood of a value, in nats, values in the unit of the run.
    fit, propose, select, evaluate: mean seconds per round; search: sum of the first three.
    validity, uniqueness, novelty: of the pool, means over rounds.
    """
    columns = run.columns
    known = np.isfinite(columns["predicted_mean"]) & np.isfinite(columns["value"])
    mean, std, value = (columns[n] for n in ("predicted_mean", "predicted_std", "value"))
    windows = (run.starts - initial) // WINDOW
    found = {
        name: np.full(count, np.nan)
        for name in ("tau", "within 1 std", "within 2 std", "nll", "search", *PHASES, *RATES)
    }
    times = unit_of(str(run.config["evaluator"])).times
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(value - mean) / std
        losses = errors**2 / 2 + np.log(times * std * np.sqrt(2 * np.pi))
    first = np.full(len(run.rounds), -1.0)
    first[run.iteration[::-1]] = run.starts[::-1]
    for window in range(count):
        trials = known & (windows == window)
        if trials.any():
            found["within 1 std"][window] = np.mean(errors[trials] <= 1)
            found["within 2 std"][window] = np.mean(errors[trials] <= 2)
            found["nll"][window] = np.mean(losses[trials])
        if trials.sum() > 2:
            found["tau"][window] = scipy.stats.kendalltau(mean[trials], value[trials]).statistic
        rounds = np.flatnonzero((first >= initial) & ((first - initial) // WINDOW == window))
        if len(rounds):
            for phase in PHASES:
                found[phase][window] = np.mean(run.seconds[phase][rounds])
            found["search"][window] = sum(found[phase][window] for phase in SEARCH)
            for rate in RATES:
                rates = [run.rounds[i][rate] for i in rounds if rate in run.rounds[i]]
                found[rate][window] = np.mean(rates) if rates else np.nan
    return found
