"""Finds the images of a folder, of tar archives, or of a parquet file."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nag.errors import UserError, counted
from trainers.images.index import SPLITS, Listing, newest, split_folders, used_splits

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "expected train/CLASS/*.jpeg and val/CLASS/*.jpeg"
FLAT = (
    "{where} holds images outside class folders, such as {name}: move each into the folder of "
    "its class (for ImageNet-1K, run valprep.sh of soumith/imagenetloader.torch in val)"
)


def scan(path: Path) -> Listing:
    """List all images at `path` without decoding; raises UserError in one line.

    path: a folder that holds train/CLASS/... (images at any depth), a folder of *.tar, one tar
        that holds train/CLASS/..., or a parquet file with the columns split, label or class, jpeg.
    """
    try:
        if path.is_dir():
            listing = _scan_folder(path)
        elif not path.exists():
            raise UserError(f"no such folder or file: {path}")
        elif path.suffix == ".parquet":
            listing = _scan_parquet(path)
        else:
            listing = _scan_tars(path, [path])
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot read {error.filename or path}: {reason}") from None
    return listing


def is_picture(name: str) -> bool:
    """Whether a file with this name (without its folder) counts as an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _listing(
    kind: str,
    root: Path,
    pictures: pa.Table,
    watched: Sequence[str],
    changed: int,
    classes: Sequence[str] | None = None,
) -> Listing:
    pictures = pictures.sort_by("name")
    names = pictures["name"]
    if len(names) != pc.count_distinct(names).as_py():
        twice = Counter(names.to_pylist()).most_common(1)[0][0]
        raise UserError(f"{root} holds {twice} twice")
    if classes is None:
        classes = sorted(pc.unique(pictures["class"]).to_pylist())
    return Listing(kind, root, tuple(classes), pictures, tuple(watched), changed)


def _scan_folder(root: Path) -> Listing:
    folders = split_folders(root)
    if not folders:
        archives = sorted(root.glob("*.tar"))
        if archives:
            return _scan_tars(root, archives)
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
        has = ", ".join(names[:5]) or "nothing"
        raise UserError(f"{root} has no folder train or val ({LAYOUT}); it has {has}")

    tops: list[tuple[str, str, str]] = []  # split, class, folder of the class inside root
    watched: list[str] = []
    for folder, split in folders.items():
        watched.append(folder)
        for entry in os.scandir(root / folder):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                tops.append((split, entry.name, f"{folder}/{entry.name}"))
            elif is_picture(entry.name):
                raise UserError(FLAT.format(where=root / folder, name=entry.name))
    if not tops:
        raise UserError(f"{root} has no class folders ({LAYOUT})")
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda top: _walk(root, top[2]), tops))
    columns: dict[str, list[object]] = {"name": [], "split": [], "class": []}
    for (split, name, top), (pictures, below) in zip(tops, found, strict=True):
        if not pictures:
            raise UserError(f"{root / top} holds no image")
        watched += below
        columns["name"] += pictures
        columns["split"] += [split] * len(pictures)
        columns["class"] += [name] * len(pictures)
    return _listing("folder", root, pa.table(columns), watched, newest(root, tuple(watched)))


def _walk(root: Path, top: str) -> tuple[list[str], list[str]]:
    """Images in a folder and its subfolders, and all these folders, as paths inside root."""
    pictures, folders, todo = [], [], [top]
    while todo:
        folder = todo.pop()
        folders.append(folder)
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    todo.append(f"{folder}/{entry.name}")
                elif is_picture(entry.name):
                    pictures.append(f"{folder}/{entry.name}")
    return pictures, folders


