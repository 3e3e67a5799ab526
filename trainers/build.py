"""Evaluators by name. To add one, write its module and register it in EVALUATORS."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nag.errors import UserError, choose
from nag.files import sha256_of
from nag.spaces import SearchSpace
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from trainers.base import Evaluator
from trainers.cost import Task
from trainers.evaluators.supernet import SupernetEvaluator
from trainers.evaluators.surrogate import DATASET, SurrogateEvaluator
from trainers.evaluators.table import TableEvaluator
from trainers.evaluators.toy import ToyEvaluator
from trainers.evaluators.training import TrainingEvaluator
from trainers.ofa import Supernet, load_supernet
from trainers.plans import check_width
from trainers.rows import PERCENT, PLAIN, Unit
from trainers.training.recipe import find_recipe
from trainers.training.task import ImageTask, NetworkOptions, Place, task_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluatorSettings:
    """The settings from which evaluators are built.

    table: parquet file of the `table` evaluator.
    dataset: None means the evaluator's own default.
    objective: "valid", or "test" if the evaluator may search on test accuracies.
    networks: options of the `supernet` and `train` evaluators.
    place: where these two work.
    with_held_out: whether they also train on held-out images, which then measure nothing.
    """

    table: Path | None = None
    dataset: str | None = None
    objective: str = "valid"
    networks: NetworkOptions = NetworkOptions()
    place: Place = Place()
    with_held_out: bool = False


def build_evaluator(
    space: SearchSpace,
    evaluator: str,
    settings: EvaluatorSettings = EvaluatorSettings(),
) -> Evaluator:
    """Build an evaluator, one of EVALUATORS, from settings that can be sent to a worker process.

    Raises UserError, in one line, if the settings are inconsistent.
    """
    spaces, build = EVALUATORS[choose("evaluator", evaluator, EVALUATORS)]
    if space.name not in spaces:
        raise UserError(
            f"the {evaluator} evaluator supports the space {' and '.join(spaces)}, not {space.name}"
        )
    if settings.table is not None and evaluator != "table":
        raise UserError(f"the {evaluator} evaluator takes no --table")
    if settings.networks != NetworkOptions() and evaluator not in ON_IMAGES:
        raise UserError(
            f"the {evaluator} evaluator uses no images: --data, --weights and related options are "
            f"for {' and '.join(ON_IMAGES)}"
        )
    return build(space, settings)


def unit_of(evaluator: str) -> Unit:
    """The unit in which values of an evaluator are written and shown: percent for accuracies."""
    return PERCENT if evaluator in OF_ACCURACIES else PLAIN


def network_task(space: SearchSpace, evaluator: str, settings: EvaluatorSettings) -> Task | None:
    """The task of the networks that an evaluator measures, for which costs are counted.

    None if it measures no networks. Raises UserError.
    """
    if evaluator not in ON_IMAGES:
        return None
    networks = settings.networks
    weights = _weights(networks) if evaluator == "supernet" else networks.weights
    supernet = _load(weights, networks.width) if weights else None
    return task_of(_as_in(supernet, networks), space, _width(space, networks, supernet))


def _table(space: SearchSpace, settings: EvaluatorSettings) -> Evaluator:
    if settings.table is None:
        raise UserError("the table evaluator needs --table, the path of a parquet file")
    dataset = settings.dataset or USUAL_DATASETS["table"]
    return TableEvaluator(settings.table, dataset, settings.objective)


def _surrogate(space: SearchSpace, settings: EvaluatorSettings) -> Evaluator:
    if settings.dataset not in (None, DATASET):
        raise UserError(
            f"the surrogate evaluator has no data set {settings.dataset!r}: choose from {DATASET}"
        )
    _only_valid("surrogate", settings)
    return SurrogateEvaluator()


def _toy(space: SearchSpace, settings: EvaluatorSettings) -> Evaluator:
    return ToyEvaluator()  # synthetic: there is no data set or split to choose


def _supernet(space: SearchSpace, settings: EvaluatorSettings) -> Evaluator:
    networks, weights = settings.networks, _weights(settings.networks)
    supernet = _load(weights, networks.width)
    task = _task("supernet", space, settings, supernet)
    if supernet.num_classes != len(task.classes):
        raise UserError(
            f"{weights} has {supernet.num_classes} classes, {networks.data} has "
            f"{len(task.classes)}: train a supernet on it (python -m trainers.train_supernet), or "
            "start from these weights with --evaluator train (in trainers.finalize, without "
            "--no-train)"
        )
    recipe = find_recipe(networks.recipe or supernet.meta.get("recipe", "imagenet"))
    return SupernetEvaluator(
        task, recipe, supernet, networks.calibration, latency_batch=networks.latency_batch
    )


def _check_unseen(task: ImageTask, supernet: Supernet, weights: Path | None) -> None:
    """Raise UserError if the supernet was trained on some of the held-out images.

    Warns if that is merely possible for one of ours; official ones do not record their training.
    """
    unseen = task.unseen_by(supernet.meta)
    if unseen is False:
        raise UserError(
            f"{weights} was trained with {supernet.meta['held_out']} of these images held out: "
            f"--held-out {len(task.held_out)} would measure accuracy on some it was trained on"
        )
    if unseen is None and "held_out" in supernet.meta:
        _log.warning(
            "%s was trained on a different set of images: it may include some held out here",
            weights,
        )


def _train(space: SearchSpace, settings: EvaluatorSettings) -> Evaluator:
    networks = settings.networks
    supernet = _load(networks.weights, networks.width) if networks.weights else None
    task = _task("train", space, settings, supernet)
    name = "imagenet" if networks.weights is None else "transfer"
    if space.name == NASBENCH201.name:
        name = NASBENCH201.name
    recipe = find_recipe(networks.recipe or name, networks.epochs, networks.precision)
    origin = sha256_of(networks.weights) if networks.weights else ""
    return TrainingEvaluator(
        space,
        task,
        recipe,
        recipe.epochs,
        supernet,
        origin,
        _width(space, networks, supernet),
        latency_batch=networks.latency_batch,
        fidelity=networks.fidelity,
        checkpoints=settings.place.checkpoints,
    )


def _task(
    evaluator: str, space: SearchSpace, settings: EvaluatorSettings, supernet: Supernet | None
) -> ImageTask:
    _only_valid(evaluator, settings)
    if settings.dataset is not None:
        raise UserError(f"the {evaluator} evaluator takes --data, not --dataset")
    networks = _as_in(supernet, settings.networks)
    task = ImageTask(networks, space, settings.place)
    if networks.latency_batch is not None and networks.latency_batch < 1:
        raise UserError("--latency-batch must be at least 1")
    if settings.with_held_out:
        return task.with_all_images()
    if supernet is not None:
        _check_unseen(task, supernet, networks.weights)
    return task


def _weights(networks: NetworkOptions) -> Path:
    if networks.weights is None:
        raise UserError("the supernet evaluator needs --weights, those of a supernet")
    return networks.weights


def _load(weights: Path, width: float | None) -> Supernet:
    """The supernet in a file; raises UserError if a width is given that it does not have."""
    supernet = load_supernet(weights)
    if width not in (None, supernet.width):
        raise UserError(
            f"--width {width:g}: the networks of {weights} have width {supernet.width:g}"
        )
    return supernet


def _as_in(supernet: Supernet | None, networks: NetworkOptions) -> NetworkOptions:
    """Use the resolution of the supernet, if it is known and no other is given."""
    if supernet is None or networks.resolution is not None:
        return networks
    return replace(networks, resolution=supernet.meta.get("resolution"))


def _width(space: SearchSpace, networks: NetworkOptions, supernet: Supernet | None) -> float:
    """Width multiplier of the networks; raises UserError."""
    width = networks.width
    if supernet is not None:
        return supernet.width
    if width is None:
        return 1.0
    if space.name != MOBILENETV3.name:
        raise UserError(f"--width is for the space {MOBILENETV3.name}, not {space.name}")
    check_width(width)
    return width


def _only_valid(evaluator: str, settings: EvaluatorSettings) -> None:
    if settings.objective != "valid":
        raise UserError(
            f"the {evaluator} evaluator has no objective {settings.objective!r}: choose from valid"
        )


# Name -> the spaces it supports, and how it is built.
_Builder = Callable[[SearchSpace, EvaluatorSettings], Evaluator]
EVALUATORS: dict[str, tuple[tuple[str, ...], _Builder]] = {
    "surrogate": (("mobilenetv3",), _surrogate),
    "table": (("nasbench201",), _table),
    "toy": (("toy",), _toy),
    "supernet": (("mobilenetv3",), _supernet),
    "train": (("mobilenetv3", "nasbench201"), _train),
}
ON_IMAGES = ("supernet", "train")
USUAL_DATASETS = {"table": "cifar10", "surrogate": DATASET}  # of evaluators that name one
OF_ACCURACIES = {"surrogate", "table", "toy", *ON_IMAGES}  # the toy's only look like accuracies
