"""Surrogates of published searches: one contract for all, and the mathematics of each."""

import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import boxcox, kendalltau, multivariate_normal, norm, yeojohnson

import nag.predictors.baselines.gp as plain
from nag.errors import UserError
from nag.predictors.base import DifferentiablePredictor, Observations
from nag.predictors.baselines.ensemble import MEMBERS, forward, initial, path_encoding, paths
from nag.predictors.baselines.hebo import HeboGaussianProcess
from nag.predictors.baselines.outputs import log_error, power, standardised
from nag.predictors.baselines.posterior import Posterior
from nag.predictors.baselines.wl import SubtreeKernel, graphs, log_evidence, subtree_counts
from nag.predictors.gp import GaussianProcess
from nag.predictors.registry import SURROGATES
from nag.spaces import ABSENT, SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY
from trainers.evaluators.surrogate import SurrogateEvaluator
from trainers.evaluators.table import TableEvaluator
from trainers.evaluators.toy import ToyEvaluator

torch.set_num_threads(1)

NEEDS_EXTRA = {"gp-plain", "hebo-gp"}
BASELINES = [name for name in SURROGATES if name != "gp"]
GAUSSIAN_PROCESSES = sorted({*BASELINES} - {"ensemble"})


def values(space, archs):
    """The embedded objective of a space; of NAS-Bench-201 a synthetic additive stand-in."""
    if space is TOY:
        return np.array([ToyEvaluator().evaluate(arch, seed=0).value for arch in archs])
    if space is MOBILENETV3:
        return SurrogateEvaluator().predict(archs)
    reward = np.random.default_rng(5).standard_normal(space.shape)
    return 1 / (1 + np.exp(-(space.encode(archs).numpy() * reward).sum((1, 2)) / 2))


def distinct(space, n, seed=0):
    return tuple(dict.fromkeys(space.sample(4 * n, np.random.default_rng(seed))))[:n]


def make(name, space):
    if name in NEEDS_EXTRA:
        pytest.importorskip("botorch")
    return SURROGATES[name].build(space)


def fit(name, space, archs, y, seed=0):
    observations = Observations(tuple(archs), np.asarray(y, dtype=float))
    return make(name, space).fit(observations, np.random.default_rng(seed))


@cache
def fitted_on_20(name, space):
    archs = distinct(space, 20)
    return fit(name, space, archs, values(space, archs))


def same(first, second):
    return (first.mean == second.mean).all() and (first.std == second.std).all()


@pytest.fixture(params=BASELINES)
def name(request):
    return request.param


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def space(request):
    return request.param


# The contract.


def test_the_published_surrogates_are_there():
    assert set(BASELINES) == {"gp-plain", "ensemble", "wl-gp", "hebo-gp"}


@pytest.mark.parametrize("size", [0, 1, 30])
def test_one_prediction_per_architecture(name, space, size, rng):
    prediction = fitted_on_20(name, space).predict(space.sample(size, rng))
    assert prediction.mean.shape == prediction.std.shape == (size,)
    assert prediction.mean.dtype == prediction.std.dtype == np.float64


def test_a_prediction_does_not_depend_on_its_company(name, space):
    fitted, queries = fitted_on_20(name, space), distinct(space, 30, seed=1)
    together = fitted.predict(queries)
    for i in (0, 7, 29):
        alone = fitted.predict([queries[i]])
        np.testing.assert_allclose(alone.mean[0], together.mean[i], rtol=1e-5)
        np.testing.assert_allclose(alone.std[0], together.std[i], rtol=1e-4)


def test_equal_arguments_give_equal_predictions_whatever_the_global_seeds(name, space):
    archs, queries = distinct(space, 12), distinct(space, 30, seed=1)
    first = fit(name, space, archs, values(space, archs), seed=3).predict(queries)
    torch.manual_seed(99)
    np.random.seed(99)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert same(fit(name, space, archs, values(space, archs), seed=3).predict(queries), first)
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_observations_will_do(name, space, n):
    archs = distinct(space, n)
    prediction = fit(name, space, archs, values(space, archs)).predict(space.sample(20, RNG()))
    assert np.isfinite(prediction.mean).all()
    assert (prediction.std > 0).all()


