"""Quality of samples: the measures against hand-computed cases, and the command."""

import csv
import json
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from toy_law import ARCHS, law

from nag.checkpoint import load_network, save_network
from nag.cli import run
from nag.errors import UserError
from nag.generate import Samples, generate
from nag.laws import LARGEST_EXACT, UniformLaw, random_list, sde_of
from nag.metrics import Summary, distances, noise, pack, summary
from nag.quality import RECIPES, ROWS, app, choose_rows, uniform_draws
from nag.score_net import ScoreNetwork
from nag.spaces import SPACES, Architecture
from nag.spaces.toy import TOY
from nag.training import TrainingConfig, TrainingState, train

torch.set_num_threads(1)

FAST = ["--space", "toy", "--num", "50", "--distance-num", "500", "--device", "cpu"]


# Measures


def toy(*texts):
    return [None if text is None else TOY.from_str(text) for text in texts]


def test_validity_uniqueness_novelty():
    archs = toy("ab/c-", "ab/c-", None, "a-/c-", "bb/cc")
    samples = Samples(tuple(archs), (0, 0, 1, 0, 0), 1, 0.0)
    known = {pack(arch) for arch in toy("a-/c-", "cc/cc")}
    assert summary(samples, known) == Summary(4 / 5, 3 / 4, 2 / 3)


def test_summary_of_nothing_valid():
    assert summary(Samples((None, None), (1, 1), 1, 0.0), set()) == Summary(0, 0, 0)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_packing_keeps_architectures_apart(space, rng):
    archs = set(space.sample(500, rng))
    assert len({pack(arch) for arch in archs}) == len(archs)


def test_distances_of_one_architecture():
    """A toy stage: its first node is a with probability 1/3; its second is absent with 1/2, a with
    1/6; the depth 1 with operator a has 1/6, depth 2 with operators a, b has 1/18."""
    found = distances(TOY, toy("a-/ab"))
    assert found.node == pytest.approx((2 / 3 + 1 / 2 + 2 / 3 + 5 / 6) / 4)
    assert found.joint == found.pair == pytest.approx((5 / 6 + 17 / 18) / 2)


def test_invalid_samples_are_far_from_every_law():
    assert astuple(distances(TOY, [None])) == pytest.approx((1, 1, 1))
    counts = (law() * 324).round().int().tolist()
    archs = [arch for arch, n in zip(ARCHS, counts, strict=True) for _ in range(n)]
    assert astuple(distances(TOY, archs)) == pytest.approx((0, 0, 0))
    assert astuple(distances(TOY, [*archs, *[None] * 81])) == pytest.approx([81 / 405] * 3)


def test_nasbench201_counts_all_inner_nodes_at_once():
    space = SPACES["nasbench201"]
    one = Architecture("nasbench201", (0, 2, 3, 4, 5, 6, 2, 1))
    assert astuple(distances(space, [one])) == pytest.approx((4 / 5, 24 / 25, 1 - 5**-6))


def test_mobilenetv3_counts_stages():
    space = SPACES["mobilenetv3"]
    one = Architecture("mobilenetv3", (0, 1, -1, -1) * 5)
    node = (8 / 9 + 8 / 9 + 2 / 3 + 1 / 3) / 4
    pairs = (80 / 81, 1 - 1 / 27, 1 - 2 / 27, 1 - 1 / 27, 1 - 2 / 27, 2 / 3)
    found = distances(space, [one])
    assert astuple(found) == pytest.approx((node, np.mean(pairs), 1 - 1 / 3 / 81))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_draws_of_the_law_are_at_the_distance_of_the_noise(space):
    floor = astuple(noise(space, 2000, np.random.default_rng(0), repeats=8))
    again = astuple(noise(space, 2000, np.random.default_rng(1), repeats=8))
    assert np.divide(again, floor) == pytest.approx([1, 1, 1], abs=0.3 if space is TOY else 0.1)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_biased_law_is_farther_than_the_noise(space, rng):
    """Every third time it is drawn, the last operator of a node becomes its first."""
    choices = [c for stage in space.stages for c in stage.choices]

    def biased(arch):
        nodes = zip(arch.ops, choices, strict=True)
        ops = [c[0] if op == c[-1] and rng.random() < 1 / 3 else op for op, c in nodes]
        return replace(arch, ops=tuple(ops))

    archs = [biased(arch) for arch in space.sample(4000, rng)]
    ratio = np.divide(astuple(distances(space, archs)), astuple(noise(space, 4000, rng, 3)))
    assert ratio[0] > 2
    assert ratio[1] > 1.5
    assert ratio[2] > 1  # many more cells than samples: mostly noise


