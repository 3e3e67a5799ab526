"""Search methods by name: presets of surrogate predictor, candidate strategy and acquisition.

docs/methods.md says of each what it takes from its source and where it departs from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from nag.errors import UserError, choose

SurrogateName = Literal["gp", "gp-plain", "ensemble", "wl-gp", "hebo-gp", "none"]
StrategyName = Literal[
    "guided",
    "guided-gen",
    "bohb",
    "local-search",
    "mutation",
    "mutation+random",
    "mutation-top10+random",
    "random",
    "rea",
    "reinforce",
    "uncond+sort",
]
AcquisitionName = Literal["ei", "pi", "its", "ucb", "mace", "target"]
MethodName = Literal[
    "guided",
    "random-search",
    "rea",
    "local-search",
    "reinforce",
    "bohb",
    "gp-ucb",
    "bananas",
    "nasbowl",
    "hebo",
]

DEFAULT = "guided"
NONE = "none"  # the surrogate of a model-free method, and its acquisition function
MULTI_FIDELITY = "bohb"  # the strategy whose candidates go through successive halving
DIFFERENTIABLE = ("gp",)  # surrogates that guidance can climb
TARGET = "target"  # the acquisition function of a search for a value, and its form of guidance
AIMING = ("guided", "guided-gen")  # strategies that can go to a value instead of the best
GENERATING = ("guided", "guided-gen", "uncond+sort")  # strategies that ask the diffusion model


class Parts(NamedTuple):
    """Names of the parts a search is made of."""

    surrogate: str
    strategy: str
    acq: str

    @property
    def shown(self) -> tuple[str, ...]:
        """Those that say something: without what there is none of, and the usual surrogate."""
        return tuple(name for name in self if name not in ("gp", NONE))


@dataclass(frozen=True)
class Method:
    """A preset."""

    parts: Parts
    what: str
    source: str


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "guided": Method(
            Parts("gp", "guided", "ei"),
            "candidates of a diffusion model steered by the surrogate; mutants after a failure",
            "An et al., DiffusionNAG, ICLR 2024",
        ),
        "random-search": Method(
            Parts(NONE, "random", NONE),
            "uniform draws",
            "Li & Talwalkar, UAI 2019",
        ),
        "rea": Method(
            Parts(NONE, "rea", NONE),
            "regularized evolution: tournaments in a population whose oldest member dies",
            "Real et al., AAAI 2019",
        ),
        "local-search": Method(
            Parts(NONE, "local-search", NONE),
            "neighbours until one is better, random restarts at local optima",
            "White et al., UAI 2021",
        ),
        "reinforce": Method(
            Parts(NONE, "reinforce", NONE),
            "policy gradient of one categorical distribution per decision",
            "Williams 1992; Ying et al., ICML 2019",
        ),
        "bohb": Method(
            Parts(NONE, "bohb", NONE),
            "brief training of candidates of a Parzen estimator, full training of the best third",
            "Falkner et al., BOHB, ICML 2018",
        ),
        "gp-ucb": Method(
            Parts("gp-plain", "mutation+random", "ucb"),
            "Gaussian process on one-hot encodings, upper confidence bound",
            "Srinivas et al., ICML 2010",
        ),
        "bananas": Method(
            Parts("ensemble", "mutation", "its"),
            "ensemble of networks on path encodings, Thompson sampling of mutants",
            "White et al., BANANAS, AAAI 2021",
        ),
        "nasbowl": Method(
            Parts("wl-gp", "mutation-top10+random", "ei"),
            "Gaussian process with the Weisfeiler-Lehman kernel, expected improvement",
            "Ru et al., NAS-BOWL, ICLR 2021",
        ),
        "hebo": Method(
            Parts("hebo-gp", "mutation-top10+random", "mace"),
            "Gaussian process with warped inputs and outputs, Pareto front of acquisitions",
            "Cowen-Rivers et al., HEBO, JAIR 2022",
        ),
    }
)


def resolve(
    method: str | None, surrogate: str | None, strategy: str | None, acq: str | None
) -> Parts:
    """The parts that are named, and of the others those of `method`; raises UserError.

    Without a surrogate nothing is left to an acquisition function: it is `none` whatever is asked.
    """
    preset = METHODS[choose("method", method or DEFAULT, METHODS)].parts
    named = (surrogate, strategy, acq)
    if method and all(named) and named != preset:
        raise UserError(
            f"--method {method} has no say beside --surrogate {surrogate}, --strategy {strategy} "
            f"and --acq {acq}: leave out what it is to decide"
        )
    surrogate = choose("surrogate", surrogate or preset.surrogate, get_args(SurrogateName))
    strategy = choose("strategy", strategy or preset.strategy, get_args(StrategyName))
    if surrogate == NONE:
        acq = NONE
    else:
        given = next((name for name in (acq, preset.acq) if name not in (None, NONE)), "ei")
        acq = choose("acquisition function", given, get_args(AcquisitionName))
    if strategy.startswith("guided") and surrogate not in DIFFERENTIABLE:
        raise UserError(
            f"--strategy {strategy} climbs the surrogate, --surrogate {surrogate} has no gradient: "
            f"choose --surrogate {' or '.join(DIFFERENTIABLE)}, or another strategy"
        )
    if strategy == MULTI_FIDELITY and surrogate != NONE:
        raise UserError(
            f"--strategy {strategy} has a model of its own: choose --surrogate none, or --method "
            f"{strategy}"
        )
    if strategy == "uncond+sort" and surrogate == NONE:
        raise UserError("--strategy uncond+sort sorts by a surrogate: --surrogate none is not one")
    return Parts(surrogate, strategy, acq)
