"""The shipped surrogate holds what its description promises."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from nag.cli import run
from nag.errors import UserError
from nag.spaces import SPACES, Architecture
from nag.spaces.mobilenetv3 import LAYERS, MOBILENETV3
from trainers import fit_surrogate
from trainers.cost import cost
from trainers.evaluators.surrogate import WEIGHTS, SurrogateEvaluator, features
from trainers.fit_surrogate import load_predictor, local_search, measured

PLAUSIBLE_BEST = 0.78  # the best measured network has 0.7745


@pytest.fixture(scope="module")
def surrogate():
    return SurrogateEvaluator()


@pytest.fixture(scope="module")
def description():
    return json.loads(WEIGHTS.with_suffix(".json").read_text())


def test_published_errors_meet_the_requirements(description):
    errors = description["errors"]
    assert errors["cross_validation_rmse_points"] <= 0.13
    assert errors["cross_validation_spearman"] >= 0.99
    assert errors["spearman_with_ofa_predictor_on_uniform_networks"] >= 0.95
    assert errors["local_search_best_percent"] <= 78.0


def test_weights_match_their_description_and_are_small(description):
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == description["sha256"]
    assert WEIGHTS.stat().st_size < 1_000_000


def test_in_sample_error_is_the_published_one(surrogate, description, data_dir):
    archs, top1, _ = measured(data_dir / "mbv3_imagenet_top1.parquet")
    error = 100 * surrogate.predict(archs) - top1
    assert len(archs) == 1622
    assert np.sqrt(np.mean(error**2)) == pytest.approx(
        description["errors"]["in_sample_rmse_points"], abs=2e-4
    )


def test_ranks_random_networks_like_the_ofa_predictor(surrogate, data_dir):
    networks = MOBILENETV3.sample(5000, np.random.default_rng(123))
    label = load_predictor(data_dir / "ofa_acc_predictor.npz")
    assert spearmanr(surrogate.predict(networks), label(networks)).statistic >= 0.95


def test_ofa_predictor_gives_the_published_value(data_dir, monkeypatch):
    monkeypatch.setattr("trainers.fit_surrogate.RESOLUTION", 192)
    ks = [5, 3, 3, 3, 5, 3, 3, 3, 7, 7, 3, 3, 5, 5, 7, 3, 3, 3, 5, 3]
    e = [3, 3, 3, 3, 4, 4, 3, 3, 6, 3, 4, 3, 4, 4, 4, 3, 6, 6, 6, 3]
    d = (2, 2, 3, 4, 3)
    ops = [LAYERS.index((ks[i], e[i])) if i % 4 < d[i // 4] else -1 for i in range(20)]
    label = load_predictor(data_dir / "ofa_acc_predictor.npz")
    assert label([Architecture(MOBILENETV3.name, tuple(ops))])[0] == pytest.approx(81.71, abs=0.005)


def test_the_top_end_is_plausible(surrogate, rng):
    for _ in range(2):
        best = local_search(surrogate.predict, 5000, rng)
        assert 0.775 < best <= PLAUSIBLE_BEST
    largest = Architecture(MOBILENETV3.name, (LAYERS.index((7, 6)),) * 20)
    uniform = surrogate.predict(MOBILENETV3.sample(5000, rng))
    assert uniform.max() < surrogate.predict([largest])[0] <= PLAUSIBLE_BEST


def test_evaluate_agrees_with_predict_and_ignores_the_seed(surrogate, rng):
    networks = MOBILENETV3.sample(5, rng)
    found = [surrogate.evaluate(network, seed=i) for i, network in enumerate(networks)]
    assert [m.value for m in found] == pytest.approx(surrogate.predict(networks))
    assert found[0].value == surrogate.evaluate(networks[0], seed=99).value
    assert found[0].metrics == cost(networks[0], "imagenet")
    assert found[0].seconds > 0
    assert surrogate.predict([]).shape == (0,)


def test_features_are_those_that_the_weights_were_fitted_on(rng):
    archs = MOBILENETV3.sample(100, rng)
    for arch, found in zip(archs, features(archs), strict=True):
        config, z = MOBILENETV3.to_config(arch), []
        for stage, depth in enumerate(config["d"]):
            layers = slice(4 * stage, 4 * stage + depth)
            kernels, expands = config["ks"][layers], config["e"][layers]
            z += [
                depth - 3,
                sum((k - 5) // 2 for k in kernels),
                sum(np.sign(e - 4) for e in expands),
            ]
        one_hot = [op == layer for op in arch.ops for layer in range(9)]
        products = [a * b for i, a in enumerate(z) for b in z[i:]]
        assert found.tolist() == [*one_hot, *products]


def test_changed_or_missing_weights_are_refused(tmp_path):
    copy = tmp_path / WEIGHTS.name
    with pytest.raises(UserError, match="missing"):
        SurrogateEvaluator(copy)
    shutil.copy(WEIGHTS.with_suffix(".json"), tmp_path)
    copy.write_bytes(WEIGHTS.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="does not match the hash"):
        SurrogateEvaluator(copy)


def test_other_spaces_are_refused(surrogate, rng):
    with pytest.raises(UserError, match="supports the space mobilenetv3, not toy"):
        surrogate.evaluate(SPACES["toy"].sample(1, rng)[0], seed=0)


ROW = {"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5, "r": 224, "top1": 75.0, "source": "made up"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has 0 networks with top1 at r=224, from 0 sources: at least 5 from 2 are needed"),
        ([{}, {"r": 192}, {"d": [3] * 5}], "has 2 networks with top1"),
        ([{"d": [2, 2, 2, 2, d]} for d in (2, 3, 4)], "has 3 networks with top1"),
        ([{"top1": None}] * 2, "has 0 networks with top1"),
        ([{"top1": "75"}], "column top1 does not hold numbers"),
        ([{"r": "224"}], "column r does not hold numbers"),
        ([{"ks": [9] * 20}], r"has a row that is not a network: allowed are ks in \(3, 5, 7\)"),
        ([{"d": [5] * 5}], "has a row that is not a network"),
        ([{"e": None}], "has a row that is not a network"),
    ],
    ids=str,
)
def test_tables_that_cannot_be_fitted(rows, message, tmp_path):
    path = tmp_path / "synthetic.parquet"
    pd.DataFrame([{**ROW, **row} for row in rows], columns=list(ROW)).to_parquet(path)
    with pytest.raises(UserError, match=message):
        measured(path)


def test_measurements_of_one_network_are_averaged(tmp_path):
    path = tmp_path / "synthetic.parquet"
    depths = [[2, 2, 2, a, b] for a in (2, 3, 4) for b in (2, 3)]
    rows = [{"d": d, "top1": 70.0 + i, "source": f"{i % 2}"} for i, d in enumerate(depths)]
    rows += [{"d": depths[0], "top1": 72.0}, {"d": [4] * 5, "top1": None}]
    pd.DataFrame([{**ROW, **row} for row in rows]).to_parquet(path)
    archs, y, search = measured(path)
    assert len(archs) == 6
    assert sorted(y) == [71, 71, 72, 73, 74, 75]
    assert sorted(search) == [0, 0, 0, 1, 1, 1]


def test_a_file_is_no_folder_for_weights(tmp_path, monkeypatch):
    """Said before the fit, which takes its time."""
    out = tmp_path / "weights"
    out.write_text("mine")
    monkeypatch.setattr(fit_surrogate, "measured", lambda path: ([], np.ones(1), None))
    monkeypatch.setattr(fit_surrogate, "load_predictor", lambda path: None)
    with pytest.raises(FileExistsError):
        fit_surrogate.main(table=out, ofa_predictor=out, out=out)


@pytest.mark.slow
def test_fitting_again_gives_the_shipped_weights(data_dir, tmp_path):
    options = {
        "--table": data_dir / "mbv3_imagenet_top1.parquet",
        "--ofa-predictor": data_dir / "ofa_acc_predictor.npz",
        "--out": tmp_path,
    }
    with pytest.raises(SystemExit) as exit_:
        run(fit_surrogate.app, [str(part) for option in options.items() for part in option])
    assert exit_.value.code == 0
    again, shipped = (SurrogateEvaluator(p) for p in (tmp_path / WEIGHTS.name, WEIGHTS))
    networks = MOBILENETV3.sample(1000, np.random.default_rng(0))
    np.testing.assert_allclose(again.predict(networks), shipped.predict(networks), atol=1e-5)
