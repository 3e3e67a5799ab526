"""The record of a run, config.json, and the check that a folder is that run's."""

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from nag.cli import difference, package_version
from nag.errors import UserError, counted
from orchestrator.config import RunConfig
from orchestrator.history.record import DamagedRunError, read_record
from orchestrator.storage.journal import SCHEMA
from orchestrator.storage.local_journal import FILE
from orchestrator.storage.location import URI, Location, reason, without_secrets, write_whole
from orchestrator.storage.segment_journal import FOLDER, LEASES

RESTORE = "restore it, remove {}, or choose another --out"  # "it": what is missing from a run


def run_record(config: RunConfig, command: Sequence[str]) -> dict[str, Any]:
    """The content of a run's config.json."""
    return {
        "schema": SCHEMA,
        "config": {**config.identity(), "budget": config.budget},
        "hash": config.hash(),
        **provenance(command),
    }


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """How a result was made: the command (its first word is a Python), versions, the machine.

    Keys and options of URIs in the command are left out.
    """
    packages = ("diffusionnag-bo", "torch", "ray", "numpy", "scipy", "pandas", "pyarrow")
    versions = {package: package_version(package) for package in packages}
    # a driver too old for PyTorch still counts its GPUs
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(count)]
    machine = f"{platform.system()} {platform.machine()}, {counted(os.cpu_count() or 1, 'CPU')}"
    return {
        "command": shlex.join(["python", *map(without_secrets, command[1:])]),
        "versions": {"python": platform.python_version(), **versions},
        "machine": ", ".join([machine, *gpus]),
    }


def check_same_run(out: Location, config: RunConfig) -> None:
    """Raise UserError unless `out` is free or holds a run of this configuration."""
    try:
        if not (out / "config.json").exists():
            if isinstance(out, Path) and out.is_symlink() and not out.exists():
                raise UserError(f"{out} is a link to nothing: choose another --out")
            if out.exists() and not out.is_dir():
                raise UserError(f"{out} is not a folder: choose another --out")
            if out.exists() and not _is_empty(out):
                raise UserError(f"{out} holds other files: choose another --out")
            return
    except OSError as error:
        raise UserError(f"cannot read {out / 'config.json'}: {reason(error)}") from error
    record = record_of(out)
    stored = {name: value for name, value in record["config"].items() if name != "budget"}
    asked = json.loads(json.dumps(config.identity()))
    if record["hash"] != config.hash() or stored != asked:
        before, now = (settings.pop("sha256", {}) for settings in (stored, asked))
        changes = [difference(stored, asked)] if stored != asked else []
        changes += [
            f"{name} has different content"
            for name, digest in before.items()
            if now.get(name, digest) != digest
        ]
        raise UserError(
            f"{out} holds a run of another configuration "
            f"({', '.join(changes) or 'its hash differs'}): choose another --out"
        )


def record_of(out: Location) -> Mapping[str, Any]:
    """The content of a run's config.json; raises UserError."""
    try:
        return read_record(out)
    except FileNotFoundError:
        raise UserError(f"no run in {out}: give the --out of a run") from None
    except OSError as error:
        raise UserError(f"cannot read {out / 'config.json'}: {reason(error)}") from error
    except DamagedRunError as error:
        raise UserError(f"{out}: {error}: restore it, or choose another --out") from None


def _is_empty(out: Location) -> bool:
    """Whether it holds only files of a run that is starting, or was killed then."""
    found: list[Location] = list(out.iterdir())
    return any(path.name == "config.json" for path in found) or all(
        fnmatch(path.name, "config.json.*.tmp")
        or (path.name == FILE and not path.read_bytes())
        or (isinstance(path, URI) and path.name == LEASES)
        or (isinstance(path, URI) and path.name == FOLDER and not path.walk())
        for path in found
    )


def write_record(location: Location, record: dict[str, Any]) -> None:
    """Write a record atomically; raises OSError."""
    write_whole(location, (json.dumps(record, indent=1) + "\n").encode())
