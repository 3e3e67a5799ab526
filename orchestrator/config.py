"""The configuration of a run: a frozen record of everything that decides its trials."""

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from acquisition.strategies import STRATEGIES
from nag.calibration import Calibrated
from nag.cli import WholeNumber, check_seed, section
from nag.errors import UserError, choose
from nag.files import sha256_of
from nag.generate import DEFAULT_SAMPLER
from nag.generator import GeneratorConfig, GuidanceForm, GuidanceKind
from nag.guidance import Ladder
from nag.samplers import SAMPLERS
from nag.sde import SIGMA_MAX, SIGMA_MIN
from nag.spaces import find_space
from orchestrator.history.earlier import EarlierRun, earlier_runs, from_command_line
from orchestrator.methods import DEFAULT, NONE, Parts
from orchestrator.parts import CHOICES, MULTI_FIDELITY, TARGET, resolve
from orchestrator.typed import path_names, typed
from trainers.build import EVALUATORS, unit_of
from trainers.latency.tables import file_and_key
from trainers.rows import PERCENT
from trainers.training.task import NetworkOptions, digest_of_images

_DIFFUSION = Parameter(group=section("Diffusion"))
_ROUNDS = Parameter(group=section("Rounds"))


def _part(option: str, text: str) -> Parameter:
    """An option that names a part of a search; its help describes each choice."""
    choices = "\n".join(f"- {name}: {what}" for name, what in CHOICES[option].items())
    return Parameter(help=f"{text}\n\n{choices}")


_METHOD = _part(
    "method",
    "A published method: sets those of --surrogate, --strategy and --acq that are not given; by "
    f"default {DEFAULT}. Sources and deviations: docs/methods.md.",
)
_SURROGATE = _part("surrogate", "Surrogate model, by default gp.")
_STRATEGY = _part("strategy", "How the pool of candidates is generated, by default guided.")
_ACQ = _part("acq", "Acquisition function, by default ei; ignored without a surrogate.")


