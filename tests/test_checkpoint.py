"""Weights on disk: what is saved is loaded, what does not fit is refused in one line."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nag.checkpoint import (
    CheckpointError,
    load_network,
    save_network,
    save_tensors,
    shipped_weights,
)
from nag.generate import generate
from nag.laws import UniformLaw, sde_of
from nag.score_net import ScoreNetConfig, ScoreNetwork
from nag.sde import VESDE
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY
from nag.training import distance_to_exact

SDE = sde_of(UniformLaw(TOY))
CONFIG = ScoreNetConfig(width=16, blocks=1, heads=2, head_widths=(8,), mask="upper_triangular")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ScoreNetwork(TOY, SDE, CONFIG).eval()


@pytest.fixture
def path(network, tmp_path):
    path = tmp_path / "new folder" / "W.safetensors"
    save_network(network, path, {"seed": 3})
    return path


def refusal(path, *args, **kwargs):
    """The message with which a file is refused."""
    with pytest.raises(CheckpointError) as error:
        load_network(path, *args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert str(path.with_suffix("")) in message
    return message


def test_loading_gives_the_same_outputs_bit_for_bit(network, path):
    loaded = load_network(path, TOY, (0.1, 5.0))
    x = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.01, 1, 7)
    assert torch.equal(loaded(x, t), network(x, t))
    assert loaded.config == CONFIG
    assert loaded.sde == SDE
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert load_network(path, TOY).sde == SDE  # by default any noise levels are taken


def test_record_says_what_the_weights_are(network, path):
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["space"] == "toy"
    assert record["parameters"] == network.num_parameters()
    assert record["training"] == {"seed": 3}
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {file.name for file in path.parent.iterdir()} == {"W.safetensors", "W.json"}


def test_saving_replaces(path):
    other = ScoreNetwork(TOY, SDE, ScoreNetConfig(width=8, blocks=1, heads=1))
    save_network(other, path, {})
    assert load_network(path, TOY).num_parameters() == other.num_parameters()


def test_tensors_round_trip(tmp_path):
    tensors = {"a": torch.arange(5), "b": torch.randn(2, 3)}
    save_tensors(tensors, tmp_path / "t.safetensors")
    loaded = load_file(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_another_space_is_refused(path):
    assert "holds weights of space 'toy', not 'nasbench201'" in refusal(path, NASBENCH201)


@pytest.mark.parametrize(("low", "high"), [(0.1, 20), (0.2, 5), (5, 0.1)])
def test_other_noise_levels_are_refused(path, low, high):
    message = refusal(path, TOY, (low, high))
    assert f"sigma 0.1..5, but sigma {low}..{high} is asked for: see --sigma-min" in message


def test_the_prior_mean_is_that_of_the_weights(tmp_path):
    """A network that learnt another law starts from that law's mean."""
    sde = VESDE(((0.25, -0.5, 0.0),) * 4, 0.1, 5.0)
    save_network(ScoreNetwork(TOY, sde, CONFIG), tmp_path / "W.safetensors", {})
    assert load_network(tmp_path / "W.safetensors", TOY, (0.1, 5.0)).sde == sde


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-4] + b"junk", lambda b: b""])
def test_damaged_weights_are_refused(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    assert "does not match the hash in" in refusal(path, TOY)


def test_missing_files_are_refused(path):
    beside = path.with_suffix(".json")
    beside.unlink()
    assert (
        refusal(path, TOY) == f"no such file: {beside}, which nag.train writes next to {path.name}"
    )
    path.unlink()
    assert refusal(path, TOY) == f"no such file: {path}"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b"{}",
        b"\xff\xfe\x00",
        b'{"format": 1}',
        b'{"format": 1, "space": "toy", "network": {}, "sde": {}, "sha256": ""}',
    ],
)
def test_junk_records_are_refused(path, text):
    path.with_suffix(".json").write_bytes(text)
    assert "is not the record of a score network" in refusal(path, TOY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99, expected 1"),
        ({"network": {"width": 3}}, "is not the record"),
        ({"network": {"head_widths": 3}}, "is not the record"),
        ({"network": CONFIG.to_json() | {"colour": "red"}}, "is not the record"),
        ({"network": CONFIG.to_json() | {"width": 32}}, "does not hold the weights its JSON"),
        ({"network": CONFIG.to_json() | {"width": "32"}}, "does not hold the weights its JSON"),
        ({"sde": {"mean": [[0.0]], "sigma_min": 2, "sigma_max": 1}}, "is not the record"),
        ({"sde": {"mean": 0, "sigma_min": 1, "sigma_max": 2}}, "is not the record"),
        ({"sha256": None}, "does not match the hash"),
    ],
)
def test_wrong_records_are_refused(path, change, message):
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    assert message in refusal(path, TOY)


def test_a_file_of_other_tensors_is_refused(path):
    """Its hash may be right."""
    save_tensors({"other": torch.zeros(3)}, path)
    beside = path.with_suffix(".json")
    record = json.loads(beside.read_text())
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    beside.write_text(json.dumps(record))
    assert "does not hold the weights its JSON describes" in refusal(path, TOY)


def test_no_weights_ship_for_the_toy_space():
    with pytest.raises(CheckpointError, match=r"train some with 'python -m nag.train --space toy"):
        shipped_weights(TOY)


@pytest.mark.parametrize(
    ("space", "limit"), [(NASBENCH201, 3e-4), (MOBILENETV3, 1e-3)], ids=["nb201", "mbv3"]
)
def test_shipped_weights_know_the_exact_posterior(space, limit):
    """Which validity does not tell (ADR 4); the weights are at 0.00007 and 0.0004."""
    network, law = load_network(shipped_weights(space), space, (0.1, 5.0)), UniformLaw(space)
    v = law.draw(1024, np.random.default_rng(0))
    assert distance_to_exact(network, law, v, torch.Generator().manual_seed(0)) < limit
    record = json.loads(shipped_weights(space).with_suffix(".json").read_text())
    assert record["training"]["data"] == law.to_json()


@pytest.mark.parametrize("space", [NASBENCH201, MOBILENETV3], ids=lambda space: space.name)
def test_shipped_weights_generate_valid_architectures(space):
    network = load_network(shipped_weights(space), space, (0.1, 5.0))
    assert network.sde == sde_of(UniformLaw(space))
    made = generate(space, network, network.sde, 1000, seed=0)
    assert made.validity >= 0.999
    assert made.uniqueness >= 0.95


def test_weights_stored_in_half_precision_are_read_as_single(tmp_path):
    network, path = ScoreNetwork(TOY, SDE, ScoreNetConfig(width=16)), tmp_path / "W.safetensors"
    save_network(network, path, {})
    whole = path.stat().st_size
    save_network(network, path, {}, torch.float16)
    assert path.stat().st_size < 0.6 * whole
    loaded = load_network(path, TOY)
    for a, b in zip(loaded.parameters(), network.parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, check_device=True)
