"""What a reader must know about a search to judge it.

The questions are those of Lindauer & Hutter, "Best practices for scientific research on neural
architecture search", JMLR 2020. Anything that a run does not record is reported as not recorded.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from orchestrator.history.run import known_config
from trainers.build import unit_of
from trainers.rows import PLAIN

WHAT_VALUES_ARE: Mapping[str, str] = MappingProxyType(
    {
        "surrogate": "Values are an estimate by the embedded surrogate, not ImageNet training; "
        "see docs/surrogate.md.",
        "table": "Values are looked up in a benchmark table; no network was trained.",
        "supernet": "Values are accuracies, on held-out training images, of networks with the "
        "weights they have in a supernet; trained by themselves they reach others.",
        "train": "Values are accuracies on held-out training images after training.",
        "toy": "Values are synthetic: a formula, which measures nothing.",
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
        "surrogate": "as estimated by the embedded surrogate, not trained",
        "table": f"looked up in {config['table']}, not trained",
        "supernet": f"on held-out images of {config.get('data')}, with weights of a supernet",
        "train": f"on held-out images of {config.get('data')}, after training",
    }.get(config["evaluator"], f"by the evaluator {config['evaluator']}")
    return f"{split} accuracy{dataset}, {source}"


def reported(config: Mapping[str, Any], has_test: bool) -> str:
    """Which quantities are shown."""
    if unit_of(config["evaluator"]) == PLAIN:
        return "the value that was searched on"
    if not has_test:
        return "the value that was searched on; no test accuracy is known"
    if config["objective"] == "test":
        return "test accuracy, which was searched on too: optimistic"
    return "the value that was searched on, and the test accuracy of the architecture it chose"


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
        Answer("Searched on", searched_on(config)),
        Answer("Reported", reported(config, has_test)),
        Answer("Seed", f"{config['seed']}; one run shows no spread over seeds"),
        Answer(
            "Budget",
            f"{config['budget']} evaluations, the {config['n_init']} of the initial design counted",
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
    return f"; {trials:,} trials of low fidelity, counted by their epochs, are in no curve"
