"""Reports of `nag.quality`: CSV, JSON and Markdown."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nag.errors import counted
from nag.files import write_json, write_text

PUBLISHED = {  # Table 4: validity, uniqueness, novelty, percent
    "nasbench201": {
        "GDSS": "4.56 | - | -",
        "without position embedding": "100 | 98.96 | 49.08",
        "with position embedding": "100 | 98.70 | 49.20",
    },
    "mobilenetv3": {
        "GDSS": "0.00 | - | -",
        "without position embedding": "42.17 | 100 | 100",
        "with position embedding": "100 | 100 | 100",
    },
}


def report(found: dict[str, Any], stem: Path) -> None:
    """Write STEM.json, .csv and .md; print the last to stdout as well."""
    write_json(stem.with_suffix(".json"), found)
    table = io.StringIO()
    lines = [line for row in found["rows"] for line in csv_lines(row, found["noise"])]
    writer = csv.DictWriter(table, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(stem.with_suffix(".csv"), table.getvalue())
    text = "\n".join(markdown(found))
    write_text(stem.with_suffix(".md"), text)
    sys.stdout.write(text + "\n")


def csv_lines(row: dict[str, Any], floor: dict[str, float]) -> Iterator[dict[str, object]]:
    """One line per seed; the distances, measured once, are repeated on each."""
    of_row: dict[str, float] = {}
    for kind, distance in row["distances"].items():
        of_row |= {kind: distance, f"{kind}_noise": floor[kind]}
        of_row[f"{kind}_ratio"] = distance / floor[kind]
    for repeat in row["repeats"]:
        line = {"row": row["row"], **repeat, **of_row}
        yield {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()}


def markdown(found: dict[str, Any]) -> list[str]:
    """The lines of the table, ready for a README."""
    of, floor = found["settings"], found["noise"]
    where = of["machine"] if of["device"] == "cpu" else f"{of['machine']}, {of['device']}"
    lines = [
        f"`{found['command']}`",
        "",
        f"{where}, torch {of['torch']}, {counted(of['threads'], 'thread')}.",
        "",
        f"{of['space']}: {of['num']:,} samples of {of['sampler']} in {of['steps']:,} steps, mean ± "
        f"standard deviation over {counted(of['seeds'], 'seed')}. Novelty is relative to the "
        f"training list of {found['list']['num']:,} random architectures or, for `shipped`, to all "
        "draws in its training. Distances: total variation from the uniform law, averaged over "
        "nodes, over pairs of nodes and over blocks (see nag/metrics.py), of "
        f"{of['distance_num']:,} samples / of as many independent draws from that law = ratio.",
        "",
        "| row | parameters | steps x batch | validity, % | uniqueness, % | novelty, % "
        "| distance: nodes | pairs | blocks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        made, cells = row["weights"], [row["row"], "-", "-"]
        if made:
            cells[1:] = f"{made['parameters']:,}", f"{made['steps']:,} x {made['batch_size']}"
        for key in ("validity", "uniqueness", "novelty"):
            cells.append(_mean_std([100 * repeat[key] for repeat in row["repeats"]]))
        for kind, least in floor.items():
            distance = row["distances"][kind]
            cells.append(f"{distance:.4f} / {least:.4f} = {distance / least:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    if of["space"] in PUBLISHED:
        lines += ["", "| published (paper) | validity, % | uniqueness, % | novelty, % |"]
        lines += ["|---|---|---|---|"]
        lines += [f"| {name} | {cells} |" for name, cells in PUBLISHED[of["space"]].items()]
    return lines


def _mean_std(values: list[float]) -> str:
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"
