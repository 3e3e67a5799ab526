"""Networks of NAS-Bench-201: against the published counts, and the cell written out by hand."""

import numpy as np
import pytest
import torch
from counting import count
from torch import nn
from torch.nn import functional as F

from nag.errors import UserError
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from trainers.cells import Cell, CellNetwork
from trainers.cost import Task, cost

BEST = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
    "+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)


def test_the_best_cell_has_the_published_number_of_parameters():
    network = CellNetwork(NASBENCH201.from_str(BEST), num_classes=10)
    assert sum(p.numel() for p in network.parameters()) == 73_306 + 5 * 243_040


def test_weights_begin_as_those_of_the_benchmark_did():
    """Uniform within 1 / sqrt(inputs), as PyTorch's convolutions do by themselves."""
    network = CellNetwork(NASBENCH201.from_str(BEST), num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound


@pytest.mark.parametrize("resolution", [32, 16, 30, 27])
def test_what_is_counted_in_the_network_is_what_the_cost_model_says(resolution):
    for arch in NASBENCH201.sample(6, np.random.default_rng(resolution)):
        network = CellNetwork(arch, num_classes=7)
        assert count(network, resolution) == cost(arch, Task(7, resolution))


def test_a_cell_is_the_sum_of_its_paths():
    """Three convolutions, a skip, a pooling and a none, against the formula of each node."""
    names = ("nor_conv_3x3", "skip_connect", "nor_conv_1x1", "none", "avg_pool_3x3", "nor_conv_3x3")
    cell = Cell(names, channels=4).double().eval()
    convolutions = [module for module in cell.modules() if isinstance(module, nn.Conv2d)]
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def convolved(number, x):
        weight = convolutions[number].weight
        y = F.conv2d(x.relu(), weight, padding=weight.shape[-1] // 2)
        return y / (1 + 1e-5) ** 0.5  # a batch norm that has seen nothing

    one = convolved(0, x)
    two = x + convolved(1, one)
    pooled = F.avg_pool2d(one, 3, stride=1, padding=1, count_include_pad=False)
    torch.testing.assert_close(cell(x), pooled + convolved(2, two))


def test_a_network_of_nothing_knows_only_its_bias():
    arch = NASBENCH201.from_str("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    network = CellNetwork(arch, num_classes=3).eval()
    first, second = network(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(first, second)


def test_another_space_is_refused():
    (arch,) = MOBILENETV3.sample(1, np.random.default_rng(0))
    with pytest.raises(UserError, match="mobilenetv3"):
        CellNetwork(arch, num_classes=10)
