"""Image sets, on made pictures (synthetic) and on real ones."""

import gc
import multiprocessing
import os
import pickle
import queue
import signal
import time
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import encoded, folder, tar_of
from PIL import Image

from nag.errors import UserError
from trainers.images import (
    Crop,
    Loader,
    LoaderError,
    default_cache,
    fraction,
    hold_out,
    open_images,
)
from trainers.images import decode as decoding
from trainers.images.crops import DRAWS, crop_squares, resample_at_once, resample_each, shift
from trainers.images.decode import CorruptImageError, decode, resize
from trainers.images.loader import PREFETCH, _Cached
from trainers.images.parallel import in_processes
from trainers.images.pixels import LOCK, open_pixels, pixel_file, write_pixels
from trainers.images.sets import Split


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / "data")


def parquet_of(root, path, **more):
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    columns = {
        "split": [{"val": "test"}.get(f.parts[-3], f.parts[-3]) for f in files],
        "class": [f.parts[-2] for f in files],
        "file": [f.name for f in files],
        "jpeg": [f.read_bytes() for f in files],
    }
    pq.write_table(pa.table(columns | more), path)
    return path


def contents(images):
    return {
        name: [(split.classes[y], split.read(i)) for i, y in enumerate(split.labels)]
        for name, split in images.splits.items()
    }


# Opening


def test_every_kind_of_source_gives_the_same_pictures(root, tmp_path):
    wanted = contents(open_images(root))
    assert {name: len(split) for name, split in wanted.items()} == {"train": 12, "val": 4}
    assert wanted["train"][0] == ("cat", (root / "train/cat/0.jpeg").read_bytes())
    assert wanted["val"][3] == ("dog", (root / "val/dog/1.jpeg").read_bytes())
    shards = tmp_path / "shards"
    shards.mkdir()
    tar_of(root / "train", shards / "1.tar", "train/")
    tar_of(root / "val", shards / "0.tar", "./data/validation/")
    for path in (
        tar_of(root, tmp_path / "data.tar"),
        shards,
        parquet_of(root, tmp_path / "data.parquet"),
    ):
        images = open_images(path)
        assert images.classes == ("cat", "dog")
        assert contents(images) == wanted
        assert contents(pickle.loads(pickle.dumps(images))) == wanted
        for split in images.splits.values():
            assert split.labels.dtype == np.int64
            assert len(set(split.names.tolist())) == len(split)


def test_pictures_in_deeper_folders_and_with_other_suffixes(root):
    (root / "train/cat/deep").mkdir()
    (root / "train/cat/deep/x.PNG").write_bytes(encoded(mode="P"))
    (root / "train/cat/notes.txt").write_text("no picture")
    (root / "train/cat/._0.jpeg").write_bytes(b"left by a file manager")
    split = open_images(root).split("train")
    assert len(split) == 13
    assert split.labels[split.names.tolist().index("train/cat/deep/x.PNG")] == 0