@pytest.mark.parametrize("constant", [0.0, 0.7, 1.0, -3.0])
def test_equal_values_are_predicted_again(name, space, constant):
    archs = distinct(space, 8)
    prediction = fit(name, space, archs, np.full(8, constant)).predict(archs)
    np.testing.assert_allclose(prediction.mean, constant, atol=3e-3)


def test_repeated_observations_are_no_trouble(name, space):
    archs = distinct(space, 6) * 3
    y = values(space, archs) + 0.01 * RNG().standard_normal(len(archs))
    mean = fit(name, space, archs, y).predict(archs[:6]).mean
    repeats = y.reshape(3, 6)
    slack = 0.2 * np.ptp(y)  # what is learnt is smooth
    assert (repeats.min(0) - slack < mean).all()
    assert (mean < repeats.max(0) + slack).all()


@pytest.mark.parametrize(("scale", "shift"), [(1.0, -5.0), (1e6, 0.0), (1e-9, 0.9), (100.0, 0.0)])
def test_values_of_any_size_and_sign(name, space, scale, shift):
    archs = distinct(space, 12)
    y = scale * values(space, archs) + shift
    prediction = fit(name, space, archs, y).predict(space.sample(30, RNG()))
    assert np.isfinite(prediction.mean).all()
    assert np.isfinite(prediction.std).all()
    assert abs(prediction.mean - y.mean()).max() < 100 * np.ptp(y)


def test_one_catastrophe_among_good_values(name):
    archs = distinct(NASBENCH201, 20)
    y = np.append(0.9 + 0.001 * np.arange(19), 0.1)
    prediction = fit(name, NASBENCH201, archs, y).predict(archs)
    assert np.isfinite(prediction.mean).all()
    assert np.argmin(prediction.mean) == 19


def test_what_was_seen_is_ranked_right(name, space):
    archs = distinct(space, 20)
    prediction = fitted_on_20(name, space).predict(archs)
    assert kendalltau(prediction.mean, values(space, archs)).statistic > 0.5


def test_the_observations_are_not_touched(name, space):
    archs = distinct(space, 6)
    y = values(space, archs)
    before = y.copy()
    fit(name, space, archs, y)
    assert (y == before).all()


def test_they_are_not_differentiable_and_the_gaussian_process_is(name):
    """Guidance tells them apart by this."""
    archs = distinct(TOY, 5)
    observations = Observations(archs, values(TOY, archs))
    assert not isinstance(fitted_on_20(name, TOY), DifferentiablePredictor)
    assert isinstance(GaussianProcess(TOY).fit(observations, RNG()), DifferentiablePredictor)


# Pending points.


def test_pending_points_change_no_mean(name, space):
    fitted, queries = fitted_on_20(name, space), distinct(space, 30, seed=2)
    pending = fitted.condition(queries[:5])
    before, after = fitted.predict(queries), pending.predict(queries)
    np.testing.assert_allclose(after.mean, before.mean, atol=1e-6 * np.ptp(before.mean) + 1e-9)
    assert same(fitted.predict(queries), before)  # the predictor itself is as it was


@pytest.mark.parametrize("process", GAUSSIAN_PROCESSES)
def test_pending_points_are_less_uncertain_and_nothing_is_more(process, space):
    fitted, queries = fitted_on_20(process, space), distinct(space, 30, seed=2)
    before, after = fitted.predict(queries), fitted.condition(queries[:5]).predict(queries)
    assert (after.std <= before.std * (1 + 1e-6)).all()
    assert (after.std[:5] < before.std[:5]).all()
    assert after.std[:5].mean() < 0.9 * before.std[:5].mean()


