"""Training: what the loss is minimised by, what EMA and resuming do, and that it works."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nag.checkpoint import save_tensors
from nag.exact_score import posterior
from nag.generate import generate
from nag.laws import UniformLaw, random_list, sde_of
from nag.score_net import ScoreNetConfig, ScoreNetwork
from nag.sde import VESDE, centre, per_sample
from nag.spaces.toy import TOY
from nag.training import (
    TrainingConfig,
    TrainingState,
    distance_to_exact,
    draw_sigma,
    learning_rate,
    score_matching_loss,
    train,
)

torch.set_num_threads(1)

LAW = UniformLaw(TOY)
SDE = sde_of(LAW)
SMALL = ScoreNetConfig(width=16, blocks=1, heads=2, feed_forward=32, head_widths=(32,))


class ExactNetwork(nn.Module):
    """Stand-in of a network: the exact posterior, with its logits moved by `error`."""

    def __init__(self, output, error=0.0):
        super().__init__()
        self.space, self.sde = TOY, SDE
        self.config = ScoreNetConfig(output=output)
        shift = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
        self.error = nn.Parameter(error * shift)

    def log_posterior(self, x, sigma):
        p = posterior(TOY, x, sigma)
        absent = (1 - p.sum(-1, keepdim=True)).clamp_min(0)
        return torch.cat([p, absent], -1).clamp_min(1e-20).log() + self.error

    def denoise(self, x, sigma):
        return centre(self.log_posterior(x, sigma).softmax(-1)[..., :-1])


class Recording:
    """A law that keeps what its posterior was asked and answered: (x, sigma, E[V | x])."""

    def __init__(self, law):
        self.law, self.draw, self.asked = law, law.draw, []

    def posterior(self, x, sigma):
        self.asked.append((x, sigma, self.law.posterior(x, sigma)))
        return self.asked[-1][-1]


def draws(n, seed=0):
    """Encodings, noise levels 0.3..2 and noise of n training samples."""
    generator = torch.Generator().manual_seed(seed)
    v = TOY.encode(TOY.sample(n, np.random.default_rng(seed)))
    sigma = 0.3 * (2 / 0.3) ** torch.rand(n, generator=generator)
    return v, sigma, torch.randn(v.shape, generator=generator)


def loss_of(net, v, sigma, noise, exact_target):
    """The loss of samples as `draws` makes them."""
    x = centre(v) + per_sample(sigma) * noise
    return score_matching_loss(net, x, sigma, LAW.posterior(x, sigma) if exact_target else v)


def network(**options):
    torch.manual_seed(0)
    return ScoreNetwork(TOY, SDE, ScoreNetConfig(**SMALL.to_json() | options))


# The loss.


@pytest.mark.parametrize("exact_target", [True, False])
@pytest.mark.parametrize("output", ["posterior", "score"])
def test_the_exact_posterior_minimises_the_loss(output, exact_target):
    sample = draws(20_000)

    def loss(error):
        with torch.no_grad():
            return loss_of(ExactNetwork(output, error), *sample, exact_target).item()

    losses = {error: loss(error) for error in (-0.6, -0.3, 0.0, 0.3, 0.6)}
    assert losses[0.0] < losses[0.3] < losses[0.6]
    assert losses[0.0] < losses[-0.3] < losses[-0.6]
    if output == "score" and exact_target:
        assert losses[0.0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("exact_target", [True, False])
@pytest.mark.parametrize("output", ["posterior", "score"])
def test_the_loss_is_flat_at_the_exact_posterior(output, exact_target):
    """Its gradient there vanishes, for the sampled target to Monte-Carlo noise."""

    def slope(error):
        net = ExactNetwork(output, error)
        loss_of(net, *draws(20_000), exact_target).backward()
        return net.error.grad.norm()

    assert slope(0.0) < (1e-3 if exact_target else 0.15) * slope(0.6)


@pytest.mark.parametrize("output", ["posterior", "score"])
def test_exact_and_sampled_targets_have_the_same_gradient_on_average(output):
    net = network(output=output)

    def gradient(seed, exact_target):
        loss = loss_of(net, *draws(500, seed), exact_target)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    repeats = 100
    exact = torch.stack([gradient(seed, True) for seed in range(repeats)])
    sampled = torch.stack([gradient(seed, False) for seed in range(repeats)])
    difference = sampled - exact
    error = (difference.var(0).sum() / repeats).sqrt()
    assert difference.mean(0).norm() < 2 * error
    assert error < 0.1 * exact.mean(0).norm()  # so that the line above says something
    if output == "posterior":  # the point of the exact target: less noise
        assert exact.var(0).sum() < sampled.var(0).sum()


def test_score_loss_is_denoising_score_matching():
    """E |sigma s(x_0 + sigma z) + z|^2 (method of the paper), for a network of random weights."""
    net = network(output="score")
    v, sigma, z = draws(50)
    x = centre(v) + per_sample(sigma) * z
    expected = (per_sample(sigma) * net(x, SDE.time(sigma)) + z).square().mean()
    torch.testing.assert_close(loss_of(net, v, sigma, z, exact_target=False), expected)


@pytest.mark.parametrize(
    ("sigmas", "focus"),
    [
        ((0.1, 5.0), (0.4, 2.0)),
        ((0.1, 1.0), (0.4, 1.0)),
        ((0.5, 5.0), (0.5, 2.0)),
        ((0.1, 0.3), (0.1, 0.3)),  # without a level of the focus range: all of them
    ],
    ids=str,
)
def test_noise_levels_lie_in_the_range_of_the_sde(sigmas, focus):
    """In training, where a share is in the focus range, and in the distance to the exact posterior,
    where all are."""
    net = ScoreNetwork(TOY, VESDE(SDE.mean, *sigmas), SMALL)
    config = TrainingConfig(batch_size=20_000, focus=0.6)
    sigma = draw_sigma(config, net, torch.Generator().manual_seed(0))
    assert_within(sigma, sigmas)
    inside = ((sigma > focus[0]) & (sigma < focus[1])).float().mean().item()
    share = np.log(focus[1] / focus[0]) / np.log(sigmas[1] / sigmas[0])
    assert inside == pytest.approx(0.6 + 0.4 * share, abs=0.02)

    law = Recording(LAW)
    distance_to_exact(net, law, draws(2_000)[0], torch.Generator().manual_seed(0))
    assert_within(law.asked[0][1], focus)


def assert_within(sigma, ends):
    """To the ends of the range and not beyond."""
    assert (sigma.min().item(), sigma.max().item()) == pytest.approx(ends, rel=0.02)
    assert sigma.min() >= ends[0] * (1 - 1e-6)
    assert sigma.max() <= ends[1] * (1 + 1e-6)


def test_learning_rate_warms_up_and_decays():
    config = TrainingConfig(steps=1_000, warm_up=100, learning_rate=1e-3, decay=False)
    assert learning_rate(config, 0) == pytest.approx(1e-5)
    assert learning_rate(config, 49) == pytest.approx(5e-4)
    assert learning_rate(config, 99) == learning_rate(config, 999) == pytest.approx(1e-3)
    decaying = TrainingConfig(steps=1_000, warm_up=100, learning_rate=1e-3)
    assert learning_rate(decaying, 500) == pytest.approx(5e-4)
    assert 0 < learning_rate(decaying, 999) < 1e-7


def test_distance_to_exact_is_zero_for_the_exact_posterior():
    v = draws(500)[0]
    near, off, far = (
        distance_to_exact(ExactNetwork("posterior", e), LAW, v, torch.Generator().manual_seed(0))
        for e in (0.0, 0.1, 1.0)
    )
    assert near == pytest.approx(0, abs=1e-5)
    assert near < off < far


# The run.


def run(config, stop=None, state=None, seed=4, **options):
    """Train a small network to step `stop`; returns the state."""
    state = state or TrainingState.start(network(**options))
    for _ in itertools.takewhile(lambda _: state.step != stop, train(state, LAW, config, seed)):
        pass
    return state


def assert_equal_tensors(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_resumed_training_equals_training_in_one_go(tmp_path):
    config = TrainingConfig(steps=20, batch_size=16, warm_up=5)
    whole = run(config, dropout=0.1)
    half = run(config, stop=10, dropout=0.1)
    assert half.step == 10
    save_tensors(half.tensors(), tmp_path / "half.safetensors")
    torch.manual_seed(99)
    resumed = TrainingState.start(ScoreNetwork(TOY, SDE, whole.network.config))
    resumed.load(load_file(tmp_path / "half.safetensors"))
    assert resumed.step == 10
    run(config, state=resumed)
    assert resumed.step == whole.step == 20
    assert_equal_tensors(resumed.tensors(), whole.tensors())


def test_the_exact_target_of_a_training_in_bfloat16_is_single_precision():
    law = Recording(random_list(TOY, 20, seed=0))  # its posterior multiplies matrices
    config = TrainingConfig(steps=1, batch_size=64, bfloat16=True)
    list(train(TrainingState.start(network()), law, config, seed=0))
    x, sigma, target = law.asked[0]
    assert torch.equal(target, law.law.posterior(x, sigma))


def test_training_leaves_the_generator_of_the_caller_alone():
    state = TrainingState.start(network(dropout=0.1))
    before = torch.get_rng_state()
    list(train(state, LAW, TrainingConfig(steps=2, batch_size=4), seed=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("output", ["posterior", "score"])
def test_a_training_that_diverges_stops_with_finite_weights(output):
    state = TrainingState.start(network(output=output))
    config = TrainingConfig(steps=50, batch_size=16, warm_up=1, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"the loss of step \d+ is "):
        list(train(state, LAW, config, seed=0))
    assert all(value.isfinite().all() for value in state.tensors().values())


def test_training_depends_on_its_seed():
    config = TrainingConfig(steps=3, batch_size=16, warm_up=1)
    a, b = (run(config, seed=seed).network.embed.weight for seed in (0, 1))
    assert not torch.equal(a, b)


def test_ema_is_the_stated_average_and_leaves_the_raw_weights_alone():
    """ema <- d ema + (1 - d) w after each step, with d = min(decay, (1 + n) / (10 + n))."""
    config = TrainingConfig(steps=30, batch_size=16, warm_up=5, ema=0.5)
    state = TrainingState.start(network())
    expected = state.network.embed.weight.detach().clone()
    for n, _ in enumerate(train(state, LAW, config, seed=4), start=1):
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * state.network.embed.weight.detach()
        torch.testing.assert_close(state.ema.embed.weight, expected)
    other = run(TrainingConfig(steps=30, batch_size=16, warm_up=5, ema=0.999))
    assert_equal_tensors(other.network.state_dict(), state.network.state_dict())
    assert not torch.equal(other.ema.embed.weight, state.ema.embed.weight)


def test_sampling_from_the_ema_between_steps_changes_nothing():
    config = TrainingConfig(steps=6, batch_size=16, warm_up=2)
    state = TrainingState.start(network(dropout=0.1))
    for _ in train(state, LAW, config, seed=4):
        generate(TOY, state.ema, SDE, 4, seed=0, steps=2)
        assert state.network.training
        assert not state.ema.training
    assert_equal_tensors(state.tensors(), run(config, dropout=0.1).tensors())


@pytest.mark.parametrize("exact_target", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_short_training_learns_the_toy_space(exact_target):
    config = TrainingConfig(steps=300, warm_up=30, exact_target=exact_target, ema=0.98)
    state = TrainingState.start(network())
    v = draws(1024, seed=1)[0]
    before = distance_to_exact(state.ema, LAW, v, torch.Generator().manual_seed(0))
    losses = list(train(state, LAW, config, seed=0))
    after = distance_to_exact(state.ema, LAW, v, torch.Generator().manual_seed(0))
    assert np.mean(losses[-50:]) < np.mean(losses[:50])
    assert after < 0.015 < 0.1 < before
    made = generate(TOY, state.ema, SDE, 1000, seed=0)
    assert made.validity >= 0.99
