"""Laws (distributions) of architectures, which score networks learn and are compared with.

A law can be sampled, and its posterior given Gaussian noise is known in closed form.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nag.errors import UserError
from nag.exact_score import posterior, posterior_mean_of_samples, uniform_mean
from nag.sde import SIGMA_MAX, SIGMA_MIN, VESDE, centre, uncentre
from nag.spaces import Architecture, SearchSpace

LARGEST_EXACT = 20_000  # longest list whose exact score is cheap enough to compute

_MAX_DRAWS = 50  # times the number of distinct architectures wanted; then `random_list` gives up


class Law(Protocol):
    """A distribution over the architectures of one space."""

    @property
    def space(self) -> SearchSpace: ...

    @property
    def mean(self) -> Tensor:
        """(N, F) mean of the encodings."""
        ...

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """(n, N, F) encodings of independent draws."""
        ...

    def posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[V | x_t], (B, N, F) in [0, 1], for x_t in the centred coding and sigma (B,)."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Identify the law in the training record of a network."""
        ...


@dataclass(frozen=True)
class UniformLaw:
    """Every decision of the space is uniform: independent stages, equally likely depths."""

    space: SearchSpace

    @cached_property
    def mean(self) -> Tensor:
        return uniform_mean(self.space).float()

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        return self.space.encode(self.space.sample(n, rng))

    def posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        return posterior(self.space, x, sigma)

    def to_json(self) -> dict[str, Any]:
        return {"law": "uniform"}


@dataclass(frozen=True, eq=False)
class ListLaw:
    """The empirical law of a finite list: its architectures are equally likely.

    Its exact score reproduces the list and nothing else. How far a network trained on it
    generalises depends on its capacity and training.
    """

    space: SearchSpace
    archs: tuple[Architecture, ...]
    origin: dict[str, Any]  # where the list came from

    @cached_property
    def _encodings(self) -> Tensor:
        return self.space.encode(self.archs)

    @cached_property
    def mean(self) -> Tensor:
        return self._encodings.mean(0)

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        return self._encodings[torch.from_numpy(rng.integers(len(self.archs), size=n))]

    def posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        return uncentre(posterior_mean_of_samples(centre(self._encodings).to(x), x, sigma))

    def to_json(self) -> dict[str, Any]:
        ops = np.array([arch.ops for arch in self.archs], dtype=np.int8)
        digest = hashlib.sha256(ops.tobytes()).hexdigest()
        return {"law": "list", "num": len(self.archs), "sha256": digest, **self.origin}


def random_list(space: SearchSpace, num: int, seed: int) -> ListLaw:
    """`num` distinct uniform draws, the same for the same seed: a random subset of the space.

    Raises UserError if the space is too small.
    """
    rng = np.random.default_rng([seed, 2])
    found: dict[Architecture, None] = {}
    for _ in range(_MAX_DRAWS):
        found |= dict.fromkeys(space.sample(num, rng))
        if len(found) >= num:
            return ListLaw(space, tuple(found)[:num], {"random": num, "seed": seed})
    raise UserError(f"found fewer than {num} distinct architectures in {space.name}")


def sde_of(law: Law, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> VESDE:
    """The SDE with its prior at the mean of a law."""
    return VESDE.of_mean(centre(law.mean), sigma_min, sigma_max)