@pytest.mark.parametrize("process", GAUSSIAN_PROCESSES)
def test_one_by_one_is_all_at_once(process, space):
    fitted, queries = fitted_on_20(process, space), distinct(space, 10, seed=2)
    at_once = fitted.condition(queries[:3]).predict(queries)
    one_by_one = fitted
    for arch in queries[:3]:
        one_by_one = one_by_one.condition([arch])
    np.testing.assert_allclose(one_by_one.predict(queries).std, at_once.std, rtol=1e-4)
    assert same(fitted.condition([]).predict(queries), fitted.predict(queries))


# Ranking of what was not seen.


def held_out_tau(name, space, objective, n, seed):
    archs = distinct(space, n + 300, seed)
    y = objective(archs)
    return kendalltau(fit(name, space, archs[:n], y[:n]).predict(archs[n:]).mean, y[n:]).statistic


@pytest.mark.parametrize(
    ("name", "least"), [("gp-plain", 0.35), ("ensemble", 0.2), ("wl-gp", 0.15), ("hebo-gp", 0.8)]
)
def test_held_out_networks_are_ranked(name, least):
    found = held_out_tau(name, MOBILENETV3, SurrogateEvaluator().predict, 100, 0)
    assert found > least


@pytest.mark.parametrize(
    ("name", "least"), [("gp-plain", 0.35), ("ensemble", 0.55), ("wl-gp", 0.65), ("hebo-gp", 0.45)]
)
def test_held_out_cells_are_ranked(name, least, data_dir):
    """CIFAR-10 validation accuracies of the real table."""
    table = TableEvaluator(data_dir / "nb201.parquet", "cifar10", "valid")

    def objective(archs):
        return np.array([table.evaluate(arch, seed=0).value for arch in archs])

    found = [held_out_tau(name, NASBENCH201, objective, 100, seed) for seed in range(2)]
    assert np.mean(found) > least


# The extra.


@pytest.mark.parametrize("needy", sorted(NEEDS_EXTRA))
def test_a_missing_library_is_named_when_the_surrogate_is_made(needy, monkeypatch):
    def import_module(name):
        raise ImportError(name)

    monkeypatch.setattr(plain, "import_module", import_module)
    with pytest.raises(UserError, match=r"botorch: pip install 'diffusionnag-bo\[baselines\]'"):
        SURROGATES[needy].build(TOY)
    for name in {*SURROGATES} - NEEDS_EXTRA:
        SURROGATES[name].build(TOY)


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, nag.predictors.registry as r; from nag.spaces import SPACES; "
        "r.SURROGATES['wl-gp'].build(SPACES['toy']); "
        "assert not {'botorch', 'gpytorch', 'sklearn'} & {*sys.modules}"
    )
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# Transforms of the values.

finite = st.floats(-1e3, 1e3).map(lambda x: round(x, 6))
TRANSFORMS = {"standardised": standardised, "log_error": log_error, "power": power}


@pytest.fixture(params=TRANSFORMS.values(), ids=TRANSFORMS)
def transform(request):
    return request.param


@settings(max_examples=60)
@given(arrays(float, st.integers(1, 12), elements=finite))
def test_transforms_are_increasing_standardised_and_undone(y):
    for transform in TRANSFORMS.values():
        outputs = transform(y)
        assert abs(outputs.z.mean()) < 1e-6
        if np.ptp(y) > 1e-9:
            assert outputs.z.std() == pytest.approx(1)
        np.testing.assert_allclose(outputs.values(outputs.z), y, atol=2e-6 * np.ptp(y) + 1e-9)
        order = np.argsort(y, kind="stable")
        assert (np.diff(outputs.z[order]) >= 0).all()
        line = outputs.values(np.linspace(-9, 9, 50))
        assert np.isfinite(line).all()
        assert (np.diff(line) >= 0).all()


