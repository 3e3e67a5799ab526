"""Costs against published counts."""

import pandas as pd
import pytest

from nag.spaces import SPACES, Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3, ops_from_ofa
from nag.spaces.nasbench201 import NASBENCH201
from trainers.base import EvaluatorConfigError
from trainers.cost import cost


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
    with pytest.raises(EvaluatorConfigError, match=r"unknown data set 'mnist'.*imagenet"):
        cost(network, "mnist")
