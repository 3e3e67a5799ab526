"""Configurations made in Python: checked and converted as those of the command line are."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from nag.errors import UserError
from orchestrator.config import RunConfig
from orchestrator.history.earlier import read_earlier_run
from orchestrator.run_bo import main
from orchestrator.runtime import Runtime
from trainers.training.task import NetworkOptions

NAMED = [  # a method and its parts have words of their own for what they are
    field.name
    for field in fields(RunConfig)
    if get_origin(get_type_hints(RunConfig)[field.name]) is Literal
]


def refusal(**settings):
    with pytest.raises(UserError) as caught:
        RunConfig(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The folder of a finished run in the toy space."""
    out = tmp_path_factory.mktemp("runs") / "earlier"
    config = RunConfig(space="toy", method="random-search", n_init=3, budget=4)
    assert main(config, Runtime(executor="local", out=out)) == 0
    return out


def test_most_settings_that_are_names_are_among_these():
    assert {"objective", "score", "guidance", "guidance_form", "schedule"} <= {*NAMED}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_that_is_not_allowed_is_refused_with_those_that_are(name):
    allowed = ", ".join(get_args(get_type_hints(RunConfig)[name]))
    expected = f"unknown {name.replace('_', ' ')} 'luck': choose from {allowed}"
    assert refusal(**{name: "luck"}) == expected
    assert refusal(**{name: None}) == expected.replace("'luck'", "None")


def test_names_in_the_options_of_networks_are_checked_too():
    assert refusal(networks=NetworkOptions(precision="float8")).startswith(
        "unknown precision 'float8': choose from "
    )
    assert RunConfig(networks=NetworkOptions(precision=None)).networks.precision is None


@pytest.mark.parametrize(
    ("texts", "config"),
    [
        (
            {"score_weights": "W.safetensors", "table": "t.parquet"},
            RunConfig(score_weights=Path("W.safetensors"), table=Path("t.parquet")),
        ),
        (
            {"networks": NetworkOptions(data="mine", weights="W.pt")},
            RunConfig(networks=NetworkOptions(data=Path("mine"), weights=Path("W.pt"))),
        ),
        ({"latency_table": Path("T.json")}, RunConfig(latency_table="T.json")),
        ({"constraint": "macs<=300e6"}, RunConfig(constraint=("macs<=300e6",))),
        (
            {"constraint": ["macs<=300e6", "params<=6e6"]},
            RunConfig(constraint=("macs<=300e6", "params<=6e6")),
        ),
        ({"guidance_scale": 10}, RunConfig(guidance_scale="10")),
        ({"seed": np.int64(3)}, RunConfig(seed=3)),
    ],
    ids=str,
)
def test_what_is_meant_is_what_is_kept(texts, config):
    found = RunConfig(**texts)
    assert found == config
    assert found.absolute() == config.absolute()
    if found.networks.data is None:  # there is none that could be read
        assert found.hash() == config.hash()


@pytest.mark.parametrize("value", [6.0, "6", None])
def test_a_number_that_is_not_whole(value):
    assert refusal(pool_size=value) == f"--pool-size {value!r} is not a whole number"


def test_earlier_runs_may_be_given_by_their_folders(earlier):
    run = read_earlier_run(earlier)
    for prior in (str(earlier), earlier, run, [str(earlier)], (earlier,), (run,)):
        config = RunConfig(space="toy", prior=prior)
        assert config.prior == (run,)
        assert replace(config, seed=1).prior == (run,)
    assert "nowhere is not a run" in refusal(space="toy", prior="nowhere")
