"""The score network: sizes, masks, and how score and denoised estimate belong together."""

import json
import math
from dataclasses import replace
from subprocess import CalledProcessError

import pytest
import torch
from torch import nn

from nag.errors import one_line
from nag.generator import accelerated
from nag.laws import UniformLaw, sde_of
from nag.score_net import ScoreNetConfig, ScoreNetwork, attention_mask, preset
from nag.sde import per_sample, uncentre
from nag.spaces import SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY

MASKS = ("full", "upper_triangular", "undirected")
POSITIONS = ("learned", "slot", "absolute", "none")


def network(space, **options):
    """A small network of random weights in evaluation mode, float64."""
    torch.manual_seed(0)
    config = ScoreNetConfig(
        **{"width": 16, "blocks": 2, "heads": 2, "head_widths": (16,)} | options
    )
    return ScoreNetwork(space, sde_of(UniformLaw(space)), config).eval().double()


def inputs(space, n=5):
    generator = torch.Generator().manual_seed(1)
    t = torch.linspace(0.05, 1, n).double()
    return torch.randn(n, *space.shape, generator=generator).double(), t


@pytest.mark.parametrize(
    ("space", "count"), [(NASBENCH201, 3_989_575), (MOBILENETV3, 3_992_777)], ids=["nb201", "mbv3"]
)
def test_paper_preset_has_the_published_size(space, count):
    net = ScoreNetwork(space, sde_of(UniformLaw(space)), preset("paper", space))
    assert net.num_parameters() == count
    without = ScoreNetwork(space, net.sde, replace(net.config, positions="none"))
    assert without.num_parameters() == count  # fixed tables hold no parameters
    default = ScoreNetwork(space, net.sde, preset("default", space))
    assert default.num_parameters() < count / 15


def test_the_paper_preset_attends_and_counts_as_published():
    for space, positions in ((NASBENCH201, "absolute"), (MOBILENETV3, "slot")):
        config = preset("paper", space)
        assert (config.mask, config.positions) == ("upper_triangular", positions)
        assert (config.output, config.dropout) == ("score", 0.1)


def test_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'huge': choose from default, paper"):
        preset("huge", TOY)


@pytest.mark.parametrize("name", ["default", "paper"])
def test_configuration_survives_json(name):
    config = preset(name, MOBILENETV3)
    assert ScoreNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


# Masks: [i, j] is True when query i may read key j.


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_no_row_of_a_mask_is_empty(space, kind):
    mask = attention_mask(space, kind)
    assert mask.shape == (space.shape[0],) * 2
    assert mask.dtype == torch.bool
    assert mask.diagonal().all()


def test_what_the_masks_mean():
    n = MOBILENETV3.shape[0]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    assert attention_mask(MOBILENETV3, "full").all()
    assert torch.equal(attention_mask(MOBILENETV3, "upper_triangular"), j >= i)
    assert torch.equal(attention_mask(MOBILENETV3, "undirected"), (j - i).abs() <= 1)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_undirected_mask_is_the_adjacency_both_ways(space):
    mask = attention_mask(space, "undirected")
    assert torch.equal(mask, mask.T)
    edges = {(u, v) for u, v in mask.nonzero().tolist() if u != v}
    assert edges == {e for u, v in space.adjacency.nonzero().tolist() for e in ((u, v), (v, u))}


@pytest.mark.parametrize("output", ["posterior", "score"])
@pytest.mark.parametrize("kind", MASKS)
def test_a_node_depends_on_exactly_what_the_mask_lets_it_reach(kind, output):
    """Through two blocks node i reaches the nodes of the squared mask, by gradient."""
    net = network(NASBENCH201, mask=kind, output=output)
    reach = torch.linalg.matrix_power(attention_mask(NASBENCH201, kind).float(), 2) > 0
    x, t = inputs(NASBENCH201, 3)
    x.requires_grad_()
    score = net(x, t)
    for i in range(8):
        (gradient,) = torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)
        depends = (gradient != 0).any(-1).any(0)
        assert torch.equal(depends, reach[i])


# Outputs.


