"""A finished network with its image preprocessing, in memory and on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nag.errors import UserError
from nag.files import write_json
from nag.spaces import InvalidArchitectureError, find_space
from nag.spaces.mobilenetv3 import MOBILENETV3
from trainers.cells import CellNetwork
from trainers.ofa import build_network
from trainers.plans import CELLS, CHANNELS

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything in a classifier except its weights.

    arch: in the notation of the space.
    classes: names, in the order of the logits.
    resolution: side of the images, in pixels.
    crop_ratio: side of the central crop, relative to the shorter side.
    width: multiplier of the channels; for MobileNetV3 only.
    mean, std: per channel, of intensities in [0, 1].
    """

    space: str
    arch: str
    classes: tuple[str, ...]
    resolution: int
    crop_ratio: float
    width: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def network(self) -> nn.Module:
        """The network, without the trained weights."""
        arch = find_space(self.space).from_str(self.arch)
        if self.space == MOBILENETV3.name:
            return build_network(arch, num_classes=len(self.classes), width=self.width)
        return CellNetwork(arch, len(self.classes))

    def architecture(self) -> dict[str, Any]:
        """The format of the space's own tools: once-for-all, or AutoDL-Projects and NATS-Bench."""
        space = find_space(self.space)
        config = space.to_config(space.from_str(self.arch))
        if self.space == MOBILENETV3.name:
            return {**config, "r": [self.resolution], "w": self.width}
        return {**config, "C": CHANNELS[0], "N": CELLS, "num_classes": len(self.classes)}

    def preprocessing(self) -> dict[str, Any]:
        """How to turn an image into an input of `Classifier`, and what `Classifier` does to it."""
        return {
            "colours": "RGB",
            "crop": "central square",
            "crop_ratio": self.crop_ratio,
            "resolution": self.resolution,
            "interpolation": "bilinear, antialiased",
            "input": ["batch", self.resolution, self.resolution, 3],
            "input_type": "uint8",
            "normalised_inside_the_model": {"mean": list(self.mean), "std": list(self.std)},
            "classes": list(self.classes),
        }


class Classifier(nn.Module):
    """Images (B, R, R, 3) uint8, as image libraries return them, to logits (B, num_classes).

    Normalisation is included, so that it cannot be forgotten.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        for name, numbers in (("mean", spec.mean), ("std", spec.std)):
            self.register_buffer(name, torch.tensor(numbers).view(3, 1, 1) * 255)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.permute(0, 3, 1, 2) - self.mean) / self.std)


def save_classifier(classifier: Classifier, folder: Path, about: Mapping[str, Any]) -> None:
    """Write the weights and their spec; `about`, for JSON, is stored next to them."""
    state = classifier.network.state_dict()
    (folder / WEIGHTS).write_bytes(save({k: v.contiguous().cpu() for k, v in state.items()}))
    spec = classifier.spec
    write_json(folder / CONFIG, {"format": 1, "network": asdict(spec), **about})
    write_json(folder / "arch.json", spec.architecture())
    write_json(folder / "preprocessing.json", spec.preprocessing())


def load_classifier(folder: Path) -> Classifier:
    """Load the classifier in a folder, in evaluation mode; raises UserError."""
    try:
        record: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())["network"]
        record |= {name: tuple(record[name]) for name in ("classes", "mean", "std")}
        spec = Spec(**record)
        network = spec.network()
        network.load_state_dict(load_file(folder / WEIGHTS))
    except OSError as error:
        raise UserError(f"no model in {folder}: {error}") from None
    except (
        *(ValueError, KeyError, TypeError, RuntimeError),
        *(SafetensorError, InvalidArchitectureError),
    ) as error:
        raise UserError(f"the model in {folder} is damaged: {error}") from error
    return Classifier(network, spec)
