"""Gaussian process on the one-hot encoding: the surrogate of GP-UCB in tables of NAS results."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nag.errors import UserError
from nag.predictors.base import Observations
from nag.predictors.baselines.outputs import Outputs, standardised
from nag.predictors.baselines.posterior import Posterior
from nag.spaces import Architecture, SearchSpace

_MAX_ITERATIONS = 50  # of L-BFGS; with more, warps and many lengthscales overfit


def require(name: str) -> Any:
    """A module of the extra `baselines`, imported when it is first needed; raises UserError."""
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise UserError(
            f"this surrogate needs {package}: pip install 'diffusionnag-bo[baselines]'"
        ) from None


def one_hot(space: SearchSpace, archs: Sequence[Architecture]) -> Tensor:
    """(B, N F) float64."""
    return space.encode(archs).double().flatten(1)


def varying(
    space: SearchSpace, inputs: Callable[[Sequence[Architecture]], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of `inputs` that vary between architectures: their indices, minima and maxima."""
    x = inputs(space.sample(1000, np.random.default_rng(0)))
    columns = (x.amax(0) > x.amin(0)).nonzero()[:, 0]
    return columns, x.amin(0)[columns], x.amax(0)[columns]


def fit_posterior(
    inputs: Callable[[Sequence[Architecture]], Tensor],
    observations: Observations,
    outputs: Outputs,
    covariance: Any,
    likelihood: Any,
    warp: Any = None,
) -> Posterior:
    """Maximum a posteriori hyperparameters of a BoTorch `SingleTaskGP`, by L-BFGS.

    covariance, likelihood, warp: GPyTorch modules and BoTorch input transform, with their priors.
    """
    gpytorch, botorch = require("gpytorch"), require("botorch")
    X, z = inputs(observations.archs), torch.from_numpy(outputs.z)
    exact = gpytorch.settings.fast_computations(False, False, False)
    unchecked = botorch.settings.validate_input_scaling(False)
    with exact, unchecked, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about L-BFGS reaching its iteration limit
        model = botorch.models.SingleTaskGP(
            X,
            z[:, None],
            likelihood=likelihood,
            covar_module=covariance,
            outcome_transform=None,
            input_transform=warp,
        )
        mll = gpytorch.ExactMarginalLogLikelihood(model.likelihood, model)
        require("botorch.optim.fit").fit_gpytorch_mll_scipy(
            mll, options={"maxiter": _MAX_ITERATIONS}
        )
    model.eval().requires_grad_(False)

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        if warp is not None:
            left, right = warp(left), warp(right)
        return model.covar_module(left, right).to_dense()

    mean, noise = float(model.mean_module.constant), float(model.likelihood.noise)
    return Posterior(inputs, kernel, mean, noise, outputs, X, z)


def matern(smoothness: float, d: int, num_lengthscales: int) -> Any:
    """Matern kernel on d inputs: one lengthscale for all, or (num_lengthscales = d) one for each.

    The lengthscale prior grows with sqrt(d), as distances do: Hvarfner et al., "Vanilla Bayesian
    Optimization Performs Great in High Dimensions", ICML 2024.
    """
    prior = require("gpytorch.priors").LogNormalPrior(math.sqrt(2) + math.log(d) / 2, math.sqrt(3))
    return require("gpytorch.kernels").MaternKernel(
        nu=smoothness,
        ard_num_dims=num_lengthscales if num_lengthscales > 1 else None,
        lengthscale_prior=prior,
        lengthscale_constraint=require("gpytorch.constraints").GreaterThan(
            0.025, transform=None, initial_value=prior.mode
        ),
    )


def gaussian_noise(log_mean: float, log_std: float) -> Any:
    """Likelihood whose noise variance has a log-normal prior."""
    prior = require("gpytorch.priors").LogNormalPrior(log_mean, log_std)
    return require("gpytorch.likelihoods").GaussianLikelihood(
        noise_prior=prior,
        noise_constraint=require("gpytorch.constraints").GreaterThan(
            1e-5, transform=None, initial_value=prior.mode
        ),
    )


@dataclass(frozen=True)
class PlainGaussianProcess:
    """Matern-5/2 kernel on the one-hot encoding; values are standardised.

    Implements `SurrogatePredictor`; needs the extra `baselines`, else raises UserError. All columns
    share one lengthscale: with one per column it ranks architectures worse. The noise prior is
    BoTorch's.
    """

    space: SearchSpace

    def __post_init__(self) -> None:
        require("botorch")

    @cached_property
    def _columns(self) -> Tensor:
        return varying(self.space, lambda archs: one_hot(self.space, archs))[0]

    def _inputs(self, archs: Sequence[Architecture]) -> Tensor:
        return one_hot(self.space, archs)[:, self._columns]

    def fit(self, observations: Observations, rng: np.random.Generator) -> Posterior:
        del rng
        return fit_posterior(
            self._inputs,
            observations,
            standardised(observations.values),
            matern(2.5, len(self._columns), 1),
            gaussian_noise(-4.0, 1.0),
        )
