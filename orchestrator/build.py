"""The composition root: the only place where names become objects."""

from collections.abc import Callable
from functools import partial

from acquisition.functions import ACQUISITIONS
from acquisition.strategies import STRATEGIES, CandidateStrategy, GuidedGeneration
from nag.cli import UserError, find_space
from nag.generator import DiffusionGenerator, Generator
from nag.predictors.gp import GaussianProcess
from nag.spaces import SPACES
from orchestrator.bayesopt import BayesianOptimizer
from orchestrator.config import RunConfig, Runtime, wants_gpu
from orchestrator.executor import LocalExecutor
from orchestrator.loop import Observer
from orchestrator.trial import Executor
from trainers.base import Evaluator
from trainers.build import build_evaluator


def build_optimizer(config: RunConfig, generator: Generator) -> BayesianOptimizer:
    space = find_space(config.space)
    strategy: CandidateStrategy = (
        GuidedGeneration(generator, config.guidance)
        if config.strategy == "guided"
        else STRATEGIES[config.strategy](space, generator)
    )
    return BayesianOptimizer(
        space=space,
        predictor=GaussianProcess(space),
        strategy=strategy,
        acquisition=ACQUISITIONS[config.acq],
        strategy_name=config.strategy,
        pool_size=config.pool_size,
    )


def make_evaluator(space: str, **settings: object) -> Evaluator:
    """Build an evaluator in the process that will use it."""
    return build_evaluator(SPACES[space], **settings)  # type: ignore[arg-type]


def build_executor(config: RunConfig, runtime: Runtime) -> Executor:
    """The executor of a run; raises UserError, in one line, for what cannot be set up."""
    evaluator: Callable[[], Evaluator] = partial(
        make_evaluator,
        config.space,
        evaluator=config.evaluator_name,
        table=None if config.table is None else config.table.resolve(),
        dataset=config.dataset,
        objective=config.objective,
    )
    try:
        if runtime.executor == "local":
            return LocalExecutor(config.generator(runtime.device), evaluator, runtime.retries)
        evaluator()  # bad settings are found here, not in a worker
        DiffusionGenerator(config.generator("cpu" if wants_gpu(runtime.device) else runtime.device))
        from orchestrator.ray_executor import RayExecutor  # Ray is slow to import

        return RayExecutor(config, runtime, evaluator)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_observers(runtime: Runtime) -> tuple[Observer, ...]:
    """Who is told of the progress, besides the person at the terminal."""
    if runtime.executor == "local":
        return ()
    from orchestrator.ray_executor import RayMetrics

    return (RayMetrics(),)
