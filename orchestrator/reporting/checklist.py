"""What a reader must know about a search to judge it.

The questions are those of Lindauer & Hutter, "Best practices for scientific research on neural
architecture search", JMLR 2020. Anything that a run does not record is reported as not recorded.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from nag.errors import counted
from orchestrator.history.run import known_config
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
    if unit_of(config["evaluator"]) == PLAIN:
        return "the search objective"
    if not has_test:
        return "the search objective; no test accuracy is known"
    if config["objective"] == "test":
        return "test accuracy, which was also the search objective and is therefore optimistic"
    return "the search objective, and the test accuracy of the architecture with the best value"


def run_checklist(
    record: Mapping[str, Any],
    *,
    evaluations: float,
    failed: int,
    low_fidelity: int,
    search_seconds: float,
    evaluation_seconds: float,
    has_test: bool,
) -> list[Answer]:
    """The checklist of one run, in brief.

    record: its config.json, which the report also shows.
    evaluations: how many it has spent; failed, low_fidelity: numbers of trials.
    """
    config = known_config(record)
    return [
        Answer("Search objective", searched_on(config)),
        Answer("Reported", reported(config, has_test)),
        Answer("Seed", f"{config['seed']}; one run does not show the spread over seeds"),
        Answer(
            "Budget",
            f"{counted(config['budget'], 'evaluation')}, including the initial design of "
            f"{config['n_init']}",
        ),
        Answer(
            "Cost, evaluations",
            f"{evaluations:.10g}, {failed} of them failed" + of_low_fidelity(low_fidelity),
        ),
        Answer(
            "Cost, seconds",
            f"{search_seconds:,.1f} of search (fit, propose, select), "
            f"{evaluation_seconds:,.1f} of evaluation",
        ),
        Answer("Hardware", record["machine"]),
    ]


def of_low_fidelity(trials: int) -> str:
    """What a cost line adds if there are low-fidelity trials."""
    if not trials:
        return ""
    low = counted(trials, "low-fidelity trial")
    return f"; {low}, counted by epochs and left out of best-so-far curves"
