"""Converts and checks records made in Python, as the command line does with its options."""

import operator
from collections.abc import Callable, Container
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nag.errors import UserError, choose


def typed(record: Any, but: Container[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass by name, converted to their annotated types, except those in `but`.

    Where so annotated, a string becomes a path, a path or number a string, and a single string a
    tuple. Raises UserError for values outside a Literal, and for an int that is not a whole number.
    """
    hints = {name: hint for name, hint in _hints(record.__class__).items() if name not in but}
    return {name: _typed(name, hint, getattr(record, name)) for name, hint in hints.items()}


def path_names(annotated: type | Callable[..., Any]) -> tuple[str, ...]:
    """The fields of a dataclass, or parameters of a function, that are annotated as paths."""
    hints = _hints(annotated).items()
    return tuple(name for name, hint in hints if hint is Path or Path in get_args(hint))


@cache
def _hints(annotated: type | Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(annotated)


def _typed(name: str, hint: Any, value: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    if allowed := [one for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)]:
        return choose(name.replace("_", " "), value, allowed)
    if Path in kinds:
        return Path(value)
    if str in kinds:
        return str(value)
    if int in kinds:
        return _whole(name, value)
    if hint == tuple[str, ...]:
        return tuple(map(str, value if isinstance(value, list | tuple) else [value]))
    return value


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        option = name.replace("_", "-")
        raise UserError(f"--{option} {value!r} is not a whole number") from None
