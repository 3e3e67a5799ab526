"""A search with Ray Tune that may be killed: `python tune_toy.py FOLDER`, again to continue.

Synthetic: the toy evaluator's value is "learned" in three steps of a tenth of a second. Where
there is a file FOLDER/hold all but the first ten trainings wait until it is gone.
"""

import json
import sys
import time
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from nag.spaces.toy import TOY
from orchestrator.config import RunConfig
from orchestrator.tune import BOSearcher
from trainers.evaluators.toy import ToyEvaluator

NUM_SAMPLES = 14


def train(config, folder):
    begun = len([*folder.glob("begun-*")])
    (folder / f"begun-{begun}-{config['arch'].replace('/', '-')}").touch()
    while begun >= 10 and (folder / "hold").exists():
        time.sleep(0.1)
    value = ToyEvaluator().evaluate(TOY.from_str(config["arch"]), seed=0).value
    for step in (1, 2, 3):
        time.sleep(0.1)
        tune.report({"value": value * step / 3})


def main(folder):
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=150 * 2**20)
    trainable = tune.with_parameters(train, folder=Path(folder))
    config = RunConfig(space="toy", score="exact", n_init=4, pool_size=20, steps=8)
    if tune.Tuner.can_restore(f"{folder}/toy"):
        tuner = tune.Tuner.restore(f"{folder}/toy", trainable, resume_unfinished=True)
    else:
        searcher = BOSearcher(config, metric="value", mode="max", max_t=3)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=ASHAScheduler(max_t=3, reduction_factor=3),
                metric="value",
                mode="max",
                num_samples=NUM_SAMPLES,
                max_concurrent_trials=2,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="toy", storage_path=folder),
        )
    results = tuner.fit()
    sys.stdout.write("\n" + json.dumps([result.config["arch"] for result in results]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
