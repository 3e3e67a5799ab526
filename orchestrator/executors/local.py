"""The executor without Ray: everything in this process, one trial after the other."""

from nag.generator import DiffusionGenerator, GeneratorConfig
from orchestrator.search.trial import Ask, Outcomes, evaluate_trial
from trainers.base import Evaluator


class LocalExecutor:
    """The sequential twin of `RayExecutor`: the same trials, bit for bit."""

    def __init__(
        self,
        generator: GeneratorConfig,
        evaluator: Evaluator,
        retries: int,
        timeout: float | None = None,
    ) -> None:
        self.generator = DiffusionGenerator(generator)
        self.description = f"in this process, generator on {self.generator.device}"
        self._evaluator = evaluator
        self._retries, self._timeout = retries, timeout

    def run(self, ask: Ask) -> Outcomes:
        while trials := ask(1):
            for trial in trials:
                yield evaluate_trial(self._evaluator, trial, self._retries, self._timeout)

    def close(self) -> None:
        """Nothing to release."""
