"""Evaluators by name. To add one, write its file and add its line to EVALUATORS."""

from collections.abc import Callable
from pathlib import Path

from nag.spaces import SearchSpace
from trainers.base import Evaluator, EvaluatorConfigError
from trainers.surrogate import DATASET, SurrogateEvaluator
from trainers.table import TableEvaluator
from trainers.toy import ToyEvaluator


def build_evaluator(
    space: SearchSpace,
    *,
    evaluator: str,
    table: Path | None = None,
    dataset: str | None = None,
    objective: str = "valid",
) -> Evaluator:
    """Build an evaluator from plain arguments, so that a worker process can do it for itself.

    evaluator: one of EVALUATORS.
    table: parquet file of the `table` evaluator.
    dataset: None is the evaluator's own default.
    objective: "valid", or "test" where the evaluator has test accuracies.

    Raises EvaluatorConfigError, in one line, when the arguments do not fit each other.
    """
    if evaluator not in EVALUATORS:
        raise EvaluatorConfigError(
            f"unknown evaluator {evaluator!r}: choose from {', '.join(EVALUATORS)}"
        )
    space_name, build = EVALUATORS[evaluator]
    if space.name != space_name:
        raise EvaluatorConfigError(
            f"the {evaluator} evaluator knows the space {space_name}, not {space.name}"
        )
    if table is not None and evaluator != "table":
        raise EvaluatorConfigError(f"the {evaluator} evaluator reads no table")
    return build(table, dataset, objective)


def _table(table: Path | None, dataset: str | None, objective: str) -> Evaluator:
    if table is None:
        raise EvaluatorConfigError("the table evaluator needs a table: the path of a parquet file")
    return TableEvaluator(table, dataset or "cifar10", objective)


def _surrogate(table: Path | None, dataset: str | None, objective: str) -> Evaluator:
    if dataset not in (None, DATASET):
        raise EvaluatorConfigError(
            f"the surrogate evaluator has no data set {dataset!r}: choose from {DATASET}"
        )
    if objective != "valid":
        raise EvaluatorConfigError(
            f"the surrogate evaluator has no objective {objective!r}: choose from valid"
        )
    return SurrogateEvaluator()


def _toy(table: Path | None, dataset: str | None, objective: str) -> Evaluator:
    return ToyEvaluator()  # synthetic: there is no data set and no split to choose


# Name -> the space it knows, and how it is built from (table, dataset, objective).
_Builder = Callable[[Path | None, str | None, str], Evaluator]
EVALUATORS: dict[str, tuple[str, _Builder]] = {
    "surrogate": ("mobilenetv3", _surrogate),
    "table": ("nasbench201", _table),
    "toy": ("toy", _toy),
}