def test_labels_of_a_parquet_file_number_its_classes(root, tmp_path):
    label = [0] * 2 + [0] * 4 + [1] * 6 + [0] * 2 + [1] * 2
    names = ["wolf", "bear"]
    path = parquet_of(
        root, tmp_path / "x.parquet", **{"label": label, "class": [names[i] for i in label]}
    )
    images = open_images(path)
    assert images.classes == ("wolf", "bear")
    assert images.split("train").labels.tolist() == sorted(
        images.split("train").labels.tolist(), reverse=True
    )  # sorted by name: bear first
    for wrong in ([7 * i for i in label], [[i] for i in label], [str(i) for i in label]):
        path = parquet_of(root, tmp_path / "y.parquet", label=wrong)
        with pytest.raises(UserError, match="labels must be 0, 1, 2"):
            open_images(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, None, *[0, 1] * 7]}, "column label is empty for 1 of 16 images"),
        ({"label": [None] * 16}, "column label is empty for 16 of 16 images"),
        ({"label": [None] * 16, "class": [""] * 16}, "column label is empty for 16 of 16 images"),
        ({"class": ["cat", "", None, *["cat"] * 13]}, "column class is empty for 2 of 16 images"),
    ],
)
def test_pictures_without_a_class_are_refused(root, tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        open_images(parquet_of(root, tmp_path / "x.parquet", **columns))


def test_pictures_of_other_splits_need_no_class(root, tmp_path):
    split = [*["train"] * 12, "val", "test", "val", "test"]
    label = [*[0] * 6, *[1] * 6, 0, None, 1, -1]
    path = parquet_of(root, tmp_path / "x.parquet", label=label, split=split)
    images = open_images(path)
    assert images.classes == ("cat", "dog")
    assert {name: len(split) for name, split in images.splits.items()} == {"train": 12, "val": 2}


def test_what_cannot_be_opened_is_one_line(root, tmp_path):
    def fails(path, message):
        with pytest.raises(UserError, match=message) as error:
            open_images(path)
        assert "\n" not in str(error.value)

    fails(tmp_path / "absent", "no such folder or file")
    fails(root / "train", "has no folder train or val .*; it has cat, dog")
    (root / "val/cat").rename(root / "val/cow")
    fails(root, "train lacks class cow, which val has")
    (root / "val/cow").rename(root / "val/cat")
    (root / "val/0.jpeg").write_bytes(encoded())
    fails(root, "holds images outside class folders, such as 0.jpeg: .*valprep.sh")
    fails(tar_of(root, tmp_path / "flat.tar"), "holds images outside class folders")
    (root / "val/0.jpeg").unlink()
    (root / "train/emu").mkdir()
    fails(root, "train/emu holds no image")
    (root / "train/emu/0.jpeg").write_bytes(encoded())
    fails(root, "val lacks class emu, which train has")
    fails(folder(tmp_path / "one", classes=("cat",)), "only one class, cat: at least two")
    tar = tar_of(root, tmp_path / "whole.tar")
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[:9000])
    fails(tmp_path / "cut.tar", "cut.tar is not a complete, uncompressed tar")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/n1.tar").write_bytes(tar.read_bytes())
    fails(tar_of(tmp_path / "tars", tmp_path / "ILSVRC.tar"), "is a tar of tars")
    (tmp_path / "text.parquet").write_text("no parquet")
    fails(tmp_path / "text.parquet", "not a readable parquet file")
    pq.write_table(pa.table({"split": ["train"]}), tmp_path / "less.parquet")
    fails(tmp_path / "less.parquet", "no column jpeg, label or class; it has split")


def test_a_column_that_cannot_be_read_is_called_what_it_is(root, tmp_path):
    count = sum(file.is_file() for file in root.rglob("*"))
    path = parquet_of(root, tmp_path / "numbers.parquet", jpeg=[*range(count)])
    with pytest.raises(UserError, match="column jpeg holds int64, not bytes"):
        open_images(path)
    path = parquet_of(root, tmp_path / "damaged.parquet")
    whole = path.read_bytes()
    start = whole.index(encoded()[:4])  # of the first picture
    path.write_bytes(whole[: start - 40] + bytes(80) + whole[start + 40 :])
    with pytest.raises(UserError, match=r"cannot read .*damaged\.parquet"):
        open_images(path)


def test_a_missing_split_is_named(root):
    with pytest.raises(UserError, match="has no split test: it has train, val"):
        open_images(root).split("test")


# Decoding


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_picture_becomes_rgb(mode):
    data = encoded(3, mode="RGB" if mode == "I;16" else mode)
    assert decode(data).shape == (40, 48, 3)
    assert decode(data).dtype == np.uint8
    if mode == "L":
        assert (np.ptp(decode(data).astype(int), axis=2) == 0).all()


