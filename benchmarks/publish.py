"""The results of a benchmark as Markdown: in benchmarks/results, and on the screen."""

import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine(device: torch.device | None = None) -> str:
    """Processor, GPU if that is the device, and version of PyTorch."""
    gpu = f", {torch.cuda.get_device_name(device)}" if device and device.type == "cuda" else ""
    return f"{platform.machine()}{gpu}, torch {torch.__version__}"


def publish(name: str, about: str, rows: Iterable[str], command: str = "") -> None:
    """Write the command, `about` and `rows` to benchmarks/results/NAME.md and to stdout.

    Each row is written to stderr, too, as soon as it is known.
    """
    lines = [f"`{command or ' '.join(['python', *sys.argv])}`", "", about, ""]
    for row in rows:
        lines.append(row)
        sys.stderr.write(row + "\n")
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    sys.stdout.write(text)