def test_the_unit_of_tiny_values_does_not_matter(rng):
    y = rng.normal(3, 2, 30)
    np.testing.assert_allclose(standardised(1e-15 * y).z, standardised(y).z)
    assert (np.abs(standardised(1e9 + np.spacing(1e9) * np.arange(3)).z) < 1e-3).all()
    (std,) = standardised(1e-15 * y).prediction(np.zeros(1), np.full(1, 0.1)).std
    assert std == pytest.approx(0.1e-15 * y.std())


def test_logarithm_of_the_error():
    y = np.array([0.1, 0.5, 0.9, 0.93])
    u = -np.log(1 - y)
    np.testing.assert_allclose(log_error(y).z, (u - u.mean()) / u.std())
    for other in (np.array([0.5, 1.0]), np.array([-0.1, 0.5]), np.array([50.0, 90.0])):
        np.testing.assert_allclose(log_error(other).z, standardised(other).z)


def test_power_transform_is_that_of_scipy(rng):
    """Box-Cox of positive values does not depend on their unit; Yeo-Johnson of others does."""
    positive = 1 - rng.gamma(2.0, 0.05, 60).clip(0, 0.95)
    for scale in (1.0, 100.0):
        u, _ = boxcox(positive / positive.std())
        expected = (u - u.mean()) / u.std()
        np.testing.assert_allclose(power(scale * positive).z, expected, atol=1e-3)
    mixed = positive - positive.mean()
    u, _ = yeojohnson(mixed / mixed.std())
    np.testing.assert_allclose(power(mixed).z, (u - u.mean()) / u.std(), atol=1e-3)


def test_a_prediction_keeps_median_and_probability_of_improvement(transform, rng):
    y = 1 - rng.gamma(2.0, 0.05, 30).clip(0, 0.95)
    outputs = transform(y)
    mean, std = rng.normal(size=40), rng.uniform(0.1, 1, 40)
    found = outputs.prediction(mean, std)
    np.testing.assert_allclose(found.mean, outputs.values(mean))
    in_values = norm.sf((y.max() - found.mean) / found.std)
    in_z = norm.sf((outputs.z.max() - mean) / std)
    np.testing.assert_allclose(in_values, in_z, rtol=1e-6)
    assert (np.argsort(found.mean) == np.argsort(mean)).all()


def test_a_standardised_prediction_is_only_rescaled(rng):
    y = rng.normal(3, 2, 30)
    mean, std = rng.normal(size=9), rng.uniform(0.1, 1, 9)
    found = standardised(y).prediction(mean, std)
    np.testing.assert_allclose(found.mean, y.mean() + y.std() * mean)
    np.testing.assert_allclose(found.std, y.std() * std)


def test_a_prediction_at_the_best_observation_is_continuous(transform):
    y = np.array([0.2, 0.6, 0.8, 0.9])
    outputs = transform(y)
    mean = outputs.z.max() + np.array([-1.1e-3, -9e-4, 0.0, 9e-4, 1.1e-3])
    std = outputs.prediction(mean, np.ones(5)).std
    assert np.ptp(std) < 0.01 * std.mean()


# The posterior.


def squared_exponential(left, right):
    return torch.exp(-torch.cdist(left, right).square() / 2)


def plain_posterior(K, k, kk, z, mean, noise):
    """numpy, with an explicit inverse; (b,) mean and variance of the noise-free function."""
    inverse = np.linalg.inv(K + noise * np.eye(len(K)))
    return mean + k @ inverse @ (z - mean), kk - np.einsum("bi,ij,bj->b", k, inverse, k)


