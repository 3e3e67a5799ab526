"""What a reader must know about a search to judge it.

The questions are those of Lindauer & Hutter, "Best practices for scientific research on neural
architecture search", JMLR 2020. Anything that a run does not record is reported as not recorded.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from nag.errors import counted
from trainers.build import unit_of
from trainers.rows import PLAIN

WHAT_VALUES_ARE: Mapping[str, str] = MappingProxyType(
    {
        "surrogate": "Values are estimates by the embedded surrogate, not results of training "
        "on ImageNet; see docs/surrogate.md.",
        "table": "Values are looked up in a benchmark table; no network was trained.",
        "supernet": "Values are accuracies on held-out training images with the weights of a "
        "supernet; networks trained on their own reach different accuracies.",
        "train": "Values are accuracies on held-out training images after training.",
        "toy": "Values are synthetic: they come from a formula and measure nothing.",
    }
)
NOT_RECORDED = "not recorded"


class Answer(NamedTuple):
    """A question of the checklist and the answer from the store."""

    question: str
    text: str


def searched_on(config: Mapping[str, Any]) -> str:
    """What was searched for."""
    pareto = config.get("pareto")
    return _maximised(config) + (f"; its Pareto front with {pareto}" if pareto else "")


def _maximised(config: Mapping[str, Any]) -> str:
    """Which quantity was maximised."""
    if config["evaluator"] == "toy":
        return "a synthetic formula"
    if unit_of(config["evaluator"]) == PLAIN:
        return f"the value of the evaluator {config['evaluator']}"
    split = {"valid": "validation", "test": "test"}.get(config["objective"])
    dataset = f" on {config['dataset']}" if config["dataset"] else ""
    source = {
        "surrogate": "estimated by the embedded surrogate, no training",
        "table": f"looked up in {config['table']}, no training",
        "supernet": f"on held-out images of {config.get('data')}, with the weights of a supernet",
        "train": f"on held-out images of {config.get('data')}, after training",
    }.get(config["evaluator"], f"by the evaluator {config['evaluator']}")
    return f"{split} accuracy{dataset}, {source}"


def reported(config: Mapping[str, Any], has_test: bool) -> str:
    """Which quantities are shown."""
    if config.get("pareto"):
        return "the Pareto front of the search objective, and its hypervolume"
    if unit_of(config["evaluator"]) == PLAIN:
        return "the search objective"
    if not has_test:
        return "the search objective; no test accuracy is known"
    if config["objective"] == "test":
        return "test accuracy, which was also the search objective and is therefore optimistic"
    return "the search objective, and the test accuracy of the architecture with the best value"


def of_low_fidelity(trials: int) -> str:
    """What a cost line adds if there are low-fidelity trials."""
    if not trials:
        return ""
    low = counted(trials, "low-fidelity trial")
    return f"; {low}, counted by epochs and left out of best-so-far curves"
