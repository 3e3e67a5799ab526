"""The parts of a search: the choices there are, and which combinations work."""

from collections.abc import Mapping

from acquisition.functions import ACQUISITIONS, TargetLikelihood
from acquisition.strategies import STRATEGIES
from nag.errors import UserError, choose
from nag.predictors.registry import SURROGATES
from orchestrator.methods import DEFAULT, METHODS, NONE, Parts

MULTI_FIDELITY = "bohb"  # the strategy whose candidates go through successive halving
TARGET = "target"  # the acquisition function of a search for a value, and its form of guidance

# For each option that names a part, or all of them: its choices and their descriptions.
CHOICES: Mapping[str, Mapping[str, str]] = {
    "method": {name: method.what for name, method in METHODS.items()},
    "surrogate": {
        **{name: surrogate.what for name, surrogate in SURROGATES.items()},
        NONE: "no surrogate: evaluate whatever the strategy proposes",
    },
    "strategy": {name: strategy.what for name, strategy in STRATEGIES.items()},
    "acq": {
        **{name: acquisition.what for name, acquisition in ACQUISITIONS.items()},
        TARGET: TargetLikelihood.what,
    },
}


def resolve(
    method: str | None, surrogate: str | None, strategy: str | None, acq: str | None
) -> Parts:
    """The named parts, with the rest taken from `method`; raises UserError.

    Without a surrogate an acquisition function has nothing to do: it is always `none`.
    """
    preset = METHODS[choose("method", method or DEFAULT, CHOICES["method"])].parts
    named = (surrogate, strategy, acq)
    if method and all(named) and named != preset:
        raise UserError(
            f"--method {method} has no effect with --surrogate {surrogate}, --strategy {strategy} "
            f"and --acq {acq}: leave out those that it should set"
        )
    surrogate = choose("surrogate", surrogate or preset.surrogate, CHOICES["surrogate"])
    strategy = choose("strategy", strategy or preset.strategy, CHOICES["strategy"])
    if surrogate == NONE:
        acq = NONE
    else:
        given = next((name for name in (acq, preset.acq) if name not in (None, NONE)), "ei")
        acq = choose("acquisition function", given, CHOICES["acq"])
    _check(surrogate, strategy)
    return Parts(surrogate, strategy, acq)


def _check(surrogate: str, strategy: str) -> None:
    """Raise UserError if the strategy does not work with the surrogate."""
    differentiable = [name for name, found in SURROGATES.items() if found.differentiable]
    match STRATEGIES[strategy].surrogate:
        case "climbed" if surrogate not in differentiable:
            raise UserError(
                f"--strategy {strategy} needs the surrogate's gradient, --surrogate {surrogate} "
                f"has no gradient: choose --surrogate {' or '.join(differentiable)}, or another "
                "strategy"
            )
        case "needed" if surrogate == NONE:
            raise UserError(f"--strategy {strategy} needs a surrogate, not --surrogate none")
        case "refused" if surrogate != NONE:
            raise UserError(
                f"--strategy {strategy} has its own model: choose --surrogate none, or "
                f"--method {strategy}"
            )
