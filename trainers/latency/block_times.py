"""Times of the blocks of once-for-all MobileNetV3, measured inside running networks.

A single block called in a loop finds its weights in the nearest cache and its input where the last
call left it; on a GPU it may start earlier or later than among its neighbours. Such times do not
add up to the time of a network. Instead, a clock is read here between the blocks of whole networks.
The laps of a run add up to its time by construction, caches behave as in real networks, and the gap
before a kernel counts for the block that waits for it. So no scale or offset has to be fitted to
correct the sums. What remains is the influence of a block's neighbours, which separately timed
whole networks reveal.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from nag.spaces import Architecture
from nag.spaces.mobilenetv3 import LAYERS, MAX_DEPTH, MOBILENETV3, NUM_STAGES
from trainers.latency.tables import once_for_all_block, once_for_all_ends
from trainers.latency.timing import placed, random_images, stopwatch
from trainers.ofa import Network, build_network
from trainers.ofa.layers import Block
from trainers.ofa.network import initialise
from trainers.plans import mobilenetv3_plan

Times = dict[str, list[float]]  # ms

NUM_CLASSES = 1000  # as in the keys of once-for-all

# The first and the second layer of each stage: all layers after the first are alike.
_NODES = tuple(MAX_DEPTH * stage + position for stage in range(NUM_STAGES) for position in (0, 1))


class BlockTimer:
    """Times all blocks at one resolution, and whole networks to compare the sums with.

    whole: the networks to time as a whole.
    """

    def __init__(
        self,
        whole: Sequence[Architecture],
        *,
        resolution: int,
        width: float,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._plan = mobilenetv3_plan(resolution, width)
        self._watch, self._device = stopwatch(device), device
        self._images = random_images(batch_size, resolution, device)
        self._first = self._timed(Block(self._plan.first, kernel=3, expand=1))
        self._blocks = [
            [self._timed(Block(self._plan.slots[node], k, e)) for k, e in LAYERS] for node in _NODES
        ]
        # A network without blocks, which are inserted before every run.
        self._frame = Network([], num_classes=NUM_CLASSES, width=width)
        initialise(self._frame)
        placed(self._frame, device)
        self._frame.feature_mix_layer.register_forward_pre_hook(lambda *_: self._watch.lap())
        for end in ("first_conv", "final_expand_layer", "feature_mix_layer", "classifier"):
            self._timed(self._frame.get_submodule(end))
        self._whole = {
            MOBILENETV3.to_str(arch): self._timed(
                build_network(arch, num_classes=NUM_CLASSES, width=width)
            )
            for arch in whole
        }

    @torch.inference_mode()
    def measure(self, rng: np.random.Generator) -> tuple[Times, Times]:
        """One pass: times of layers by their keys, and of whole networks by their text.

        Nine networks of minimum depth together contain every block once. `rng` decides which blocks
        share a network, so over many passes each block has all kinds of neighbours. A slow moment
        of the machine affects few times of any one block. Every network runs twice and the second
        run counts, because a network in use runs again and again.
        """
        times: Times = defaultdict(list)
        choices = np.stack([rng.permutation(len(LAYERS)) for _ in _NODES], axis=1)  # (9, 10)
        for ops in choices.tolist():
            blocks = [row[op] for row, op in zip(self._blocks, ops, strict=True)]
            self._frame.blocks = nn.ModuleList([self._first, *blocks])
            for layer, ms in zip(self._layers(ops), self._second_run(self._frame), strict=True):
                times[layer].append(ms)
        return times, {name: self._second_run(one) for name, one in self._whole.items()}

    def _timed(self, module: nn.Module) -> nn.Module:
        module.register_forward_hook(lambda *_: self._watch.lap())
        return placed(module, self._device)

    def _second_run(self, network: nn.Module) -> list[float]:
        """The laps of the second of two runs, ms."""
        for _ in range(2):
            self._watch.start()
            network(self._images)
        return self._watch.stop()

    def _layers(self, ops: Sequence[int]) -> list[str]:
        """The layers that the laps of a network with these blocks time."""
        stem, first, *others = once_for_all_ends(self._plan)
        blocks = zip(_NODES, ops, strict=True)
        keys = [once_for_all_block(self._plan.slots[i], *LAYERS[op]) for i, op in blocks]
        return [stem, first, *keys, *others]
