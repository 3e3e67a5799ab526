"""What do few steps cost? Samplers on the exact score, by distance to the law they should follow.

    python benchmarks/sampling.py

MobileNetV3: the depth of every stage is 2, 3 or 4 with probability 1/3, every operator 1/9. Worst
deviation over stages, depths and operators, in points; sampling noise alone is about 1 point.
"""

import platform
import sys
from pathlib import Path

import torch

from nag.cli import command_line, find_space, run
from nag.exact_score import exact_score, uniform_law_sde
from nag.generate import generate
from nag.samplers import EVALUATIONS_PER_STEP

RESULTS = Path(__file__).parent / "results"
CASES = (
    ("dpm++2m-sde", (20, 50, 100)),
    ("dpm++2m", (12, 24, 48)),
    ("ancestral", (25, 50, 100)),
    ("predictor-corrector", (1000,)),
)

app = command_line("python benchmarks/sampling.py")


@app.default
def main(*, num: int = 10_000, seed: int = 0) -> None:
    """Sample MobileNetV3 with every sampler and write benchmarks/results/sampling.md."""
    torch.set_num_threads(1)
    space = find_space("mobilenetv3")
    sde = uniform_law_sde(space)
    lines = [
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        f"{num:,} samples; {platform.machine()}, torch {torch.__version__}, 1 thread.",
        "",
        "| sampler | steps | score evaluations | validity, % | depth 2 / 3 / 4, % "
        "| worst depth, points | worst operator, points | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for sampler, counts in CASES:
        for steps in counts:
            made = generate(
                space, exact_score(space, sde), sde, num, seed=seed, sampler=sampler, steps=steps
            )
            v = space.encode(made.valid)  # (B, 20, 9)
            depth = v.sum(-1).unflatten(1, (5, 4)).sum(-1)  # (B, 5)
            shares = torch.stack([(depth == d).float().mean(0) for d in (2, 3, 4)])  # (3, 5)
            operators = v.sum((0, 1)) / v.sum()  # (9,)
            lines.append(
                f"| {sampler} | {steps} | {steps * EVALUATIONS_PER_STEP.get(sampler, 1)} "
                f"| {100 * made.validity:.2f} "
                f"| {' / '.join(f'{100 * s:.1f}' for s in shares.mean(1).tolist())} "
                f"| {100 * (shares - 1 / 3).abs().max().item():.2f} "
                f"| {100 * (operators - 1 / 9).abs().max().item():.2f} | {made.seconds:.1f} |"
            )
            sys.stderr.write(lines[-1] + "\n")
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sampling.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    run(app)
