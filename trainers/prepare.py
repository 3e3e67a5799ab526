"""Check and index an image data set: `python -m trainers.prepare --help`."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.text import Text

from nag.cli import WholeNumber, command_line, plain_console, progress_bar, run
from nag.errors import UserError, counted
from nag.files import write_text
from trainers.images.check import Found, check_imagenet, look_at_all
from trainers.images.index import FILE, Listing, prepared_folder, save
from trainers.images.pixels import locked, write_pixels
from trainers.images.scan import scan
from trainers.images.sets import build_images

SHOWN = 20  # images and classes listed in the report
CORRUPT, LEAKS, CLASSES = "corrupt.txt", "leaks.txt", "classes.csv"

app = command_line(
    "python -m trainers.prepare",
    "python -m trainers.prepare photos.tar",
    "python -m trainers.prepare --imagenet ILSVRC2012 --size 256",
)


@app.default
def main(
    data: Path,
    *,
    imagenet: bool = False,
    out: Path | None = None,
    size: WholeNumber | None = None,
    workers: WholeNumber | None = None,
) -> None:
    """Decode every image once, report problems, and write an index.

    With the index, the data open instantly and corrupt images are left out. Repeat the command
    when the data have changed.

    Parameters
    ----------
    data
        Folder with images in train/CLASS/ and val/CLASS/, a tar of it, a folder of such tars, or
        a parquet file with the columns split, label or class, jpeg.
    imagenet
        First check that these are the images of ImageNet-1K, by class names and counts.
    out
        Folder for the index, to be given later in place of DATA; by default next to the data.
    size
        Also decode all images into memory-mapped files of SIZE x SIZE pixels each.
    workers
        Processes; by default one per core.
    """
    if (size is not None and size < 1) or (workers is not None and workers < 1):
        raise UserError("--size and --workers must be at least 1")
    console = plain_console()
    with console.status(Text(f"scanning {data}")):  # a status of type str is read as markup
        listing = scan(data)
        if imagenet:
            check_imagenet(listing)
        build_images(listing, data)  # check classes and splits before the long work
    folder = out or prepared_folder(data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give --out") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}: give --out")

    with progress_bar(console, "checking", len(listing.pictures)) as advance:
        found = look_at_all(listing, workers, advance)
    images = build_images(found.listing, folder)
    with locked(folder):
        for old in folder.glob("pixels-*"):  # may be of other images with the same names
            old.unlink()
    _write_lists(found, folder)
    save(found.listing, folder)
    sys.stdout.writelines(f"{line}\n" for line in report(found, folder))
    if size is not None:
        for name, split in images.splits.items():
            with progress_bar(console, f"decoding {name}", len(split)) as advance:
                path = write_pixels(split, size, folder, workers, advance)
            sys.stdout.write(f"pixels of {name}: {path}\n")


def report(found: Found, folder: Path) -> Iterator[str]:
    """The lines of the report."""
    pictures = found.listing.pictures
    yield f"{found.listing.root}: {counted(len(found.listing.classes), 'class', 'classes')}"
    for split in ("train", "val"):
        part = pictures.filter(pc.equal(pictures["split"], split))
        if not len(part):
            yield f"{split}: none"
            continue
        good = part.filter(part["error"].is_null())
        counts = pc.value_counts(good["class"]).field("counts").to_numpy()
        yield (
            f"{split}: {counted(len(good), 'image')}, {_range(counts)} per class; "
            f"{pc.sum(part['bytes']).as_py() / 1e6:,.1f} MB; "
            f"{_range(good['width'].to_numpy())} wide, {_range(good['height'].to_numpy())} high; "
            f"{len(part) - len(good):,} corrupt"
        )
    if len(found.listing.classes) <= SHOWN:
        for name, counts in _per_class(found.listing).items():
            yield f"  {name}: {', '.join(f'{n:,} {split}' for split, n in counts.items())}"
    else:
        yield f"images of each class: {folder / CLASSES}"
    bad = pictures.filter(pictures["error"].is_valid())
    wrong = [f"{row['name']}: {row['error']}" for row in bad.slice(0, SHOWN).to_pylist()]
    corrupt = "image is corrupt", "images are corrupt"
    yield from _some(*corrupt, wrong, len(bad), folder / CORRUPT, "left out")
    same = [f"{name} = {other}" for name, other in found.leaks[:SHOWN]]
    leak = "image of val is also in train, byte for byte"
    leaks = "images of val are also in train, byte for byte"
    yield from _some(leak, leaks, same, len(found.leaks), folder / LEAKS)
    yield f"index: {folder / FILE}"


def _some(
    one: str, several: str, shown: Sequence[str], count: int, path: Path, fate: str = ""
) -> Iterator[str]:
    if not count:
        yield f"no {several}"
        return
    yield ", ".join(filter(None, (counted(count, one, several), fate, f"all listed in {path}:")))
    yield from (f"  {line}" for line in shown)
    if count > len(shown):
        yield f"  and {count - len(shown):,} more"


def _range(numbers: np.ndarray) -> str:
    """Minimum to maximum, with the median if they differ."""
    low, middle, high = (f"{x:,.0f}" for x in np.quantile(numbers, (0, 0.5, 1)))
    return low if low == high else f"{low} to {high} (median {middle})"


def _per_class(listing: Listing) -> dict[str, dict[str, int]]:
    """Good images of each class by split."""
    counts = {name: {"train": 0, "val": 0} for name in listing.classes}
    found = listing.good.group_by(["class", "split"]).aggregate([([], "count_all")])
    for row in found.to_pylist():
        counts[row["class"]][row["split"]] = row["count_all"]
    return counts


def _write_lists(found: Found, folder: Path) -> None:
    pictures = found.listing.pictures
    bad = pictures.filter(pictures["error"].is_valid()).to_pylist()
    lists = {
        CORRUPT: [f"{row['name']}\t{row['error']}" for row in bad],
        LEAKS: [f"{name}\t{other}" for name, other in found.leaks],
        CLASSES: [
            "class,train,val",
            *(f"{name},{n['train']},{n['val']}" for name, n in _per_class(found.listing).items()),
        ],
    }
    for name, lines in lists.items():
        write_text(folder / name, "\n".join(lines))


if __name__ == "__main__":
    run(app)
