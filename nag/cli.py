"""Shared by all commands: one-line errors with exit code 2, and Ctrl-C without a traceback."""

import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    Token,
    UnusedCliTokensError,
)
from rich.console import Console

from nag.errors import UserError, one_line
from nag.spaces import Architecture, InvalidArchitectureError, StagedSpace

if TYPE_CHECKING:
    from rich.progress import Progress

INVALID = "INVALID"  # marks an invalid sample in a list of architectures


def package_version(package: str = "diffusionnag-bo") -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


_SECTIONS = ("Parameters", "Search", "Rounds", "Diffusion", "Images and networks", "Where it runs")


def section(title: str) -> Group:
    """A section of the help; sections have the same order in all commands."""
    return Group(title, sort_key=_SECTIONS.index(title))


def _check_local(type_: Any, value: Any) -> None:
    """Refuse a URI as a local path: s3://bucket/x would make a folder `s3:` here."""
    del type_
    if isinstance(value, Path) and re.match(r"[a-z][a-z0-9+.-]+:/", str(value)):
        raise ValueError("It must be a local path, not a URI.")


def command_line(name: str, *examples: str) -> App:
    """A new command line in our common style; its help ends with `examples`, ready to type."""
    return App(
        name=name,
        version=package_version,
        default_parameter=Parameter(validator=_check_local),
        help_format="markdown",
        help_epilogue="\n\n    ".join(("Examples:", "\n    ".join(examples))) if examples else None,
        group_parameters=section("Parameters"),
        group_commands=Group("Help", sort_key=len(_SECTIONS)),
    )


def plain_console(*, stderr: bool = True, quiet: bool = False) -> Console:
    """A console for messages to the user: text is printed verbatim, and lines are not wrapped."""
    return Console(
        stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def end_interrupted(
    said: str = "repeat the command to continue", *, stderr: bool = True, quiet: bool = False
) -> NoReturn:
    """Say that Ctrl-C ended the command, and exit the process with 130.

    It is said on a new console: Ctrl-C within `Console.print` can leave that console keeping back
    all that it is to print later (Rich 15).
    """
    plain_console(stderr=stderr, quiet=quiet).print(f"interrupted: {said}")
    sys.exit(130)


def terminal_bar(
    console: Console, note: str = "", *, transient: bool = False, auto_refresh: bool = True
) -> "Progress":
    """A bar that is drawn only on a terminal: description, bar, count, `note`, time left.

    transient: the bar disappears at the end.
    auto_refresh: a thread redraws it.
    """
    from rich.progress import (  # not needed for --help
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    notes = [TextColumn(note)] if note else []
    return Progress(
        *columns,
        *notes,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        auto_refresh=auto_refresh,
        disable=not console.is_terminal,
    )


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to report progress to: draws a bar on a terminal, nothing elsewhere."""
    with terminal_bar(console, transient=True) as bar:
        yield partial(bar.advance, bar.add_task(title, total=total))


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    """Convert a whole number; cyclopts would silently round 6.5."""
    del type_
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


WholeNumber = Annotated[int, Parameter(converter=_whole)]


def check_seed(seed: int) -> None:
    """Raise UserError for a seed that the generators of numpy or PyTorch do not accept."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} must be at least 0 and below 2^63")


def check_output(out: Path, suffix: str = "", inputs: Iterable[Path | None] = ()) -> None:
    """Before any work: raise UserError if --out cannot become a file with that suffix.

    inputs: input files, which must not be overwritten; None if not given.
    """
    if suffix and out.suffix != suffix:
        raise UserError(f"--out {out} must end in {suffix}")
    if not out.parent.is_dir():
        raise UserError(f"no such folder: {out.parent}")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder")
    if out.exists() and any(path and path.exists() and path.samefile(out) for path in inputs):
        raise UserError(f"--out {out} is also an input and would be overwritten: choose another")


def check_new(out: Path) -> None:
    """Raise UserError if --out exists, so that finished work is not overwritten."""
    if out.exists():
        raise UserError(f"--out {out} already exists: delete it or choose another")


def read_architectures(path: Path, space: StagedSpace) -> list[Architecture]:
    """Architectures of a text file, one published string per line, as `nag.sample` writes it.

    Empty lines and samples marked INVALID are skipped. Raises UserError with the line number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows adds a BOM
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file (UTF-8)"
        raise UserError(f"cannot read {path}: {reason}") from None
    return parse_architectures(path, "line", 1, lines, space)


def parse_architectures(
    path: Path, what: str, first: int, texts: Iterable[str | None], space: StagedSpace
) -> list[Architecture]:
    """The same for texts found in `path`; `what` names one and `first` numbers the first."""
    architectures = []
    for number, text in enumerate(texts, start=first):
        if text is None or text.strip() in ("", INVALID):
            continue
        try:
            architectures.append(space.from_str(text))
        except InvalidArchitectureError as error:
            raise UserError(f"{path}, {what} {number}: {error}") from None
    if not architectures:
        raise UserError(f"{path} lists no architecture")
    return architectures


def command_given(module: str) -> str:
    """The command line of this process, one of `module`, ready to type."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def difference(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Describe the settings in which two configurations differ; empty if they are equal."""

    def text(settings: Mapping[str, Any], key: str) -> str:
        return shorten(repr(settings.get(key)), 100)

    keys = sorted(k for k in stored.keys() | asked.keys() if stored.get(k) != asked.get(k))
    return ", ".join(f"{k} is {text(stored, k)} there, {text(asked, k)} here" for k in keys)


def run(app: App, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit the process with its exit code (2 after bad input)."""
    _open_standard_streams()
    app.suppress_keyboard_interrupt = False  # else cyclopts exits silently
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except MissingArgumentError as error:
        if error.argument is None or error.tokens_so_far or error.keyword:
            _fail(one_line(error))
        name = error.argument.name
        if error.argument.field_info.is_positional:
            name = name.lstrip("-").upper()
        _fail(f"{name} is required: see --help")
    except UnusedCliTokensError as error:
        _fail(f"unexpected argument {shlex.join(error.unused_tokens or ())}: see --help")
    except (CycloptsError, UserError) as error:
        _fail(one_line(error))
    except OSError as error:
        of = f"{error.filename}: " if error.filename else ""
        _fail(f"{of}{error.strerror}" if error.strerror else one_line(error))
    except KeyboardInterrupt:
        plain_console().print("interrupted")
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)


def _open_standard_streams() -> None:
    """Let no command fail, its work done, because its output cannot be printed.

    Characters that stdout cannot encode are escaped, as on stderr. A stream that was closed (>&-)
    becomes /dev/null, so that no file of ours gets its number and with it what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)
