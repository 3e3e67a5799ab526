"""Measure a latency table on this device: `python -m trainers.build_latency_table --help`."""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy
import torch
from cyclopts import Parameter
from rich.console import Console

from nag.cli import (
    WholeNumber,
    check_output,
    command_line,
    difference,
    end_interrupted,
    plain_console,
    run,
    terminal_bar,
)
from nag.devices import resolve_device
from nag.errors import UserError, counted
from nag.files import write_json
from nag.spaces import Architecture
from nag.spaces.mobilenetv3 import MOBILENETV3
from trainers.latency.block_times import BlockTimer
from trainers.latency.tables import RESOLUTION, latency_property
from trainers.latency.timing import device_name
from trainers.partial import Partial
from trainers.plans import check_width
from trainers.training.loop import out_of_memory

Samples = Mapping[str, Sequence[float]]  # layer or network -> its times, ms

_UNSTEADY = 0.2  # spread of the times of a block, as a fraction of their median
_ENOUGH_TO_RANK = 3
_FAITHFUL = 0.8  # rank correlation of sums and measurements

app = command_line(
    "python -m trainers.build_latency_table",
    "python -m trainers.build_latency_table --out cpu.json --threads 1",
    "python -m trainers.build_latency_table --out gpu.json --batch-size 64 --resolution 160 224",
    "python -m orchestrator.run_bo --constraint 'latency<=15' --latency-table cpu.json",
)


def _in_a_row(sides: Sequence[int]) -> str:
    return " ".join(map(str, sides))


@app.default
def main(
    *,
    out: Path,
    device: str = "auto",
    resolution: Annotated[
        tuple[WholeNumber, ...],
        Parameter(consume_multiple=True, negative=(), show_default=_in_a_row),
    ] = (RESOLUTION,),
    width: float = 1.0,
    batch_size: WholeNumber = 1,
    threads: WholeNumber | None = None,
    repeats: WholeNumber = 50,
    networks: WholeNumber = 10,
) -> None:
    """Measure how long every block of the once-for-all MobileNetV3 space takes on this device.

    Pass the table to a search as --latency-table: --constraint 'latency<=15' then means networks
    that PyTorch runs in 15 ms here. Blocks are timed inside running networks, so that their times
    add up. Random networks are also timed as a whole, and the final report says by how much the
    sums are off. Do not use the machine meanwhile: it takes half a minute per resolution for one
    image on one core.

    Repeat an interrupted command to continue it; until then its measurements are in OUT.partial.
    An existing table is not overwritten.

    Parameters
    ----------
    out
        File to write, ending in .json.
    device
        cpu, cuda, cuda:1, ...; auto means a GPU if available.
    resolution
        One or more image sides, in pixels. Searches choose with --latency-table OUT:RESOLUTION.
    width
        Width multiplier of all channels: that of the supernet to be searched.
    batch_size
        Images per batch; a latency is that of a whole batch.
    threads
        CPU threads, at most the number of CPUs; by default PyTorch chooses.
    repeats
        Measurements per block; the table contains their medians.
    networks
        Random networks to time and compare with the sums of their blocks; 0 for none.
    """
    check_output(out, ".json")
    check_width(width)
    if not resolution or min(resolution) < 8:
        raise UserError("--resolution must be at least 8")
    if min(batch_size, repeats, 1 if threads is None else threads) < 1:
        raise UserError("--batch-size, --threads and --repeats must be at least 1")
    processors = os.cpu_count() or 1
    if threads is not None and threads > processors:
        raise UserError(f"--threads must be at most {processors}, the number of CPUs")
    if networks < 0:
        raise UserError("--networks must not be negative")
    place = resolve_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    archs = MOBILENETV3.sample(networks, np.random.default_rng(0))
    about = {
        "unit": "ms",
        "device": device_name(place),
        "width": width,
        "batch_size": batch_size,
        "torch": torch.__version__,
    }
    console = plain_console()
    sides = list(dict.fromkeys(resolution))
    there = _is_there(out, about, sides, repeats, networks)
    console.print(f"{about['device']}, width {width:g}, batches of {batch_size}")
    if there:
        console.print(f"{out} already exists, measured with these settings")
    else:
        _build(out, about, archs, sides, repeats, place, console)
    for side in sides:
        for line in report(out, side):
            sys.stdout.write(f"{line}\n")
    console.print(f"table: {out}")


def _is_there(
    out: Path, about: Mapping[str, Any], sides: Sequence[int], repeats: int, networks: int
) -> bool:
    """Whether OUT is already the requested table; UserError if it is something else."""
    if not out.exists():
        return False
    asked = {**about, "passes": {str(side): repeats for side in sides}, "networks": networks}
    try:
        content = json.loads(out.read_bytes())
        numbers = {len(measured) for measured in content["networks"].values()}
        known = {name: content[name] for name in asked} | {"networks": max(numbers)}
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{out} exists and is not a table of this command: choose another"
        ) from None
    if changes := difference(known, asked):
        raise UserError(
            f"{out} was measured with other settings ({changes}): delete it or choose another --out"
        )
    return True