@pytest.mark.parametrize("data", [b"", b"text", encoded()[:-200], encoded()[:30]])
def test_what_is_no_whole_picture_is_corrupt(data):
    messages = []
    for _ in range(2):
        with pytest.raises(CorruptImageError) as error:
            decode(data)
        messages.append(str(error.value))
    assert messages[0] == messages[1]  # an index of the same images is the same
    assert "object at 0x" not in messages[0]


def test_decoders_agree_to_the_bit(monkeypatch):
    pytest.importorskip("simplejpeg")
    pictures = [encoded(i, 50 + i, 40, mode) for i, mode in enumerate(("RGB", "L", "RGB"))]
    fast = [decode(data) for data in pictures]
    monkeypatch.setattr(decoding, "simplejpeg", None)
    for data, pixels in zip(pictures, fast, strict=True):
        np.testing.assert_array_equal(decode(data), pixels)


def test_resizing_is_that_of_pillow(rng):
    pixels = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for size in (16, 60, 100):
        wanted = Image.fromarray(pixels[20:80, 10:100]).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        found = resize(pixels, (10, 20, 90, 60), size).permute(1, 2, 0).numpy()
        assert np.abs(found.astype(int) - np.asarray(wanted)).max() <= 1


# Crops


def test_a_central_crop_is_that_of_resizing_and_cutting():
    pixels = decode(encoded(1, 500, 375))
    box = Crop.center().box(500, 375, np.zeros(DRAWS))
    found = resize(pixels, box.part, 224).permute(1, 2, 0).numpy().astype(int)
    whole = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BILINEAR)
    wanted = np.asarray(whole.crop((58, 16, 282, 240)))
    assert np.abs(found - wanted).max() <= 3  # a gradient of up to 1.8 per pixel


def test_random_boxes_have_the_areas_and_shapes_of_torchvision(rng):
    crop, boxes = Crop.random_resized((0.08, 1.0)), []
    for draws in rng.random((4000, DRAWS)):
        (left, top, width, height), moved = crop.box(500, 375, draws)
        assert moved == (0, 0)
        assert 0 <= left <= 500 - width
        assert 0 <= top <= 375 - height
        boxes.append((left, top, width, height))
    left, top, width, height = np.array(boxes).T
    assert 0.075 < (width * height / 500 / 375).min() < 0.1
    assert 0.98 < (width * height / 500 / 375).max() <= 1
    assert 0.73 < (width / height).min() < 0.77
    assert 1.3 < (width / height).max() < 1.36
    assert abs((left + width / 2).mean() - 250) < 5
    assert abs((top + height / 2).mean() - 187.5) < 5
    small = width * height < 0.5 * 500 * 375  # all shapes fit: the logarithm of the shape is even
    assert abs(np.log(width / height)[small].mean()) < 0.02


def test_a_very_long_picture_is_cut_in_its_middle():
    box = Crop.random_resized((0.9, 1.0)).box(1000, 10, np.full(DRAWS, 0.5))
    assert box.part == (493, 0, 13, 10)
    assert Crop.random_resized((1.0, 1.0)).box(1, 1, np.full(DRAWS, 0.5)).part == (0, 0, 1, 1)


def test_shifting_moves_and_brings_in_black(rng):
    images = torch.from_numpy(rng.integers(1, 256, (3, 3, 8, 8), dtype=np.uint8))
    moved = shift(images, torch.tensor([[0, 0], [3, 0], [-1, 2]]))
    assert (moved[0] == images[0]).all()
    assert (moved[1, :, :, 3:] == images[1, :, :, :5]).all()
    assert (moved[1, :, :, :3] == 0).all()
    assert (moved[2, :, 2:, :7] == images[2, :, :6, 1:]).all()
    assert (moved[2, :, :2] == 0).all()
    assert (moved[2, :, :, 7] == 0).all()


def test_shifts_are_even(rng):
    shifts = [Crop.shifted(2).box(32, 32, draws).shift for draws in rng.random((2000, DRAWS))]
    for axis in np.array(shifts).T:
        assert (np.bincount(axis + 2, minlength=5) > 320).all()
        assert set(axis) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("resample", [resample_each, resample_at_once])
