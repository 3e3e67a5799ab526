"""Surrogate predictors by name.

`gp-plain` and `hebo-gp` need the extra `baselines`; without it, building them raises a UserError.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from nag.predictors.base import SurrogatePredictor
from nag.predictors.baselines.ensemble import Ensemble
from nag.predictors.baselines.gp import PlainGaussianProcess
from nag.predictors.baselines.hebo import HeboGaussianProcess
from nag.predictors.baselines.wl import WeisfeilerLehmanGaussianProcess
from nag.predictors.gp import GaussianProcess
from nag.spaces import SearchSpace


class Surrogate(NamedTuple):
    """A surrogate predictor that can be chosen by name.

    what: one line of help.
    differentiable: whether guidance can climb it, i.e. it fits a `DifferentiablePredictor`.
    """

    build: Callable[[SearchSpace], SurrogatePredictor]
    what: str
    differentiable: bool = False


SURROGATES: Mapping[str, Surrogate] = MappingProxyType(
    {
        "gp": Surrogate(
            GaussianProcess,
            "Gaussian process on structural features; required by guided and guided-gen",
            differentiable=True,
        ),
        "gp-plain": Surrogate(
            PlainGaussianProcess,
            "Gaussian process on one-hot encodings; needs the baselines extra",
        ),
        "ensemble": Surrogate(Ensemble, "BANANAS' ensemble of networks on path encodings"),
        "wl-gp": Surrogate(
            WeisfeilerLehmanGaussianProcess,
            "NAS-BOWL's Gaussian process with the Weisfeiler-Lehman kernel",
        ),
        "hebo-gp": Surrogate(
            HeboGaussianProcess,
            "HEBO's Gaussian process on warped inputs; needs the baselines extra",
        ),
    }
)
