"""The networks of NAS-Bench-201 (Dong & Yang, ICLR 2020): three stacks of five equal cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nag.errors import UserError
from nag.spaces import Architecture
from nag.spaces.nasbench201 import CELL_EDGES, NASBENCH201, OPERATORS
from trainers.plans import CELLS, CHANNELS


class CellNetwork(nn.Module):
    """Images (B, 3, R, R) of any size -> logits (B, num_classes).

    Weights are initialised by PyTorch's default, as in the benchmark. Larger ones, such as He et
    al.'s, make short trainings worse (benchmarks/results/cells.md): in front of batch norms, larger
    weights only make the effective steps smaller.
    """

    def __init__(self, arch: Architecture, num_classes: int) -> None:
        super().__init__()
        if arch.space != NASBENCH201.name:
            raise UserError(f"not a cell of {NASBENCH201.name}: {arch.space}")
        operators = [OPERATORS[op] for op in arch.ops[1:-1]]
        stem = (nn.Conv2d(3, CHANNELS[0], 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS[0]))
        body: list[nn.Module] = []
        for channels in CHANNELS:
            if body:
                body.append(_Reduction(channels // 2))
            body += [Cell(operators, channels) for _ in range(CELLS)]
        last = (nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = nn.Sequential(*stem, *body, *last)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class Cell(nn.Module):
    """Four feature maps of equal shape; each is the sum of its edges applied to earlier maps.

    operators: names, in the order of CELL_EDGES.
    """

    def __init__(self, operators: Sequence[str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_OPERATORS[name](channels) for name in operators)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for node in (1, 2, 3):
            incoming = [
                edge(maps[tail])
                for (tail, head), edge in zip(CELL_EDGES, self.edges, strict=True)
                if head == node
            ]
            maps.append(sum(incoming[1:], start=incoming[0]))
        return maps[-1]


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


_OPERATORS = {
    "none": lambda channels: _Zero(),
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": lambda channels: _convolution(channels, channels, 1),
    "nor_conv_3x3": lambda channels: _convolution(channels, channels, 3),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}


class _Reduction(nn.Module):
    """A residual block that halves the side of the map and doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(channels, 2 * channels, 3, stride=2),
            _convolution(2 * channels, 2 * channels, 3),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)