def test_the_posterior_is_that_of_a_plain_implementation(rng):
    X, Q = (torch.from_numpy(rng.normal(size=(n, 2))) for n in (15, 300))
    z = torch.from_numpy(rng.normal(size=15))
    outputs = standardised(rng.normal(size=15))
    fitted = Posterior(lambda archs: Q, squared_exponential, 0.3, 0.1, outputs, X, z)
    mean, std = fitted.latent(Q)
    K, k = (squared_exponential(a, X).numpy() for a in (X, Q))
    expected = plain_posterior(K, k, np.ones(300), z.numpy(), 0.3, 0.1)
    np.testing.assert_allclose(mean.numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(std.numpy() ** 2, expected[1], atol=1e-5)
    prediction = fitted.predict(["not looked at"])
    np.testing.assert_allclose(prediction.mean, outputs.values(mean.numpy()))


@pytest.mark.parametrize("name", GAUSSIAN_PROCESSES)
def test_predictions_are_noise_free(name):
    """Between two observations of one architecture, surer of it than of one more observation."""
    archs = distinct(TOY, 10) * 4
    y = values(TOY, archs) + 0.2 * RNG().standard_normal(len(archs))
    spread = np.std(y.reshape(4, 10), axis=0).mean()
    assert fit(name, TOY, archs, y).predict(archs[:10]).std.mean() < spread


def test_hyperparameters_are_those_that_explain_the_values_best():
    """Neither more nor less noise is more probable a posteriori than what was found."""
    pytest.importorskip("botorch")
    archs = distinct(MOBILENETV3, 40)
    fitted = fit("gp-plain", MOBILENETV3, archs, values(MOBILENETV3, archs))
    K = fitted.kernel(fitted.X, fitted.X).numpy()

    def log_posterior(noise):
        covariance = K + noise * np.eye(len(K))
        likelihood = multivariate_normal(np.full(len(K), fitted.mean), covariance)
        prior = norm(-4, 1).logpdf(np.log(noise)) - np.log(noise)
        return likelihood.logpdf(fitted.z.numpy()) + prior

    best = log_posterior(fitted.noise)
    assert best > log_posterior(fitted.noise * 1.3) - 1e-3
    assert best > log_posterior(fitted.noise / 1.3) - 1e-3


# HEBO's inputs.


def test_numeric_configurations_are_inputs_and_categories_are_one_hot():
    pytest.importorskip("botorch")
    hebo = HeboGaussianProcess(MOBILENETV3)
    archs = MOBILENETV3.sample(300, RNG())
    x = hebo._inputs(archs)
    assert x.shape == (300, 45)  # 20 kernel sizes, 20 expand ratios, 5 depths
    assert x.min() == 0
    assert x.max() == 1
    config = MOBILENETV3.to_config(archs[0])
    kernels = (np.array(config["ks"]) - np.array([3, 3, 0, 0] * 5)) / np.array([4, 4, 7, 7] * 5)
    np.testing.assert_allclose(x[0, :20].numpy(), kernels)
    for space, columns in ((NASBENCH201, 30), (TOY, 12)):
        categories = HeboGaussianProcess(space)._inputs(space.sample(100, RNG()))
        assert categories.shape == (100, columns)
        assert set(categories.unique().tolist()) == {0.0, 1.0}


def test_numeric_inputs_are_warped():
    """A kernel of warped inputs alone is not a function of their differences and products."""
    pytest.importorskip("botorch")
    archs = distinct(MOBILENETV3, 60)
    d = [sum(MOBILENETV3.to_config(arch)["d"]) for arch in archs]
    curved = np.exp(-np.array(d, dtype=float) / 2)
    fitted = fit("hebo-gp", MOBILENETV3, archs, -curved)
    x = torch.full((3, 45), 0.5).double()
    x[0], x[2] = 0.25, 0.75
    k = fitted.kernel(x, x)
    assert abs(k[0, 1] - k[1, 2]) > 1e-4


# The ensemble.


def cell(*ops):
    """A cell by the operators of its edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3."""
    names = {"1": "nor_conv_1x1", "3": "nor_conv_3x3", "p": "avg_pool_3x3"}
    names |= {"s": "skip_connect", "-": "none"}
    a, b, c, d, e, f = (names[op] for op in "".join(ops))
    return NASBENCH201.from_str(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|")


def words(arch):
    """The words of a path encoding, read back. Letters in the order of the space: s, 1, 3, p."""
    found, offset = set(), 0
    encoding = path_encoding(NASBENCH201, [arch])[0].bool().numpy()
    for length in (1, 2, 3):
        block = encoding[offset : offset + 4**length].reshape((4,) * length)
        found |= {"".join("s13p"[i] for i in index) for index in zip(*block.nonzero(), strict=True)}
        offset += 4**length
    assert offset == len(encoding) == 84
    return found


def test_the_four_paths_of_a_cell():
    assert paths(NASBENCH201) == [(4,), (1, 5), (2, 6), (1, 3, 6)]


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ("3-1p-s", {"p", "31s"}),  # 0-1-3 and 0-2-3 lead through none
        ("333333", {"3", "33", "333"}),
        ("1s3-p1", {"1p", "s1", "131"}),
        ("------", set()),
        ("---s--", {"s"}),
        ("13-p31", {"p", "13", "31"}),
    ],
)
def test_path_encoding_by_hand(ops, expected):
    assert words(cell(ops)) == expected


