"""Files are written whole: what is there after a write that was broken off, by whatever."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nag.checkpoint import save_tensors
from nag.errors import UserError
from nag.files import aside, code_digest, write_bytes, write_text
from trainers.ofa import Supernet, save_supernet
from trainers.partial import Partial
from trainers.rows import write_rows

ROOT = Path(__file__).parent.parent
LIMIT = 20_000  # bytes of a file


def test_a_file_replaces_the_old_one_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with aside(path) as temporary:
        assert temporary.parent == tmp_path  # a rename is all or nothing only on one filesystem
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with aside(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_two_writers_do_not_share_a_name(tmp_path):
    path = tmp_path / "file"
    with aside(path) as one:
        one.write_text("one")
        with aside(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "file", []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.exists()))
    )
    write_bytes(path, b"12345")
    assert synced == [(5, False)]


@pytest.mark.parametrize(("text", "expected"), [("a\nb", b"a\nb\n"), ("a\n", b"a\n"), ("", b"")])
def test_texts_end_with_their_last_line(tmp_path, text, expected):
    write_text(tmp_path / "text", text)
    assert (tmp_path / "text").read_bytes() == expected


def test_a_text_may_quote_a_file_name_that_is_not_utf_8(tmp_path):
    write_text(tmp_path / "text", os.fsdecode(b"\xff \xc3\xbc"))
    assert (tmp_path / "text").read_text(encoding="utf-8") == "\\udcff ü\n"


def rows(path):
    write_rows([{"arch": os.urandom(16).hex(), "value": 1.0} for _ in range(2_000)], ["arch"], path)


WRITERS = {
    "text": lambda path: write_text(path, "x" * 2 * LIMIT),
    "rows": rows,
    "tensors": lambda path: save_tensors({"x": torch.zeros(LIMIT)}, path),
    "supernet": lambda path: save_supernet(Supernet(3, 0.1), path, {}),
}


@contextmanager
def full():
    """A limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, writer):
    path = tmp_path / "file.pt"
    with full(), pytest.raises(OSError, match=r"File too large: '.*file.pt'$") as error:
        WRITERS[writer](path)
    assert error.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []


def test_a_partial_file_that_cannot_grow_keeps_what_it_has(tmp_path):
    path = tmp_path / "partial"
    partial = Partial(path, {"seed": 0})
    partial.add({"row": 1})
    with full(), pytest.raises(OSError, match=r"File too large: '.*partial'$"):
        partial.add({"row": "x" * 2 * LIMIT})
    assert path.stat().st_size == LIMIT  # torn
    partial.close()
    assert Partial(path, {"seed": 0}).found == [{"row": 1}]
    assert path.read_text() == '{"seed": 0}\n{"row": 1}\n'


def test_processes_that_write_one_file_leave_one_of_them(tmp_path):
    """Each writes whole files of its own letter for a while; a reader never sees a mixture."""
    path = tmp_path / "file"
    program = (
        "import sys; from pathlib import Path; from nag.files import write_text\n"
        "for _ in range(20): write_text(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, path, letter], cwd=ROOT) for letter in "ab"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    assert all(writer.returncode == 0 for writer in writers)
    assert seen <= {"a" * 100_000 + "\n", "b" * 100_000 + "\n"}
    assert os.listdir(tmp_path) == ["file"]


def test_a_partial_file_loses_a_torn_end_and_nothing_else(tmp_path):
    """A damaged line before others is no torn end: what follows it is not thrown away."""
    path = tmp_path / "partial"
    path.write_text('{"seed": 0}\n{"row": 1}\n{"ro')
    assert Partial(path, {"seed": 0}).found == [{"row": 1}]
    for line in ("garbage", "[1]", "null"):
        damaged = f'{{"seed": 0}}\n{line}\n{{"row": 2}}\n'
        path.write_text(damaged)
        with pytest.raises(UserError, match="line 2 is damaged: delete or repair it"):
            Partial(path, {"seed": 0})
        assert path.read_text() == damaged
    path.write_text('{"seed": 0}\n')
    with pytest.raises(UserError, match="seed is 0 there, 1 here"):
        Partial(path, {"seed": 1})


def test_a_partial_file_has_one_user(tmp_path, monkeypatch):
    monkeypatch.setattr("nag.locks._PATIENCE", 0.1)
    path = tmp_path / "partial"
    first = Partial(path, {"seed": 0})
    with pytest.raises(UserError, match=f"{path} is in use by another process"):
        Partial(path, {"seed": 0})
    first.remove()  # and now a second one begins before the first has ended
    assert Partial(path, {"seed": 1}).found == []


def test_a_digest_of_code_is_of_all_that_a_package_comes_with(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "a_synthetic_package"
    (package / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "inner.py", "weights.safetensors", "__pycache__/inner.pyc"):
        (package / name).write_text("")

    def digest():
        code_digest.cache_clear()
        return code_digest(package.name)

    found = [digest()]
    (package / "__pycache__" / "inner.pyc").write_text("compiled")
    assert digest() == found[0]
    for name in ("inner.py", "weights.safetensors"):
        (package / name).write_text("1")
        found.append(digest())
    (package / "inner.py").rename(package / "other.py")
    found.append(digest())
    assert len(set(found)) == 4
