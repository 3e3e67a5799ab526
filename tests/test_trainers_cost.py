"""Costs against published counts."""

from itertools import product

import pandas as pd
import pytest

from nag.errors import UserError
from nag.spaces import ABSENT, SPACES, Architecture
from nag.spaces.mobilenetv3 import LAYERS, MOBILENETV3, ops_from_ofa
from nag.spaces.nasbench201 import NASBENCH201
from trainers.cost import COSTS, cost, cost_property


def test_mobilenetv3_equals_every_published_count(data_dir):
    columns = ["ks", "e", "d", "macs", "params"]
    table = pd.read_parquet(data_dir / "mbv3_imagenet_top1.parquet", columns=columns)
    counted = [
        cost(Architecture(MOBILENETV3.name, ops_from_ofa(row.ks, row.e, row.d)), "imagenet")
        for row in table.itertuples()
    ]
    assert [(c["macs"], c["params"]) for c in counted] == [
        (row.macs, row.params) for row in table.itertuples()
    ]


@pytest.mark.parametrize(
    ("dataset", "fixed"),
    [("cifar10", 73_306), ("cifar100", 79_156), ("imagenet16-120", 80_456)],
)
def test_nasbench201_parameters_have_the_published_closed_form(dataset, fixed, rng):
    for arch in NASBENCH201.sample(50, rng):
        text = NASBENCH201.to_str(arch)
        ones, threes = text.count("nor_conv_1x1"), text.count("nor_conv_3x3")
        assert cost(arch, dataset)["params"] == fixed + 28_000 * ones + 243_040 * threes


def test_nasbench201_macs():
    best = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+"
    best += "|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    arch = NASBENCH201.from_str(best)
    assert cost(arch, "cifar10")["macs"] == pytest.approx(153.27e6, rel=1e-4)  # as published
    # A quarter of the pixels: a quarter of the work, but for the classifier.
    per_pixel = cost(arch, "cifar10")["macs"] - 64 * 10
    assert cost(arch, "imagenet16-120")["macs"] == per_pixel / 4 + 64 * 120


def test_spaces_and_data_sets_without_a_cost(rng):
    (toy,) = SPACES["toy"].sample(1, rng)
    assert cost(toy, "anything") == {}
    (network,) = MOBILENETV3.sample(1, rng)
    with pytest.raises(UserError, match=r"unknown data set 'mnist'.*imagenet"):
        cost(network, "mnist")


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize(
    ("space", "dataset"),
    [
        (MOBILENETV3, "imagenet"),
        (MOBILENETV3, "cifar10"),
        (NASBENCH201, "cifar10"),
        (NASBENCH201, "cifar100"),
        (NASBENCH201, "imagenet16-120"),
    ],
)
def test_property_equals_cost(space, dataset, name, rng):
    archs = space.sample(300, rng)
    counted = cost_property(space, name, dataset)
    assert counted(archs).tolist() == [cost(arch, dataset)[name] for arch in archs]
    assert (counted.name, counted.std) == (name, 0)


def test_terminal_nodes_cost_nothing():
    coefficients = cost_property(NASBENCH201, "macs", "cifar10").coefficients
    assert not coefficients[[0, 7]].any()
    assert (coefficients[1:7] == coefficients[1]).all()


@pytest.mark.parametrize("name", COSTS)
def test_extremes_of_nasbench201_by_enumeration(name):
    stages = NASBENCH201.stages
    choices = [slot for stage in stages for slot in stage.choices]
    values = [
        cost(Architecture(NASBENCH201.name, ops), "cifar10")[name] for ops in product(*choices)
    ]
    assert len(values) == 15_625
    assert cost_property(NASBENCH201, name, "cifar10").extremes == (min(values), max(values))


@pytest.mark.parametrize("name", COSTS)
def test_extremes_of_mobilenetv3_are_the_smallest_and_the_largest_network(name):
    smallest, largest = LAYERS.index((3, 3)), LAYERS.index((7, 6))
    ends = [(smallest, smallest, ABSENT, ABSENT) * 5, (largest,) * 20]
    values = [cost(Architecture(MOBILENETV3.name, ops), "imagenet")[name] for ops in ends]
    assert cost_property(MOBILENETV3, name, "imagenet").extremes == tuple(values)


def test_errors_of_cost_properties_are_one_line():
    for arguments, message in [
        ((SPACES["toy"], "macs", "anything"), "the space toy has no cost model"),
        ((MOBILENETV3, "latency", "imagenet"), "unknown cost 'latency': choose from macs, params"),
        (
            (NASBENCH201, "macs", "mnist"),
            "unknown data set 'mnist': choose from imagenet, cifar10, cifar100, imagenet16-120",
        ),
    ]:
        with pytest.raises(UserError) as caught:
            cost_property(*arguments)
        assert str(caught.value) == message
