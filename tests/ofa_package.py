"""The real once-for-all package, without the torchvision that it imports and we do not need."""

import sys
from unittest.mock import MagicMock, patch

import torch
from torch import nn

from nag.spaces.mobilenetv3 import DEPTHS, EXPANDS, KERNELS, MOBILENETV3

_TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
with patch.dict(sys.modules, {name: MagicMock() for name in _TORCHVISION}):
    from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3


def official_supernet(width: float, num_classes: int = 1000, seed: int = 0) -> OFAMobileNetV3:
    """The package's supernet in evaluation mode; no tensor has a value that could hide an error."""
    net = OFAMobileNetV3(
        n_classes=num_classes,
        dropout_rate=0,
        width_mult=width,
        ks_list=list(KERNELS),
        expand_ratio_list=list(EXPANDS),
        depth_list=list(DEPTHS),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("_matrix"):
                tensor += 0.1 * noise
            elif name.endswith("running_var"):
                tensor.copy_(0.3 + noise.abs())
            elif name.endswith("bn.weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(0.2 * noise)
            elif tensor.dim() > 0:  # a convolution or the classifier; counters stay
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return net.eval()


def fit(net: OFAMobileNetV3, images: torch.Tensor) -> torch.Tensor:
    """Forward in training mode, which makes the statistics of batch norm those of this batch."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    output = net.train()(images)
    net.eval()
    return output


def pictures(count: int, resolution: int, generator: torch.Generator) -> torch.Tensor:
    """Random colours that change slowly over the picture: unlike noise, each has its own logits."""
    coarse = torch.randn((count, 3, 4, 4), generator=generator)
    fine = torch.randn((count, 3, resolution, resolution), generator=generator)
    return nn.functional.interpolate(coarse, size=resolution, mode="bicubic") + 0.2 * fine


def activate(net: OFAMobileNetV3, arch) -> None:
    """Make `net` compute the network `arch`; what absent layers are set to does not matter."""
    config = MOBILENETV3.to_config(arch)
    net.set_active_subnet(
        ks=[k or 3 for k in config["ks"]], e=[e or 3 for e in config["e"]], d=config["d"]
    )


def official_names(net: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of `net` under the names of the published checkpoints, which are older."""
    old = {}
    for name, tensor in net.state_dict().items():
        renamed = name
        if name.startswith("blocks."):
            _, block, _, rest = name.split(".", 3)
            renamed = f"blocks.{block}.mobile_inverted_conv.{rest}"
        old[renamed] = tensor
    return old


def our_names(net: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of `net` under our names, which are those of the package's single networks."""
    return {
        name.replace(".conv.conv.weight", ".conv.weight").replace(".bn.bn.", ".bn."): tensor
        for name, tensor in net.state_dict().items()
    }
