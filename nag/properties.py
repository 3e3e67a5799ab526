"""Properties of architectures that are known without evaluation, and constraints on them.

MACs, parameters and latencies from a look-up table are sums over the nodes: additive in the
encoding. So their expectation given x_t is exact, E[c | x_t] = c(E[V | x_t]), and a constraint can
be enforced without retraining anything.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor

from nag.exact_score import posterior, uniform_mean
from nag.sde import per_sample
from nag.spaces import Architecture, SearchSpace

# Standard deviations between the mean of the guided law and the limit. Towards the end one node may
# still be undecided; by Cantelli's inequality, 1 keeps at least half of its weight below the limit.
_MARGIN = 1.0
_BISECTIONS = 10
_PRICES = (1e-2, 1e5)  # search range, in units of 1 / standard deviation of the property
_REACH = 100.0  # several prices are searched up to this many times the evidence and the reward
_ELLIPSOIDS = 14  # steps, times K (K + 1)
_RESOLUTION = 0.01  # of a search for several prices


@dataclass(frozen=True, eq=False)
class Property:
    """value(A) = offset + sum_i coefficients[i, o_i], plus noise of standard deviation `std`."""

    name: str
    space: SearchSpace
    offset: float
    coefficients: NDArray[np.float64]  # (N, F)
    std: float = 0.0

    def __call__(self, archs: Sequence[Architecture]) -> NDArray[np.float64]:
        """(B,) values."""
        ops = np.array([arch.ops for arch in archs], dtype=int)
        ops = ops.reshape(-1, len(self.coefficients))  # (B, N)
        chosen = self.coefficients[np.arange(ops.shape[1]), ops]  # arbitrary for ABSENT
        return self.offset + np.where(ops >= 0, chosen, 0.0).sum(1)

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest value in the space."""
        bounds = [self.offset, self.offset]
        for nodes, stage in zip(self.space.nodes, self.space.stages, strict=True):
            rows = zip(self.coefficients[nodes], stage.choices, strict=True)
            slots = [row[list(choices)] for row, choices in rows]
            for i, best in enumerate((np.min, np.max)):
                sums = np.cumsum([0.0, *(best(slot) for slot in slots)])
                bounds[i] += float(best(sums[list(stage.depths)]))
        return bounds[0], bounds[1]

    @cached_property
    def spread(self) -> float:
        """Standard deviation under the uniform law if nodes were independent; 1 if it is 0."""
        c = torch.from_numpy(self.coefficients)
        spread = math.sqrt(_variance(uniform_mean(self.space), c).item())
        return spread if spread > 1e-6 * float(np.abs(self.coefficients).max()) else 1.0


@dataclass(frozen=True, eq=False)
class Constraint:
    """quantity <= limit, or quantity >= limit."""

    quantity: Property
    limit: float
    at_most: bool = True

    def __str__(self) -> str:
        return f"{self.quantity.name}{'<=' if self.at_most else '>='}{self.limit:g}"

    @property
    def possible(self) -> bool:
        """Whether any architecture of the space satisfies it."""
        low, high = self.quantity.extremes
        return low <= self.limit if self.at_most else high >= self.limit

    def scaled(self, like: Tensor) -> Tensor:
        """(N, F) coefficients in standard deviations of the property, signed: less is better."""
        sign = 1.0 if self.at_most else -1.0
        return torch.from_numpy(sign * self.quantity.coefficients / self.quantity.spread).to(like)

    @property
    def scaled_limit(self) -> tuple[float, float]:
        """Limit of the scaled sum, and the standard deviation of the property's own noise."""
        sign = 1.0 if self.at_most else -1.0
        limit = sign * (self.limit - self.quantity.offset) / self.quantity.spread
        return limit, self.quantity.std / self.quantity.spread

    def log_feasible(self, archs: Sequence[Architecture]) -> NDArray[np.float64]:
        """log P(feasible), (B,): 0 or -inf for a property that is known exactly."""
        slack = self.limit - self.quantity(archs)
        if not self.at_most:
            slack = -slack
        if self.quantity.std == 0:
            return np.where(slack >= 0, 0.0, -np.inf)
        return log_ndtr(slack / self.quantity.std)

    def satisfied(self, archs: Sequence[Architecture]) -> NDArray[np.bool_]:
        """(B,) whether the constraint holds more likely than not."""
        return self.log_feasible(archs) >= math.log(0.5)


def with_random_limit(
    quantity: Property, constraints: Sequence[Constraint], rng: np.random.Generator
) -> tuple[Constraint, ...]:
    """The constraints and an upper limit within the values of the quantity that they leave.

    Log-uniform, as costs are compared by their ratios; uniform if not all values are positive. It
    implies other upper limits on the quantity, which are left out: a price for each takes longer.
    """
    low, high = quantity.extremes
    own = [constraint for constraint in constraints if constraint.quantity.name == quantity.name]
    low = max([low, *(constraint.limit for constraint in own if not constraint.at_most)])
    high = min([high, *(constraint.limit for constraint in own if constraint.at_most)])
    share = rng.random()
    limit = low * (high / low) ** share if low > 0 else low + share * (high - low)
    implied = [constraint for constraint in own if constraint.at_most]
    others = (constraint for constraint in constraints if constraint not in implied)
    return (*others, Constraint(quantity, min(max(limit, low), high)))


