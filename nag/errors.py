"""What is wrong with what a user asked for."""

from collections.abc import Iterable


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
