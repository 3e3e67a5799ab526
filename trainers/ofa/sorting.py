"""The most important channels first, as once-for-all sorts them before it trains expand ratios."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from trainers.cost import squeezed
from trainers.ofa.supernet import Supernet

_MAKERS = (  # whose outputs are the middle channels of a block
    "conv.inverted_bottleneck.",
    "conv.depth_conv.conv.weight",
    "conv.depth_conv.bn.",
    "conv.depth_conv.se.fc.expand.",
)
_READERS = ("conv.point_linear.conv.weight", "conv.depth_conv.se.fc.reduce.weight")


@torch.no_grad()
def sort_channels(supernet: Supernet, trained: Sequence[int] = (6,)) -> None:
    """Sort the middle channels of every block by the L1 norm of the weights that read them.

    trained: expand ratios, 6 among them, whose networks stay what they are: channels move only
        between one of these ratios and the next.
    """
    for block in supernet.blocks[1:]:
        state = block.state_dict()  # shares memory with the block
        inputs = state["conv.inverted_bottleneck.conv.weight"].shape[1]
        ends = [inputs * expand for expand in sorted(trained)]
        order = _order(state["conv.point_linear.conv.weight"], ends)
        _permute(state, order, _MAKERS, _READERS)
        if (expand := state.get("conv.depth_conv.se.fc.expand.weight")) is not None:
            order = _order(expand, [squeezed(end) for end in ends])
            makers, readers = "conv.depth_conv.se.fc.reduce.", "conv.depth_conv.se.fc.expand.weight"
            _permute(state, order, (makers,), (readers,))


def _order(readers: Tensor, ends: Sequence[int]) -> Tensor:
    """Indices of the channels that `readers` (out, in, 1, 1) read, sorted up to each of `ends`."""
    importance = readers.abs().sum((0, 2, 3))
    return torch.cat(
        [a + importance[a:b].argsort(descending=True, stable=True) for a, b in pairwise([0, *ends])]
    )


def _permute(
    state: Mapping[str, Tensor], order: Tensor, makers: tuple[str, ...], readers: tuple[str, ...]
) -> None:
    """Reorder, in place, the outputs of layers named so and the inputs of others."""
    for name, tensor in state.items():
        if name.startswith(makers) and tensor.shape[:1] == order.shape:
            tensor.copy_(tensor[order])
        elif name.startswith(readers):
            tensor.copy_(tensor[:, order])
