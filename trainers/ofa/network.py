"""A single network of the once-for-all MobileNetV3 space, made of ordinary modules."""

from collections import OrderedDict
from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from torch import Tensor, nn

from nag.spaces import ABSENT, Architecture
from nag.spaces.mobilenetv3 import LAYERS
from trainers.ofa.layers import Block, conv_bn
from trainers.plans import Slot, mobilenetv3_plan


class Layer(NamedTuple):
    """Settings of a block; `position` is its place among the blocks of the largest network."""

    position: int
    slot: Slot
    kernel: int
    expand: int


def layers(arch: Architecture, width: float) -> list[Layer]:
    """The blocks of `arch` in order; the first one is the same in every network."""
    plan = mobilenetv3_plan(width=width)
    nodes = enumerate(zip(plan.slots, arch.ops, strict=True))
    searched = [Layer(1 + node, slot, *LAYERS[op]) for node, (slot, op) in nodes if op != ABSENT]
    return [Layer(0, plan.first, kernel=3, expand=1), *searched]


class Network(nn.Module):
    """Images (B, 3, R, R), of any R, to logits (B, num_classes).

    width: multiplier of all channels, relative to the published network.
    dropout: rate before the classifier.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], *, num_classes: int, width: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        plan = mobilenetv3_plan(width=width)
        self.first_conv = conv_bn(3, plan.first.inputs, nn.Hardswish(), kernel=3, stride=2)
        self.blocks = nn.ModuleList(blocks)
        self.final_expand_layer = conv_bn(plan.slots[-1].outputs, plan.expanded, nn.Hardswish())
        mix = nn.Conv2d(plan.expanded, plan.features, 1, bias=False)
        self.feature_mix_layer = nn.Sequential(OrderedDict(conv=mix, act=nn.Hardswish()))
        linear = nn.Linear(plan.features, num_classes)
        self.classifier = nn.Sequential(OrderedDict(dropout=nn.Dropout(dropout), linear=linear))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first_conv(images)
        for block in self.blocks:
            x = block(x)
        x = self.final_expand_layer(x).mean((2, 3), keepdim=True)  # (B, expanded, 1, 1)
        return self.classifier(self.feature_mix_layer(x).flatten(1))


def build_network(
    arch: Architecture,
    *,
    num_classes: int,
    width: float = 1.0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Network:
    """The network `arch`, initialised from torch's random generator to train from scratch.

    drop_path: rate at which images skip a block; block i of n, counted from 0, has i / n of it.
    """
    parts = layers(arch, width)
    blocks = [
        Block(part.slot, part.kernel, part.expand, drop_path * i / len(parts))
        for i, part in enumerate(parts)
    ]
    network = Network(blocks, num_classes=num_classes, width=width, dropout=dropout)
    initialise(network)
    return network


def initialise(network: nn.Module) -> None:
    """He initialisation by fan-out for convolutions, as in once-for-all; zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            bound = 1 / sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
