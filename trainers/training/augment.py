"""From loaded images to network inputs, on the network's device."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nag.errors import UserError
from trainers.training.recipe import Policy, Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# RandAugment magnitudes other than 9 of 30, on kornia's scale. Operations without a random sign
# reduce an effect below 15 and increase it above; solarize inverts from the magnitude upwards.
_MAGNITUDES = {
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (9, 21)),
    "solarize": (21,),
}
_LESS_IS_MORE = ("solarize", "posterize")  # from which intensity on, and how many bits are kept


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of intensities in [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> "Normalisation":
        """Exact statistics of batches (B, 3, R, R) uint8, from how often each value occurs."""
        counts = torch.zeros(3, 256, dtype=torch.float64)
        for images in batches:
            for channel, count in zip(images.unbind(1), counts, strict=True):
                count += channel.flatten().bincount(minlength=256).cpu()
        values, number = torch.arange(256, dtype=torch.float64) / 255, counts[0].sum()
        mean = counts @ values / number
        squares = (values - mean[:, None]).square()  # (3, 256)
        std = ((counts * squares).sum(1) / (number - 1)).sqrt()
        return cls(tuple(mean.tolist()), tuple(std.clamp(min=1e-3).tolist()))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, R, R), uint8 or intensities in [0, 1] -> normalised, float32, channels last."""
        scale = 255 if images.dtype == torch.uint8 else 1
        mean, std = (
            _on_device(torch.tensor(numbers), images).view(3, 1, 1) * scale
            for numbers in (self.mean, self.std)
        )
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


class Augmentation:
    """Flip, policy, normalisation and cutout, independently for each image of a batch.

    Uses torch's global random numbers. If several processes share a batch, each draws numbers for
    all of it; so without a policy, the result for an image does not depend on its process.

    Raises UserError if the policy needs a package that is not installed.
    """

    def __init__(
        self, recipe: Recipe, normalise: Normalisation, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """shard: (i, n) if this process has every n-th image of a batch, from the i-th on."""
        self._shard = shard
        self._flip, self._cutout = recipe.flip, recipe.cutout
        self._normalise, self._policy = normalise, _policy(recipe.policy, normalise.mean)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) uint8 -> float32."""
        if self._flip:
            first, step = self._shard
            mirrored = torch.rand(step * len(images))[first::step] < 0.5
            images = torch.where(
                _on_device(mirrored, images).view(-1, 1, 1, 1), images.flip(-1), images
            )
        if self._policy is not None:
            if self._shard[0]:  # the number of draws depends on the draws: own seed per process
                torch.manual_seed(torch.initial_seed() + self._shard[0])
            images = self._policy(images.float() / 255)
        x = self._normalise(images)
        return _cut_out(x, self._cutout, self._shard) if self._cutout else x


def _on_device(numbers: Tensor, images: Tensor) -> Tensor:
    """Copy to the device of `images` without blocking the CPU."""
    return numbers.to(images.device, non_blocking=True)


def _cut_out(x: Tensor, side: int, shard: tuple[int, int]) -> Tensor:
    """Set a square around a random pixel of every image to the mean (DeVries & Taylor, 2017)."""
    size, (first, step) = x.shape[-1], shard
    centres = torch.randint(size, (2, step * len(x), 1))[:, first::step]
    pixels = torch.arange(size, device=x.device)
    rows, columns = (
        (pixels >= start) & (pixels < start + side) for start in _on_device(centres - side // 2, x)
    )  # (B, R) each
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


class _Choice:
    """Draws one operation for each image of a batch and applies it, `times` times in a row.

    kornia draws one for a whole batch. Here it gets all images with the same draw together, so
    that each operation runs once per batch, not once per image.
    """

    def __init__(self, operations: Sequence[Callable[[Tensor], Tensor]], times: int = 1) -> None:
        self._operations, self._times = operations, times

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) intensities in [0, 1] -> the same."""
        for _ in range(self._times):
            drawn = torch.randint(len(self._operations), (len(images),))
            changed = torch.empty_like(images)
            for i in drawn.unique().tolist():
                rows = _on_device((drawn == i).nonzero().flatten(), images)
                changed[rows] = self._operations[i](images[rows])
            images = changed
        return images


def _policy(name: Policy, fill: tuple[float, ...]) -> Callable[[Tensor], Tensor] | None:
    """fill: colour of the area that a rotation, shear or shift uncovers outside the image."""
    if name == "none":
        return None
    try:
        from kornia.augmentation.auto import AutoAugment, RandAugment
        from kornia.augmentation.auto.autoaugment.autoaugment import cifar10_policy
        from kornia.augmentation.auto.rand_augment.rand_augment import default_policy
    except ImportError:
        raise UserError(
            f"the augmentation {name} needs kornia: pip install 'diffusionnag-bo[imagenet]'"
        ) from None
    if name == "randaugment":

        def drawn(one: list[Any]) -> Callable[[Tensor], Tensor]:
            what = one[0][0]
            if what == "solarize_add":
                return _lighten_shadows
            magnitudes = _MAGNITUDES.get(what, (9,))
            return _Choice([_filling(RandAugment(1, m, [one]), fill) for m in magnitudes])

        return _Choice(list(map(drawn, default_policy)), times=2)
    # A magnitude of AutoAugment, 0 to 9, is a strength; kornia takes it for the argument.
    strengths = [
        [(what, p, m if m is None or what not in _LESS_IS_MORE else 9 - m) for what, p, m in pair]
        for pair in cifar10_policy
    ]
    return _Choice(list(_filling(AutoAugment(strengths), fill).children()))


def _lighten_shadows(images: Tensor) -> Tensor:
    """RandAugment's solarize_add at magnitude 9; kornia's also inverts all light pixels."""
    return torch.where(images < 0.5, images + 110 / 255 * 9 / 30, images)


def _filling(policy: nn.Module, colour: tuple[float, ...]) -> nn.Module:
    """Make kornia's geometric operations fill with `colour` instead of black.

    The authors of AutoAugment and timm fill with the mean of the images. Geometric operations are
    linear, so shifting colours before and after has this effect.
    """
    from kornia.augmentation import GeometricAugmentationBase2D
    from kornia.augmentation.auto.operations import OperationBase

    def shift(images: Tensor, sign: int) -> Tensor:
        return images + sign * _on_device(torch.tensor(colour), images).view(3, 1, 1)

    for module in policy.modules():
        if isinstance(module, OperationBase) and isinstance(module.op, GeometricAugmentationBase2D):
            module.register_forward_pre_hook(lambda _, given: (shift(given[0], -1), *given[1:]))
            module.register_forward_hook(lambda _, __, moved: shift(moved, 1).clamp(0, 1))
    return policy
