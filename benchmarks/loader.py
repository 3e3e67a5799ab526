"""How fast are images loaded? Images per second of the loader, next to Pillow's decoding alone.

    python benchmarks/loader.py [--data DATA ...]

Decoding alone is Pillow reading bytes and decoding them to RGB, nothing more, in as many processes
as the loader has workers. The loader also takes random crops, resizes and makes batches of 64, with
simplejpeg, if installed, and without. Cached: from central squares in a memory-mapped file, in one
process. All take turns; medians over the rounds. There are 512 synthetic images, used repeatedly.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from io import BytesIO
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

import numpy as np
from PIL import Image
from publish import publish

from nag.cli import command_line, run
from nag.errors import UserError
from trainers.images import Crop, Loader, open_images
from trainers.images import decode as decoding
from trainers.images.sets import Split

app = command_line("python benchmarks/loader.py")


@app.default
def main(
    *, data: tuple[Path, ...] = (), pictures: int = 2000, rounds: int = 7, workers: int = 2
) -> None:
    """Time whole epochs and write benchmarks/results/loader.md.

    Parameters
    ----------
    data
        Image sets in addition to the synthetic one, loaded at the height of their first image.
    pictures
        Images to load per set.
    rounds
        Rounds to measure.
    workers
        Number of decoding processes.
    """
    if min(pictures, rounds, workers) < 1:
        raise UserError("--pictures, --rounds and --workers must be at least 1")
    names = " ".join(f"--data {path.name}" for path in data)
    about = (
        f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, Pillow "
        f"{version('pillow')}, torch {version('torch')}; {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.0f}; {workers} workers, medians of {rounds} rounds."
    )
    command = f"python benchmarks/loader.py {names}".strip()
    publish("loader", about, _table(data, pictures, rounds, workers), command)


def _table(data: tuple[Path, ...], pictures: int, rounds: int, workers: int) -> Iterator[str]:
    yield (
        "| images | resolution | Pillow decoding alone, 1/s | loader, 1/s | share, % "
        "| loader without simplejpeg, 1/s | share, % | cached, 1/s |"
    )
    yield "|" + "---|" * 8
    with tempfile.TemporaryDirectory() as folder:
        made = _make(Path(folder, "made"))
        for path in (made, *data):
            split = open_images(path).split("train")
            height = decoding.decode(split.read(0)).shape[0]
            title = "made, 500 x 375, like ImageNet's" if path == made else path.name
            resolution = 224 if path == made else height
            rows = np.arange(pictures) % len(split)
            yield _row(title, split, rows, resolution, rounds, workers, Path(folder))


def _row(
    title: str,
    split: Split,
    rows: np.ndarray,
    resolution: int,
    rounds: int,
    workers: int,
    folder: Path,
) -> str:
    make = partial(
        Loader,
        split,
        rows,
        batch_size=64,
        resolution=resolution,
        crop=Crop.random_resized(),
        seed=0,
        shuffle=True,
    )
    parts = np.array_split(rows, workers)
    with get_context("fork").Pool(workers) as pool:
        kinds: dict[str, Callable[[], object]] = {
            "alone": lambda: pool.map(partial(_decode, split), parts, chunksize=1),
            "loader": _epochs(make(workers=workers)),
        }
        with patch.object(decoding, "simplejpeg", None):
            kinds["without"] = _epochs(make(workers=workers))
        kinds["cached"] = _epochs(make(cache=folder))
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(rounds):
            order = list(kinds) if turn % 2 else list(reversed(kinds))
            for kind in order:
                started = perf_counter()
                kinds[kind]()
                seconds[kind].append(perf_counter() - started)
    rate = {kind: len(rows) / median(times) for kind, times in seconds.items()}
    share = {kind: 100 * rate[kind] / rate["alone"] for kind in rate}
    return (
        f"| {title} | {resolution} | {rate['alone']:,.0f} | {rate['loader']:,.0f} "
        f"| {share['loader']:.0f} | {rate['without']:,.0f} | {share['without']:.0f} "
        f"| {rate['cached']:,.0f} |"
    )


def _epochs(loader: Loader) -> Callable[[], None]:
    """A function that runs one epoch per call; a first one, run now, starts the workers."""
    number = count()

    def through() -> None:
        for _ in loader.epoch(next(number)):
            pass

    through()
    return through


def _decode(split: Split, rows: np.ndarray) -> None:
    for row in rows.tolist():
        Image.open(BytesIO(split.read(row))).convert("RGB").load()


def _make(root: Path, pictures: int = 512) -> Path:
    """JPEGs of 500 x 375 pixels and about 65 kB: smooth patches and noise. Synthetic."""
    rng = np.random.default_rng(0)
    for i in range(pictures):
        patches = rng.integers(0, 256, (47, 62, 3), dtype=np.uint8)
        smooth = Image.fromarray(patches).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth).astype(int) + rng.integers(-12, 13, (375, 500, 3))
        folder = root / "train" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpeg", quality=85)
    return root


if __name__ == "__main__":
    run(app)