def test_path_encoding_of_nothing():
    assert path_encoding(NASBENCH201, []).shape == (0, 84)


def test_members_are_separate_plain_networks():
    parameters = initial(6, torch.Generator().manual_seed(0))
    x = torch.randn(MEMBERS, 4, 6, generator=torch.Generator().manual_seed(1))
    found = forward(parameters, x)
    assert [tuple(p.shape[1:]) for p in parameters[::2]] == [(6, 20), *[(20, 20)] * 9, (20, 1)]
    for m in range(MEMBERS):
        h = x[m]
        for w, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            h = torch.relu(h @ w[m] + b[m])
        expected = (h @ parameters[-2][m] + parameters[-1][m])[:, 0]
        torch.testing.assert_close(found[m], expected)


def test_mean_and_standard_deviation_are_taken_over_the_members():
    archs = distinct(NASBENCH201, 20)
    fitted, y = fitted_on_20("ensemble", NASBENCH201), values(NASBENCH201, archs)
    x = path_encoding(NASBENCH201, archs).expand(MEMBERS, -1, -1)
    members = forward(fitted.parameters, x).double().numpy() * y.std() + y.mean()
    prediction = fitted.predict(archs)
    np.testing.assert_allclose(prediction.mean, members.mean(0), rtol=1e-5)
    spread = members.std(0, ddof=1)
    clear = spread > 1e-3 * y.std()
    np.testing.assert_allclose(prediction.std[clear], spread[clear], rtol=1e-3)


def test_members_differ_and_so_do_seeds():
    archs, queries = distinct(NASBENCH201, 20), distinct(NASBENCH201, 30, seed=1)
    y = values(NASBENCH201, archs)
    first, other = (
        fit("ensemble", NASBENCH201, archs, y, seed).predict(queries) for seed in (0, 1)
    )
    assert first.std.mean() > 0.01 * y.std()
    assert (first.mean != other.mean).any()


def test_pending_points_leave_the_ensemble_as_it_is():
    fitted = fitted_on_20("ensemble", TOY)
    assert fitted.condition(distinct(TOY, 3)) is fitted


# The Weisfeiler-Lehman kernel.


def ops_of(*archs):
    return torch.tensor([arch.ops for arch in archs])


def kernel(space, h, *archs):
    return SubtreeKernel(space, h)(ops_of(*archs), ops_of(*archs)).numpy()


def test_the_kernel_by_hand():
    """input -> 3x3 -> 1x1 -> output and input -> 3x3 -> output.

    h = 0: counts (1, 1, 1, 1) and (1, 1, 0, 1): product 3, squares 4 and 3.
    h = 1: of the pairs (own label, successors) they share (input, {3x3}) and (output, {}).
    h = 2: the input of one has seen the 1x1, so they share only the output.
    """
    long, short = cell("3-s--1"), cell("---3--")
    for h, (product, one, other) in enumerate([(3, 4, 3), (5, 8, 6), (6, 12, 9)]):
        K = kernel(NASBENCH201, h, long, short)
        np.testing.assert_allclose(K, [[1, c := product / (one * other) ** 0.5], [c, 1]])


