"""The templates of HTML pages."""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from nag.errors import counted


def page_template(name: str, **filters: Callable[..., Any]) -> Template:
    """One of `templates/`, which escapes its variables and fails if one is missing."""
    environment = Environment(
        loader=PackageLoader("orchestrator.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"counted": counted, **filters}
    return environment.get_template(name)