def _scan_tars(root: Path, archives: Sequence[Path]) -> Listing:
    watched = [path.name if root.is_dir() else "" for path in archives]
    changed = newest(root, tuple(watched))
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    rows: list[tuple[object, ...]] = []
    for archive, member in _members(archives):
        parts = member.name.split("/")
        if not is_picture(parts[-1]):
            continue
        at = next((i for i, part in enumerate(parts[:-1]) if part in split_of), None)
        if at is None:
            continue
        if len(parts) == at + 2:
            raise UserError(FLAT.format(where=f"{archive}: {parts[at]}", name=parts[-1]))
        name = "/".join(parts[at:])
        where = watched[archives.index(archive)]
        rows.append((name, parts[at], parts[at + 1], where, member.offset_data, member.size))
    if not rows:
        raise UserError(f"{root} holds no images in class folders ({LAYOUT})")
    titles = ("name", "split", "class", "archive", "offset", "size")
    columns = dict(zip(titles, map(list, zip(*rows, strict=True)), strict=True))
    return _listing("tar", root, _keep_splits(columns), watched, changed)


def _members(archives: Iterable[Path]) -> Iterable[tuple[Path, tarfile.TarInfo]]:
    """Regular files of archives that support random access."""
    for archive in archives:
        try:
            with tarfile.open(archive, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else all stay in memory
                    if member.name.endswith(".tar"):
                        raise UserError(
                            f"{archive} is a tar of tars ({member.name}): extract it, one folder "
                            f"per class ({LAYOUT})"
                        )
                    if member.isreg():
                        yield archive, member
        except tarfile.TarError as error:
            raise UserError(f"{archive} is not a complete, uncompressed tar: {error}") from None


def _scan_parquet(path: Path) -> Listing:
    changed = newest(path, ("",))
    try:
        file = pq.ParquetFile(path)
        available = file.schema_arrow.names
        missing = [name for name in ("split", "jpeg") if name not in available]
        if not {"label", "class"} & set(available):
            missing.append("label or class")
        if missing:
            raise UserError(
                f"{path} has no column {', '.join(missing)}; it has {', '.join(available)}"
            )
        wanted = [n for n in ("split", "label", "class", "file") if n in available]
        table = file.read(columns=wanted).to_pydict()
    except pa.ArrowInvalid:
        raise UserError(f"{path} is not a readable parquet file") from None
    splits = [str(split) for split in table["split"]]
    used = used_splits({*splits}.__contains__)
    if not used:
        raise UserError(
            f"{path}: column split must hold train and val; it holds "
            f"{', '.join(sorted(set(splits))[:5]) or 'nothing'}"
        )
    rows = list(range(len(splits)))
    pictures = [row for row in rows if splits[row] in used]
    for column in (name for name in ("label", "class") if name in table):
        if empty := sum(table[column][row] in (None, "") for row in pictures):
            raise UserError(
                f"{path}: column {column} is empty for {empty} of {counted(len(pictures), 'image')}"
            )
    labels = table.get("label", [])
    names = [str(name) for name in table.get("class", labels)]
    classes = None
    if labels:
        numbers = all(isinstance(labels[row], int | float) for row in pictures)
        pairs = sorted({(labels[row], names[row]) for row in pictures}) if numbers else []
        classes = [name for _, name in pairs]
        if not numbers or [label for label, _ in pairs] != list(range(len(set(classes)))):
            raise UserError(f"{path}: labels must be 0, 1, 2, ..., each for exactly one class")
    files = [
        f"{split}/{name}/{file}"
        for split, name, file in zip(splits, names, table.get("file", rows), strict=True)
    ]
    columns: dict[str, list] = {"name": files, "split": splits, "class": names, "row": rows}
    return _listing("parquet", path, _keep_splits(columns), ("",), changed, classes)


def _keep_splits(columns: dict[str, list]) -> pa.Table:
    """Only the images of train and val, under these names."""
    used = used_splits({*columns["split"]}.__contains__)
    table = pa.table(columns)
    table = table.filter(pc.is_in(table["split"], pa.array(list(used))))
    split = pa.array([used[name] for name in table["split"].to_pylist()], pa.string())
    return table.set_column(table.column_names.index("split"), "split", split)
