"""Exact cost of an architecture: multiply-accumulates and parameters, counted layer by layer.

Conventions of the published numbers: `macs` are the multiplications of convolutions and linear
layers at batch size 1 (batch norm, pooling, activations and additions are free); `params` are all
trainable numbers, biases and the two of each batch-norm channel included.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from nag.spaces import ABSENT, Architecture
from nag.spaces.mobilenetv3 import LAYERS, MAX_DEPTH
from nag.spaces.nasbench201 import OPERATORS
from trainers.base import EvaluatorConfigError

NUM_CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "imagenet16-120": 120}


def cost(arch: Architecture, dataset: str) -> dict[str, float]:
    """`macs` and `params` of a network whose classifier fits `dataset`, one of NUM_CLASSES.

    MobileNetV3 networks read 224 x 224 images, NAS-Bench-201 networks 32 x 32 (ImageNet16-120:
    16 x 16). A space without a cost model gives an empty mapping; an unknown data set raises
    EvaluatorConfigError.
    """
    if arch.space not in _MODELS:
        return {}
    if dataset not in NUM_CLASSES:
        raise EvaluatorConfigError(
            f"unknown data set {dataset!r}: choose from {', '.join(NUM_CLASSES)}"
        )
    network = _MODELS[arch.space](arch.ops, dataset)
    return {"macs": float(network.macs), "params": float(network.params)}


@dataclass(frozen=True, slots=True)
class _Cost:
    macs: int
    params: int

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(self.macs + other.macs, self.params + other.params)


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


# Once-for-all MobileNetV3, width 1.0: (channels, stride, squeeze-excite) of each stage.
_STEM = 16
_STAGES = ((24, 2, False), (40, 2, True), (80, 2, False), (112, 1, True), (160, 2, True))
_STEM_SIZE = 112  # 224 / 2


def _make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, but never less than 90 % of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def _squeeze_excite(channels: int) -> _Cost:
    reduced = _make_divisible(channels / 4)
    return _linear(channels, reduced) + _linear(reduced, channels)  # 1 x 1 convolutions with bias


@cache
def _mobilenetv3_layer(node: int, op: int) -> _Cost:
    """Inverted bottleneck at `node`: expand, depthwise convolution, squeeze-excite, project."""
    if op == ABSENT:
        return _Cost(0, 0)
    stage, position = divmod(node, MAX_DEPTH)
    kernel, expand = LAYERS[op]
    outputs, stride, squeeze_excite = _STAGES[stage]
    size_in = _STEM_SIZE
    for _, earlier_stride, _ in _STAGES[:stage]:
        size_in //= earlier_stride
    size_out = size_in // stride
    if position == 0:
        inputs = _STAGES[stage - 1][0] if stage else _STEM
    else:
        inputs, size_in = outputs, size_out
    middle = inputs * expand
    return (
        _conv_bn(inputs, middle, 1, size_in)
        + _conv_bn(middle, middle, kernel, size_out, groups=middle)
        + (_squeeze_excite(middle) if squeeze_excite else _Cost(0, 0))
        + _conv_bn(middle, outputs, 1, size_out)
    )


@cache
def _mobilenetv3_ends(num_classes: int) -> _Cost:
    """Everything that is not searched: stem, first block, final expansion, mixing, classifier."""
    return (
        _conv_bn(3, _STEM, 3, _STEM_SIZE)
        + _conv_bn(_STEM, _STEM, 3, _STEM_SIZE, groups=_STEM)
        + _conv_bn(_STEM, _STEM, 1, _STEM_SIZE)
        + _conv_bn(_STAGES[-1][0], 960, 1, size=7)
        + _conv(960, 1280, 1, size=1)
        + _linear(1280, num_classes)
    )


def _mobilenetv3(ops: tuple[int, ...], dataset: str) -> _Cost:
    layers = _total(_mobilenetv3_layer(node, op) for node, op in enumerate(ops))
    return _mobilenetv3_ends(NUM_CLASSES[dataset]) + layers


# NAS-Bench-201: three stacks of five equal cells with a residual reduction block between stacks.
_CELLS = 5
_CHANNELS = (16, 32, 64)
_KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


def _sizes(dataset: str) -> tuple[int, int, int]:
    size = 16 if dataset == "imagenet16-120" else 32
    return size, size // 2, size // 4


@cache
def _nasbench201_operator(op: int, dataset: str) -> _Cost:
    """One operator of the cell, summed over all fifteen cells; only convolutions cost anything."""
    kernel = _KERNELS.get(OPERATORS[op])
    if kernel is None:
        return _Cost(0, 0)
    return _total(
        _conv_bn(channels, channels, kernel, size)
        for channels, size in zip(_CHANNELS, _sizes(dataset), strict=True)
        for _ in range(_CELLS)
    )


def _reduction(channels: int, size: int) -> _Cost:
    """Residual block that doubles the channels onto a `size` x `size` map."""
    return (
        _conv_bn(channels, 2 * channels, 3, size)
        + _conv_bn(2 * channels, 2 * channels, 3, size)
        + _conv(channels, 2 * channels, 1, size)  # shortcut, after pooling
    )


@cache
def _nasbench201_ends(dataset: str) -> _Cost:
    first, second, third = _sizes(dataset)
    return (
        _conv_bn(3, _CHANNELS[0], 3, first)
        + _reduction(_CHANNELS[0], second)
        + _reduction(_CHANNELS[1], third)
        + _batch_norm(_CHANNELS[2])
        + _linear(_CHANNELS[2], NUM_CLASSES[dataset])
    )


def _nasbench201(ops: tuple[int, ...], dataset: str) -> _Cost:
    operators = _total(_nasbench201_operator(op, dataset) for op in ops)
    return _nasbench201_ends(dataset) + operators


_MODELS = {"mobilenetv3": _mobilenetv3, "nasbench201": _nasbench201}