def edge_names(space, arch):
    """Edges of the graph of an architecture, as pairs of operator names."""
    (labels,), (edges,) = graphs(space, ops_of(arch).numpy())
    names = [space.operators[i % space.shape[1]] if i != ABSENT else "absent" for i in labels]
    return sorted((names[u], names[v]) for u, v in zip(*edges.nonzero(), strict=True))


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ("---3--", ["input nor_conv_3x3", "nor_conv_3x3 output"]),
        ("s-3--1", ["input nor_conv_3x3", "nor_conv_1x1 output", "nor_conv_3x3 nor_conv_1x1"]),
        ("sss-ss", ["input output"]),
        ("3-----", []),  # leads nowhere
        ("-----3", []),  # comes from nowhere
        ("1-3s--", ["input output"]),  # a dead end of two operators
        ("------", []),
    ],
)
def test_graphs_by_hand(ops, expected):
    assert [" ".join(pair) for pair in edge_names(NASBENCH201, cell(ops))] == expected


def test_absent_layers_are_bridged():
    assert edge_names(TOY, TOY.from_str("a-/bc")) == [("a", "b"), ("b", "c")]
    assert edge_names(TOY, TOY.from_str("a-/b-")) == [("a", "b")]
    shallow = next(a for a in MOBILENETV3.sample(100, RNG()) if a.ops[-1] == a.ops[2] == ABSENT)
    names = [MOBILENETV3.operators[op] for op in shallow.ops if op != ABSENT]
    assert edge_names(MOBILENETV3, shallow) == sorted(pairwise(names))


def test_an_operator_of_another_stage_is_another_label():
    """In a stage of several layers; the edges of a cell are not told apart."""
    K = kernel(TOY, 0, TOY.from_str("ab/c-"), TOY.from_str("c-/ab"), TOY.from_str("ba/c-"))
    np.testing.assert_allclose(K[0], [1, 0, 1])
    assert kernel(NASBENCH201, 0, cell("3----3"), cell("3-s--3"))[0, 1] < 1
    np.testing.assert_allclose(kernel(NASBENCH201, 2, cell("3---1-"), cell("-3---1"))[0, 1], 1)


def plain_graph(space, arch):
    """Node labels and successor sets, by deleting one node after the other."""
    n, several = len(arch.ops), [len(stage.choices) > 1 for stage in space.stages]
    stages = space.slots[:, 0].tolist()
    names = [space.operators[op] if op != ABSENT else "absent" for op in arch.ops]
    label = {v: (names[v], stages[v] if several[stages[v]] else None) for v in range(n)}
    pairs = {(u, v) for u, v in space.adjacency.nonzero().tolist()}
    ends = {v for v in range(n) if not any(v == b for _, b in pairs)}
    exits = {v for v in range(n) if not any(v == a for a, _ in pairs)}
    alive = {v for v in range(n) if names[v] != "none"}
    while True:
        pairs = {(u, v) for u, v in pairs if {u, v} <= alive}
        fed, feeding = {b for _, b in pairs} | ends, {a for a, _ in pairs} | exits
        dead = alive - ends - exits - (fed & feeding)
        if not dead:
            break
        alive -= dead
    for v in [v for v in alive if names[v] in ("skip_connect", "absent")]:
        pairs |= {(a, d) for a, b in pairs if b == v for c, d in pairs if c == v}
        alive -= {v}
        pairs = {(a, b) for a, b in pairs if v not in (a, b)}
    return {v: label[v] for v in alive}, {v: {b for a, b in pairs if a == v} for v in alive}


def plain_counts(space, arch, h):
    """Labels written out as nested tuples, with how often each occurs."""
    labels, successors = plain_graph(space, arch)
    counts = {}
    for i in range(h + 1):
        for text in labels.values():
            counts[i, text] = counts.get((i, text), 0) + 1
        labels = {
            v: (own, tuple(sorted((labels[w] for w in successors[v]), key=repr)))
            for v, own in labels.items()
        }
    return counts


