"""Errors in what a user asked for."""

from collections.abc import Iterable

_LONGEST = 800  # characters of an error, which may quote a file that is not text at all


class UserError(ValueError):
    """A request of the user cannot be met: says what was wrong and what is allowed.

    The message is one line, which commands print before they exit with code 2.
    """


def choose(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return `name` if it is allowed, else raise a UserError that lists the allowed names."""
    allowed = list(allowed)
    if name not in allowed:
        raise UserError(f"unknown {kind} {name!r}: choose from {', '.join(allowed)}")
    return name


def one_line(error: Exception) -> str:
    """The message of an error, or its type if it has none; a long message is cut in the middle."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun, "1 trial" or "2 trials"; `several` if that is more than an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
