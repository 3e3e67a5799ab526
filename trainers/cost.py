"""Exact cost of an architecture: multiply-accumulates and parameters, counted layer by layer.

Conventions, as in published numbers: `macs` counts the multiplications of convolutions and linear
layers at batch size 1 (batch norm, pooling, activations and additions are free). `params` counts
all trainable numbers, including biases and two per batch-norm channel.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

import numpy as np

from nag.errors import UserError, choose
from nag.properties import Property
from nag.spaces import ABSENT, Architecture, SearchSpace
from nag.spaces.mobilenetv3 import LAYERS, MOBILENETV3
from nag.spaces.nasbench201 import CELL_EDGES, NASBENCH201, OPERATORS
from trainers.plans import CELLS, CHANNELS, Slot, mobilenetv3_plan, squeezed, stack_sizes

NUM_CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "imagenet16-120": 120}
COSTS = ("macs", "params")


@dataclass(frozen=True, slots=True)
class Task:
    """The task of a network, which determines its cost.

    classes: number of classes.
    resolution: side of the images, in pixels.
    width: multiplier of its channels; for MobileNetV3 only.
    """

    classes: int
    resolution: int
    width: float = 1.0


def cost(arch: Architecture, task: str | Task) -> dict[str, float]:
    """`macs` and `params` of a network for a task, or for a data set, one of NUM_CLASSES.

    For a data set, MobileNetV3 networks read 224 x 224 images and NAS-Bench-201 networks 32 x 32
    (ImageNet16-120: 16 x 16). The result is empty for a space without a cost model; an unknown data
    set raises UserError.
    """
    if arch.space not in _MODELS:
        return {}
    network = _network(arch.space, task)
    nodes = zip(network.operators, arch.ops, strict=True)
    total = network.ends + _total(costs[op] for costs, op in nodes if op != ABSENT)
    return {name: float(getattr(total, name)) for name in COSTS}


def cost_property(space: SearchSpace, name: str, task: str | Task) -> Property:
    """One entry of `cost`, `name` in COSTS, as an exact additive property.

    Raises UserError for an unknown name or data set, or a space without a cost model.
    """
    if space.name not in _MODELS:
        raise UserError(f"the space {space.name} has no cost model")
    network, count = _network(space.name, task), attrgetter(choose("cost", name, COSTS))
    coefficients = [[count(one) for one in costs] for costs in network.operators]
    return Property(name, space, float(count(network.ends)), np.array(coefficients, np.float64))


@dataclass(frozen=True, slots=True)
class _Cost:
    macs: int
    params: int

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(self.macs + other.macs, self.params + other.params)


@dataclass(frozen=True, slots=True)
class _Network:
    """The fixed cost of every network of a space, and the cost of each operator at each node."""

    ends: _Cost
    operators: tuple[tuple[_Cost, ...], ...]  # (N, F)


@cache
def _network(space: str, task: str | Task) -> _Network:
    return _MODELS[space](task if isinstance(task, Task) else task_of_data_set(space, task))


def task_of_data_set(space: str, dataset: str) -> Task:
    """The task of a space's networks on a published data set, one of NUM_CLASSES.

    Raises UserError.
    """
    classes = NUM_CLASSES[choose("data set", dataset, NUM_CLASSES)]
    if space == MOBILENETV3.name:
        return Task(classes, resolution=224)
    return Task(classes, resolution=16 if dataset == "imagenet16-120" else 32)


def _total(costs: Iterable[_Cost]) -> _Cost:
    return sum(costs, start=_Cost(0, 0))


def _conv(inputs: int, outputs: int, kernel: int, size: int, groups: int = 1) -> _Cost:
    """A convolution without bias onto a `size` x `size` map."""
    weights = kernel**2 * (inputs // groups) * outputs
    return _Cost(size**2 * weights, weights)


def _batch_norm(channels: int) -> _Cost:
    return _Cost(0, 2 * channels)


def _conv_bn(inputs: int, outputs: int, kernel: int, size: int, groups: int = 1) -> _Cost:
    return _conv(inputs, outputs, kernel, size, groups) + _batch_norm(outputs)


def _linear(inputs: int, outputs: int) -> _Cost:
    return _Cost(inputs * outputs, inputs * outputs + outputs)


def _squeeze_excite(channels: int) -> _Cost:
    reduced = squeezed(channels)
    return _linear(channels, reduced) + _linear(reduced, channels)  # 1 x 1 convolutions with bias


def _inverted_bottleneck(slot: Slot, kernel: int, expand: int) -> _Cost:
    """Expand, depthwise convolution, squeeze-excite, project."""
    middle = slot.inputs * expand
    return (
        _conv_bn(slot.inputs, middle, 1, slot.size_in)
        + _conv_bn(middle, middle, kernel, slot.size_out, groups=middle)
        + (_squeeze_excite(middle) if slot.squeeze_excite else _Cost(0, 0))
        + _conv_bn(middle, slot.outputs, 1, slot.size_out)
    )


def _mobilenetv3(task: Task) -> _Network:
    """The fixed parts are stem, first block, final expansion, mixing and classifier."""
    plan = mobilenetv3_plan(task.resolution, task.width)
    first, last = plan.first, plan.slots[-1]
    ends = (
        _conv_bn(3, first.inputs, 3, first.size_in)
        + _conv_bn(first.inputs, first.inputs, 3, first.size_out, groups=first.inputs)
        + _conv_bn(first.inputs, first.outputs, 1, first.size_out)
        + _conv_bn(last.outputs, plan.expanded, 1, last.size_out)
        + _conv(plan.expanded, plan.features, 1, size=1)
        + _linear(plan.features, task.classes)
    )
    layers = (tuple(_inverted_bottleneck(slot, k, e) for k, e in LAYERS) for slot in plan.slots)
    return _Network(ends, tuple(layers))


_KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


def _cell_operator(name: str, resolution: int) -> _Cost:
    """One operator of the cell, summed over all fifteen cells; only convolutions have a cost."""
    kernel = _KERNELS.get(name)
    if kernel is None:
        return _Cost(0, 0)
    return _total(
        _conv_bn(channels, channels, kernel, size)
        for channels, size in zip(CHANNELS, stack_sizes(resolution), strict=True)
        for _ in range(CELLS)
    )


def _reduction(channels: int, size: int) -> _Cost:
    """Residual block that doubles the channels onto a `size` x `size` map."""
    return (
        _conv_bn(channels, 2 * channels, 3, size)
        + _conv_bn(2 * channels, 2 * channels, 3, size)
        + _conv(channels, 2 * channels, 1, size)  # shortcut, after pooling
    )


def _nasbench201(task: Task) -> _Network:
    """The fixed parts are stem, reduction blocks, last batch norm and classifier."""
    first, second, third = stack_sizes(task.resolution)
    ends = (
        _conv_bn(3, CHANNELS[0], 3, first)
        + _reduction(CHANNELS[0], second)
        + _reduction(CHANNELS[1], third)
        + _batch_norm(CHANNELS[2])
        + _linear(CHANNELS[2], task.classes)
    )
    edge = tuple(_cell_operator(name, task.resolution) for name in OPERATORS)
    terminal = (_Cost(0, 0),) * len(OPERATORS)  # the input and the output node
    return _Network(ends, (terminal, *[edge] * len(CELL_EDGES), terminal))


_MODELS = {MOBILENETV3.name: _mobilenetv3, NASBENCH201.name: _nasbench201}
