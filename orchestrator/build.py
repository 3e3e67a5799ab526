"""The composition root: the only place where names are turned into objects."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from acquisition.functions import ACQUISITIONS, AcquisitionFunction, TargetLikelihood
from acquisition.parzen import ParzenEstimator
from acquisition.strategies import STRATEGIES, GuidedGeneration, generate_feasible
from nag.errors import UserError
from nag.generator import DiffusionGenerator, Generator
from nag.predictors.base import SurrogatePredictor
from nag.predictors.gp import FittedGaussianProcess, GaussianProcess
from nag.predictors.registry import SURROGATES
from nag.properties import Constraint, Property
from nag.spaces import Architecture, SearchSpace, find_space
from nag.spaces.mobilenetv3 import MOBILENETV3
from orchestrator.config import RunConfig
from orchestrator.executors.local import LocalExecutor
from orchestrator.history.earlier import EarlierRun
from orchestrator.methods import NONE, Parts
from orchestrator.parts import MULTI_FIDELITY
from orchestrator.runtime import Runtime, is_own, place_of, wants_gpu
from orchestrator.search.bayesopt import BayesianOptimizer
from orchestrator.search.halving import SuccessiveHalving
from orchestrator.search.loop import Observer, Optimizer, Plan
from orchestrator.search.store import RunStore
from orchestrator.search.trial import Executor
from trainers.base import (
    LOW_EPOCHS,
    BenchmarkEvaluator,
    Evaluator,
    Measurement,
    at_epochs,
    in_steps,
)
from trainers.build import (
    ON_IMAGES,
    EvaluatorSettings,
    build_evaluator,
    network_task,
    unit_of,
)
from trainers.constraints import build_constraints, build_property
from trainers.cost import Task
from trainers.evaluators.surrogate import DATASET, SurrogateEvaluator
from trainers.training.task import Place


class Quantities(NamedTuple):
    """What a run limits, and what it minimises beside maximising the value."""

    constraints: tuple[Constraint, ...]
    pareto: Property | None

    @property
    def properties(self) -> tuple[Property, ...]:
        """Those that are limited or minimised, each once."""
        limited = (constraint.quantity for constraint in self.constraints)
        pareto = () if self.pareto is None else (self.pareto,)
        return tuple({found.name: found for found in (*limited, *pareto)}.values())


def quantities_of(config: RunConfig, dataset: str | None = None) -> Quantities:
    """The constraints of a run and its --pareto, counted as its evaluator measures.

    dataset: of the evaluator, if the configuration does not name one; None if unknown.

    Raises UserError.
    """
    config, space = config.absolute(), find_space(config.space)
    task: Task | str | None = None
    if config.constraint or config.pareto:
        task = network_task(space, config.evaluator_name, _settings(config))
    if (config.evaluator, config.space) == ("surrogate", MOBILENETV3.name):
        dataset = DATASET  # if that is only the default, it says nothing of the networks
    task, table = task or config.dataset or dataset, config.latency_table
    found = Quantities(
        build_constraints(space, config.constraint, task, table),
        None if config.pareto is None else build_property(space, config.pareto, task, table),
    )
    if table is not None and all(quantity.name != "latency" for quantity in found.properties):
        raise UserError("--latency-table needs a constraint on latency, or --pareto latency")
    return found


def _settings(config: RunConfig, place: Place = Place()) -> EvaluatorSettings:
    return EvaluatorSettings(
        table=config.table,
        dataset=config.dataset,
        objective=config.objective,
        networks=config.networks,
        place=place,
    )


def build_predictor(
    name: str, space: SearchSpace, prior: Sequence[EarlierRun] = ()
) -> SurrogatePredictor | None:
    """The surrogate of that name; raises UserError if a package that it needs is missing."""
    if name == NONE:
        return None
    if prior:  # only this surrogate learns from earlier runs
        return GaussianProcess(space, tuple(_fitted(run, space) for run in prior))
    return SURROGATES[name].build(space)


def _fitted(run: EarlierRun, space: SearchSpace) -> FittedGaussianProcess:
    return GaussianProcess(space).fit(run.observations(space), np.random.default_rng(0))


def build_optimizer(config: RunConfig, generator: Generator) -> Optimizer:
    optimizer = build_single_fidelity(config, generator)
    if isinstance(optimizer.strategy, ParzenEstimator):
        return SuccessiveHalving(optimizer, LOW_EPOCHS, enough=optimizer.strategy.min_points)
    return optimizer


def build_single_fidelity(config: RunConfig, generator: Generator) -> BayesianOptimizer:
    """The optimizer that proposes architectures from the values of one fidelity."""
    space, parts = find_space(config.space), config.parts
    constraints, pareto = quantities_of(config)
    unit = unit_of(config.evaluator_name)
    target = None if config.target is None else config.target / unit.times
    guided = GuidedGeneration(
        generator,
        kind=config.guidance,
        form=config.guidance_form,
        target=target,
        scale=config.scale(),
    )
    strategy = STRATEGIES[parts.strategy].build(
        space,
        guided,
        initial=config.n_init,
        patience=config.batch_size if config.seeks_the_best else None,
    )
    return BayesianOptimizer(
        space=space,
        predictor=build_predictor(parts.surrogate, space, config.prior),
        strategy=strategy,
        acquisition=_acquisition(parts.acq, target),
        strategy_name=parts.strategy,
        pool_size=config.pool_size,
        constraints=constraints,
        rare=partial(generate_feasible, generator) if constraints else None,
        pareto=pareto,
    )


def _acquisition(name: str, target: float | None) -> AcquisitionFunction | None:
    if target is not None:
        return TargetLikelihood(target)
    return None if name == NONE else ACQUISITIONS[name]


def plan_of(config: RunConfig) -> Plan:
    """What the loop needs from a configuration; raises UserError if it leaves nothing to search."""
    if config.budget < config.n_init:
        raise UserError(f"--budget {config.budget} is smaller than --n-init {config.n_init}")
    return Plan(
        budget=config.budget,
        n_init=config.n_init,
        batch_size=config.batch_size,
        seed=config.seed,
        schedule=config.schedule,
        window=config.window,
        grace=None if config.early_stopping == "none" else config.grace_epochs,
    )


def without_effect(config: RunConfig) -> list[str]:
    """The options without which the search would be made of the same parts."""
    if config.constraint or config.pareto:  # may need the generator, whatever the strategy
        return []
    found, parts = [], _parts_of(config)
    for option in fields(config):
        usual: dict[str, Any] = {option.name: option.default}
        changed = getattr(config, option.name) != option.default
        if changed and option.name not in Parts._fields:  # those have been set from the method
            with suppress(UserError):  # then other options need it
                if _parts_of(replace(config, **usual)) == parts:
                    found.append(f"--{option.name.replace('_', '-')}")
    return found


def _parts_of(config: RunConfig) -> tuple[object, ...]:
    """What a search is made of, for comparison; its generator is only described."""
    config, prior = replace(config, prior=()), config.prior  # which takes a while to learn from
    generator = cast(Generator, config.generator("cpu"))
    optimizer = build_single_fidelity(config, generator)
    pool_size = None if optimizer.predictor is None else config.pool_size
    evaluator = config.space, config.evaluator, _settings(config), config.threads
    return optimizer.strategy, pool_size, plan_of(config), prior, *evaluator


@dataclass(frozen=True)
class WithProperties:
    """An evaluator that also reports the properties that the search limits or minimises.

    Only a latency that it has measured keeps the measured value.
    """

    evaluator: Evaluator
    properties: tuple[Property, ...]

    def evaluate(self, arch: Architecture, *, seed: int) -> Measurement:
        return self._with_properties(arch, self.evaluator.evaluate(arch, seed=seed))

    def _with_properties(self, arch: Architecture, found: Measurement) -> Measurement:
        measured = ("latency",) if found.device else ()
        known = {
            quantity.name: float(quantity([arch])[0])
            for quantity in self.properties
            if quantity.name not in measured
        }
        return replace(found, metrics={**found.metrics, **known})

    def at(self, epochs: int) -> "WithProperties":
        return replace(self, evaluator=at_epochs(self.evaluator, epochs))

    @property
    def epochs(self) -> int:
        return in_steps(self.evaluator).epochs

    def epoch_by_epoch(self, arch: Architecture, *, seed: int) -> Iterator[Measurement]:
        for found in in_steps(self.evaluator).epoch_by_epoch(arch, seed=seed):
            yield self._with_properties(arch, found)


def make_evaluator(config: RunConfig, place: Place = Place()) -> Evaluator:
    """Build an evaluator in the process that will use it.

    Raises UserError, also if it lacks a fidelity that the run asks for.
    """
    evaluator = build_evaluator(
        find_space(config.space), config.evaluator_name, _settings(config, place)
    )
    if config.strategy == MULTI_FIDELITY:
        at_epochs(evaluator, LOW_EPOCHS)
    if config.early_stopping != "none":
        whole = in_steps(evaluator).epochs
        if whole <= config.grace_epochs:
            raise UserError(
                f"--grace-epochs {config.grace_epochs} must be less than the {whole} "
                "epochs of a training"
            )
    dataset = DATASET if isinstance(evaluator, SurrogateEvaluator) else None
    properties = quantities_of(config, dataset).properties
    return WithProperties(evaluator, properties) if properties else evaluator


def build_evaluator_here(config: RunConfig, runtime: Runtime) -> Evaluator:
    """The evaluator of the driver; raises a one-line UserError for bad settings.

    It evaluates only with --executor local, on the requested device. Otherwise it is on the CPU:
    the driver need not have the devices of its workers.
    """
    if config.early_stopping != "none" and runtime.executor != "tune":
        raise UserError("--early-stopping requires --executor tune")
    place = place_of(runtime)
    if runtime.executor != "local":
        place = replace(place, device="cpu")
    return make_evaluator(config.absolute(), place)


def build_executor(config: RunConfig, runtime: Runtime, evaluator: Evaluator) -> Executor:
    """The executor of a run; raises a one-line UserError if it cannot be set up.

    evaluator: that of the driver. Workers make their own, on the requested device.
    """
    build_predictor(config.parts.surrogate, find_space(config.space))  # is everything installed?
    runtime = sharing_gpus(config, runtime)
    here, anywhere = config.generator(runtime.device), config.generator("cpu")
    if runtime.executor == "local":
        return LocalExecutor(here, evaluator, runtime.retries, runtime.timeout)
    # find bad settings of the generator here, not where it will run
    DiffusionGenerator(anywhere if wants_gpu(runtime.device) else here)
    make = partial(make_evaluator, config.absolute(), place_of(runtime))
    if runtime.executor == "tune":
        from orchestrator.executors.ray_tune import TuneExecutor

        return TuneExecutor(config, runtime, make)
    from orchestrator.executors.ray_core import RayExecutor  # Ray is slow to import

    return RayExecutor(config, runtime, make)


def sharing_gpus(config: RunConfig, runtime: Runtime) -> Runtime:
    """Unless the user decides, networks are trained and measured on this machine's GPUs, if any.

    On a cluster the user decides: an evaluation that asks for a GPU may start a machine.
    """
    on_gpu = config.evaluator_name in ON_IMAGES and runtime.eval_device != "cpu"
    decided = runtime.gpus_per_eval is not None or not is_own(runtime)
    if decided or not on_gpu or not torch.cuda.is_available():
        return runtime
    share = 0.2 if runtime.generator_gpus is None else runtime.generator_gpus
    return replace(runtime, gpus_per_eval="auto", generator_gpus=share)


def build_observers(
    run: str,
    config: RunConfig,
    runtime: Runtime,
    executor: Executor,
    evaluator: Evaluator,
    store: RunStore,
) -> tuple[Observer, ...]:
    """Observers of a run of that name, in addition to the view at the terminal."""
    if runtime.executor == "local":
        return ()
    from orchestrator.executors.metrics import OnRay, RayMetrics

    assert isinstance(executor, OnRay)
    optimum = None  # regret only makes sense when searching for the largest value
    if isinstance(evaluator, BenchmarkEvaluator) and config.seeks_the_best:
        optimum = evaluator.optimum
    return (RayMetrics(run, config, executor, optimum, store),)
