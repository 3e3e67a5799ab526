"""Where files are: a local path, or a name on a filesystem of pyarrow or fsspec.

Both support the part of `pathlib.Path` that runs need: `/`, `name`, `exists`, `is_dir`, `iterdir`,
`read_bytes`, `unlink`. Files are written whole: `write_whole`.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

import pyarrow as pa
from cyclopts import Parameter, Token
from pyarrow import fs as pafs

from nag.errors import UserError
from nag.files import write_bytes

# Filesystems, of pyarrow or fsspec, on which a file is never seen half written.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
_PROMPT = "allow_delayed_open=true"  # of S3: one request for a small file, not three


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn any error in the block into an OSError: fsspec packages raise all kinds."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class URI:
    """A file or folder of a filesystem, which comes from a URI that may hold secrets."""

    filesystem: pafs.FileSystem = field(compare=False, repr=False)
    uri: str = field(repr=False)  # of the first folder, as it was given
    path: str
    shown: str  # without secrets and options

    def __str__(self) -> str:
        return self.shown

    def __truediv__(self, name: str) -> "URI":
        return URI(
            self.filesystem,
            self.uri,
            f"{self.path.rstrip('/')}/{name}",
            f"{self.shown.rstrip('/')}/{name}",
        )

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> "URI":
        path, shown = (text.rpartition("/")[0] for text in (self.path, self.shown))
        return URI(self.filesystem, self.uri, path, shown)

    def resolve(self) -> "URI":
        return self

    def exists(self) -> bool:
        return self._type() != pafs.FileType.NotFound

    def is_dir(self) -> bool:
        return self._type() == pafs.FileType.Directory

    @_os_errors()
    def _type(self) -> pafs.FileType:
        return self.filesystem.get_file_info(self.path).type

    @_os_errors()
    def iterdir(self) -> Iterator["URI"]:
        """The contents of a folder, sorted by name; nothing if there is no such folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        names = {info.base_name for info in self.filesystem.get_file_info(selector)}
        return (self / name for name in sorted(names))

    @_os_errors()
    def walk(self) -> list[str]:
        """Paths of all files below this one, relative to it."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        root = self.path.strip("/")
        return sorted(
            info.path.strip("/").removeprefix(root).strip("/") for info in found if info.is_file
        )

    @_os_errors()
    def mkdir(self) -> None:
        """Including its parents; object stores have no folders and need none."""
        if self.filesystem.type_name not in ("s3", "gcs"):
            self.filesystem.create_dir(self.path, recursive=True)

    @_os_errors()
    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as file:
            return bytes(file.read())

    @_os_errors()
    def unlink(self) -> None:
        self.filesystem.delete_file(self.path)

    @_os_errors()
    def write(self, data: bytes) -> None:
        """Replace the file; on an object store that is a single, atomic request."""
        aside = self.path
        if _OBJECT_STORES.isdisjoint(re.findall(r"\w+", self.filesystem.type_name)):
            aside += f".{secrets.token_hex(4)}.tmp"
        with self.filesystem.open_output_stream(aside) as file:
            file.write(data)
        if aside != self.path:
            self.filesystem.move(aside, self.path)

    @_os_errors()
    def create(self, data: bytes) -> bool | None:
        """Write a new file; False if it exists already. Of two processes, only one succeeds.

        Returns None, and writes nothing, if the filesystem cannot create exclusively, as pyarrow's
        own cannot.
        """
        handler = getattr(self.filesystem, "handler", None)
        if not isinstance(handler, pafs.FSSpecHandler):
            return None
        try:
            handler.fs.pipe_file(self.path, data, mode="create")
        except FileExistsError:
            return False
        except (TypeError, ValueError, NotImplementedError):
            return None  # fsspec's ways to say that the mode is unsupported; nothing was written
        return True


Location: TypeAlias = Path | URI


def locate(text: str) -> Location:
    """The location that a path or URI names; raises UserError for anything else."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text)
    options = "" if scheme != "s3" or "allow_delayed_open" in text else _PROMPT
    joint = "" if not options else "&" if "?" in text else "?"
    try:
        filesystem, path = _filesystem(text + joint + options)
        if not path.strip("/"):
            raise ValueError("no folder is named")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"{without_secrets(text)}: {reason(error)}: allowed are paths, and URIs with file, s3, "
            "gs, abfs, hdfs or the scheme of an installed fsspec package"
        ) from None
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    return URI(filesystem, text, path, without_secrets(text.partition("?")[0]).rstrip("/"))


def _filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem" not in str(error):
            raise
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _from_command_line(type_: Any, tokens: Sequence[Token]) -> Location:
    del type_
    return locate(tokens[0].value)


_CONVERTED = Parameter(converter=_from_command_line, n_tokens=1, accepts_keys=False)
PathOrURI = Annotated[Location, _CONVERTED]
OptionalPathOrURI = Annotated[Location | None, _CONVERTED]


def write_whole(location: Location, data: bytes) -> None:
    """Write a file atomically and durably; raises OSError."""
    if isinstance(location, URI):
        location.write(data)
    else:
        write_bytes(location, data)


def reason(error: BaseException) -> str:
    """Why something failed, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().splitlines()[0].rstrip(".:")


def without_secrets(text: str) -> str:
    """A text without the keys and options of the URIs in it."""

    def clean(match: re.Match[str]) -> str:
        parts = urlsplit(match.group())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    return re.sub(r"\b[a-z][a-z0-9+.-]*://[^\s'\"]+", clean, text)
