"""Made pictures for tests: smooth gradients whose colours tell class and number. Synthetic."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(number: int = 0, width: int = 48, height: int = 40, mode: str = "RGB") -> bytes:
    """A gradient, as JPEG where the mode allows it, else as PNG."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / width, 255 * y / height, np.full(x.shape, 37 * number % 256)]
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    if mode in ("RGB", "L", "CMYK"):
        image.save(file, "JPEG", quality=95)
    else:
        image.save(file, "PNG")
    return file.getvalue()


def folder(
    root: Path, train: int = 6, val: int = 2, classes: tuple[str, ...] = ("cat", "dog")
) -> Path:
    """An ImageFolder; every picture has bytes of its own."""
    number = 0
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                number += 1
                data = encoded(number, 40 + number, 40)
                (root / split / name / f"{i}.jpeg").write_bytes(data)
    return root


def tar_of(root: Path, path: Path, prefix: str = "") -> Path:
    """A tar of the files of a folder."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                tar.add(file, prefix + str(file.relative_to(root)))
    return path


def colours(root: Path, train: int = 15, val: int = 4) -> Path:
    """An ImageFolder of three classes that can be learned: blue, green and red, with noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for channel, name in enumerate(("blue", "green", "red")):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 160, (16, 16, 3))
                pixels[..., 2 - channel] += 80
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return root
