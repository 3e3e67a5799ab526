"""Training a once-for-all supernet by the sandwich rule with in-place distillation.

Yu & Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019: every step
trains the largest network on the labels, and the smallest and some random ones on its predictions.
"""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from nag.spaces import ABSENT, Architecture
from nag.spaces.mobilenetv3 import LAYERS, MAX_DEPTH, MOBILENETV3
from trainers.ofa import LARGEST
from trainers.training.loop import Backward

SMALLEST = Architecture(
    MOBILENETV3.name,
    tuple(LAYERS.index((3, 3)) if i % MAX_DEPTH < 2 else ABSENT for i in range(len(LARGEST.ops))),
)


def sandwich(random: int, smoothing: float) -> Backward:
    """The loss is that of the largest network; the gradient is the mean over all networks.

    random: number of additional networks per step, with uniform depths, kernels and expand ratios;
        the same ones in all processes.
    """
    share_of_each = 1 / (2 + random)

    def backward(
        supernet: nn.Module, images: Tensor, labels: Tensor, share: float, seed: int
    ) -> Tensor:
        drawn = MOBILENETV3.sample(random, np.random.default_rng(seed))
        logits = supernet(images, LARGEST).float()  # as in `loop.cross_entropy`
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        (share * share_of_each * loss).backward()
        taught = logits.detach().softmax(-1)
        for arch in (SMALLEST, *drawn):
            imitation = F.cross_entropy(supernet(images, arch).float(), taught)
            (share * share_of_each * imitation).backward()
        return loss.detach()

    return backward
