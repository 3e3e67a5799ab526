"""BANANAS' surrogate: an ensemble of feed-forward networks on the path encoding.

White, Neiswanger & Savani, AAAI 2021. Every member has 10 layers of 20 rectified linear units and a
linear output. It minimises the mean absolute error with Adam for 150 epochs at batch size 32, with
its own initial weights and data order. Mean and standard deviation are taken over the members.
Shapes: M members, D entries of the encoding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from nag.predictors.base import Observations, Prediction
from nag.predictors.baselines.gp import one_hot
from nag.predictors.baselines.outputs import Outputs, standardised
from nag.spaces import Architecture, SearchSpace

MEMBERS = 5
LAYERS, WIDTH = 10, 20
EPOCHS, BATCH_SIZE, LEARNING_RATE, BETAS = 150, 32, 0.01, (0.9, 0.99)

_MIN_STD = 1e-4  # in standard deviations of the observations

Parameters = list[Tensor]  # weight (M, I, O), bias (M, 1, O) of each layer


def has_paths(space: SearchSpace) -> bool:
    """Whether the graph leads from an input to an output through operators."""
    return {"input", "output"} <= {*space.operators}


def paths(space: SearchSpace) -> list[tuple[int, ...]]:
    """The inner nodes of every path from the first to the last node of the graph."""
    adjacency = space.adjacency
    last = len(adjacency) - 1
    open_: list[tuple[int, ...]] = [(0,)]
    done = []
    while open_:
        path = open_.pop()
        for v in adjacency[path[-1]].nonzero()[:, 0].tolist():
            if v == last:
                done.append(path[1:])
            else:
                open_.append((*path, v))
    return sorted(done, key=lambda path: (len(path), path))


def path_encoding(space: SearchSpace, archs: Sequence[Architecture]) -> Tensor:
    """Which words of operators the paths from input to output spell, (B, D) in {0, 1}.

    A path through `none` does not count. Words of n letters come before those of n + 1.
    """
    letters = [i for i, o in enumerate(space.operators) if o not in ("input", "output", "none")]
    routes = paths(space)
    lengths = sorted({len(route) for route in routes})
    words = [word for n in lengths for word in product(letters, repeat=n)]
    column = {word: i for i, word in enumerate(words)}
    encoding = torch.zeros(len(archs), len(words))
    for row, arch in enumerate(archs):
        for route in routes:
            word = tuple(arch.ops[node] for node in route)
            if word in column:
                encoding[row, column[word]] = 1
    return encoding


def initial(d: int, generator: torch.Generator) -> Parameters:
    """Weights uniform with variance 2 / (inputs + outputs) (Glorot & Bengio 2010), biases 0."""
    parameters = []
    for i, o in pairwise((d, *(WIDTH,) * LAYERS, 1)):
        bound = (6 / (i + o)) ** 0.5
        weight = torch.empty(MEMBERS, i, o).uniform_(-bound, bound, generator=generator)
        parameters += [weight, torch.zeros(MEMBERS, 1, o)]
    return [p.requires_grad_() for p in parameters]


def forward(parameters: Parameters, x: Tensor) -> Tensor:
    """Inputs (M, B, D) -> outputs (M, B)."""
    *hidden, weight, bias = parameters
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = torch.baddbmm(b, x, w).relu()
    return torch.baddbmm(bias, x, weight)[..., 0]


def train(x: Tensor, z: Tensor, generator: torch.Generator) -> Parameters:
    """Train all members at once on encodings (n, D) and values (n,)."""
    parameters = initial(x.shape[1], generator)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=BETAS, fused=True)
    for _ in range(EPOCHS):
        order = torch.rand(MEMBERS, len(x), generator=generator).argsort(dim=1)  # (M, n)
        for batch in order.split(BATCH_SIZE, dim=1):
            error = (forward(parameters, x[batch]) - z[batch]).abs()
            optimizer.zero_grad()
            error.mean(1).sum().backward()
            optimizer.step()
    return [p.detach() for p in parameters]


@dataclass(frozen=True, eq=False)
class FittedEnsemble:
    """Implements `FittedPredictor`."""

    encode: Callable[[Sequence[Architecture]], Tensor]
    parameters: Parameters
    outputs: Outputs

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        if not archs:
            return Prediction(np.zeros(0), np.zeros(0))
        x = self.encode(archs).expand(MEMBERS, -1, -1)
        z = forward(self.parameters, x).double()  # (M, B)
        std = z.std(0).clamp_min(_MIN_STD)
        return self.outputs.prediction(z.mean(0).numpy(), std.numpy())

    def condition(self, archs: Sequence[Architecture]) -> "FittedEnsemble":
        """Return the ensemble unchanged: training on its own mean would not reduce uncertainty.

        BANANAS, too, picks a batch by independent Thompson samples from one fit.
        """
        del archs
        return self


@dataclass(frozen=True)
class Ensemble:
    """BANANAS' ensemble. Implements `SurrogatePredictor`.

    Spaces without paths from an input to an output use the one-hot encoding. Values are
    standardised, unlike in the original.
    """

    space: SearchSpace

    def _encode(self, archs: Sequence[Architecture]) -> Tensor:
        if has_paths(self.space):
            return path_encoding(self.space, archs)
        return one_hot(self.space, archs).float()

    def fit(self, observations: Observations, rng: np.random.Generator) -> FittedEnsemble:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        outputs = standardised(observations.values)
        x, z = self._encode(observations.archs), torch.from_numpy(outputs.z).float()
        return FittedEnsemble(self._encode, train(x, z, generator), outputs)
