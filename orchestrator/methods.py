"""Search methods by name: presets of surrogate predictor, candidate strategy and acquisition.

docs/methods.md says what each takes from its source and where it departs from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

DEFAULT = "guided"
NONE = "none"  # the surrogate of a model-free method, and its acquisition function


class Parts(NamedTuple):
    """Names of the parts a search is made of."""

    surrogate: str
    strategy: str
    acq: str

    @property
    def shown(self) -> tuple[str, ...]:
        """The names worth showing: all but `none` and the usual surrogate."""
        return tuple(name for name in self if name not in ("gp", NONE))


@dataclass(frozen=True)
class Method:
    """A preset."""

    parts: Parts
    what: str


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "guided": Method(
            Parts("gp", "guided", "ei"),
            "a diffusion model guided by the surrogate; mutants after a batch without improvement",
        ),
        "random-search": Method(Parts(NONE, "random", NONE), "uniform draws"),
        "rea": Method(
            Parts(NONE, "rea", NONE),
            "regularized evolution: tournament selection, removal of the oldest",
        ),
        "local-search": Method(
            Parts(NONE, "local-search", NONE),
            "hill climbing to better neighbours, random restarts at local optima",
        ),
        "reinforce": Method(
            Parts(NONE, "reinforce", NONE),
            "policy gradient, with one categorical distribution per decision",
        ),
        "bohb": Method(
            Parts(NONE, "bohb", NONE),
            "brief training of candidates from a Parzen estimator, full training of the best third",
        ),
        "gp-ucb": Method(
            Parts("gp-plain", "mutation+random", "ucb"),
            "Gaussian process on one-hot encodings, upper confidence bound",
        ),
        "bananas": Method(
            Parts("ensemble", "mutation", "its"),
            "ensemble of networks on path encodings, Thompson sampling of mutants",
        ),
        "nasbowl": Method(
            Parts("wl-gp", "mutation-top10+random", "ei"),
            "Gaussian process with the Weisfeiler-Lehman kernel, expected improvement",
        ),
        "hebo": Method(
            Parts("hebo-gp", "mutation-top10+random", "mace"),
            "Gaussian process on warped inputs and outputs, Pareto front of acquisition functions",
        ),
    }
)
