"""The toy space written out in full: what closed forms and samplers are compared with."""

import itertools

import torch
from torch import Tensor

from nag.sde import centre
from nag.spaces import ABSENT, Architecture
from nag.spaces.toy import TOY

_STAGES = [(a, ABSENT) for a in range(3)] + [(a, b) for a in range(3) for b in range(3)]
ARCHS = [
    Architecture("toy", first + second) for first, second in itertools.product(_STAGES, _STAGES)
]


def _log_weight(arch: Architecture) -> float:
    """The law draws a depth (1 or 2) for each stage, then one of three operators per layer."""
    layers = sum(op != ABSENT for op in arch.ops)
    return torch.tensor(1 / 4 / 3**layers).log().item()


LOG_WEIGHTS = torch.tensor([_log_weight(arch) for arch in ARCHS]).double()  # (144,)
POINTS = centre(TOY.encode(ARCHS)).double()  # (144, 4, 3)


def rewards(reward: Tensor) -> Tensor:
    """R(A) = sum_i reward[i, o_i] of all architectures, (144,); reward is (4, 3)."""
    return (TOY.encode(ARCHS).double() * reward).sum((1, 2))


def law(reward: Tensor | None = None) -> Tensor:
    """p(A) ~ p_0(A) exp R(A), (144,)."""
    return (LOG_WEIGHTS + (0 if reward is None else rewards(reward))).softmax(0)


def log_density(
    x: Tensor, sigma: Tensor, log_weights: Tensor = LOG_WEIGHTS, points: Tensor = POINTS
) -> Tensor:
    """log sum_A w_A N(x | x_A, sigma^2) up to a constant of sigma, (B,)."""
    x, points = x.flatten(1), points.flatten(1)
    square = x.square().sum(1, keepdim=True) - 2 * x @ points.T + points.square().sum(1)  # (B, M)
    return (log_weights - square / (2 * sigma[:, None] ** 2)).logsumexp(1)


def gradient(function, x: Tensor) -> Tensor:
    """Gradient of each entry of function(x) (B,) with respect to its own x (B, N, F)."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def noisy(n: int, seed: int = 0, low: float = 0.15, high: float = 5.0) -> tuple[Tensor, Tensor]:
    """n noised architectures (n, 4, 3) and their noise levels (n,), from `low` to `high`."""
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.logspace(0, 1, n, base=high / low).double() * low
    which = torch.multinomial(law(), n, replacement=True, generator=generator)
    z = torch.randn(n, 4, 3, generator=generator).double()
    return POINTS[which] + sigma[:, None, None] * z, sigma
