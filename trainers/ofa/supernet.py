"""The supernet of once-for-all (Cai et al., ICLR 2020): all networks of the space in one.

A network of the space is a slice of the supernet. Each of its tensors is the leading corner of the
supernet's tensor of the same name, because a smaller expand ratio uses the first channels and a
smaller depth the first layers of a stage. Only depthwise kernels of size 5 and 3 differ: they are
the centre of the next larger kernel, times a matrix that all channels of the layer share.
"""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nag.spaces import Architecture
from nag.spaces.mobilenetv3 import KERNELS, LAYERS, MAX_DEPTH, MOBILENETV3, NUM_STAGES
from trainers.ofa.layers import Block
from trainers.ofa.network import Layer, Network, build_network, initialise, layers

LARGEST = Architecture(MOBILENETV3.name, (LAYERS.index((7, 6)),) * (NUM_STAGES * MAX_DEPTH))
TRANSFORMS = tuple(pairwise(sorted(KERNELS, reverse=True)))  # 7 -> 5, 5 -> 3


class Supernet(nn.Module):
    """Elastic MobileNetV3, initialised from torch's random generator.

    width: multiplier of all channels, relative to the published network; whole hundredths.
    meta: how it was trained, if known.
    """

    blocks: nn.ModuleList
    meta: Mapping[str, Any]

    def __init__(self, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        if width != round(width, 2):
            raise ValueError(f"the width of a supernet must be a multiple of 0.01, not {width}")
        self.num_classes, self.width, self.meta = num_classes, width, {}
        largest = build_network(LARGEST, num_classes=num_classes, width=width)
        for name, module in largest.named_children():
            self.add_module(name, module)
        for block in self.blocks[1:]:
            depthwise = block.get_submodule("conv.depth_conv.conv")
            for larger, smaller in TRANSFORMS:
                matrix = nn.Parameter(torch.eye(smaller**2))
                depthwise.register_parameter(_matrix(larger, smaller), matrix)

    def forward(self, images: Tensor, arch: Architecture) -> Tensor:
        """Images (B, 3, R, R) through the network `arch` to logits (B, num_classes).

        In training mode, batch norm updates the running statistics of the channels that `arch` has,
        with PyTorch's momentum of 0.1; to calibrate them differently, extract the network.
        Not thread-safe.
        """
        skeleton = self._skeleton(arch).train(self.training)
        weights = self._slice(arch, skeleton)
        return functional_call(skeleton, weights, (images,), tie_weights=False)

    def extract(
        self,
        arch: Architecture,
        *,
        num_classes: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> Network:
        """The network `arch` on its own, with copies of its weights.

        num_classes: if it differs from the supernet's, the classifier is a new one.
        drop_path: as for `build_network`.
        """
        with torch.device("meta"):
            network = build_network(
                arch,
                num_classes=self.num_classes,
                width=self.width,
                dropout=dropout,
                drop_path=drop_path,
            )
        copies = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in self._slice(arch, network).items()
        }
        network.load_state_dict(copies, assign=True)
        if num_classes is not None and num_classes != self.num_classes:
            old = network.get_parameter("classifier.linear.weight")
            network.classifier.linear = nn.Linear(old.shape[1], num_classes).to(old)
            initialise(network.classifier)
        return network.train(self.training)

    def _skeleton(self, arch: Architecture) -> Network:
        """The modules of the network `arch`, without weights."""
        blocks = [_skeleton_block(layer) for layer in layers(arch, self.width)]
        with torch.device("meta"):
            return Network(blocks, num_classes=self.num_classes, width=self.width)

    def _slice(self, arch: Architecture, network: Network) -> dict[str, Tensor]:
        """Tensors for `network`, whose architecture is `arch`: views of ours where possible."""
        positions = [layer.position for layer in layers(arch, self.width)]
        ours = self.state_dict(keep_vars=True)
        slices = {}
        for name, needed in network.state_dict().items():
            source = name
            if name.startswith("blocks."):
                _, block, rest = name.split(".", 2)
                source = f"blocks.{positions[int(block)]}.{rest}"
            corner = ours[source][tuple(slice(size) for size in needed.shape[:2])]
            for larger, smaller in TRANSFORMS:
                if needed.shape[2:] < corner.shape[2:] == (larger, larger):
                    matrix = ours[source.removesuffix("weight") + _matrix(larger, smaller)]
                    corner = _smaller_kernel(corner, matrix)
            slices[name] = corner
        return slices


@cache
def _skeleton_block(layer: Layer) -> Block:
    """A block without weights; cached, because building it takes as long as a small batch."""
    with torch.device("meta"):
        return Block(layer.slot, layer.kernel, layer.expand)


def _matrix(larger: int, smaller: int) -> str:
    return f"{larger}to{smaller}_matrix"


def _smaller_kernel(kernels: Tensor, matrix: Tensor) -> Tensor:
    """Kernels (C, 1, K, K) to (C, 1, K - 2, K - 2); `matrix` has (K - 2)^2 rows and columns."""
    centres = kernels[..., 1:-1, 1:-1]
    return F.linear(centres.flatten(2), matrix).view_as(centres)
