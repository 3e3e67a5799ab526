"""The output of an experiment's commands, for the page of a comparison."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from orchestrator.history.find import CommandSource

_COPIED = (".csv", ".md", ".svg")


def command_section(source: CommandSource) -> dict[str, Any]:
    """What the template shows for a command: its Markdown as HTML, its figures as data URIs."""
    files = _files(source)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    return {
        "id": source.path.name,
        "title": source.group,
        "name": source.path.name,
        "finished": source.finished,
        "texts": [markdown.render(f.read_text()) for f in files if f.suffix == ".md"],
        "pictures": [
            "data:image/svg+xml;base64," + base64.b64encode(f.read_bytes()).decode()
            for f in files
            if f.suffix == ".svg"
        ],
    }


def copied_files(sources: Sequence[CommandSource]) -> dict[str, Path]:
    """Tables and figures of each command, by their path below OUT: commands/NAME/FILE."""
    return {
        f"commands/{source.path.name}/{file.name}": file
        for source in sources
        for file in _files(source)
    }


def _files(source: CommandSource) -> list[Path]:
    """The files of a command, in order; none if it has not finished."""
    if not source.finished:
        return []
    return sorted(file for file in source.path.iterdir() if file.suffix in _COPIED)
