"""python -m trainers.prepare, on made pictures (synthetic) and on real ones."""

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pictures import encoded, folder, tar_of

from nag.errors import UserError
from trainers.images import open_images
from trainers.images.check import check_imagenet
from trainers.images.index import FILE, Listing, load, prepared_folder, save
from trainers.images.parallel import in_processes
from trainers.prepare import app


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / "data")


def prepare(*arguments):
    app([str(x) for x in arguments], exit_on_error=False, result_action="return_value")


def fails(*arguments):
    """The message of a command that ends with exit code 2."""
    with pytest.raises((ValueError, OSError)) as error:
        prepare(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_are_no_markup(tmp_path, capsys):
    prepare(folder(tmp_path / "[" / "b]"), "--workers", 1)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/[/b]: 2 classes\n")


def test_the_report_names_what_is_wrong(root, capsys):
    whole = (root / "train/cat/1.jpeg").read_bytes()
    (root / "train/cat/1.jpeg").write_bytes(whole[:-100])
    (root / "train/dog/0.jpeg").write_bytes(b"")
    leak = (root / "train/dog/3.jpeg").read_bytes()
    (root / "val/cat/0.jpeg").write_bytes(leak)
    prepare(root, "--workers", 2)
    text = capsys.readouterr().out
    assert "train: 10 images, 5 per class" in text
    assert "val: 4 images, 2 per class" in text
    assert "cat: 5 train, 2 val" in text
    assert "41 to 52 (median" in text
    assert "40 high" in text
    assert "2 images are corrupt, left out" in text
    assert "train/cat/1.jpeg: " in text
    assert "train/dog/0.jpeg: empty file" in text
    assert "1 image of val is also in train" in text
    assert "val/cat/0.jpeg = train/dog/3.jpeg" in text
    kept = prepared_folder(root)
    assert (kept / "leaks.txt").read_text() == "val/cat/0.jpeg\ttrain/dog/3.jpeg\n"
    assert len((kept / "corrupt.txt").read_text().splitlines()) == 2
    assert (kept / "classes.csv").read_text() == "class,train,val\ncat,5,2\ndog,5,2\n"

    images = open_images(root)
    assert len(images.split("train")) == 10
    assert not {"train/cat/1.jpeg", "train/dog/0.jpeg"} & set(images.split("train").names)
    assert images.split("val").read(0) == leak


def test_many_corrupt_pictures_are_counted(tmp_path, capsys):
    root = folder(tmp_path / "data", train=25)
    for i in range(23):
        (root / f"train/cat/{i}.jpeg").write_bytes(b"")
    prepare(root)
    text = capsys.readouterr().out
    assert "23 images are corrupt" in text
    assert "and 3 more" in text
    assert len(re.findall("empty file", text)) == 20


def test_the_index_is_read_in_place_of_scanning(root, tmp_path, monkeypatch):
    tar = tar_of(root, tmp_path / "data.tar")
    for data, place in ((root, ()), (tar, ("--out", tmp_path / "out"))):
        found = open_images(data)
        prepare(data, *place)
        with monkeypatch.context() as patch:
            patch.setattr("trainers.images.sets.scan", None)
            images = open_images(place[1] if place else data)
        assert images.path.resolve() == data.resolve()
        assert images.classes == found.classes
        for name, split in found.splits.items():
            np.testing.assert_array_equal(images.split(name).labels, split.labels)
            assert images.split(name).names.tolist() == split.names.tolist()
            assert images.split(name).read(1) == split.read(1)


@pytest.mark.parametrize(
    "kind", ["new file", "removed class", "new val", "another val", "tar", "shard", "beside shards"]
)
def test_a_change_of_the_data_is_noticed(root, tmp_path, kind):
    data = root
    if kind == "tar":
        data = tar_of(root, tmp_path / "data.tar")
    if kind == "new val":
        (root / "val").rename(tmp_path / "val")
    elif kind == "another val":
        (root / "val").rename(root / "test")
    if kind in ("shard", "beside shards"):
        data = tmp_path / "shards"
        data.mkdir()
        tar_of(root, data / "0.tar")
    prepare(data)
    assert len(open_images(data).classes) == 2
    later = os.stat(data).st_mtime + 10
    if kind == "new file":
        (root / "train/cat/new.jpeg").write_bytes(encoded())
        os.utime(root / "train/cat", (later, later))
    elif kind == "removed class":
        for split in ("train", "val"):
            (root / split / "cat").rename(tmp_path / split)
    elif kind == "new val":
        (tmp_path / "val").rename(root / "val")
    elif kind == "another val":
        folder(root, train=0)
    elif kind == "beside shards":
        (root / "train").rename(data / "train")
    elif kind == "tar":
        os.utime(data, (later, later))
    else:
        (data / "1.tar").write_bytes((data / "0.tar").read_bytes())
    with pytest.raises(UserError, match="has changed since"):
        open_images(data)


def test_the_index_is_written_whole_or_not_at_all(root, tmp_path, monkeypatch):
    prepare(root)
    listing = load(prepared_folder(root), root)

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '.*{FILE}'"):
        save(listing, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_what_is_no_index_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"no index")
    with pytest.raises(UserError, match="is not an index of images"):
        open_images(tmp_path)


def test_pixels_are_cached_and_replaced(root, capsys):
    prepare(root, "--size", 16)
    assert capsys.readouterr().out.count("pixels of") == 2
    files = sorted(prepared_folder(root).glob("pixels-16-*.npy"))
    assert sorted(np.load(file).shape for file in files) == [(4, 3, 16, 16), (12, 3, 16, 16)]
    prepare(root)
    assert not list(prepared_folder(root).glob("pixels-*"))


def test_bad_requests_are_one_line(root, tmp_path):
    assert "no such folder or file" in fails(tmp_path / "absent")
    assert "--size and --workers must be at least 1" in fails(root, "--size", 0)
    (tmp_path / "file").write_text("")
    assert "give --out" in fails(root, "--out", tmp_path / "file" / "below")
    for file in root.rglob("*.jpeg"):
        file.write_bytes(b"")
    assert "no image can be read" in fails(root)
    assert not (prepared_folder(root) / FILE).exists()


def imagenet(train=1_281_167, val=50, classes=1000):
    """The names of ImageNet-1K's layout, without pictures. Synthetic."""
    names = [f"n{i:08d}" for i in range(classes)]
    of = np.concatenate([np.arange(train) % classes, np.repeat(np.arange(classes), val)])
    splits = ["train"] * train + ["val"] * (classes * val)
    pictures = pa.table({"split": splits, "class": pa.array(names).take(pa.array(of))})
    return Listing("folder", Path("imagenet"), tuple(names), pictures, (), 0)


def test_the_layout_of_imagenet():
    check_imagenet(imagenet())
    for listing, message in (
        (imagenet(train=1_281_166), "1,281,166 images in train instead of 1,281,167"),
        (
            imagenet(val=49),
            "1,000 classes do not have 50 images in val, such as n00000000 with 49",
        ),
        (imagenet(classes=999), "999 classes instead of 1,000"),
    ):
        with pytest.raises(UserError, match=message):
            check_imagenet(listing)


def test_imagenet_is_asked_for_by_a_flag(root):
    assert "is not ImageNet-1K: 2 class folders are not named n" in fails("--imagenet", root)
    (root / "val/ILSVRC2012_val_00000001.JPEG").write_bytes(encoded())
    assert "valprep.sh" in fails("--imagenet", root)


def squares(rows):
    return rows**2


def dies(rows):
    os._exit(1)


def test_work_in_processes_covers_all_rows():
    found = np.zeros(5000, dtype=np.int64)
    for rows, result in in_processes(squares, 5000, workers=2):
        found[rows] = result
    np.testing.assert_array_equal(found, np.arange(5000) ** 2)
    with pytest.raises(OSError, match="a worker process died"):
        list(in_processes(dies, 10, workers=1))


def test_real_pictures(data_dir, tmp_path, capsys):
    if not (data_dir / "tiny-imagenet-20.tar").exists():
        pytest.skip("no tiny-imagenet-20.tar")
    prepare(data_dir / "tiny-imagenet-20.tar", "--out", tmp_path / "out")
    text = capsys.readouterr().out
    assert "train: 4,000 images, 200 per class" in text
    assert "no images are corrupt" in text
    assert len(open_images(tmp_path / "out").split("val")) == 1000
