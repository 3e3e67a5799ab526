"""`python -m nag.sample`: draw architectures from the diffusion model."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch

from nag.cli import (
    INVALID,
    WholeNumber,
    check_new,
    check_output,
    check_seed,
    command_line,
    plain_console,
    progress_bar,
    run,
)
from nag.devices import gpu_failures
from nag.errors import UserError
from nag.files import write_text
from nag.generate import DEFAULT_SAMPLER, Samples, generate
from nag.generator import DiffusionGenerator, GeneratorConfig
from nag.samplers import SAMPLERS
from nag.sde import SIGMA_MAX, SIGMA_MIN
from nag.spaces import SearchSpace, find_space

app = command_line(
    "python -m nag.sample",
    "python -m nag.sample --space mobilenetv3 --num 1000 --out samples.txt",
)


@app.default
def main(
    *,
    space: str,
    num: WholeNumber,
    out: Path,
    seed: WholeNumber = 0,
    score: Literal["network", "exact"] = "network",
    weights: Path | None = None,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    sampler: str = DEFAULT_SAMPLER,
    steps: WholeNumber | None = None,
    schedule: str = "geometric",
    batch_size: WholeNumber = 512,
    device: str = "auto",
    threads: WholeNumber = 1,
) -> None:
    """Draw unguided samples: one published string per line in OUT, INVALID for an invalid sample.

    Prints statistics to stdout as JSON: validity, uniqueness, frequencies of operators and stage
    depths, score evaluations and seconds.

    Parameters
    ----------
    space
        Search space: mobilenetv3, nasbench201 or toy.
    num
        Number of samples.
    out
        Text file to write; must not exist yet.
    seed
        Seed of the samples.
    score
        The trained network, or the closed form.
    weights
        Score-network weights, instead of those shipped with the package.
    sigma_min
        Smallest noise level; must match the weights.
    sigma_max
        Largest noise level; must match the weights.
    sampler
        predictor-corrector (the reference), ancestral, heun (EDM), dpm++2m or dpm++2m-sde.
    steps
        Noise levels; by default 1000 for the reference and a few dozen for the others.
    schedule
        Spacing of the noise levels: geometric or karras.
    batch_size
        Samples drawn per batch.
    device
        cpu, cuda, or auto (cuda if available).
    threads
        CPU threads.
    """
    search_space = find_space(space)
    check_seed(seed)
    if min(num, batch_size, threads, 1 if steps is None else steps) < 1:
        raise UserError("--num, --batch-size, --threads and --steps must be at least 1")
    check_output(out)
    check_new(out)
    if out.suffix == ".parquet":
        raise UserError(f"--out {out}: samples are written as text, so choose another suffix")
    config = GeneratorConfig(
        space, score, weights, sigma_min, sigma_max, sampler, steps, schedule, device, threads
    )
    generator = DiffusionGenerator(config)
    console = plain_console()
    total = num * (steps or SAMPLERS[sampler].steps)
    with gpu_failures("the generator"), progress_bar(console, "sampling", total) as advance:
        samples = generate(
            search_space,
            generator.score,
            generator.sde,
            num,
            seed=seed,
            sampler=sampler,
            steps=steps,
            schedule=schedule,
            batch_size=batch_size,
            device=generator.device,
            progress=advance,
        )
    lines = [INVALID if a is None else search_space.to_str(a) for a in samples.archs]
    write_text(out, "\n".join(lines))
    sys.stdout.write(json.dumps(statistics(search_space, samples), indent=1) + "\n")


def statistics(space: SearchSpace, samples: Samples) -> dict[str, Any]:
    """Statistics of the samples; shares are fractions of the valid samples."""
    codes = torch.tensor(samples.codes)
    v = space.encode(samples.valid)  # (B, N, F)
    free = torch.tensor([len(c) > 1 for stage in space.stages for c in stage.choices])
    operators = v[:, free].sum((0, 1))
    stage = space.slots[:, 0]
    depth_shares = []
    for s, description in enumerate(space.stages):
        depth = v[:, stage == s].sum((1, 2))
        depth_shares.append(
            {str(d): _share(int((depth == d).sum()), len(v)) for d in description.depths}
        )
    return {
        "space": space.name,
        "generated": len(samples.archs),
        "validity": samples.validity,
        "uniqueness": samples.uniqueness,
        "invalid": {text: int((codes == code).sum()) for code, text in space.errors.items()},
        "operator_shares": {
            name: _share(int(n), int(operators.sum()))
            for name, n in zip(space.operators, operators, strict=True)
            if n
        },
        "depth_shares": depth_shares if any(len(s.depths) > 1 for s in space.stages) else None,
        "score_evaluations": samples.score_evaluations,
        "seconds": round(samples.seconds, 3),
    }


def _share(part: int, whole: int) -> float:
    return round(part / max(whole, 1), 6)


if __name__ == "__main__":
    run(app)
