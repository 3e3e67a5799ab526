"""The surrogate of HEBO (Cowen-Rivers et al., JAIR 2022): outputs and inputs are warped.

Re-implemented on BoTorch. Values go through a power transform, and numeric inputs through the
Kumaraswamy cumulative distribution function, whose two parameters per input are fitted together
with the kernel: linear plus Matern-3/2 with a lengthscale per input. The fit has one start; HEBO
takes the best of ten.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nag.predictors.base import Observations
from nag.predictors.baselines.gp import (
    fit_posterior,
    gaussian_noise,
    matern,
    one_hot,
    require,
    varying,
)
from nag.predictors.baselines.outputs import power
from nag.predictors.baselines.posterior import Posterior
from nag.spaces import Architecture, SearchSpace


def numbers(config: Any) -> Iterator[Any]:
    """The leaves of a JSON object in order."""
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from numbers(item)
    else:
        yield config


@dataclass(frozen=True)
class HeboGaussianProcess:
    """Implements `SurrogatePredictor`; needs the extra `baselines`, else raises UserError.

    If `SearchSpace.to_config` holds nothing but numbers, these are the inputs, scaled to [0, 1]
    (once-for-all: kernel sizes and expand ratios, 0 for absent layers, and depths). They are
    ordered, so warping them is meaningful. Other spaces use the one-hot encoding, as HEBO does for
    categories, without a warp, which would not move 0 and 1.
    """

    space: SearchSpace

    def __post_init__(self) -> None:
        require("botorch")

    @cached_property
    def _is_numeric(self) -> bool:
        (arch,) = self.space.sample(1, np.random.default_rng(0))
        return all(isinstance(x, int | float) for x in numbers(self.space.to_config(arch)))

    def _raw(self, archs: Sequence[Architecture]) -> Tensor:
        if not self._is_numeric:
            return one_hot(self.space, archs)
        rows = [list(numbers(self.space.to_config(arch))) for arch in archs]
        return torch.tensor(rows, dtype=torch.float64)

    @cached_property
    def _scaling(self) -> tuple[Tensor, Tensor, Tensor]:
        return varying(self.space, self._raw)

    def _inputs(self, archs: Sequence[Architecture]) -> Tensor:
        columns, low, high = self._scaling
        return ((self._raw(archs)[:, columns] - low) / (high - low)).clamp(0, 1)

    def fit(self, observations: Observations, rng: np.random.Generator) -> Posterior:
        del rng
        d = len(self._scaling[0])
        kernels, priors = require("gpytorch.kernels"), require("gpytorch.priors")
        # HEBO's priors are on logarithms: Gamma(1/2, 1) times s, and a normal for log(noise)
        amplitude = priors.GammaPrior(1.5, 1.0)
        return fit_posterior(
            self._inputs,
            observations,
            power(observations.values),
            kernels.LinearKernel()
            + kernels.ScaleKernel(matern(1.5, d, d), outputscale_prior=amplitude),
            gaussian_noise(-4.63 + 0.5**2, 0.5),
            _warp(d) if self._is_numeric else None,
        )


def _warp(d: int) -> Any:
    """x -> 1 - (1 - x^a)^b of d inputs, a and b with the priors of Snoek et al., ICML 2014."""
    prior = require("gpytorch.priors").LogNormalPrior
    return require("botorch.models.transforms.input").Warp(
        d,
        list(range(d)),
        concentration1_prior=prior(0.0, math.sqrt(0.75)),
        concentration0_prior=prior(0.0, math.sqrt(0.75)),
    )