def test_boxes_of_squares_are_those_of_pillow(rng, resample):
    squares = rng.integers(0, 256, (4, 3, 40, 40), dtype=np.uint8)
    boxes = torch.tensor([[0, 0, 20, 32], [5, 7, 24, 20], [0, 0, 32, 32], [20, 20, 20, 20]])
    found = resample(torch.from_numpy(squares), boxes, 32)
    for image, (x, y, w, h), square in zip(found, boxes.tolist(), squares, strict=True):
        wanted = Image.fromarray(square.transpose(1, 2, 0)).resize(
            (32, 32), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h)
        )
        inner = (image.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted))[1:-1, 1:-1]
        assert np.abs(inner).max() <= 1


def test_equal_boxes_of_the_right_size_are_cut_out(rng):
    squares = torch.from_numpy(rng.integers(0, 256, (2, 3, 40, 40), dtype=np.uint8))
    found = crop_squares(squares, torch.tensor([[3, 5, 32, 32]] * 2), 32)
    assert (found == squares[:, :, 5:37, 3:35]).all()


def test_crops_out_of_range_are_refused():
    for make in (
        lambda: Crop.center(0),
        lambda: Crop.random_resized((0.5, 0.1)),
        lambda: Crop.shifted(-1),
        lambda: Crop(scale=(0.0, 1.0)),
    ):
        with pytest.raises(ValueError, match="of a crop must"):
            make()


# Splits


def named(names, labels):
    """A split without pictures."""
    classes = tuple(f"class{i}" for i in range(max(labels) + 1))
    texts = np.array(names, dtype=np.dtypes.StringDType())
    return Split(classes, np.array(labels), texts, None)


@pytest.fixture
def many(rng):
    labels = np.sort(rng.choice(3, 300, p=(0.6, 0.3, 0.1)))
    return named([f"train/{y}/{i}" for i, y in enumerate(labels)], labels.tolist())