@pytest.mark.parametrize("output", ["posterior", "score"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_score_and_denoised_estimate_obey_tweedie(space, output):
    """s(x_t, t) = (E[x_0 | x_t] - x_t) / sigma(t)^2."""
    net = network(space, output=output)
    x, t = inputs(space)
    sigma = net.sde.sigma(t)
    score = net(x, t)
    assert score.shape == x.shape
    torch.testing.assert_close((net.denoise(x, sigma) - x) / per_sample(sigma**2), score)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_posterior_is_a_distribution_over_operators_and_absence(space):
    net = network(space)
    x, t = inputs(space)
    sigma = net.sde.sigma(t)
    assert net.log_posterior(x, sigma).shape == (5, space.shape[0], space.shape[1] + 1)
    p = uncentre(net.denoise(x, sigma))
    assert p.min() >= 0
    assert p.sum(-1).max() <= 1 + 1e-12


def test_a_posterior_network_knows_the_likelihood_of_a_node():
    """Near sigma_min a row far in one corner is that operator, whatever the untrained weights."""
    arch = MOBILENETV3.from_str("_".join((["3-5-4"] * 3 + ["0-0-0"]) * 5))
    x = 2 * MOBILENETV3.encode([arch]).double() - 1
    p = uncentre(network(MOBILENETV3).denoise(x, torch.tensor([0.1]).double()))
    assert MOBILENETV3.decode(p) == [arch]


# What the network is made of.


@pytest.mark.parametrize("kind", ["absolute", "slot"])
def test_sinusoids_of_positions_are_those_of_the_paper(kind):
    """PE[p, 2 i] = sin(p / 10000^(2 i / C)), PE[p, 2 i + 1] = cos (Vaswani et al. 2017, 3.5)."""
    table, width = network(MOBILENETV3, positions=kind).positions(), 16
    for node in range(20):
        p = node if kind == "absolute" else node % 4
        angles = [p / 10_000 ** (2 * i / width) for i in range(width // 2)]
        expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
        assert table[node].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_score_depends_on_the_time():
    net = network(NASBENCH201, output="score")  # with no factor of sigma around the transformer
    x, t = inputs(NASBENCH201)
    assert not torch.allclose(net(x, t), net(x, t.flip(0)), atol=1e-3)


def test_the_head_reads_all_blocks():
    net = network(NASBENCH201, blocks=3)
    net(*inputs(NASBENCH201)).square().sum().backward()
    for block in net.blocks:
        assert block.norm_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("part", ["attention weights", "layers"])
def test_training_drops_out(part):
    """Of the attention weights, and of the outputs of layers, each with the other at rest."""
    net = network(NASBENCH201, dropout=0.5)
    sample = inputs(NASBENCH201)
    at_rest = net(*sample)
    for module in net.modules():
        is_layer = isinstance(module, nn.Dropout)
        module.training = is_layer == (part == "layers")
    assert not torch.allclose(net(*sample), at_rest)
    torch.testing.assert_close(net.eval()(*sample), at_rest)


# Symmetries.


def test_without_positions_nodes_are_interchangeable():
    """f(P x) = P f(x) for every permutation P of the nodes."""
    x, t = inputs(NASBENCH201)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    net = network(NASBENCH201, positions="none")
    torch.testing.assert_close(net(x[:, order], t), net(x, t)[:, order])
    for positions in ("learned", "absolute"):
        net = network(NASBENCH201, positions=positions)
        assert not torch.allclose(net(x[:, order], t), net(x, t)[:, order])


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_some_positions_tell_stages_apart(positions):
    """`slot` gives the position inside the stage: stages may be exchanged as wholes."""
    x, t = inputs(MOBILENETV3)
    order = torch.arange(20).view(5, 4)[[2, 0, 1, 4, 3]].flatten()
    net = network(MOBILENETV3, positions=positions)
    same = torch.allclose(net(x[:, order], t), net(x, t)[:, order])
    assert same == (positions in ("slot", "none"))


def test_samples_of_a_batch_do_not_see_each_other():
    net = network(MOBILENETV3)
    x, t = inputs(MOBILENETV3)
    torch.testing.assert_close(net(x[2:3], t[2:3]), net(x, t)[2:3])


def test_tf32_is_for_the_network_alone(monkeypatch):
    """What else the process multiplies keeps its digits. The compiler is stood in for: CUDA graphs
    need a GPU."""
    during = []

    def compiled(net, **options):
        def called(x, t):
            during.append(torch.get_float32_matmul_precision())
            return net(x, t)

        return called

    monkeypatch.setattr("torch.compile", compiled)
    net, (x, t) = network(TOY), inputs(TOY)
    before = torch.get_float32_matmul_precision()
    score = accelerated(net, torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == before != "high"
    torch.testing.assert_close(score(x, t), net(x, t))
    with pytest.raises(RuntimeError):
        score(x[:, 1:, 1:], t)
    assert during == ["high", "high"]
    assert torch.get_float32_matmul_precision() == before


def test_few_batch_sizes_are_compiled(monkeypatch):
    sizes = []

    def compiled(net, **options):
        def called(x, t):
            sizes.append(len(x))
            return net(x, t)

        return called

    monkeypatch.setattr("torch.compile", compiled)
    net = network(TOY)
    score = accelerated(net, torch.device("cuda"))
    for num in (1, 63, 64, 65, 100, 512):
        x, t = inputs(TOY, num)
        torch.testing.assert_close(score(x, t), net(x, t))
    assert sizes == [64, 64, 64, 128, 128, 512]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler.\nPlease specify via CC"),
        CalledProcessError(1, ["gcc", "main.c"]),  # without the header files of Python
        PermissionError(13, "Permission denied", ".triton"),
    ],
)
def test_a_network_that_cannot_be_compiled_runs_as_it_is(error, monkeypatch, caplog):
    def compiled(net, **options):
        def called(x, t):
            raise error

        return called

    monkeypatch.setattr("torch.compile", compiled)
    net, (x, t) = network(TOY), inputs(TOY)
    score = accelerated(net, torch.device("cuda"))
    for _ in range(2):
        torch.testing.assert_close(score(x, t), net(x, t))
    (warning,) = caplog.messages
    assert warning.endswith(one_line(error))


def test_want_of_memory_is_no_want_of_a_compiler(monkeypatch):
    def compiled(net, **options):
        def called(x, t):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return called

    monkeypatch.setattr("torch.compile", compiled)
    with pytest.raises(torch.OutOfMemoryError):
        accelerated(network(TOY), torch.device("cuda"))(*inputs(TOY))
