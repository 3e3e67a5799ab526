"""The commands that help texts and documents show are commands."""

import dataclasses
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in ("nag", "orchestrator", "trainers")
    for path in (ROOT / package).rglob("*.py")
    if re.search(r"^app = command_line\(", path.read_text(), re.MULTILINE)
)
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("README.md")]
)


def app_of(module: str):
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.fail(f"no module {module}")
    if not hasattr(found, "app"):
        found = importlib.import_module(f"{module}.__main__")
    return found.app


def commands(text: str) -> list[str]:
    """The commands of this project in a text, without what is done to their output."""
    text = re.sub(r"\\\n\s*", " ", text)  # lines that go on
    found = re.findall(r"^[ $]*python -m ((?:nag|orchestrator|trainers)\..+)", text, re.MULTILINE)
    return [re.split(r"\s[#|>&]", line)[0] for line in found]


# what only its reader can have, and what would use the network
OF_THE_READER = {r"--prior \S+": "", r"--space transformer": "--space toy", r"s3://": "file:///"}


def parse(command: str) -> None:
    for pattern, instead in OF_THE_READER.items():
        command = re.sub(pattern, instead, command)
    module, *arguments = shlex.split(command)
    app_of(module).parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("module", MODULES)
def test_help_ends_with_examples_that_are_commands(module, capsys):
    app = app_of(module)
    app("--help", result_action="return_value")
    assert "Examples:" in capsys.readouterr().out
    examples = app.help_epilogue.splitlines()
    assert examples
    for command in commands("\n".join(examples)):
        parse(command)


KINDS = {"CHOICE", "FLOAT", "INT", "PATH", "RUN", "STR", "URI"}  # of values, in help texts


@pytest.mark.parametrize("module", MODULES)
def test_help_shows_what_is_written_and_no_python(module):
    """Help texts are rendered as Markdown, in which a pair of asterisks vanishes."""
    app, page = app_of(module), io.StringIO()
    app.help_print([], console=Console(file=page, width=10_000))
    shown = " ".join(page.getvalue().split())
    assert not re.search(r"default: [(\[{]", shown)
    options = re.findall(r"^│ [ *]*(?:--[\w-]+ )+([A-Z|]+)", page.getvalue(), re.MULTILINE)
    assert {kind for kinds in options for kind in kinds.split("|")} <= KINDS
    for text in texts_of(app.default_command):
        for word in text.split():
            assert word in shown or not re.search(r"[*`<>]", word), word


def texts_of(command) -> Iterator[str]:
    """The help texts of a command and of its options, which may be fields of data classes."""
    yield command.__doc__.replace("----------", "")
    for hint in get_type_hints(command).values():
        if dataclasses.is_dataclass(hint):
            yield from texts_of_options(hint)


def texts_of_options(options: type) -> Iterator[str]:
    yield options.__doc__.partition("----------")[2]
    for hint in get_type_hints(options).values():
        if dataclasses.is_dataclass(hint):
            yield from texts_of_options(hint)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_documents_are_commands(document):
    for command in commands(document.read_text()):
        parse(command)