def test_pairs_see_what_single_nodes_do_not(rng):
    """Two nodes that always agree, each of them uniform."""
    space = SPACES["nasbench201"]
    archs = [replace(a, ops=(*a.ops[:2], a.ops[1], *a.ops[3:])) for a in space.sample(4000, rng)]
    floor, found = noise(space, 4000, rng, repeats=3), distances(space, archs)
    assert found.node < 1.5 * floor.node
    assert found.pair > 2 * floor.pair


# Rows


def test_uniform_draws_are_those_of_a_training(monkeypatch):
    drawn = set()

    def recorded(self, n, rng):
        archs = self.space.sample(n, rng)
        drawn.update(map(pack, archs))
        return self.space.encode(archs)

    monkeypatch.setattr(UniformLaw, "draw", recorded)
    state = TrainingState.start(ScoreNetwork(TOY, sde_of(UniformLaw(TOY)), network_of("default")))
    list(train(state, UniformLaw(TOY), TrainingConfig(steps=3, batch_size=8), seed=5))
    assert uniform_draws(TOY, seed=5, steps=3, batch_size=8) == drawn
    assert 8 < len(drawn) <= 24


def test_rows_a_space_can_have():
    assert choose_rows(None, TOY, 72) == [row for row in ROWS if row != "shipped"]
    assert choose_rows(None, SPACES["nasbench201"], 7812) == list(ROWS)
    assert choose_rows(None, SPACES["mobilenetv3"], 500_000) == list(ROWS[:-1])
    assert choose_rows("paper, exact", TOY, 72) == ["exact", "paper"]
    with pytest.raises(UserError, match="no row 'shipped'"):  # the first of two impossible ones
        choose_rows("exact-of-list,shipped", TOY, LARGEST_EXACT + 1)


def test_every_network_row_has_a_recipe_that_samples_its_target():
    assert set(ROWS) - RECIPES.keys() == {"exact", "shipped", "exact-of-list"}
    assert not any(recipe.training.exact_target for recipe in RECIPES.values())
    assert network_of("no-positions") == replace(network_of("default"), positions="none")
    assert network_of("undirected").mask == "undirected"


# The command


def network_of(row):
    return RECIPES[row].network(TOY)


def store(path, data, row="default"):
    """Untrained weights whose record says they were trained on `data`."""
    torch.manual_seed(0)
    path.parent.mkdir(exist_ok=True)
    network = ScoreNetwork(TOY, sde_of(UniformLaw(TOY)), network_of(row))
    save_network(network, path, {"seed": 0, "steps": 20, "batch_size": 8, "data": data})


def run_here(capsys, *arguments):
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_:
        run(app, [*FAST, *map(str, arguments)])
    return exit_.value.code, *capsys.readouterr()


def test_a_table_from_nothing(tmp_path, capsys, monkeypatch):
    tiny = replace(RECIPES["default"], training=TrainingConfig(steps=20, exact_target=False))
    monkeypatch.setitem(RECIPES, "default", tiny)
    arguments = ["--rows", "exact-of-list,default,exact", "--out", tmp_path]
    code, out, err = run_here(capsys, *arguments)
    assert code == 0
    assert "training it for 20 steps" in err
    assert (tmp_path / "networks" / "toy-default.safetensors").exists()

    assert (tmp_path / "quality-toy.md").read_text() == out
    for row in ("exact", "default", "exact-of-list"):
        assert f"\n| {row} | " in out
    with (tmp_path / "quality-toy.csv").open() as file:
        lines = list(csv.DictReader(file))
    rows = ["exact", "default", "exact-of-list"]
    assert [(line["row"], line["seed"]) for line in lines] == [(r, s) for r in rows for s in "012"]
    by_row = {line["row"]: line for line in lines}
    assert {line["novelty"] for line in lines if line["row"] == "exact-of-list"} == {"0"}
    assert float(by_row["exact"]["novelty"]) > 0.2
    assert 0.4 < float(by_row["exact"]["node_ratio"]) < 2
    assert float(by_row["default"]["node_ratio"]) > 3  # 20 steps
    assert float(by_row["default"]["validity"]) < 1
    found = json.loads((tmp_path / "quality-toy.json").read_text())
    assert found["list"] == random_list(TOY, 72, 0).to_json()
    assert found["rows"][1]["weights"]["data"] == found["list"]

    again, text, err = run_here(capsys, *arguments)
    assert (again, text) == (0, out)
    assert err.count("already in") == 3
    assert "training" not in err


