"""The score network: a transformer over the nodes of an architecture.

Shapes: B batch, N nodes, F operators, C width, H heads.

There are two main presets. `paper` is the network of DiffusionNAG (paper Eq. 4-5, after CATE, Yan
et al. 2021); it outputs the score itself. `default` is 20 times smaller and outputs a *posterior*
over the operators of each node, from which the score follows. By Bayes' rule
    p(o_i | x_t)  ~  p(x_t[i] | o_i)  p(o_i | x_t[others])
The first factor, a Gaussian likelihood, is known. It is added to the logits, so the network only
has to learn what the *other* nodes say about node i, whatever the law of the data.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nag.sde import VESDE, per_sample
from nag.spaces import SearchSpace

MaskKind = Literal["full", "upper_triangular", "undirected"]
PositionKind = Literal["learned", "slot", "absolute", "none"]


@dataclass(frozen=True)
class ScoreNetConfig:
    """The architecture of a score network, stored with its weights.

    output: `posterior` (logits over operators and "absent") or `score`.
    positions: `learned` stage + slot embeddings; fixed sinusoids of the position inside the stage
    (`slot`) or in the graph (`absolute`); or `none`.
    """

    width: int = 64
    blocks: int = 3
    heads: int = 4
    feed_forward: int = 128
    head_widths: tuple[int, ...] = (128,)
    dropout: float = 0.0
    output: Literal["posterior", "score"] = "posterior"
    positions: PositionKind = "learned"
    mask: MaskKind = "full"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ScoreNetConfig":
        return cls(**{**data, "head_widths": tuple(data["head_widths"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


PRESETS = ("default", "paper", "undirected")


def preset(name: str, space: SearchSpace) -> ScoreNetConfig:
    """The configuration called `name`, one of PRESETS, for a space.

    `undirected` is a baseline in the style of GDSS (Jo et al., ICML 2022) in the paper's Table 4:
    an attention network on the undirected graph, equivariant to permutations of its nodes. Unlike
    GDSS, which also has to generate the graph, it is given the graph.
    """
    if name == "default":
        return ScoreNetConfig()
    if name == "undirected":
        return ScoreNetConfig(blocks=6, output="score", positions="none", mask="undirected")
    if name != "paper":
        raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    staged = int(space.slots[:, 1].max()) > 0
    return ScoreNetConfig(
        width=64,
        blocks=12,
        heads=8,
        feed_forward=128,
        head_widths=(1536, 1536),
        dropout=0.1,
        output="score",
        positions="slot" if staged else "absolute",
        mask="upper_triangular",
    )


def attention_mask(space: SearchSpace, kind: MaskKind) -> Tensor:
    """(N, N) bool, [i, j] is True when query node i may read key node j; includes the diagonal."""
    n = space.shape[0]
    match kind:
        case "full":
            return torch.ones(n, n, dtype=torch.bool)
        case "upper_triangular":
            return torch.ones(n, n, dtype=torch.bool).triu()
        case "undirected":
            return space.adjacency | space.adjacency.T | torch.eye(n, dtype=torch.bool)


def sinusoid(values: Tensor, frequencies: Tensor) -> Tensor:
    """(...,) -> (..., 2 K): sines, then cosines, of `values` times each of K frequencies."""
    angles = values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        def split(u: Tensor) -> Tensor:  # (B, N, C) -> (B, H, N, C / H)
            return u.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = scaled_dot_product_attention(
            split(self.query(h)),
            split(self.key(h)),
            split(self.value(h)),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Pre-norm transformer block; also returns its normalised output, for the head."""

    def __init__(self, config: ScoreNetConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_attention, self.norm_feed_forward, self.norm_out = (
            nn.LayerNorm(width) for _ in range(3)
        )
        self.attention = _Attention(width, config.heads, config.dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.feed_forward),
            nn.ReLU(),
            nn.Linear(config.feed_forward, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        h = h + self.dropout(self.attention(self.norm_attention(h), mask))
        h = h + self.dropout(self.feed_forward(self.norm_feed_forward(h)))
        return h, self.norm_out(h)


class _Positions(nn.Module):
    """(N, C) embedding of the nodes, added to every sample."""

    slots: Tensor
    table: Tensor

    def __init__(self, space: SearchSpace, kind: PositionKind, width: int) -> None:
        super().__init__()
        n, slots = space.shape[0], space.slots
        self.kind = kind
        if kind == "learned":
            self.stage = nn.Parameter(torch.randn(int(slots[:, 0].max()) + 1, width))
            self.slot = nn.Parameter(torch.randn(int(slots[:, 1].max()) + 1, width))
            self.register_buffer("slots", slots, persistent=False)
        elif kind in ("slot", "absolute"):
            place = (slots[:, 1] if kind == "slot" else torch.arange(n)).float()
            rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
            table = sinusoid(place, rates)  # interleave: even columns sine, odd columns cosine
            table = table.unflatten(-1, (2, -1)).transpose(1, 2).flatten(1)
            self.register_buffer("table", table, persistent=False)

    def forward(self) -> Tensor | float:
        if self.kind == "learned":
            return self.stage[self.slots[:, 0]] + self.slot[self.slots[:, 1]]
        return self.table if self.kind in ("slot", "absolute") else 0.0


class ScoreNetwork(nn.Module):
    """s_theta(x_t, sigma) (see the module docstring); knows its space and SDE, not the sampler."""

    time_rates: Tensor
    mask: Tensor | None

    def __init__(self, space: SearchSpace, sde: VESDE, config: ScoreNetConfig) -> None:
        super().__init__()
        self.space, self.sde, self.config = space, sde, config
        width, (_, f) = config.width, space.shape
        self.embed = nn.Linear(f, width)
        self.dropout = nn.Dropout(config.dropout)
        self.positions = _Positions(space, config.positions, width)
        self.register_buffer(
            "time_rates", torch.exp(-math.log(10000.0) * torch.arange(32) / 31), persistent=False
        )
        self.time = nn.Sequential(nn.Linear(64, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        widths = [
            config.blocks * width,
            *config.head_widths,
            f + 1 if config.output == "posterior" else f,
        ]
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.ELU()]
        self.head = nn.Sequential(*layers[:-1])
        mask = attention_mask(space, config.mask)
        self.register_buffer("mask", None if mask.all() else mask, persistent=False)

    def _trunk(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, F), (B,) -> (B, N, outputs)."""
        time = self.time(sinusoid(condition, self.time_rates))  # (B, C)
        h = self.dropout(self.embed(x) * math.sqrt(self.config.width))
        h = h + self.positions() + time[:, None]
        outputs = []
        for block in self.blocks:
            h, normed = block(h, self.mask)
            outputs.append(normed)
        return self.head(torch.cat(outputs, dim=-1))

    def log_posterior(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Unnormalised log p(operator or absent | x_t), (B, N, F + 1), absent last."""
        s = per_sample(sigma)
        likelihood = nn.functional.pad(2 * x / s**2, (0, 1))  # absent: 0
        return likelihood + self._trunk(x / (1 + s**2).sqrt(), 5 * sigma.log())

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t] in the centred coding, (B, N, F)."""
        if self.config.output == "posterior":
            return 2 * self.log_posterior(x, sigma).softmax(-1)[..., :-1] - 1
        return x + per_sample(sigma**2) * self._trunk(x, sigma)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The score at (x_t (B, N, F), t (B,)): this module is a `ScoreFn`."""
        sigma = self.sde.sigma(t)
        if self.config.output == "score":
            return self._trunk(x, sigma)
        return (self.denoise(x, sigma) - x) / per_sample(sigma**2)

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
