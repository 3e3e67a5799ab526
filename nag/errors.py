"""Errors in what a user asked for."""

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 800  # characters of an error, which may quote a file that is not text at all


class UserError(ValueError):
    """A request of the user cannot be met: says what was wrong and what is allowed.

    The message is one line, which commands print before they exit with code 2.
    """


def choose(kind: str, name: str, allowed: Iterable[str], *, see: str = "") -> str:
    """Return `name` if it is allowed, else raise a UserError that lists the allowed names.

    see: where to read about the names if they are too many to list; a similar one is suggested.
    """
    allowed = list(allowed)
    if name in allowed:
        return name
    if not see:
        raise UserError(f"unknown {kind} {name!r}: choose from {', '.join(allowed)}")
    similar = get_close_matches(name, allowed, n=1, cutoff=0.7)
    hint = f"did you mean {similar[0]!r}? See" if similar else "see"
    raise UserError(f"unknown {kind} {name!r}: {hint} {see}")


def one_line(error: Exception) -> str:
    """The message of an error, or its type if it has none; a long message is cut in the middle."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun, "1 trial" or "2 trials"; `several` if that is more than an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