def test_rows_measured_before_an_interruption_are_kept(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    arguments = ["--rows", "exact,exact-of-list", "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr("nag.quality.exact_score_of_samples", lambda *_: interrupt)
        assert run_here(capsys, *arguments)[0] == 130
    assert not (tmp_path / "quality-toy.md").exists()
    code, _, err = run_here(capsys, *arguments)
    assert code == 0
    assert "exact: already in" in err
    assert "exact-of-list: measured" in err
    _, _, err = run_here(capsys, *arguments, "--steps", "10")
    assert "already in" not in err
    for path in (tmp_path / "quality-rows").iterdir():
        path.write_text("{")  # damaged
    assert "already in" not in run_here(capsys, *arguments)[2]
    assert run_here(capsys, *arguments)[2].count("already in") == 2
    monkeypatch.setattr("nag.quality.code_digest", lambda *_: "another version")
    assert "already in" not in run_here(capsys, *arguments)[2]


def test_novelty_of_shipped_weights_is_against_their_draws(tmp_path, capsys, monkeypatch):
    path = tmp_path / "W.safetensors"
    store(path, {"law": "uniform"})
    monkeypatch.setattr("nag.quality.shipped_weights", lambda _: path)
    code, _, _ = run_here(capsys, "--rows", "shipped", "--out", tmp_path)
    assert code == 0
    (row,) = json.loads((tmp_path / "quality-toy.json").read_text())["rows"]
    network, known = load_network(path, TOY), uniform_draws(TOY, seed=0, steps=20, batch_size=8)
    for seed in range(3):
        expected = summary(generate(TOY, network, network.sde, 50, seed=seed), known)
        assert 0 < expected.novelty < 1
        assert expected.novelty == row["repeats"][seed]["novelty"]


@pytest.mark.parametrize(
    ("data", "row", "message"),
    [
        (random_list(TOY, 72, 1).to_json(), "default", "was not trained on the 72"),
        ({"law": "uniform"}, "default", "was not trained on the 72"),
        (random_list(TOY, 72, 0).to_json(), "no-positions", "does not hold the network"),
    ],
    ids=["another list", "no list", "another network"],
)
def test_weights_of_something_else_are_refused(data, row, message, tmp_path, capsys):
    store(tmp_path / "nets" / "toy-default.safetensors", data, row)
    options = ["--rows", "default", "--networks", tmp_path / "nets", "--out", tmp_path]
    code, out, err = run_here(capsys, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_record_without_its_training_is_refused(tmp_path, capsys):
    path = tmp_path / "networks" / "toy-default.safetensors"
    store(path, {})
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(record | {"training": {}}))
    code, _, err = run_here(capsys, "--rows", "default", "--out", tmp_path)
    assert code == 2
    assert "does not record how the network was trained" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--networks", "nowhere"], "--networks: no such folder: nowhere"),
        (["--rows", "exact,other"], "unknown row 'other': choose from exact, default, shipped"),
        (["--rows", "shipped"], "no row 'shipped' for this space: no trained weights ship"),
        (["--sampler", "magic", "--steps", "3"], "unknown sampler 'magic'"),
        (["--steps", "0"], "must be at least 1"),
        (["--seeds", "0"], "must be at least 1"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    code, out, err = run_here(capsys, *options, "--out", tmp_path / "results")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