def _build(
    out: Path,
    about: Mapping[str, Any],
    archs: Sequence[Architecture],
    sides: Sequence[int],
    repeats: int,
    place: torch.device,
    console: Console,
) -> None:
    """Measure and write OUT; an interruption ends the process."""
    width, batch_size = about["width"], about["batch_size"]
    partial = Partial(out.with_name(f"{out.name}.partial"), {**about, "networks": len(archs)})
    with closing(partial):
        try:
            for side in sides:
                timer = BlockTimer(
                    archs, resolution=side, width=width, batch_size=batch_size, device=place
                )
                _measure(timer, side, repeats, partial, console)
        except KeyboardInterrupt:
            end_interrupted()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"not enough memory for batches of {batch_size}: lower --batch-size"
            ) from None
        write_json(out, {**about, **tables(partial, sides)})
        partial.remove()


def _passes(partial: Partial, resolution: int) -> list[dict[str, Any]]:
    """The passes measured so far at a resolution."""
    return [line for line in partial.found if line["resolution"] == resolution]


def _measure(
    timer: BlockTimer, resolution: int, repeats: int, partial: Partial, console: Console
) -> None:
    """Measure until there are `repeats` passes, after one that only warms up."""
    done = len(_passes(partial, resolution))
    # without auto_refresh, whose thread the timings would include
    with terminal_bar(console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(f"{resolution} pixels", total=repeats, completed=done)
        for number in range(done, repeats):
            if number == done:
                timer.measure(np.random.default_rng(repeats))
            layers, networks = timer.measure(np.random.default_rng([resolution, number]))
            partial.add({"resolution": resolution, "layers": layers, "networks": networks})
            bar.update(task, completed=number + 1, refresh=True)


def tables(partial: Partial, resolutions: Sequence[int]) -> dict[str, Any]:
    """By resolution: medians and spreads of layers, and medians of the timed networks."""
    found: dict[str, Any] = {"passes": {}, "tables": {}, "spread": {}, "networks": {}}
    for side in resolutions:
        passes = _passes(partial, side)
        layers = dict(sorted(_samples(passes, "layers").items()))
        found["passes"][str(side)] = len(passes)
        found["tables"][str(side)] = _rounded(np.median, layers)
        found["spread"][str(side)] = _rounded(scipy.stats.iqr, layers)
        found["networks"][str(side)] = _rounded(np.median, _samples(passes, "networks"))
    return found


def _samples(passes: Sequence[Mapping[str, Any]], kind: str) -> Samples:
    """All measurements of some passes; `kind` is layers or networks."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in passes:
        for name, times in one[kind].items():
            found[name] += times
    return found


def _rounded(statistic: Callable[[Any], Any], measured: Samples) -> dict[str, float]:
    return {name: round(float(statistic(ms)), 5) for name, ms in measured.items()}


def report(path: Path, resolution: int) -> Iterator[str]:
    """Report how accurate a table is and what it covers, read as a search would read it."""
    content = json.loads(path.read_bytes())
    latency = latency_property(MOBILENETV3, f"{path}:{resolution}")
    low, high = latency.extremes
    yield f"{resolution} pixels: networks take {low:.4g} to {high:.4g} ms"
    table, spread = (content[name][str(resolution)] for name in ("tables", "spread"))
    share = float(np.median([spread[layer] / table[layer] for layer in table if table[layer] > 0]))
    advice = ": was the machine busy? measure again" if share > _UNSTEADY else ""
    if content["passes"][str(resolution)] > 1:
        yield f"  interquartile range of a layer's times: {100 * share:.1f} % of its median{advice}"
    measured = content["networks"][str(resolution)]
    if not measured:
        return
    sums = latency([MOBILENETV3.from_str(arch) for arch in measured])
    whole = np.array(list(measured.values()))
    ratios = sums / whole
    yield (
        f"  sum of layers / network measured as a whole: {ratios.mean():.3f} on average over "
        f"{counted(len(whole), 'random network')}, {ratios.min():.3f} to {ratios.max():.3f}"
    )
    if len(whole) >= _ENOUGH_TO_RANK:
        ranks = float(scipy.stats.spearmanr(sums, whole).statistic)
        yield f"  rank correlation (Spearman) {ranks:.3f}"
        if not ranks >= _FAITHFUL:
            yield (
                "  warning: the sums rank networks differently from the measurements: delete the "
                "table and measure again while the machine is idle, with more --repeats"
            )


if __name__ == "__main__":
    run(app)
