"""Commands with settings as keywords, run in the process of a test."""

from pathlib import Path

import pytest

from nag.cli import run


def arguments(settings, **changes):
    """Settings as a command line; `n_init=3` replaces --n-init, None removes an option.

    A tuple repeats its option.
    """
    settings = settings | {f"--{name.replace('_', '-')}": x for name, x in changes.items()}
    pairs = [
        (name, value)
        for name, values in settings.items()
        for value in (values if isinstance(values, tuple) else (values,))
    ]
    return [str(part) for pair in pairs if pair[1] is not None for part in pair]


def run_here(app, capsys, settings, **changes):
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_:
        run(app, arguments(settings, **changes))
    return exit_.value.code, *capsys.readouterr()


def refusal(app, capsys, settings, **changes):
    """The one line with which a command is refused; not a file is made or changed."""
    before = snapshot()
    code, out, err = run_here(app, capsys, settings, **changes)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert snapshot() == before
    return err


def snapshot():
    """All that is below the working directory."""
    return {file: file.is_file() and file.read_bytes() for file in Path.cwd().rglob("*")}
