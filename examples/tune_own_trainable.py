"""A training of your own, searched with Ray Tune: NAS-Bench-201 cells for handwritten digits.

    pip install '.[baselines]'                 # includes scikit-learn, which provides the digits
    python examples/tune_own_trainable.py      # two minutes; repeat it to continue after Ctrl-C

Every trial builds the cell in its config and trains a small network of it for up to 9 epochs.
ASHA stops most trials after 1 or 3; BOSearcher learns from both kinds. See docs/tune.md.
"""

import os
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from nag.cli import WholeNumber, command_line, run
from nag.spaces import SPACES
from nag.spaces.nasbench201 import CELL_EDGES, OPERATORS
from orchestrator.config import RunConfig
from orchestrator.tune import BOSearcher

EPOCHS, CHANNELS, TRAINING_IMAGES = 9, 8, 1000

app = command_line("python examples/tune_own_trainable.py")


def operator(name: str) -> nn.Module:
    match name:
        case "skip_connect":
            return nn.Identity()
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride=1, padding=1)
        case "nor_conv_1x1" | "nor_conv_3x3":
            size = int(name[-1])
            conv = nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2, bias=False)
            return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(CHANNELS))
        case _:
            raise ValueError(f"no operator {name}")


class Network(nn.Module):
    """Stem, one cell, linear classifier: images (B, 1, 8, 8) to logits (B, 10)."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        names = [OPERATORS[op] for op in SPACES["nasbench201"].from_str(arch).ops[1:-1]]
        edges = zip(CELL_EDGES, names, strict=True)
        self.edges = [edge for edge in edges if edge[1] != "none"]
        self.operators = nn.ModuleList(operator(name) for _, name in self.edges)
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, images: Tensor) -> Tensor:
        first = self.stem(images)
        maps = [first, *(torch.zeros_like(first) for _ in range(3))]
        for ((tail, head), _), layer in zip(self.edges, self.operators, strict=True):
            maps[head] = maps[head] + layer(maps[tail])
        return self.head(F.relu(maps[3]).mean((2, 3)))


def train(config: dict[str, Any]) -> None:
    """The trainable: reports the validation accuracy after each epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    network = Network(config["arch"])
    optimizer = torch.optim.Adam(network.parameters(), lr=config["lr"])
    for _ in range(EPOCHS):
        network.train()
        for batch in torch.randperm(TRAINING_IMAGES).split(20):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            right = network(images[TRAINING_IMAGES:]).argmax(1) == labels[TRAINING_IMAGES:]
        tune.report({"accuracy": right.float().mean().item()})


@app.default
def main(num_samples: WholeNumber = 30, out: Path = Path("runs/tune")) -> None:
    """Search cells for handwritten digits.

    Parameters
    ----------
    num_samples
        Number of architectures; most are trained for only one epoch.
    out
        Folder of the search; an interrupted search continues.
    """
    ray.init(os.environ.get("RAY_ADDRESS", "local"))  # else Tune joins any Ray on this machine
    trainable = tune.with_resources(train, {"cpu": 1})
    storage = out.resolve()
    if tune.Tuner.can_restore(str(storage / "digits")):
        tuner = tune.Tuner.restore(
            str(storage / "digits"), trainable, resume_unfinished=True, resume_errored=True
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={"lr": 0.01},  # whatever else your trainable needs
            tune_config=tune.TuneConfig(
                search_alg=BOSearcher(
                    RunConfig(space="nasbench201", n_init=6, acq="ei", batch_size=2),
                    metric="accuracy",
                    mode="max",
                    max_t=EPOCHS,
                ),
                scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=3),
                metric="accuracy",
                mode="max",
                num_samples=num_samples,
                max_concurrent_trials=2,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="digits", storage_path=str(storage)),
        )
    results = tuner.fit()
    best = results.get_best_result("accuracy", "max")
    full = sum(result.metrics["training_iteration"] == EPOCHS for result in results)
    print(f"{len(results)} trials, {full} of them trained in full")
    print(f"best: {best.metrics['accuracy']:.4f} {best.config['arch']}")


if __name__ == "__main__":
    run(app)
