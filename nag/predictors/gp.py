"""Gaussian process over architectures: a surrogate for one to a few hundred labels.

Notation:
    n, B     observations, queries
    G        feature groups: those of the space (`SearchSpace.features`), and the posterior mean of
             each earlier run that is reused
    X        (n, D) features, centred and scaled per group so that E |X_g|^2 = 1 under uniform draws
    z        (n,) values, warped and standardised
    theta    (2 G + 2,) logarithms of the hyperparameters
    k(x, x') = sum_g a_g <x_g, x'_g> + b m(r),   r^2 = sum_g |x_g - x'_g|^2 / l_g^2
    m        the Matern-5/2 correlation
    L, alpha Cholesky factor of K = k(X, X) + noise I, and K^-1 z

The linear part extrapolates additive effects far from the data; the Matern part models the rest.

Earlier runs are stacked below the process, as in Golovin et al., "Google Vizier", KDD 2017, section
3.3.2. There, the mean of the earlier process is a prior mean and only the residual is modelled;
here it is a feature whose linear weight and lengthscale are learned. So an earlier run may have
another scale or be useless (Feurer et al. 2018, arXiv 1802.02219, achieve this with the weights of
an ensemble).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nag.predictors.base import Observations, Prediction
from nag.spaces import Architecture, SearchSpace

_JITTER = 1e-6
_MIN_VARIANCE = 1e-8
_NUM_RESTARTS = 1
_MANY = 300  # more observations do not make better hyperparameters, but take longer
_TINY = 1e-12  # a smaller spread, relative to the values, counts as zero


class Warp(NamedTuple):
    """Monotone map from values to z: linear above the median, logarithmic below.

    u = (y - median) / scale,   v = u for u >= 0, -log(1 - u) for u < 0,   z = (v - mean) / std

    Bad architectures have a long tail. Which of them is worst does not matter, and the logarithm
    keeps them from dominating the fit. In the upper half z is linear in y, so there a Gaussian in z
    is also a Gaussian in y.
    """

    median: float
    scale: float
    mean: float
    std: float
    best: float

    @classmethod
    def fit(cls, values: NDArray[np.float64]) -> "Warp":
        median = float(np.median(values))
        size = abs(median)  # robust against one bad outlier
        spreads = [np.maximum(side, 0).mean() * 2 for side in (values - median, median - values)]
        scale = _spread(spreads[0] if spreads[0] > _TINY * size else spreads[1], size)
        v = _compress((values - median) / scale)
        std = _spread(v.std(), size / scale)
        return cls(median, scale, float(v.mean()), std, float(values.max()))

    def forward(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values to z."""
        return (_compress((values - self.median) / self.scale) - self.mean) / self.std

    def inverse(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """z to values."""
        v = z * self.std + self.mean
        return self.median + self.scale * np.where(v < 0, -np.expm1(-np.minimum(v, 0)), v)

    def prediction(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Prediction:
        """Map a Gaussian in z to a Gaussian in values with the same median and the same probability
        of improving on the best observation: its slope is that of the chord up to the best.

        The probability of improvement is thus exact. The expected improvement is too large where
        the mean is low, because the chord is steeper there than the map is above the best."""
        values = self.inverse(mean)
        gap = float(self.forward(np.array(self.best))) - mean
        linear = self.scale * self.std
        apart = (gap > 1e-6) & (values < self.best)  # far enough apart for the precision
        chord = (self.best - values) / np.where(apart, gap, 1)
        return Prediction(values, std * np.where(apart, chord, linear))


def _compress(u: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(u < 0, -np.log1p(-np.minimum(u, 0)), u)


def _spread(spread: float, size: float) -> float:
    """`spread`, or 1 if it is negligible for numbers as large as `size`."""
    return float(spread) if spread > _TINY * size else 1.0


class Features(NamedTuple):
    """Features of a space, centred and scaled per group by their statistics under uniform draws.

    priors: processes fitted to earlier runs; each adds its mean at the end, as a one-feature group.
    """

    centre: Tensor  # (D,)
    scale: Tensor  # (D,)
    sizes: tuple[int, ...]  # (G,) columns of each group
    priors: tuple["FittedGaussianProcess", ...] = ()

    @classmethod
    def of(cls, space: SearchSpace, priors: tuple["FittedGaussianProcess", ...] = ()) -> "Features":
        archs = space.sample(1000, np.random.default_rng(0))
        groups = _raw_features(space, priors, space.encode(archs).double())
        spreads = [x.var(0, correction=0).sum().clamp_min(1e-12).sqrt() for x in groups]
        return cls(
            torch.cat([x.mean(0) for x in groups]),
            torch.cat([x.new_ones(x.shape[1]) / s for x, s in zip(groups, spreads, strict=True)]),
            tuple(x.shape[1] for x in groups),
            priors,
        )

    def __call__(self, space: SearchSpace, x: Tensor) -> Tensor:
        """(B, N, F) -> (B, D)."""
        raw = torch.cat(_raw_features(space, self.priors, x), dim=1)
        return (raw - self.centre.to(x)) * self.scale.to(x)

    def to(self, x: Tensor) -> "Features":
        """On the device and in the precision of `x`."""
        return self._replace(centre=self.centre.to(x), scale=self.scale.to(x))

    def groups(self, X: Tensor) -> list[Tensor]:
        return list(X.split(self.sizes, dim=1))


def _raw_features(
    space: SearchSpace, priors: Sequence["FittedGaussianProcess"], x: Tensor
) -> tuple[Tensor, ...]:
    """(B, N, F) -> groups (B, D_g)."""
    return (*space.features(x), *(prior.mean(x)[:, None] for prior in priors))


class Products(NamedTuple):
    """Inner products per group of two sets of points: all that the kernel needs."""

    cross: Tensor  # (G, B, n)
    left: Tensor  # (G, B) squared norms
    right: Tensor  # (G, n)

    @classmethod
    def of(cls, left: Sequence[Tensor], right: Sequence[Tensor]) -> "Products":
        return cls(
            torch.stack([a @ b.T for a, b in zip(left, right, strict=True)]),
            torch.stack([a.square().sum(1) for a in left]),
            torch.stack([b.square().sum(1) for b in right]),
        )


class Hyperparameters(NamedTuple):
    """Hyperparameters of kernel and noise (see the module docstring), in the order of theta."""

    linear: Tensor  # (G,) a
    lengthscale: Tensor  # (G,) l
    amplitude: Tensor  # () b
    noise: Tensor  # () variance

    @classmethod
    def of(cls, theta: Tensor) -> "Hyperparameters":
        g = (len(theta) - 2) // 2
        e = theta.exp()
        return cls(e[:g], e[g : 2 * g], e[-2], e[-1])

    def to(self, x: Tensor) -> "Hyperparameters":
        return Hyperparameters(*(p.to(x) for p in self))

    def kernel(self, p: Products) -> Tensor:
        """k of all pairs, (B, n)."""
        w = self.lengthscale**-2
        r2 = w @ p.left
        r2 = r2[:, None] + (w @ p.right)[None, :] - 2 * torch.einsum("g,gbn->bn", w, p.cross)
        # sqrt has an infinite gradient at 0
        d = (5 * r2.clamp_min(1e-10)).sqrt()
        matern = (1 + d + d.square() / 3) * torch.exp(-d)
        return torch.einsum("g,gbn->bn", self.linear, p.cross) + self.amplitude * matern

    def covariance(self, p: Products) -> Tensor:
        """Covariance of observations, (n, n), from their products with themselves."""
        noise = self.noise + _JITTER
        return self.kernel(p) + noise * torch.eye(p.cross.shape[-1], dtype=noise.dtype)

    def variance(self, squares: Tensor) -> Tensor:
        """k(x, x), (B,), from squared norms (G, B)."""
        return self.linear @ squares + self.amplitude


def prior(num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (2 G + 2,), of the normal prior of theta.

    It says that additive effects explain about as much as the rest, that lengthscales are about the
    distance between two random architectures (sqrt 2), and that labels carry little noise.
    """
    g = num_groups
    mean = [math.log(0.5)] * g + [math.log(2.0)] * g + [math.log(0.5), math.log(0.01)]
    std = [1.5] * g + [1.0] * g + [1.0, 1.5]
    return torch.tensor(mean).double(), torch.tensor(std).double()


def negative_log_posterior(theta: Tensor, products: Products, z: Tensor) -> Tensor:
    """- log p(z | X, theta) - log p(theta), up to a constant."""
    h = Hyperparameters.of(theta)
    L = torch.linalg.cholesky(h.covariance(products))
    half = torch.linalg.solve_triangular(L, z[:, None], upper=False)
    mean, std = prior(len(h.linear))
    return (
        0.5 * half.square().sum()
        + L.diagonal().log().sum()
        + 0.5 * ((theta - mean) / std).square().sum()
    )


def fit_theta(products: Products, z: Tensor, rng: np.random.Generator) -> Tensor:
    """Maximum a posteriori hyperparameters: the best of several L-BFGS runs, from the prior mean
    and from draws of a normal with half the prior's spread."""
    mean, std = prior(len(products.cross))

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        t = torch.from_numpy(theta).requires_grad_()
        loss = negative_log_posterior(t, products, z)
        (gradient,) = torch.autograd.grad(loss, t)
        return loss.item(), gradient.numpy()

    draws = rng.standard_normal((_NUM_RESTARTS, len(mean))) * 0.5
    starts = [mean.numpy(), *(mean.numpy() + std.numpy() * draw for draw in draws)]
    bounds = [(m - 4 * s, m + 4 * s) for m, s in zip(mean.tolist(), std.tolist(), strict=True)]
    runs = [
        scipy.optimize.minimize(
            objective, s, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}
        )
        for s in starts
    ]
    return torch.from_numpy(min(runs, key=lambda run: run.fun).x)


def _inverse_factor(K: Tensor) -> Tensor:
    """L^-1 of K = L L^T."""
    eye = torch.eye(len(K), dtype=K.dtype)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(K), eye, upper=False)


class _Moved(NamedTuple):
    """What predictions need, on one device and in one precision."""

    hyperparameters: Hyperparameters
    features: Features
    X: Tensor
    inverse_factor: Tensor
    alpha: Tensor


@dataclass(frozen=True, eq=False)
class FittedGaussianProcess:
    """Posterior of a Gaussian process. Implements `DifferentiablePredictor`."""

    space: SearchSpace
    features: Features
    warp: Warp
    theta: Tensor
    X: Tensor  # (n, D) float64
    z: Tensor  # (n,)
    _moved: dict[tuple[torch.device, torch.dtype], _Moved] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def _hyperparameters(self) -> Hyperparameters:
        return Hyperparameters.of(self.theta)

    @cached_property
    def _inverse_factor(self) -> Tensor:
        """L^-1, (n, n)."""
        groups = self.features.groups(self.X)
        return _inverse_factor(self._hyperparameters.covariance(Products.of(groups, groups)))

    @cached_property
    def _alpha(self) -> Tensor:
        return self._inverse_factor.T @ (self._inverse_factor @ self.z)

    def relaxed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean (B,) and std (B,) of z; differentiable in `x` (B, N, F)."""
        own, p = self._like(x), self._products(x)
        k = own.hyperparameters.kernel(p)  # (B, n)
        explained = (k @ own.inverse_factor.T).square().sum(1)
        variance = own.hyperparameters.variance(p.left) - explained
        return k @ own.alpha, variance.clamp_min(_MIN_VARIANCE).sqrt()

    def mean(self, x: Tensor) -> Tensor:
        """Only the mean of `relaxed`, at less cost."""
        own = self._like(x)
        return own.hyperparameters.kernel(self._products(x)) @ own.alpha

    def _products(self, x: Tensor) -> Products:
        own = self._like(x)
        left = own.features.groups(own.features(self.space, x))
        return Products.of(left, own.features.groups(own.X))

    def _like(self, x: Tensor) -> _Moved:
        """On the device and in the precision of `x`; moved there once."""
        key = x.device, x.dtype
        if key not in self._moved:
            h, features = self._hyperparameters.to(x), self.features.to(x)
            tensors = (t.to(x) for t in (self.X, self._inverse_factor, self._alpha))
            self._moved[key] = _Moved(h, features, *tensors)
        return self._moved[key]

    def __getstate__(self) -> dict[str, Any]:
        """Omit derived tensors: they are larger than the data and quick to recompute."""
        derived = {name for name, x in vars(type(self)).items() if isinstance(x, cached_property)}
        kept = {name: x for name, x in vars(self).items() if name not in derived}
        return {**kept, "_moved": {}}

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        mean, std = self.relaxed(self.space.encode(archs).double())
        return self.warp.prediction(mean.numpy(), std.numpy())

    def standardise(self, value: float) -> float:
        return float(self.warp.forward(np.array(value)))

    def condition(self, archs: Sequence[Architecture]) -> "FittedGaussianProcess":
        x = self.space.encode(archs).double()
        X = self.features(self.space, x)
        conditioned = replace(
            self, X=torch.cat([self.X, X]), z=torch.cat([self.z, self.relaxed(x)[0]])
        )
        # appending rows to L^-1 takes O(n^2), not O(n^3); values at the mean append zeros to alpha
        h, factor = self._hyperparameters, self._inverse_factor
        new, old = self.features.groups(X), self.features.groups(self.X)
        cross = h.kernel(Products.of(new, old)) @ factor.T
        corner = _inverse_factor(h.covariance(Products.of(new, new)) - cross @ cross.T)
        rows = torch.cat([-corner @ cross @ factor, corner], dim=1)
        vars(conditioned).update(
            _inverse_factor=torch.cat([functional.pad(factor, (0, len(X))), rows]),
            _alpha=functional.pad(self._alpha, (0, len(X))),
        )
        return conditioned


@dataclass(frozen=True)
class GaussianProcess:
    """Gaussian-process surrogate of any search space. Implements `SurrogatePredictor`.

    priors: processes fitted to earlier runs, of any objective, in the same space.
    """

    space: SearchSpace
    priors: tuple[FittedGaussianProcess, ...] = ()

    @cached_property
    def _features(self) -> Features:
        return Features.of(self.space, self.priors)

    def fit(self, observations: Observations, rng: np.random.Generator) -> FittedGaussianProcess:
        X = self._features(self.space, self.space.encode(observations.archs).double())
        warp = Warp.fit(observations.values)
        z = torch.from_numpy(warp.forward(observations.values))
        some = rng.permutation(len(z))[:_MANY] if len(z) > _MANY else np.arange(len(z))
        groups = self._features.groups(X[some])
        theta = fit_theta(Products.of(groups, groups), z[some], rng)
        return FittedGaussianProcess(self.space, self._features, warp, theta, X, z)
