"""How an image becomes a square of R x R pixels."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TRIES = 10  # attempts to fit a random box inside the image
DRAWS = 2 * TRIES + 2  # random numbers per image: area and shape of each try; position
ASPECT = math.log(4 / 3)  # largest |log(width / height)| of a random box


class Box(NamedTuple):
    """The part of an image that is resized to R x R, and the shift applied after that."""

    part: tuple[int, int, int, int]  # left, top, width, height
    shift: tuple[int, int]  # right, down; filled with black


@dataclass(frozen=True)
class Crop:
    """Made by `center`, `random_resized` or `shifted`."""

    ratio: float = 1.0
    scale: tuple[float, float] | None = None
    padding: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"the ratio of a crop must lie in (0, 1], not {self.ratio}")
        low, high = self.scale or (1.0, 1.0)
        if not 0 < low <= high <= 1:
            raise ValueError(f"the scale of a crop must be a range within (0, 1], not {self.scale}")
        if self.padding < 0:
            raise ValueError(f"the padding of a crop must not be negative, not {self.padding}")

    @classmethod
    def center(cls, ratio: float = 0.875) -> "Crop":
        """The central square with side `ratio` times the shorter side; 224 / 256 is usual."""
        return cls(ratio=ratio)

    @classmethod
    def random_resized(cls, scale: tuple[float, float] = (0.08, 1.0)) -> "Crop":
        """A random fraction of the area, with aspect ratio 3/4 to 4/3, as in torchvision."""
        return cls(scale=scale)

    @classmethod
    def shifted(cls, padding: int = 4) -> "Crop":
        """For small images: the central square, shifted by at most `padding` pixels of R."""
        return cls(padding=padding)

    def cached_size(self, resolution: int) -> int:
        """Side of the squares to cache, from which the central crop takes its R pixels."""
        ratio = 0.875 if self.scale is not None else self.ratio
        return round(resolution / ratio)

    def box(self, width: int, height: int, draws: np.ndarray) -> Box:
        """Where to crop an image of this size, given (DRAWS,) uniform random numbers."""
        if self.scale is not None:
            return Box(self._random_part(width, height, draws.tolist()), (0, 0))
        side = max(1, round(self.ratio * min(width, height)))
        part = (round((width - side) / 2), round((height - side) / 2), side, side)
        span = 2 * self.padding + 1
        right, down = (int(x * span) - self.padding for x in draws[-2:])
        return Box(part, (right, down))

    def _random_part(
        self, width: int, height: int, draws: list[float]
    ) -> tuple[int, int, int, int]:
        low, high = self.scale or (1.0, 1.0)
        for i in range(TRIES):
            area = width * height * (low + (high - low) * draws[2 * i])
            aspect = math.exp(ASPECT * (2 * draws[2 * i + 1] - 1))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(draws[-2] * (width - w + 1)), int(draws[-1] * (height - h + 1)), w, h
        w = max(1, min(width, round(height * math.exp(ASPECT))))  # for very long images
        h = max(1, min(height, round(width * math.exp(ASPECT))))
        return (width - w) // 2, (height - h) // 2, w, h


def shift(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift each of (B, 3, R, R) images by (B, 2) pixels, right and down; fill with black."""
    size, far = images.shape[-1], int(shifts.abs().max())
    if not far:
        return images
    padded = F.pad(images, (far, far, far, far))
    start = (far - shifts).to(images.device)
    reach = torch.arange(size, device=images.device)
    columns, rows = start[:, :1] + reach, start[:, 1:] + reach  # (B, R) each
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def crop_squares(squares: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Boxes (B, 4) of (B, 3, S, S) uint8 squares, each resized to size x size; on their device."""
    if (boxes == boxes[0]).all() and int(boxes[0, 2]) == int(boxes[0, 3]) == size:
        left, top = boxes[0, :2].tolist()
        return squares[:, :, top : top + size, left : left + size]
    if squares.device.type == "cpu":
        return resample_each(squares, boxes, size)
    return resample_at_once(squares, boxes, size)


def resample_each(squares: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Bilinear and antialiased, one by one: by far the fastest way on a CPU."""
    parts = (
        square[None, :, top : top + height, left : left + width]
        for square, (left, top, width, height) in zip(squares, boxes.tolist(), strict=True)
    )
    return torch.cat(
        [F.interpolate(part, (size, size), mode="bilinear", antialias=True) for part in parts]
    )


def resample_at_once(squares: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Bilinear without antialiasing: boxes should not exceed twice the size."""
    box = boxes.to(squares.device, torch.float32)
    side = squares.shape[-1]
    scale = box[:, 2:] / side  # grid_sample's coordinates: -1 and 1 are the edges of the square
    centre = (2 * box[:, :2] + box[:, 2:]) / side - 1
    theta = torch.cat([torch.diag_embed(scale), centre[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, [len(squares), 3, size, size], align_corners=False)
    found = F.grid_sample(squares.float(), grid, padding_mode="border", align_corners=False)
    return found.round_().to(torch.uint8)