@pytest.mark.parametrize("h", [0, 1, 2, 3])
def test_the_kernel_is_that_of_a_plain_implementation(space, h):
    archs = space.sample(25, RNG())
    found = kernel(space, h, *archs)
    counts = [plain_counts(space, arch, h) for arch in archs]
    dot = np.array([[sum(x * b.get(t, 0) for t, x in a.items()) for b in counts] for a in counts])
    expected = dot / np.sqrt(np.outer(dot.diagonal(), dot.diagonal()))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("h", [1, 2, 3])
def test_the_kernel_is_that_of_grakel(h):
    grakel = pytest.importorskip("grakel")
    archs = NASBENCH201.sample(30, RNG())
    labels, edges = graphs(NASBENCH201, ops_of(*archs).numpy())
    given_graphs = [
        grakel.Graph(
            {v: dict.fromkeys(e[v].nonzero()[0].tolist(), 1.0) for v in np.nonzero(x != ABSENT)[0]},
            node_labels={v: int(x[v]) for v in np.nonzero(x != ABSENT)[0]},
        )
        for x, e in zip(labels, edges, strict=True)
    ]
    expected = grakel.WeisfeilerLehman(n_iter=h, normalize=True).fit_transform(given_graphs)
    np.testing.assert_allclose(kernel(NASBENCH201, h, *archs), expected, atol=1e-12)


def test_counts_of_every_level_count_every_node(space):
    found = graphs(space, ops_of(*space.sample(20, RNG())).numpy())
    nodes = (found.labels != ABSENT).sum(1)
    for h in (0, 1, 2):
        assert (subtree_counts(found, h).sum(1) == (h + 1) * nodes).all()


def test_the_kernel_is_positive_semidefinite(space):
    K = kernel(space, 2, *space.sample(60, RNG()))
    np.testing.assert_allclose(K.diagonal(), 1)
    assert np.linalg.eigvalsh(K).min() > -1e-10


def test_cells_of_one_graph_have_one_prediction():
    fitted = fitted_on_20("wl-gp", NASBENCH201)
    for one, other in (("3---1-", "-3---1"), ("3-----", "------"), ("13s-31", "1331s1")):
        found = fitted.predict([cell(one), cell(other)])
        is_same = kernel(NASBENCH201, 2, cell(one), cell(other))[0, 1] > 1 - 1e-9
        assert (abs(np.diff(found.mean)[0]) < 1e-9) == is_same
    assert kernel(NASBENCH201, 2, cell("3---1-"), cell("-3---1"))[0, 1] > 1 - 1e-9


def test_evidence_is_that_of_a_normal_distribution(rng):
    K = kernel(NASBENCH201, 1, *NASBENCH201.sample(12, rng))
    z, noises = rng.normal(size=12), (1e-3, 0.1, 2.0)
    found = log_evidence(torch.from_numpy(K), torch.from_numpy(z), noises).numpy()
    expected = [multivariate_normal(np.zeros(12), K + s * np.eye(12)).logpdf(z) for s in noises]
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-6)


def test_iterations_and_noise_of_the_largest_evidence_are_taken():
    archs = distinct(NASBENCH201, 40)
    fitted = fit("wl-gp", NASBENCH201, archs, values(NASBENCH201, archs))

    def evidence(h, noise):
        K = kernel(NASBENCH201, h, *archs) + noise * np.eye(40)
        return multivariate_normal(np.zeros(40), K).logpdf(fitted.z.numpy())

    best = evidence(fitted.kernel.iterations, fitted.noise)
    for h in (0, 1, 2):
        assert best >= max(evidence(h, noise) for noise in np.geomspace(1e-5, 1e-2, 7)) - 1e-6


def RNG():  # noqa: N802
    return np.random.default_rng(11)
