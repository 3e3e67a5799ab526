"""`python -m nag.train`: train a score network on the architectures of a space."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import Parameter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from nag.checkpoint import save_network, save_tensors
from nag.cli import (
    WholeNumber,
    check_seed,
    command_given,
    command_line,
    difference,
    end_interrupted,
    plain_console,
    read_architectures,
    run,
)
from nag.devices import resolve_device
from nag.errors import UserError
from nag.files import sha256_of
from nag.generate import generate
from nag.laws import LARGEST_EXACT, Law, ListLaw, UniformLaw, random_list, sde_of
from nag.metrics import pack, summary
from nag.score_net import ScoreNetConfig, ScoreNetwork, preset
from nag.sde import SIGMA_MAX, SIGMA_MIN, VESDE
from nag.spaces import StagedSpace, find_space
from nag.training import (
    PAPER_TRAINING,
    TrainingConfig,
    TrainingState,
    distance_to_exact,
    train,
)

app = command_line(
    "python -m nag.train",
    "python -m nag.train --space nasbench201 --out W.safetensors",
    "python -m nag.train --space mobilenetv3 --preset paper --archs mine.txt --out W.safetensors",
)


@app.default
def main(
    *,
    space: str,
    out: Path,
    preset_name: Annotated[
        Literal["default", "paper", "undirected"], Parameter("--preset")
    ] = "default",
    positions: bool = True,
    archs: Path | None = None,
    num_archs: WholeNumber | None = None,
    target: Literal["exact", "sampled"] | None = None,
    steps: WholeNumber | None = None,
    batch_size: WholeNumber | None = None,
    learning_rate: float | None = None,
    decay: bool | None = None,
    bfloat16: bool = False,
    half: bool = False,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    seed: WholeNumber = 0,
    device: str = "auto",
    threads: WholeNumber | None = None,
    report_every: WholeNumber = 500,
) -> None:
    """Train a score network on architectures alone: uniform random ones, or a list of yours.

    No accuracies are needed. Writes OUT (EMA weights) and a JSON file next to it. Repeat the
    command to continue an interrupted training. Progress goes to stderr: validity of 1,000 samples,
    their novelty with --archs, and the distance of the network from the exact score, if that is
    known (with at most 20,000 --archs).

    Parameters
    ----------
    space
        Search space: mobilenetv3, nasbench201 or toy.
    out
        Weights file to write, e.g. W.safetensors.
    preset_name
        Network and training of the package (default) or of the paper (12 blocks, 4 M parameters),
        or a baseline on the undirected graph in the style of GDSS.
    positions
        Give the network positional embeddings; --no-positions is the ablation of Table 4.
    archs
        Learn the distribution of the architectures in this file, one published string per line (as
        nag.sample writes them), instead of the uniform one.
    num_archs
        Learn from only this many random architectures, e.g. half of the space.
    target
        Regress on the exact posterior (exact, the default for uniform architectures) or on the
        clean architecture (sampled, the default for a list, whose exact posterior would only
        generate the list itself).
    steps
        Training steps; by default 10,000, or 250,000 for the paper preset.
    batch_size
        Architectures per step; by default 128, or 256 for the paper preset.
    learning_rate
        Peak learning rate; by default 3e-3, or 2e-5 for the paper preset.
    decay
        Decay the learning rate to zero along a cosine; the paper preset keeps it constant.
    bfloat16
        Multiply matrices in bfloat16: faster on recent processors and GPUs, but less precise.
    half
        Store the weights as float16, which halves the file size.
    sigma_min
        Smallest noise level, in the coding -1/+1.
    sigma_max
        Largest noise level.
    seed
        Seed of the initialisation and of every training step.
    device
        cpu, cuda, or auto (cuda if available).
    threads
        CPU threads; by default all cores.
    report_every
        Steps between progress reports and restart points.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} must end in .safetensors")
    search_space = find_space(space)
    check_seed(seed)
    if archs is not None and num_archs is not None:
        raise UserError("give --archs or --num-archs, not both")
    law = _law(search_space, archs, num_archs, seed)
    config = PAPER_TRAINING if preset_name == "paper" else TrainingConfig()
    if not isinstance(law, UniformLaw) or preset_name == "undirected":
        config = replace(config, exact_target=False)
    overrides: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "decay": decay,
        "bfloat16": bfloat16,
        "exact_target": None if target is None else target == "exact",
    }
    config = replace(config, **{k: v for k, v in overrides.items() if v is not None})
    if min(config.steps, config.batch_size, report_every, 1 if threads is None else threads) < 1:
        raise UserError("--steps, --batch-size, --report-every, --threads must be at least 1")
    if not 0 < config.learning_rate <= 1:
        raise UserError(f"--learning-rate {config.learning_rate:g} must be above 0 and at most 1")
    net_config = preset(preset_name, search_space)
    if not positions:
        net_config = replace(net_config, positions="none")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        train_network(
            law,
            net_config,
            config,
            out,
            sde=sde_of(law, sigma_min, sigma_max),
            seed=seed,
            device=resolve_device(device),
            report_every=report_every,
            dtype=torch.float16 if half else None,
            record={"command": command_given("nag.train"), "preset": preset_name},
        )
    except KeyboardInterrupt:
        end_interrupted()


