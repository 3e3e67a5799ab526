"""The score in closed form.

Under the uniform law a space is a product of independent stages, so E[x_0 | x_t] is a softmax over
operators inside a softmax over depths: no training is needed. Samplers, guidance and score networks
are tested against this score; it can also drive a search on its own (`--score exact`).

For a node i with row x[i], the log-likelihood of operator o relative to an absent row is
l[i, o] = 2 x[i, o] / sigma^2 (rows differ from "absent" in one entry, +1 instead of -1). Then
    L[s, j]      = log mean_o exp l[s, j, o]               evidence that slot j of stage s is used
    log p(d|x_t) = log w_d + sum_{j < d} L[s, j] + const   depth of the stage
    E[x_0]       = 2 q softmax_o(l) - 1,    q[s, j] = sum_{d > j} p(d|x_t)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nag.sde import VESDE, ScoreFn, per_sample
from nag.spaces import SearchSpace, Stage

_NEVER = -1e30  # log of a zero probability; finite, so that gradients stay finite


@dataclass(frozen=True)
class _Layout:
    """The stages of a space padded to S stages x M slots."""

    node: Tensor  # (S, M) node of each slot; padding slots point at node 0
    real: Tensor  # (S, M) bool
    log_operator: Tensor  # (S, M, F) log prior of the operators of a used slot
    log_depth: Tensor  # (S, M + 1) log prior of each depth


@lru_cache(maxsize=64)
def _layout(
    stages: tuple[Stage, ...], num_operators: int, device: torch.device, dtype: torch.dtype
) -> _Layout:
    width = max(len(stage.choices) for stage in stages)
    node = torch.zeros(len(stages), width, dtype=torch.int64)
    real = torch.zeros(len(stages), width, dtype=torch.bool)
    log_operator = torch.full((len(stages), width, num_operators), _NEVER, dtype=dtype)
    log_depth = torch.full((len(stages), width + 1), _NEVER, dtype=dtype)
    for s, stage in enumerate(stages):
        real[s, : len(stage.choices)] = True
        for j, choices in enumerate(stage.choices):
            log_operator[s, j, list(choices)] = -torch.tensor(len(choices), dtype=dtype).log()
        for j in range(len(stage.choices), width):
            log_operator[s, j, 0] = 0.0
        log_depth[s, list(stage.depths)] = -torch.tensor(len(stage.depths), dtype=dtype).log()
    node[real] = torch.arange(int(real.sum()))
    return _Layout(*(t.to(device) for t in (node, real, log_operator, log_depth)))


def posterior(space: SearchSpace, x: Tensor, sigma: Tensor, reward: Tensor | None = None) -> Tensor:
    """P(node i holds operator o | x_t) under the uniform law, (B, N, F); rows sum to P(present).

    x: (B, N, F) noisy architectures in the centred coding; sigma: (B,).
    reward: (N, F) or (B, N, F), optional; tilts the law to p(A) ~ p_0(A) exp(sum of
    reward[i, o_i]).
    """
    layout = _layout(space.stages, space.shape[1], x.device, x.dtype)
    llr = 2 * x / per_sample(sigma**2)
    if reward is not None:
        llr = llr + reward
    log_p = llr[:, layout.node] + layout.log_operator  # (B, S, M, F)
    # logsumexp and softmax share one exponential: torch's own are slow along a short dimension
    top = log_p.amax(-1, keepdim=True).detach()
    weight = (log_p - top).exp()
    total = weight.sum(-1, keepdim=True)
    used = torch.where(layout.real, (top + total.log()).squeeze(-1), 0.0)  # (B, S, M)
    evidence = torch.cat([torch.zeros_like(used[..., :1]), used.cumsum(-1)], dim=-1)
    depth = (layout.log_depth + evidence).softmax(-1)  # (B, S, M + 1)
    present = depth[..., 1:].flip(-1).cumsum(-1).flip(-1)  # (B, S, M): P(depth > j)
    return (present[..., None] * weight / total)[:, layout.real]  # (B, N, F)


def posterior_mean(
    space: SearchSpace, x: Tensor, sigma: Tensor, reward: Tensor | None = None
) -> Tensor:
    """E[x_0 | x_t] in the centred coding, (B, N, F); arguments as for `posterior`."""
    return 2 * posterior(space, x, sigma, reward) - 1


def uniform_mean(space: SearchSpace) -> Tensor:
    """(N, F) mean of the encodings under the uniform law, in float64."""
    x = torch.zeros(1, *space.shape).double()  # an infinite sigma makes x uninformative
    return posterior(space, x, torch.tensor([torch.inf]).double())[0]


def posterior_mean_of_samples(samples: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] under the empirical law of a finite set, (B, N, F).

    samples (M, N, F) and x (B, N, F): in the centred coding; sigma: (B,).
    """
    flat = samples.flatten(1)  # (M, N F)
    distance = torch.cdist(x.flatten(1), flat).square()  # (B, M)
    weights = (-distance / (2 * sigma[:, None] ** 2)).softmax(-1)
    return (weights @ flat).view_as(x)


def exact_score(space: SearchSpace, sde: VESDE, reward: Tensor | None = None) -> ScoreFn:
    """The score of the (tilted) uniform law."""
    return _score(sde, lambda x, sigma: posterior_mean(space, x, sigma, reward))


def exact_score_of_samples(samples: Tensor, sde: VESDE) -> ScoreFn:
    """The score of the empirical law of a finite set of architectures.

    samples: (M, N, F) encodings in the centred coding.
    """
    return _score(sde, lambda x, sigma: posterior_mean_of_samples(samples.to(x), x, sigma))


def _score(sde: VESDE, mean: Callable[[Tensor, Tensor], Tensor]) -> ScoreFn:
    """(E[x_0 | x_t] - x_t) / sigma^2 (Tweedie's formula)."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        sigma = sde.sigma(t)
        return (mean(x, sigma) - x) / per_sample(sigma**2)

    return score
