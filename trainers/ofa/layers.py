"""Layers of once-for-all MobileNetV3. Modules are named as in the published weights."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from trainers.plans import Slot, squeezed


def conv_bn(
    inputs: int,
    outputs: int,
    activation: nn.Module | None,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution without bias, batch norm and activation; divides the size by `stride`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    if activation is not None:
        layers["act"] = activation
    return nn.Sequential(layers)


class SqueezeExcite(nn.Module):
    """Scales each channel by a factor in [0, 1] computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = squeezed(channels)
        self.fc = nn.Sequential(
            OrderedDict(
                reduce=nn.Conv2d(channels, reduced, 1),
                relu=nn.ReLU(inplace=True),
                expand=nn.Conv2d(reduced, channels, 1),
                h_sigmoid=nn.Hardsigmoid(),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True))


def inverted_bottleneck(slot: Slot, kernel: int, expand: int) -> nn.Sequential:
    """Expand (unless `expand` is 1), depthwise convolution, squeeze-excite (in some), project."""
    middle = slot.inputs * expand

    def activation() -> nn.Module:
        return nn.Hardswish() if slot.hard_swish else nn.ReLU(inplace=True)

    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if expand != 1:
        parts["inverted_bottleneck"] = conv_bn(slot.inputs, middle, activation())
    parts["depth_conv"] = depthwise = conv_bn(
        middle, middle, activation(), kernel=kernel, stride=slot.stride, groups=middle
    )
    if slot.squeeze_excite:
        depthwise.add_module("se", SqueezeExcite(middle))
    parts["point_linear"] = conv_bn(middle, slot.outputs, None)
    return nn.Sequential(parts)


class DropPath(nn.Module):
    """In training, zeroes a fraction `rate` of the images of a batch and rescales the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand((len(x), 1, 1, 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Block(nn.Module):
    """An inverted bottleneck, with a residual connection around it if the sizes allow."""

    def __init__(self, slot: Slot, kernel: int, expand: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv = inverted_bottleneck(slot, kernel, expand)
        self.skip = slot.skip
        self.drop_path = DropPath(drop_path if slot.skip else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + self.drop_path(y) if self.skip else y