def test_holding_out_is_stratified_and_leaks_nothing(many):
    rest, held = hold_out(many, 60, seed=0)
    assert not set(rest) & set(held)
    assert sorted([*rest, *held]) == list(range(300))
    counts = 60 * np.bincount(many.labels) / 300
    assert np.abs(np.bincount(many.labels[held], minlength=3) - counts).max() < 1
    assert len(held) == 60
    assert set(hold_out(many, 60, seed=1)[1]) != set(held)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_of_pictures_held_out_are_nested_and_in_proportion(seed):
    """Whatever the sizes of classes; each has its share but for less than one picture."""
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(0.05, rng.integers(2, 12)) + 8
    labels = np.repeat(np.arange(len(sizes)), sizes)
    split = named([f"{i}" for i in range(len(labels))], labels.tolist())
    last: set[int] = set()
    for count in range(1, 3 * len(labels) // 4):
        held = hold_out(split, count, seed=0)[1]
        assert last < set(held.tolist())
        assert len(held) == count
        shares = count * sizes / len(labels)
        assert np.abs(np.bincount(labels[held], minlength=len(sizes)) - shares).max() < 1
        last = set(held.tolist())


def test_equal_classes_have_equally_many_held_out():
    """The first ones have one more."""
    labels = np.repeat(np.arange(7), 30)
    split = named([f"{i}" for i in range(210)], labels.tolist())
    for count in (1, 6, 7, 52, 200):
        held = hold_out(split, count, seed=0)[1]
        wanted = [count // 7 + (label < count % 7) for label in range(7)]
        assert np.bincount(labels[held], minlength=7).tolist() == wanted


def test_fractions_are_stratified_and_nested(many):
    indices = hold_out(many, 60, seed=0)[0]
    parts = [set(fraction(many, indices, f, seed=0).tolist()) for f in (0.001, 0.1, 0.35, 0.6, 1)]
    for small, large in pairwise(parts):
        assert small < large
    assert parts[-1] == set(indices.tolist())
    assert len(parts[0]) == 3  # one of each class
    sizes = np.bincount(many.labels[indices])
    third = np.bincount(many.labels[sorted(parts[2])])
    assert np.abs(third - 0.35 * sizes).max() <= 0.5


def test_parts_depend_on_names_and_not_on_the_order(many, rng):
    order = rng.permutation(300)
    mixed = named(many.names[order].tolist(), many.labels[order].tolist())
    for split in (many, mixed):
        rest, held = hold_out(split, 60, seed=3)
        part = fraction(split, rest, 0.3, seed=3)
        found = set(split.names[held]), set(split.names[part])
        if split is many:
            wanted = found
    assert found == wanted


def test_names_are_hashed_once(many, root, tmp_path, monkeypatch):
    hashed = []

    def counted(data, **options):
        hashed.append(data)
        return blake2b(data, **options)

    monkeypatch.setattr("trainers.images.splits.blake2b", counted)
    for f in (0.5, 0.25, 0.5):
        fraction(many, hold_out(many, 60, seed=0)[0], f, seed=0)
    assert len(hashed) == 2 * len(many)  # for what is held out, and for fractions
    fraction(many, np.arange(300), 0.5, seed=1)
    assert len(hashed) == 3 * len(many)

    monkeypatch.setattr("trainers.images.sets.blake2b", counted)
    hashed.clear()
    split = open_images(root).split("train")
    for _ in range(2):
        loader(split, cache=tmp_path)
    assert len(hashed) == 1


def test_parts_out_of_range_are_refused(many):
    for asked in (-1, 0, 300):
        with pytest.raises(UserError):
            hold_out(many, asked, seed=0)
    with pytest.raises(UserError, match="cannot hold out 1 of the 1 image of class"):
        hold_out(named(["a", "b"], [0, 1]), 1, seed=0)
    for f in (0, 1.5):
        with pytest.raises(UserError, match="a fraction must"):
            fraction(many, np.arange(300), f, seed=0)


# Loading

CROPS = [Crop.center(), Crop.random_resized(), Crop.shifted(3)]


def loader(split, indices=None, **changes):
    settings = {
        "batch_size": 5,
        "resolution": 32,
        "crop": Crop.random_resized(),
        "seed": 0,
        "shuffle": True,
        "workers": 0,
        "cache": None,
    }
    return Loader(
        split, np.arange(len(split)) if indices is None else indices, **settings | changes
    )


def same(one, other):
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("crop", CROPS)
def test_batches_depend_on_seed_epoch_and_number_alone(root, tmp_path, crop):
    split = open_images(root).split("train")
    for cache in (None, tmp_path / "cache"):
        plain = loader(split, crop=crop, cache=cache)
        first = list(plain.epoch(0))
        images, labels = first[0]
        assert (images.shape, images.dtype) == ((5, 3, 32, 32), torch.uint8)
        assert labels.dtype == torch.int64
        assert plain.steps == len(first) == 3
        assert sorted(torch.cat([y for _, y in first]).tolist()) == sorted(split.labels.tolist())
        assert same(first, plain.epoch(0))
        assert same(first[1:], loader(split, crop=crop, cache=cache).epoch(0, start=1))
        assert not same(first, plain.epoch(1))
        assert not same(first, loader(split, crop=crop, cache=cache, seed=1).epoch(0))
        if cache is None:
            with_workers = loader(split, crop=crop, workers=2)
            assert same(first, with_workers.epoch(0))
            next(with_workers.epoch(1))  # begun and left
            assert same(first[2:], with_workers.epoch(0, start=2))
    if crop.scale is None:  # of smooth pictures, cached or not makes little difference
        cached = list(plain.epoch(0))
        for (a, _), (b, _) in zip(list(loader(split, crop=crop).epoch(0)), cached, strict=True):
            inside = (a > 0).all(1) & (b > 0).all(1)
            difference = (a.int() - b.int()).abs().amax(1)[inside]
            assert difference.max() <= 12


def test_the_labels_belong_to_the_pictures(root, tmp_path):
    """The blue channel of a made picture tells its number."""
    split = open_images(root).split("train")
    for cache in (None, tmp_path / "cache"):
        whole = loader(split, crop=Crop.center(1), shuffle=False, cache=cache, drop_last=True)
        batches = list(whole.epoch(0))
        assert whole.steps == len(batches) == 2
        blue = torch.cat([x[:, 2].float().mean((1, 2)) for x, _ in batches])
        numbers = 37 * torch.arange(1, 11) % 256
        assert (blue - numbers).abs().max() < 3
        assert torch.cat([y for _, y in batches]).tolist() == split.labels[:10].tolist()


def test_only_the_indices_are_loaded(root):
    split = open_images(root).split("train")
    seen = torch.cat([y for _, y in loader(split, np.array([0, 1, 7])).epoch(0)])
    assert sorted(seen.tolist()) == [0, 0, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_stay_as_they_are(root, workers):
    """More of them than are decoded ahead; the memory they were decoded into is used again."""
    split = open_images(root).split("train")
    one = loader(split, batch_size=1, workers=workers, shuffle=False)
    wanted = [[y.clone() for y in batch] for batch in one.epoch(0)]
    assert one.steps > PREFETCH * workers + 1
    assert same(wanted, one.epoch(0))  # all of them are kept by now
    assert torch.cat([y for _, y in wanted]).tolist() == split.labels.tolist()


def test_a_part_is_loaded_like_its_pictures(root):
    split, chosen = open_images(root).split("train"), np.array([0, 1, 3, 7, 8, 10])
    part = split.part(chosen)
    assert part.names.tolist() == split.names[chosen].tolist()
    assert same(loader(part).epoch(2), loader(split, chosen).epoch(2))


@pytest.mark.parametrize("workers", [0, 2, "cache"])
def test_a_corrupt_picture_is_replaced_by_the_next_of_its_class(root, tmp_path, caplog, workers):
    for name in ("0.jpeg", "1.jpeg", "5.jpeg"):
        path = root / "train/cat" / name
        path.write_bytes(path.read_bytes()[:100])
    (root / "train/dog/0.jpeg").write_bytes(b"")
    split = open_images(root).split("train")
    chosen = np.array([0, 1, 3, 4, 5, 6, 7, 8])  # not 2, the next good one of all
    settings = {"workers": workers}
    if workers == "cache":
        settings = {"cache": tmp_path / "cache"}
    one = loader(split, chosen, crop=Crop.center(1), shuffle=False, batch_size=8, **settings)
    ((images, labels),) = one.epoch(0)
    assert labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    blue = images[:, 2].float().mean((1, 2))
    wanted = 37 * torch.tensor([4, 4, 4, 5, 4, 8, 8, 9]) % 256
    assert (blue - wanted).abs().max() < 3
    list(one.epoch(1))
    names = ["train/cat/0.jpeg", "train/cat/1.jpeg", "train/cat/5.jpeg", "train/dog/0.jpeg"]
    replaced = "cannot decode {}: another image of its class replaces it"
    assert sorted(caplog.messages) == [replaced.format(name) for name in names]
    with pytest.raises(UserError, match="no image of class cat can be decoded"):
        list(loader(split, np.array([0, 1, 7]), **settings).epoch(0))


def test_a_file_that_is_gone_is_an_error_of_one_line(root):
    split = open_images(root).split("train")
    (root / "train/cat/3.jpeg").unlink()
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"cannot read train/cat/3\.jpeg: No such"):
            list(loader(split, workers=workers).epoch(0))


class Deadly:
    """A source that kills the worker that reads it."""

    def read(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


class Stuck:
    """A source that never answers."""

    def read(self, i):
        time.sleep(3)


@pytest.mark.parametrize(
    ("source", "timeout", "reason"),
    [(Deadly(), 300, "killed|exited"), (Stuck(), 1, "timed out")],
)
def test_a_dead_or_stuck_worker_is_an_error(monkeypatch, source, timeout, reason):
    monkeypatch.setattr("trainers.images.loader.TIMEOUT", timeout)
    names = np.array(["a", "b"], dtype=np.dtypes.StringDType())
    split = Split(("x", "y"), np.array([0, 1]), names, source)
    with pytest.raises(LoaderError, match=f"has died or hangs.*{reason}") as error:
        list(loader(split, workers=1).epoch(0))
    assert "\n" not in str(error.value)


def test_two_epochs_at_once_are_refused(root):
    one = loader(open_images(root).split("train"))
    first = one.epoch(0)
    next(first)
    next(one.epoch(1))
    with pytest.raises(RuntimeError, match="another epoch of this loader has begun"):
        next(first)


def test_impossible_batches_are_refused(root):
    split = open_images(root).split("train")
    for changes in ({"batch_size": 0}, {"batch_size": 13, "drop_last": True}, {"resolution": 0}):
        with pytest.raises(UserError, match="cannot make batches"):
            loader(split, **changes)


# Cached pixels


def test_a_cache_is_whole_and_of_its_own_pictures(root, tmp_path, monkeypatch):
    images = open_images(root)
    train, val = images.split("train"), images.split("val")
    path = write_pixels(train, 16, tmp_path, workers=1)
    assert path == pixel_file(tmp_path, train, 16)
    assert open_pixels(path, train).squares.shape == (12, 3, 16, 16)
    with pytest.raises(UserError, match="holds the pixels of other images"):
        open_pixels(path, val)
    with pytest.raises(UserError, match="no such pixel cache"):
        loader(train, cache=tmp_path / "absent.npy")
    with pytest.raises(UserError, match="too large for 7 x 7: cache 8 x 8"):
        loader(train, cache=path, resolution=7)
    assert loader(train, cache=path, resolution=8).steps == 3
    whole = path.read_bytes()
    for damaged in (b"", b"some text", whole[:50], whole[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a pixel cache"):
            open_pixels(path, train)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*'"):
        write_pixels(val, 16, tmp_path / "full", workers=1)
    assert os.listdir(tmp_path / "full") == [LOCK]


def test_a_cached_batch_is_read_while_the_one_before_is_used(root, tmp_path, monkeypatch):
    split = open_images(root).split("train")
    cached = loader(split, cache=tmp_path)
    first = list(cached.epoch(0))
    read, begun = _Cached.read, queue.SimpleQueue()

    def watched(self, key):
        begun.put(key.number)
        return read(self, key)

    monkeypatch.setattr(_Cached, "read", watched)
    batches = cached.epoch(0)
    for number, batch in enumerate(batches):
        ahead = range(number, number + 2) if number == 0 else [number + 1]
        for expected in ahead:
            if expected < cached.steps:
                assert begun.get(timeout=60) == expected  # before the next batch is asked for
        assert begun.empty()  # and no more than one
        assert same([batch], [first[number]])


class Watched:
    """Blue pictures, named in a file as they are read. Synthetic."""

    def __init__(self, log, delay=0.0):
        self.log, self.delay = log, delay

    def read(self, i):
        with self.log.open("a") as file:
            file.write(f"{i}\n")
        time.sleep(self.delay)
        return encoded(i)


def watched(log, delay=0.0):
    names = np.array([f"{i:02}" for i in range(20)], dtype=np.dtypes.StringDType())
    return Split(("cat", "dog"), np.arange(20) % 2, names, Watched(log, delay))


def test_of_processes_that_want_a_cache_one_decodes(tmp_path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    split = watched(log, delay=0.02)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=lambda: list(loader(split, cache=cache).epoch(0))) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(20))


class Garbage:
    """In a circle, so that only a collection of garbage finds it."""

    def __init__(self, log):
        self.log, self.circle = log, self

    def __del__(self):
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")


def collected(rows):
    gc.collect()
    return os.getpid()


def test_working_processes_do_not_tidy_up_after_their_parent(tmp_path):
    """PyTorch's loaders complain there: "can only test a child process"."""
    log = tmp_path / "log"
    gc.disable()
    try:
        Garbage(log)
        (_, worker), *_ = in_processes(collected, 1, 1)
    finally:
        gc.enable()
    gc.collect()
    assert worker != os.getpid()
    assert log.read_text().split() == [str(os.getpid())]


def test_a_cache_that_a_killed_process_has_begun_is_begun_anew(tmp_path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    slow = multiprocessing.get_context("fork").Process(
        target=write_pixels, args=(watched(log, delay=60), 32, cache, 1)
    )
    slow.start()
    while not log.exists():
        time.sleep(0.01)
    slow.kill()
    slow.join()
    assert list(cache.glob("*.tmp"))
    split = watched(tmp_path / "other")
    path = write_pixels(split, 32, cache, 1)
    assert len(open_pixels(path, split).squares) == 20
    assert sorted(os.listdir(cache)) == sorted([LOCK, path.name, path.with_suffix(".json").name])


def test_a_filesystem_without_locks_has_caches_too(root, tmp_path, monkeypatch):
    def unknown(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("trainers.images.pixels.fcntl.flock", unknown)
    split = open_images(root).split("train")
    assert same(
        loader(split, cache=tmp_path / "one").epoch(0),
        loader(split, cache=write_pixels(split, 37, tmp_path / "other", 1)).epoch(0),
    )


def test_the_cache_by_default(root, monkeypatch):
    images = open_images(root)
    split = images.split("train")
    assert default_cache(images, split, Crop.shifted(), 32) == root / ".prepared"
    assert default_cache(images, split, Crop.shifted(), 32, root / "mine") == root / "mine"
    monkeypatch.setattr("trainers.images.pixels._memory", lambda: 4 * 12 * 3 * 32**2)
    assert default_cache(images, split, Crop.shifted(), 32, root / "mine") is None
    assert default_cache(images, split, Crop.shifted(), 32) is None
    for kept in (root / ".prepared", root / "mine"):  # whatever the memory
        write_pixels(split, 32, kept, workers=1)
        assert default_cache(images, split, Crop.shifted(), 32, root / "mine") == kept
    assert default_cache(images, split, Crop.shifted(), 32) == root / ".prepared"
    assert default_cache(images, split, Crop.shifted(), 16) == root / ".prepared"
    assert default_cache(images, split, Crop.shifted(), 64) is None
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert default_cache(images, split, Crop.shifted(), 32) == root / ".prepared"
    assert default_cache(images, split, Crop.shifted(), 16) is None


# Real pictures


@pytest.mark.parametrize(
    ("file", "classes", "counts"),
    [("tiny-imagenet-20.tar", 20, (4000, 1000)), ("cifar10_jpeg.parquet", 10, (50000, 10000))],
)
def test_real_pictures(data_dir, caplog, file, classes, counts):
    if not (data_dir / file).exists():
        pytest.skip(f"no {file}")
    images = open_images(data_dir / file)
    assert len(images.classes) == classes
    assert tuple(map(len, images.splits.values())) == counts
    train = images.split("train")
    rest, held = hold_out(train, counts[0] // 10, seed=0)
    assert set(np.bincount(train.labels[held])) == {counts[0] // classes // 10}
    for batch, labels in loader(train, rest[::10], batch_size=64).epoch(0):
        assert batch.shape[1:] == (3, 32, 32)
        assert labels.max() < classes
    some = loader(train, rest[::10], batch_size=64, crop=Crop.center(), shuffle=False)
    assert same(
        some.epoch(0),
        loader(
            train, rest[::10], batch_size=64, crop=Crop.center(), shuffle=False, workers=2
        ).epoch(0),
    )
    assert not caplog.messages
