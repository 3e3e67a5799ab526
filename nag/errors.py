"""What is wrong with what a user asked for."""

from collections.abc import Iterable

_LONGEST = 800  # characters of an error: it may name what is no text, but a file of something else


class UserError(ValueError):
    """Something the user asked for cannot be done: says what was wrong and what is allowed.

    It is one line, which commands print before they end with exit code 2.
    """


def choose(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return `name` if it is allowed, else raise a UserError that lists what is."""
    allowed = list(allowed)
    if name not in allowed:
        raise UserError(f"unknown {kind} {name!r}: choose from {', '.join(allowed)}")
    return name


def one_line(error: Exception) -> str:
    """What an error says, or its type if it says nothing; what is long is cut in its middle."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
