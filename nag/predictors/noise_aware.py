"""Noise-aware predictor f(x_t, sigma): the expected value of the architecture behind the noise.

DiffusionNAG (An et al., ICLR 2024, Eq. 8) trains a predictor on noised architectures,

    min_f  E_{x_0, sigma, noise} (f(x_0 + sigma noise, sigma) - y(x_0))^2,

whose minimiser is E[y(x_0) | x_t]; its gradient guides the reverse diffusion. Here f is refitted in
every round of the search, so it must train fast and on few labels. Two choices achieve this:

* the input of f is not x_t but P(operator | x_t), the posterior under the uniform law
  (`nag.exact_score.posterior`): in [0, 1] for every sigma, and all that x_t says about each node;
* f is distilled from the surrogate predictor, which can label as many architectures as we like.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from nag.exact_score import posterior
from nag.predictors.base import DifferentiablePredictor, Observations
from nag.sde import VESDE, centre, per_sample
from nag.spaces import Architecture, SearchSpace

_WIDTH = 128
_DRAWS = 8  # noisy copies of every architecture
_BATCH_SIZE, _LEARNING_RATE = 256, 3e-3


@dataclass(frozen=True, eq=False)
class NoiseAwarePredictor:
    """A perceptron on V = P(operator | x_t) and log sigma. It is a `nag.guidance.Reading`.

    Its mean is E[mean | x_t] and its std is exp E[log std | x_t]: the surrogate's uncertainty about
    the architectures behind the noise, without the spread of their means.
    """

    parameters: tuple[Tensor, ...]  # weight (I, O), bias (O,) of each layer

    def __call__(self, v: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """V (B, N, F), sigma (B,) -> mean (B,) and std (B,) of the standardised value."""
        inputs = _inputs(v, sigma)
        mean, log_std = _perceptron([p.to(inputs) for p in self.parameters], inputs).unbind(1)
        return mean, log_std.exp()

    def to(self, device: torch.device) -> "NoiseAwarePredictor":
        return NoiseAwarePredictor(tuple(p.to(device) for p in self.parameters))


def fit_noise_aware(
    space: SearchSpace,
    sde: VESDE,
    observations: Observations,
    surrogate: DifferentiablePredictor,
    rng: np.random.Generator,
    *,
    pool: int = 1024,
    steps: int = 300,
) -> NoiseAwarePredictor:
    """Fit f to a surrogate's mean and log std at the observed and `pool` more architectures.

    Equal arguments give equal results.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    x = space.encode([*observations.archs, *_unlabelled(space, observations, pool, rng)])
    with torch.no_grad():
        mean, std = surrogate.relaxed(x)
    x0 = centre(x).repeat(_DRAWS, 1, 1)
    sigma = sde.sigma(torch.rand(len(x0), generator=generator))
    noisy = x0 + per_sample(sigma) * torch.randn(x0.shape, generator=generator)
    inputs = _inputs(posterior(space, noisy, sigma), sigma)
    targets = torch.stack([mean, std.log()], dim=1).repeat(_DRAWS, 1)
    parameters = _initial((inputs.shape[1], _WIDTH, _WIDTH, 2), generator)
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (_BATCH_SIZE,), generator=generator)
        loss = (_perceptron(parameters, inputs[batch]) - targets[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return NoiseAwarePredictor(tuple(p.detach() for p in parameters))


def _inputs(v: Tensor, sigma: Tensor) -> Tensor:
    """(B, N F + 1)."""
    return torch.cat([v.flatten(1), sigma.log()[:, None]], dim=1)


def _perceptron(parameters: Sequence[Tensor], h: Tensor) -> Tensor:
    """(B, I) -> (B, 2)."""
    *hidden, weight, bias = parameters
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        h = silu(h @ w + b)
    return h @ weight + bias


def _initial(sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    parameters = []
    for i, o in pairwise(sizes):
        parameters += [torch.randn(i, o, generator=generator) * i**-0.5, torch.zeros(o)]
    return [p.requires_grad_() for p in parameters]


def _unlabelled(
    space: SearchSpace, observations: Observations, n: int, rng: np.random.Generator
) -> list[Architecture]:
    """Half uniform draws, half mutations of the best tenth: where guidance starts and ends."""
    best = np.argsort(-observations.values, kind="stable")[: max(1, len(observations) // 10)]
    parents = [observations.archs[i] for i in rng.choice(best, size=n - n // 2)]
    return space.sample(n // 2, rng) + [space.mutate(parent, rng) for parent in parents]