def satisfied(
    constraints: Sequence[Constraint], archs: Sequence[Architecture]
) -> NDArray[np.bool_]:
    """(B,) whether each architecture satisfies all constraints."""
    return np.logical_and.reduce(
        [constraint.satisfied(archs) for constraint in constraints], initial=True
    ) & np.ones(len(archs), dtype=bool)


def shadow_prices(
    space: SearchSpace,
    constraints: Sequence[Constraint],
    x: Tensor,
    sigma: Tensor,
    reward: Tensor,
) -> Tensor:
    """sum_c lambda_c coefficients_c, (B, N, F): subtracted from `reward` to keep the constraints.

    lambda (B,) is the least price >= 0 at which the mean of c under the law p(A | x_t)
    exp((reward - lambda c) . A) is a margin below the limit. Conditioning on the constraint tends
    to this tilted law when many nodes contribute (the Gibbs conditioning principle). For a strong
    reward it is the Lagrangian of "maximise the reward subject to the constraint", and the prices
    minimise its dual, whose gradient is limit - E[c] - margin. One price is found by bisection,
    several by the ellipsoid method, whose evaluations grow with the square of their number.
    constraints: at least one.
    """
    c = torch.stack([constraint.scaled(x) for constraint in constraints])  # (K, N, F)
    limit, noise = x.new_tensor([constraint.scaled_limit for constraint in constraints]).T

    def charge(prices: Tensor) -> Tensor:
        return (prices[:, :, None, None] * c).sum(1)

    def excess(prices: Tensor) -> Tensor:
        """(B, K) -> (B, K): by how much means plus margins exceed the limits."""
        p = posterior(space, x, sigma, reward - charge(prices))[:, None]  # (B, 1, N, F)
        return (p * c).sum((2, 3)) + _MARGIN * (_variance(p, c) + noise**2).sqrt() - limit

    if len(constraints) == 1:
        return charge(_bisected(excess, x.new_zeros(len(x), 1)))
    evidence = (2 * x / per_sample(sigma**2) + reward).abs().amax((1, 2))
    return charge(_by_ellipsoids(excess, _REACH * (1 + evidence), len(constraints)))


def _bisected(excess: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
    """(B, 1): the least price without excess."""
    free = excess(zero) <= 0
    low, high = (zero + math.log(price) for price in _PRICES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        holds = excess(middle.exp()) <= 0
        low, high = torch.where(holds, low, middle), torch.where(holds, middle, high)
    return torch.where(free, zero, high.exp())


def _by_ellipsoids(excess: Callable[[Tensor], Tensor], most: Tensor, k: int) -> Tensor:
    """(B, K) prices up to `most` (B,): of those without excess, the ones closest to charging only
    for limits that are reached (complementary slackness); if all have excess, the least excess.

    The ellipsoid method (Grötschel, Lovász & Schrijver, "Geometric Algorithms and Combinatorial
    Optimization", 1988, chapter 3): the gradient at the centre of an ellipsoid tells which half of
    it holds the minimum, and the smallest ellipsoid around that half is the next one.
    """
    at = (most / 2)[:, None].repeat(1, k)
    shape = torch.eye(k).to(most) * (k / 4) * most[:, None, None] ** 2  # around the cube
    found, least, unused = at, torch.full_like(most, torch.inf), torch.full_like(most, torch.inf)
    for _ in range(_ELLIPSOIDS * k * (k + 1)):
        prices = at.clamp_min(0)
        over = excess(prices)
        worst, slack = over.amax(1).clamp_min(0), -(over * prices).sum(1)
        better = (worst < least) | ((worst == least) & (slack < unused))
        found = torch.where(better[:, None], prices, found)
        least, unused = torch.where(better, worst, least), torch.where(better, slack, unused)
        outside = (at < 0).any(1, keepdim=True)
        gradient = torch.where(outside, at.clamp_max(0), -over)[..., None]  # (B, K, 1)
        along = shape @ gradient
        width = (gradient.mT @ along).clamp_min(0).sqrt()  # (B, 1, 1)
        open_ = width > _RESOLUTION * gradient.norm(dim=1, keepdim=True)
        step = torch.where(open_, along / width, 0.0)
        at = at - step[..., 0] / (k + 1)
        smaller = (shape - 2 / (k + 1) * step @ step.mT) * k**2 / (k**2 - 1)
        shape = torch.where(open_, (smaller + smaller.mT) / 2, shape)
    return found


def _variance(p: Tensor, c: Tensor) -> Tensor:
    """(...) variance of sum_i c[i, o_i] for independent o_i ~ p (..., N, F); absent counts as 0."""
    return ((p * c**2).sum(-1) - (p * c).sum(-1) ** 2).clamp_min(0).sum(-1)
