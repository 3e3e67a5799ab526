"""`python -m nag.train`: train a score network on the architectures of a space."""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import Parameter
from rich.console import Console
from safetensors.torch import load_file

from nag.checkpoint import save_network, save_tensors
from nag.cli import UserError, WholeNumber, command_line, find_space, run, user_errors
from nag.exact_score import uniform_law_sde
from nag.generate import generate, resolve_device
from nag.score_net import ScoreNetwork, preset, without_positions
from nag.spaces import StagedSpace
from nag.training import (
    PAPER_TRAINING,
    TrainingConfig,
    TrainingState,
    distance_to_exact,
    train,
)

app = command_line("python -m nag.train")


@app.default
def main(
    *,
    space: str,
    out: Path,
    preset_name: Annotated[Literal["default", "paper"], Parameter("--preset")] = "default",
    positions: bool = True,
    target: Literal["exact", "sampled"] | None = None,
    steps: WholeNumber | None = None,
    batch_size: WholeNumber | None = None,
    learning_rate: float | None = None,
    sigma_min: float = 0.1,
    sigma_max: float = 5.0,
    seed: WholeNumber = 0,
    device: str = "auto",
    threads: WholeNumber | None = None,
    report_every: WholeNumber = 500,
) -> None:
    """Train a score network from uniform architectures alone; no accuracies are needed.

    Writes OUT (EMA weights) and a JSON file beside it. Interrupted training continues when the
    command is repeated. Progress goes to stderr: validity of 1,000 samples, and the distance of the
    network to the exact score.

    Parameters
    ----------
    space
        Search space: mobilenetv3, nasbench201 or toy.
    out
        Weights file to write, e.g. W.safetensors.
    preset_name
        Network and training of the package (default) or of the paper (12 blocks, 4 M parameters).
    positions
        Give the network positional embeddings; --no-positions is the ablation of Table 4.
    target
        Regress on the exact posterior (exact) or on the clean architecture (sampled).
    steps
        Training steps; by default 10,000, or 250,000 for the paper preset.
    batch_size
        Architectures per step; by default 128, or 256 for the paper preset.
    learning_rate
        Peak learning rate; by default 3e-3, or 2e-5 for the paper preset.
    sigma_min
        Smallest noise level, in the coding -1/+1.
    sigma_max
        Largest noise level.
    seed
        Seed of initialisation and of every training step.
    device
        cpu, cuda, or auto (cuda where there is one).
    threads
        CPU threads; by default all cores.
    report_every
        Steps between progress reports and restart points.
    """
    if threads:
        torch.set_num_threads(threads)
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} must end in .safetensors")
    search_space = find_space(space)
    config = TrainingConfig() if preset_name == "default" else PAPER_TRAINING
    overrides: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "exact_target": None if target is None else target == "exact",
    }
    config = replace(config, **{k: v for k, v in overrides.items() if v is not None})
    if config.steps < 1 or config.batch_size < 1:
        raise UserError("--steps and --batch-size must be at least 1")
    sde = user_errors(uniform_law_sde, search_space, sigma_min, sigma_max)
    net_config = preset(preset_name, search_space)
    if not positions:
        net_config = without_positions(net_config)
    torch.manual_seed(seed)
    network = ScoreNetwork(search_space, sde, net_config)
    state = TrainingState.start(network.to(user_errors(resolve_device, device)))
    record = {
        "command": "python -m nag.train " + " ".join(sys.argv[1:]),
        "preset": preset_name,
        "seed": seed,
        "data": "uniform architectures",
        **asdict(config),
    }
    _train(state, search_space, config, seed, out, record, report_every)


def _train(
    state: TrainingState,
    space: StagedSpace,
    config: TrainingConfig,
    seed: WholeNumber,
    out: Path,
    record: dict[str, object],
    report_every: WholeNumber,
) -> None:
    console = Console(stderr=True, highlight=False)
    restart = out.with_suffix(".train.safetensors")
    if restart.exists():
        try:
            state.load(load_file(restart))
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{restart} belongs to another configuration: remove it or choose another --out"
            ) from error
        console.print(f"continuing at step {state.step} from {restart}")
    started, first, losses = time.monotonic(), state.step, []

    def batches(n: int, rng: np.random.Generator) -> torch.Tensor:
        return space.encode(space.sample(n, rng))

    held_out = space.encode(space.sample(1024, np.random.default_rng([seed, 1])))
    report: dict[str, float] = {}
    for loss in train(state, batches, config, seed):
        losses.append(loss)
        if state.step % report_every and state.step != config.steps:
            continue
        samples = generate(space, state.ema, state.ema.sde, 1000, seed=0)
        report = {
            "loss": float(np.mean(losses[-report_every:])),
            "distance_to_exact": distance_to_exact(
                state.ema, held_out, torch.Generator().manual_seed(1)
            ),
            "validity": samples.validity,
        }
        seconds = time.monotonic() - started
        remaining = seconds / (state.step - first) * (config.steps - state.step)
        console.print(
            f"step {state.step}/{config.steps}  loss {report['loss']:.4f}  distance to exact "
            f"{report['distance_to_exact']:.4f}  validity {100 * report['validity']:.2f} %  "
            f"{seconds:.0f} s, about {remaining:.0f} s left"
        )
        save_tensors(state.tensors(), restart)
    save_network(state.ema, out, {**record, "torch": torch.__version__, "final": report})
    restart.unlink(missing_ok=True)
    console.print(f"wrote {out} and {out.with_suffix('.json')}")


if __name__ == "__main__":
    run(app)
