"""Counts a network's multiplications and parameters by running it once."""

import torch
from torch import nn


def count(network: nn.Module, resolution: int) -> dict[str, float]:
    """`macs` of convolutions and linear layers at batch size 1, and `params`."""
    macs = 0

    def add(module, inputs, output):
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            kernel = module.weight[0].numel()  # inputs per group x height x width
            macs += output[0].numel() * kernel
        else:
            macs += module.weight.numel()

    counted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(add) for module in counted]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, resolution, resolution))
    for hook in hooks:
        hook.remove()
    params = sum(p.numel() for p in network.parameters())
    return {"macs": float(macs), "params": float(params)}
