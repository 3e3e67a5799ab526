"""What the networks of a space have in common: channels, and map sizes at a given resolution."""

from dataclasses import dataclass
from functools import cache

from nag.errors import UserError
from nag.spaces.mobilenetv3 import MAX_DEPTH

MAX_WIDTH = 4  # times the channels of the published network

# Once-for-all MobileNetV3 at width 1.0.
_STEM, _EXPANDED, _FEATURES = 16, 960, 1280
_STAGES = (  # channels, stride, squeeze-excite, hard swish
    (24, 2, False, False),
    (40, 2, True, False),
    (80, 2, False, True),
    (112, 1, True, True),
    (160, 2, True, True),
)


def check_width(width: float) -> None:
    """Raise UserError for an unsupported width."""
    if not 0 < width <= MAX_WIDTH or width != round(width, 2):
        raise UserError(f"--width must be more than 0, at most {MAX_WIDTH}, and a multiple of 0.01")


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of an inverted bottleneck: channels and map sizes before and after it."""

    inputs: int
    outputs: int
    size_in: int
    size_out: int
    stride: int
    squeeze_excite: bool
    hard_swish: bool

    @property
    def skip(self) -> bool:
        """Whether a residual connection runs around it."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True, slots=True)
class MobileNetV3Plan:
    """Everything in a once-for-all network that is not searched.

    resolution: side of the images, in pixels.
    first: the fixed block after the stem, with kernel 3 and expand ratio 1.
    slots: places of the searched layers, (20,).
    expanded, features: channels of the final expansion and of the mixing before the classifier.
    """

    resolution: int
    first: Slot
    slots: tuple[Slot, ...]
    expanded: int
    features: int


@cache
def mobilenetv3_plan(resolution: int = 224, width: float = 1.0) -> MobileNetV3Plan:
    """The plan for images of `resolution` pixels and channels multiplied by `width`."""
    stem, size = _make_divisible(_STEM * width), _strided(resolution, 2)
    first = Slot(stem, stem, size, size, stride=1, squeeze_excite=False, hard_swish=False)
    slots, before = [], first
    for channels, first_stride, squeeze_excite, hard_swish in _STAGES:
        for stride in (first_stride, *[1] * (MAX_DEPTH - 1)):
            before = Slot(
                inputs=before.outputs,
                outputs=_make_divisible(channels * width),
                size_in=before.size_out,
                size_out=_strided(before.size_out, stride),
                stride=stride,
                squeeze_excite=squeeze_excite,
                hard_swish=hard_swish,
            )
            slots.append(before)
    expanded, features = _make_divisible(_EXPANDED * width), _make_divisible(_FEATURES * width)
    return MobileNetV3Plan(resolution, first, tuple(slots), expanded, features)


def _strided(size: int, stride: int) -> int:
    """Output side of a padded convolution on a `size` x `size` map."""
    return (size - 1) // stride + 1


def _make_divisible(channels: float) -> int:
    """The nearest multiple of 8, but never less than 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def squeezed(channels: int) -> int:
    """Channels in the middle of a squeeze-excite module around `channels`."""
    return _make_divisible(channels / 4)


# NAS-Bench-201: three stacks of five equal cells with a residual reduction block between stacks.
CHANNELS, CELLS = (16, 32, 64), 5  # channels of each stack, cells per stack


def stack_sizes(resolution: int) -> tuple[int, int, int]:
    """Map side in each stack of a NAS-Bench-201 network."""
    half = _strided(resolution, 2)
    return resolution, half, _strided(half, 2)
