"""Libraries of the extra `baselines`, imported when a baseline first needs them."""

from importlib import import_module
from typing import Any

from nag.errors import UserError


def require(name: str) -> Any:
    """The module `name`; raises UserError if the extra is not installed."""
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise UserError(
            f"this surrogate needs {package}: pip install 'diffusionnag-bo[baselines]'"
        ) from None