def _law(space: StagedSpace, archs: Path | None, num_archs: int | None, seed: int) -> Law:
    if archs is not None:
        listed = tuple(read_architectures(archs, space))
        return ListLaw(space, listed, {"file": str(archs)})
    if num_archs is not None:
        if num_archs < 1:
            raise UserError("--num-archs must be at least 1")
        return random_list(space, num_archs, seed)
    return UniformLaw(space)


def train_network(
    law: Law,
    net_config: ScoreNetConfig,
    config: TrainingConfig,
    out: Path,
    *,
    sde: VESDE,
    seed: int,
    device: torch.device,
    report_every: int,
    record: Mapping[str, object],
    dtype: torch.dtype | None = None,
) -> None:
    """Train on a law and write OUT, or continue an interrupted training of OUT.

    Does nothing if OUT is already trained; raises UserError if OUT holds other weights.
    """
    console = plain_console()
    restart = out.with_suffix(".train.safetensors")
    configuration = {
        "space": law.space.name,
        "data": law.to_json(),
        **sde.to_json(),
        **net_config.to_json(),
        **asdict(config),
        "seed": seed,
    }
    configuration = json.loads(json.dumps(configuration))  # as it will be read: without tuples
    if _is_there(out, configuration):
        console.print(f"{out} already exists, trained with these settings")
        return
    torch.manual_seed(seed)
    state = TrainingState.start(ScoreNetwork(law.space, sde, net_config).to(device))
    if restart.exists():
        _resume(state, restart, configuration)
        console.print(f"continuing at step {state.step} from {restart}")
    started, first, losses = time.monotonic(), state.step, []
    held_out = law.draw(1024, np.random.default_rng([seed, 1]))
    report: dict[str, float] = {}
    for loss in _losses(state, law, config, seed):
        losses.append(loss)
        if state.step % report_every and state.step != config.steps:
            continue
        loss_since = float(np.mean(losses[-report_every:]))
        report = {"loss": loss_since, **_quality(state, law, held_out, device)}
        seconds = time.monotonic() - started
        remaining = seconds / (state.step - first) * (config.steps - state.step)
        shown = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in report.items())
        console.print(
            f"step {state.step}/{config.steps}  {shown}  "
            f"{seconds:.0f} s, about {remaining:.0f} s left"
        )
        if state.step < config.steps:  # continued from there, it would have nothing to report
            save_tensors(state.tensors(), restart, {"configuration": json.dumps(configuration)})
    made = {
        **record,
        "data": law.to_json(),
        "seed": seed,
        **asdict(config),
        "torch": torch.__version__,
        "final": report,
    }
    save_network(state.ema, out, made, dtype)
    restart.unlink(missing_ok=True)
    console.print(f"wrote {out} and {out.with_suffix('.json')}")


def _is_there(out: Path, configuration: dict[str, Any]) -> bool:
    """Whether OUT was trained with `configuration`; raises UserError if it was not."""
    if not out.exists():
        return False
    try:
        record = json.loads(out.with_suffix(".json").read_text())
        known = {**record["training"], **record["network"], **record["sde"]} | {
            "space": record["space"]
        }
        whole = record["sha256"] == sha256_of(out)
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(f"{out} exists without a readable record: choose another --out") from None
    if not whole:
        raise UserError(
            f"{out} does not match the hash in its JSON: remove it or choose another --out"
        )
    if changes := difference({key: known.get(key) for key in configuration}, configuration):
        raise UserError(f"{out} was trained with other settings ({changes}): choose another --out")
    return True


def _resume(state: TrainingState, restart: Path, configuration: dict[str, Any]) -> None:
    """Load the state of an interrupted training, which must have this configuration."""
    remedy = "remove it or choose another --out"
    try:
        with safe_open(restart, "pt") as file:
            stored = json.loads(file.metadata()["configuration"])
        tensors = load_file(restart)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{restart} does not hold an interrupted training: {remedy}") from error
    if changes := difference(stored, configuration):
        raise UserError(f"{restart} has other settings ({changes}): {remedy}")
    state.load(tensors)


def _losses(state: TrainingState, law: Law, config: TrainingConfig, seed: int) -> Iterator[float]:
    """Losses of the training steps; raises UserError if the training diverges."""
    try:
        yield from train(state, law, config, seed)
    except FloatingPointError as error:
        raise UserError(f"{error}: lower --learning-rate or raise --sigma-min") from error


def _quality(
    state: TrainingState, law: Law, held_out: torch.Tensor, device: torch.device
) -> dict[str, float]:
    """Quality of 1,000 samples and of the denoised estimate, as fractions.

    The networks are on `device`.
    """
    samples = generate(law.space, state.ema, state.ema.sde, 1000, seed=0, device=device)
    generator = torch.Generator().manual_seed(1)
    quality = {"validity": samples.validity}
    if isinstance(law, ListLaw):
        quality["novelty"] = summary(samples, {pack(arch) for arch in law.archs}).novelty
    if not isinstance(law, ListLaw) or len(law.archs) <= LARGEST_EXACT:
        quality["distance_to_exact"] = distance_to_exact(state.ema, law, held_out, generator)
    return quality


if __name__ == "__main__":
    run(app)
