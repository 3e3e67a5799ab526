"""Reading the HTML of a report: what must hold for every page. And reports without drawings."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from unittest.mock import patch
from xml.etree import ElementTree

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """A report, read: text by section, every tag closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"]
            self.sections[self._section] = ""

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data):
        if self._section:
            self.sections[self._section] += data


@contextmanager
def undrawn() -> Iterator[None]:
    """Meanwhile figures are made but not drawn: half of what a small search takes."""
    drawn = "<svg></svg>"
    with (
        patch("orchestrator.reporting.figures.to_svg", return_value=drawn),
        patch("orchestrator.comparison.figures.to_svg", return_value=drawn),
    ):
        yield


def svgs(html: str) -> list[ElementTree.Element]:
    """All of them, parsed."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def check_page(html: str) -> Page:
    """Well-formed, needs nothing but itself, and shows no number that is none."""
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "iframe"} & set(page.tags)
    for name, value in page.attributes:
        if name == "src":
            assert value.startswith("data:image/svg+xml;base64,")
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
            assert value[1:] in page.ids
        for target in re.findall(r"url\(#?(.*?)\)", value):
            assert target in page.ids
    assert "url(" not in html.split("</style>")[0]
    assert "@import" not in html
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert not re.search(r"\bnan\b|None\b(?!:|\.)", "".join(page.sections.values()))
    svgs(html)  # parse
    return page