@Parameter(name="*", group=section("Search"))
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to search, and how. Equal configurations give equal trials.

    Construction sets `surrogate`, `strategy` and `acq` from `method`, and then `method` to None.
    From Python, strings are accepted as paths, as a single constraint and as earlier runs.

    Parameters
    ----------
    space
        Search space: mobilenetv3, nasbench201, or the small synthetic toy.
    evaluator
        How an architecture is evaluated; by default the first of these that fits the space.

        - surrogate: embedded estimate of ImageNet-1K top-1, for mobilenetv3
        - table: a benchmark table, for nasbench201
        - supernet: accuracy on --data with weights taken from a once-for-all supernet
        - train: accuracy after training on --data
        - toy: a synthetic function, for toy
    table
        Parquet file for the table evaluator, with columns arch, c10_valid_200 and so on, in
        percent; see docs/experiments.md.
    dataset
        Data set of the table: cifar10 (default), cifar100 or imagenet16-120.
    objective
        Accuracy to search on: validation or test. The test accuracy is always reported.
    networks
        How networks are trained and measured, for the evaluators supernet and train.
    score
        Score of the diffusion model: the trained network, or the closed form. Methods that
        generate nothing ignore it.
    score_weights
        Score-network weights, instead of those that come with the package.
    sigma_min
        Smallest noise level; must match the weights.
    sigma_max
        Largest noise level; must match the weights.
    sampler
        predictor-corrector (the reference), ancestral, heun (EDM), dpm++2m or dpm++2m-sde.
    steps
        Number of sampler steps.
    noise_schedule
        Spacing of the noise levels: geometric or karras.
    guidance
        Where guidance evaluates the predictor: at the denoised architecture, or with a noise-aware
        predictor retrained on noised architectures every round (as in the paper).
    guidance_form
        What guidance maximises: the optimistic predicted value, the log probability of improving
        on the best, or the likelihood of --target (guided then acts like guided-gen).
    guidance_scale
        auto (recalibrated every round), one scale, or LOW,HIGH to spread scales over the pool. In
        units of 1 / standard deviation of the predicted value.
    target
        Value to aim at instead of the best, with --guidance-form target; an accuracy in percent.
        Needs --strategy guided or guided-gen; --acq target selects the candidates.
    constraint
        Upper (<=) or lower (>=) bound on macs, params or latency, e.g. 'macs<=300e6'; may be
        repeated. All candidates satisfy it, and guidance steers towards doing so.
    pareto
        Quantity to minimise as well: macs, params or latency. Searches for the whole Pareto front:
        every candidate is chosen for the largest value under its own random limit on the quantity,
        from a pool of its own. Constraints on the quantity bound the front.
    latency_table
        Block latencies on your device, for limits on latency: FILE or FILE:KEY. Either a look-up
        table (JSON; KEY is the resolution, by default that of the evaluated networks; python -m
        trainers.build_latency_table makes one) or measured networks (parquet; KEY is the column).
        Its networks must be as wide as those evaluated.
    prior
        Folder or URI of an earlier run in the same space, on any data set or objective; may be
        repeated. The surrogate learns how informative it is. Its evaluations do not count towards
        --budget.
    budget
        Total evaluations, including the first n-init; one of 12 epochs counts as 12/200. To extend
        a run, repeat the command with a larger budget.
    n_init
        Random architectures evaluated before the first fit.
    pool_size
        Candidates proposed per round.
    batch_size
        Candidates evaluated per round; only with --schedule rounds.
    schedule
        rounds: propose a round once all earlier ones have ended, so that a seed gives the same
        trials on any cluster. async: propose a candidate whenever a worker is idle, with running
        trials as pending points; the trials depend on which evaluations end first.
    window
        Rounds that may be open at once: with 2, a round begins while the previous one still runs,
        and does not use its outcomes. Workers wait less, and the trials are still the same on any
        cluster.
    early_stopping
        asha: after grace-epochs, and after 3, 9, ... times as many, stop trainings outside the
        best third of those that got that far; with --evaluator train and --executor tune. A
        stopped training counts as one evaluation.
    grace_epochs
        Epochs before which no training is stopped. The surrogate learns from the accuracies at
        that epoch.
    seed
        Seed of the whole run.
    threads
        CPU threads for fits and the generator; part of the configuration because the last bits of
        a result depend on it.
    """

    space: str = "mobilenetv3"
    evaluator: str | None = None
    table: Path | None = None
    dataset: str | None = None
    objective: Literal["valid", "test"] = "valid"
    method: Annotated[str | None, _METHOD] = None
    surrogate: Annotated[str | None, _SURROGATE] = None
    strategy: Annotated[str | None, _STRATEGY] = None
    acq: Annotated[str | None, _ACQ] = None
    networks: NetworkOptions = NetworkOptions()
    score: Annotated[Literal["network", "exact"], _DIFFUSION] = "network"
    score_weights: Annotated[Path | None, _DIFFUSION] = None
    sigma_min: Annotated[float, _DIFFUSION] = SIGMA_MIN
    sigma_max: Annotated[float, _DIFFUSION] = SIGMA_MAX
    sampler: Annotated[str, _DIFFUSION] = DEFAULT_SAMPLER
    steps: Annotated[WholeNumber, _DIFFUSION] = 20
    noise_schedule: Annotated[Literal["geometric", "karras"], _DIFFUSION] = "geometric"
    guidance: Annotated[GuidanceKind, _DIFFUSION] = "denoised"
    guidance_form: Annotated[GuidanceForm, _DIFFUSION] = "value"
    guidance_scale: Annotated[str, _DIFFUSION] = "auto"
    target: Annotated[float | None, _DIFFUSION] = None
    constraint: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    pareto: str | None = None
    latency_table: str | None = None
    prior: Annotated[
        tuple[EarlierRun, ...],
        Parameter(
            converter=from_command_line,
            metavar="RUN...",
            n_tokens=1,
            accepts_keys=False,
            negative=(),
            show_default=False,
        ),
    ] = ()
    budget: Annotated[WholeNumber, _ROUNDS] = 100
    n_init: Annotated[WholeNumber, _ROUNDS] = 10
    pool_size: Annotated[WholeNumber, _ROUNDS] = 100
    batch_size: Annotated[WholeNumber, _ROUNDS] = 1
    schedule: Annotated[Literal["rounds", "async"], _ROUNDS] = "rounds"
    window: Annotated[WholeNumber, _ROUNDS] = 1
    early_stopping: Annotated[Literal["none", "asha"], _ROUNDS] = "none"
    grace_epochs: Annotated[WholeNumber, _ROUNDS] = 1
    seed: Annotated[WholeNumber, _ROUNDS] = 0
    threads: Annotated[WholeNumber, _ROUNDS] = 1

    def __post_init__(self) -> None:
        find_space(self.space)
        acq = self.acq if self.target is None else self.acq or TARGET
        parts = resolve(self.method, self.surrogate, self.strategy, acq)
        resolved = {**parts._asdict(), "method": None, "prior": earlier_runs(self.prior)}
        networks = replace(self.networks, **typed(self.networks))
        for name, value in {**typed(self, resolved), **resolved, "networks": networks}.items():
            object.__setattr__(self, name, value)
        for name in (
            "n_init",
            "pool_size",
            "batch_size",
            "window",
            "steps",
            "grace_epochs",
            "threads",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        if self.surrogate != NONE and self.pool_size < self.batch_size:
            raise UserError(
                f"--pool-size {self.pool_size} is smaller than --batch-size {self.batch_size}"
            )
        if self.schedule == "async" and (self.batch_size, self.window) != (1, 1):
            raise UserError("--batch-size and --window require --schedule rounds, not async")
        if self.strategy == MULTI_FIDELITY and (self.schedule, self.window) != ("rounds", 1):
            raise UserError(f"{MULTI_FIDELITY} requires --schedule rounds and --window 1")
        if self.strategy == MULTI_FIDELITY and self.early_stopping != "none":
            raise UserError(f"{MULTI_FIDELITY} requires --early-stopping none")
        if self.strategy != MULTI_FIDELITY and self.networks.fidelity != NetworkOptions().fidelity:
            raise UserError(f"--fidelity requires --method {MULTI_FIDELITY}, which trains briefly")
        check_seed(self.seed)
        choose("sampler", self.sampler, SAMPLERS)
        if (self.guidance_form == TARGET) != (self.target is not None):
            raise UserError("--target requires --guidance-form target, and vice versa")
        aiming = [name for name, found in STRATEGIES.items() if found.surrogate == "climbed"]
        if self.target is not None and self.strategy not in aiming:
            raise UserError(
                f"--target requires --strategy {' or '.join(aiming)}, not {self.strategy}"
            )
        if (self.acq == TARGET) != (self.target is not None):
            raise UserError("--target requires --acq target, and vice versa")
        if self.target is not None and not math.isfinite(self.target):
            raise UserError(f"--target {self.target} must be finite")
        of_accuracies = unit_of(self.evaluator_name) == PERCENT
        if self.target is not None and of_accuracies and not 1 <= self.target <= 100:
            raise UserError(f"--target {self.target:g} is in percent: it must be 1 to 100")
        for option, given in (
            ("target", self.target is not None),
            ("early-stopping", self.early_stopping != "none"),
            (f"method {MULTI_FIDELITY}", self.strategy == MULTI_FIDELITY),
        ):
            if self.pareto is not None and given:  # these judge by the value alone
                raise UserError(f"--pareto cannot be used with --{option}")
        self.scale()
        if self.prior and self.surrogate != "gp":
            raise UserError(f"--prior requires --surrogate gp, not {self.surrogate}")
        for number, run in enumerate(self.prior):
            if run in self.prior[:number]:
                raise UserError(f"--prior {run.path} is given twice")
            if run.space != self.space:
                raise UserError(f"--prior {run.path} is a run in {run.space}, not in {self.space}")

    @property
    def parts(self) -> Parts:
        """Names of the surrogate, the strategy and the acquisition function."""
        return resolve(None, self.surrogate, self.strategy, self.acq)

    @property
    def seeks_the_best(self) -> bool:
        """Whether it searches for the largest value, not for a target or a Pareto front."""
        return self.target is None and self.pareto is None

    @property
    def evaluator_name(self) -> str:
        return self.evaluator or self._usual_evaluator

    @property
    def _usual_evaluator(self) -> str:
        fitting = (name for name, (spaces, _) in EVALUATORS.items() if self.space in spaces)
        return next(fitting, "table")

    @property
    def name(self) -> str:
        """A folder name that describes the run; similar runs may share it."""
        parts = [self.space, self.dataset, "test" if self.objective == "test" else None]
        parts += [self.evaluator_name] if self.evaluator_name != self._usual_evaluator else []
        parts += [*self.parts.shown, *(f"prior-{run.task}" for run in self.prior), *self.constraint]
        parts += [f"pareto-{self.pareto}"] if self.pareto else []
        parts += [f"batch{self.batch_size}"] if self.batch_size > 1 else []
        return file_name(*parts, f"seed{self.seed}")

    def scale(self) -> Ladder | Calibrated:
        """The requested guidance scale; raises UserError."""
        if self.guidance_scale == "auto":
            return Calibrated()
        try:
            low, *high = (float(number) for number in self.guidance_scale.split(","))
            return Ladder(low, *(high or [low]))
        except (ValueError, TypeError):
            raise UserError(
                f"--guidance-scale {self.guidance_scale!r} must be auto, a positive number, or "
                "LOW,HIGH with 0 < LOW <= HIGH"
            ) from None

    def generator(self, device: str) -> GeneratorConfig:
        """The generator of this run; one that is never used gets no weights."""
        used = STRATEGIES[self.parts.strategy].generates or self.constraint
        return GeneratorConfig(
            space=self.space,
            score=self.score if used else "exact",
            weights=self.score_weights if used else None,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            sampler=self.sampler,
            steps=self.steps,
            schedule=self.noise_schedule,
            device=device,
            threads=self.threads,
        )

    def absolute(self) -> "RunConfig":
        """This configuration with absolute paths."""

        def resolved(record: "RunConfig | NetworkOptions") -> dict[str, Any]:
            paths = ((name, getattr(record, name, None)) for name in PATHS)
            return {
                name: path.resolve() if isinstance(path, Path) else os.path.abspath(path)
                for name, path in paths
                if path
            }

        networks = replace(self.networks, **resolved(self.networks))
        return replace(self, **resolved(self), networks=networks)

    @property
    def paths(self) -> dict[str, Path]:
        """The files and folders that settings name; for FILE:KEY, the file."""
        settings = vars(self) | vars(self.networks)
        return {
            name: path if isinstance(path, Path) else file_and_key(path)[0]
            for name in PATHS
            if (path := settings[name])
        }

    def identity(self) -> dict[str, Any]:
        """Everything that decides the trials, as JSON. Not the budget, so a run can be extended.

        Files are identified by name and content, so a run can be moved along with its files.
        """
        record = asdict(replace(self, prior=())) | {"evaluator": self.evaluator_name}
        del record["budget"], record["method"], record["prior"], record["networks"]
        if self.networks != NetworkOptions():
            record |= asdict(self.networks)
        record["constraint"] = list(self.constraint)
        if self.pareto is None:
            del record["pareto"]
        paths = self.paths
        for name, path in paths.items():
            record[name] = str(record[name]).replace(str(path), path.name)
        if paths:
            record["sha256"] = {
                name: digest_of_images(path.resolve()) if name == "data" else sha256_or_none(path)
                for name, path in paths.items()
            }
        if self.prior:
            record["prior"] = [run.content for run in self.prior]
        return record

    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


# The settings that name files and folders.
PATHS = (*path_names(RunConfig), *path_names(NetworkOptions), "latency_table")


def sha256_or_none(path: Path) -> str | None:
    """SHA-256 of a file; None if it cannot be read, which is reported wherever it is used."""
    try:
        found = path.stat()
        return _sha256_as_of(path.resolve(), found.st_mtime_ns, found.st_size)
    except OSError:
        return None


@cache
def _sha256_as_of(path: Path, modified: int, size: int) -> str:
    """SHA-256 of a file in this state.

    Cached because callers repeatedly ask many runs for their hashes, and a table has tens of
    megabytes.
    """
    del modified, size
    return sha256_of(path)


def file_name(*parts: str | None) -> str:
    """Join parts with hyphens, without characters that are special to a shell."""
    text = "-".join(part for part in parts if part)
    text = text.replace("<=", "-max").replace(">=", "-min")
    return re.sub(r"[^\w.+-]+", "", text)
