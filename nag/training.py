"""Training the score network by denoising score matching.

A network that outputs a posterior (the default) is trained by the cross-entropy of that posterior,
summed over nodes; one that outputs the score (the `paper` preset) by denoising score matching, the
mean of sigma^2 |s - s*|^2. The target is the clean architecture or, if the law of the data is known
in closed form, its exact posterior given x_t: the same minimiser, without the noise in the target.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nag.laws import Law
from nag.score_net import ScoreNetwork
from nag.sde import VESDE, centre, per_sample, uncentre

FOCUS_RANGE = (0.4, 2.0)
"""Noise levels, in the centred coding, at which the operator of a node is decided."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Noise levels are log-uniform: a fraction `focus` of them over FOCUS_RANGE, the
    rest over the whole range of the SDE."""

    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 3e-3
    warm_up: int = 500
    decay: bool = True  # cosine, to zero at the last step
    clip: float = 1.0
    ema: float = 0.999
    focus: float = 0.7
    exact_target: bool = True
    bfloat16: bool = False  # matrix products in bfloat16; weights and loss stay float32


PAPER_TRAINING = TrainingConfig(
    batch_size=256,
    steps=250_000,
    learning_rate=2e-5,
    warm_up=1_000,
    decay=False,
    ema=0.9999,
    focus=0.0,
    exact_target=False,
)


@dataclass
class TrainingState:
    """The full state of a training between two steps. `tensors` and `load` make it resumable."""

    network: ScoreNetwork
    ema: ScoreNetwork
    optimizer: torch.optim.Adam
    step: int = 0

    @classmethod
    def start(cls, network: ScoreNetwork) -> "TrainingState":
        ema = ScoreNetwork(network.space, network.sde, network.config).to(_device(network))
        ema.load_state_dict(network.state_dict())
        optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
        return cls(network, ema.eval().requires_grad_(False), optimizer)

    def tensors(self) -> dict[str, Tensor]:
        parts = {"step": torch.tensor(self.step)}
        parts |= {f"network.{k}": v for k, v in self.network.state_dict().items()}
        parts |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            parts |= {f"adam.{i}.{k}": v for k, v in moments.items()}
        return parts

    def load(self, parts: dict[str, Tensor]) -> None:
        def group(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in parts.items() if k.startswith(prefix)}

        self.step = int(parts["step"])
        self.network.load_state_dict(group("network."))
        self.ema.load_state_dict(group("ema."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in group("adam.").items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then constant or cosine decay."""
    warm = min(1.0, (step + 1) / config.warm_up)
    if not config.decay:
        return config.learning_rate * warm
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def log_range(sde: VESDE, levels: tuple[float, float]) -> tuple[float, float]:
    """Logarithms of the ends of a range of noise levels, clipped to the range of the SDE; or the
    whole range of the SDE if the two do not overlap."""
    low, high = max(levels[0], sde.sigma_min), min(levels[1], sde.sigma_max)
    if low >= high:
        low, high = sde.sigma_min, sde.sigma_max
    return math.log(low), math.log(high)


def draw_sigma(config: TrainingConfig, network: ScoreNetwork, generator: torch.Generator) -> Tensor:
    """(B,) noise levels: log-uniform over the SDE or, for some, over the focus range."""
    u, focused = torch.rand(2, config.batch_size, generator=generator)
    low, high = log_range(network.sde, (0.0, math.inf))
    focus_low, focus_high = log_range(network.sde, FOCUS_RANGE)
    whole = low + (high - low) * u
    narrow = focus_low + (focus_high - focus_low) * u
    return torch.where(focused < config.focus, narrow, whole).exp()


def score_matching_loss(network: ScoreNetwork, x: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """Scalar loss for noised architectures x (B, N, F) in the centred coding, at noise levels (B,).

    target: (B, N, F), the clean encodings or their posterior mean E[V | x_t].

    A `posterior` network is trained by cross-entropy, a proper scoring rule for the same posterior
    whose gradient does not vanish where a softmax saturates. A `score` network is trained by
    sigma^2 |s - s*|^2.
    """
    if network.config.output == "posterior":
        absent = 1 - target.sum(-1, keepdim=True)
        log_p = network.log_posterior(x, sigma).log_softmax(-1)
        return -(torch.cat([target, absent], -1) * log_p).sum(-1).mean()
    s = per_sample(sigma)
    score = (network.denoise(x, sigma) - x) / s**2
    return (s * score - (centre(target) - x) / s).square().mean()


def train(state: TrainingState, law: Law, config: TrainingConfig, seed: int) -> Iterator[float]:
    """Train on draws from a law, from `state.step` to the end, yielding the loss of every step.

    The randomness of step k depends on (seed, k) alone, so a resumed run equals an uninterrupted
    one; torch's global generators are left unchanged. If the loss or its gradient is not finite,
    raises FloatingPointError before touching the weights.
    """
    device = _device(state.network)
    gpus = [device] if device.type == "cuda" else []  # dropout uses their generator
    state.network.train()
    while state.step < config.steps:
        rng = np.random.default_rng([seed, state.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        dropout_seed = int(rng.integers(2**62))
        v = law.draw(config.batch_size, rng)
        sigma = draw_sigma(config, state.network, generator)
        noise = torch.randn(v.shape, generator=generator)
        v, sigma, noise = v.to(device), sigma.to(device), noise.to(device)
        x = centre(v) + per_sample(sigma) * noise
        target = law.posterior(x, sigma) if config.exact_target else v
        with (
            torch.random.fork_rng(gpus),
            torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16),
        ):
            torch.manual_seed(dropout_seed)
            loss = score_matching_loss(state.network, x, sigma, target)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
        if not (loss.isfinite() and norm.isfinite()):
            found = f"is {loss.item():g}, the norm of its gradient {norm.item():g}"
            raise FloatingPointError(f"the loss of step {state.step + 1} {found}")
        state.optimizer.step()
        state.step += 1
        _update_ema(state, config.ema)
        yield loss.item()


@torch.no_grad()
def _update_ema(state: TrainingState, decay: float) -> None:
    decay = min(decay, (1 + state.step) / (10 + state.step))
    for average, value in zip(state.ema.parameters(), state.network.parameters(), strict=True):
        average.lerp_(value, 1 - decay)


@torch.no_grad()
def distance_to_exact(
    network: ScoreNetwork, law: Law, v: Tensor, generator: torch.Generator
) -> float:
    """RMS difference between the denoised estimate and the exact posterior mean, in the 0/1 coding,
    over noised encodings v (B, N, F) at levels in FOCUS_RANGE. Validity and loss do not show it."""
    low, high = log_range(network.sde, FOCUS_RANGE)
    sigma = torch.empty(len(v)).uniform_(low, high, generator=generator).exp()
    x = centre(v) + per_sample(sigma) * torch.randn(v.shape, generator=generator)
    x, sigma = x.to(_device(network)), sigma.to(_device(network))
    error = uncentre(network.denoise(x, sigma)) - law.posterior(x, sigma)
    return error.square().mean().sqrt().item()
