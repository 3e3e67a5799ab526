"""Trainings on disk: safetensors files with groups of tensors (GROUP.NAME) and a JSON record."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nag.checkpoint import save_tensors

_SAVE_SECONDS = 300.0
_log = logging.getLogger(__name__)


class NoCheckpointError(Exception):
    """A file holds no training that can be continued."""


def write_checkpoint(
    path: Path, groups: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]
) -> None:
    """Write a checkpoint; on failure only warn, because the next write may succeed."""
    tensors = {
        f"{group}.{name}": tensor.contiguous()
        for group, found in groups.items()
        for name, tensor in found.items()
    }
    try:
        save_tensors(tensors, path, {"record": json.dumps(record)})
    except OSError as error:  # e.g. a full disk
        _log.warning("%s cannot be written (%s): training continues without it", path, error)


def read_checkpoint(
    path: Path, device: torch.device
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The non-empty groups, and the record; raises NoCheckpointError."""
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            record: dict[str, Any] = json.loads(file.metadata()["record"])
            for key in file.keys():  # noqa: SIM118
                group, name = key.split(".", 1)
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise NoCheckpointError(f"{path}: {error}") from error
    return groups, record


def seed_of(path: Path) -> int | None:
    """Seed of the training in a checkpoint; None if there is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["record"])["seed"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


class Saver:
    """Saves to a path, if there is one: on request, and when five minutes have passed."""

    def __init__(self, save: Callable[[Path], None], path: Path | None) -> None:
        self._save, self._path, self._saved = save, path, perf_counter()

    def save(self) -> None:
        if self._path:
            self._save(self._path)
        self._saved = perf_counter()

    def save_if_due(self) -> None:
        if perf_counter() - self._saved > _SAVE_SECONDS:
            self.save()
