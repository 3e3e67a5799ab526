"""Surrogate predictors of published searches, by name. They are not differentiable.

`gp-plain` and `hebo-gp` need the extra `baselines`: without it they raise a UserError when made.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nag.predictors.base import SurrogatePredictor
from nag.predictors.baselines.ensemble import Ensemble
from nag.predictors.baselines.gp import PlainGaussianProcess
from nag.predictors.baselines.hebo import HeboGaussianProcess
from nag.predictors.baselines.wl import WeisfeilerLehmanGaussianProcess
from nag.spaces import SearchSpace

SURROGATES: Mapping[str, Callable[[SearchSpace], SurrogatePredictor]] = MappingProxyType(
    {
        "gp-plain": PlainGaussianProcess,
        "ensemble": Ensemble,
        "wl-gp": WeisfeilerLehmanGaussianProcess,
        "hebo-gp": HeboGaussianProcess,
    }
)
