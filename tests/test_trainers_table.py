"""The table evaluator, on synthetic tables and on the real one."""

import math

import pandas as pd
import pytest

from nag.errors import UserError
from nag.spaces import SPACES
from nag.spaces.nasbench201 import NASBENCH201
from trainers.base import EvaluationError
from trainers.build import EvaluatorSettings, build_evaluator
from trainers.evaluators.table import TableEvaluator

BEST_CIFAR10 = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+"
    "|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
)


@pytest.fixture
def cells(rng):
    return list(dict.fromkeys(NASBENCH201.sample(20, rng)))[:3]


@pytest.fixture
def table(tmp_path, cells):
    """Synthetic accuracies of two cells; the second has no validation accuracy."""
    path = tmp_path / "synthetic.parquet"
    columns = {
        "arch": [NASBENCH201.to_str(cell) for cell in cells[:2]],
        "c10_valid_200": [50.0, math.nan],
        "c10_test_200": [60.0, 61.0],
        "c10_train_time_200_s": [700.0, 800.0],
        "c100_valid_200": [20.0, 30.0],
    }
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_percent_in_the_table_fraction_inside(table, cells):
    found = TableEvaluator(table, "cifar10", "valid").evaluate(cells[0], seed=0)
    assert found.value == pytest.approx(0.5)
    assert found.metrics["test"] == pytest.approx(0.6)
    assert found.metrics["train_seconds"] == 700.0
    assert found.metrics["params"] >= 73_306
    assert 0 < found.seconds < 700


def test_the_optimum_is_the_largest_value_there_is(table):
    for dataset, objective, value in (
        ("cifar10", "valid", 0.5),
        ("cifar10", "test", 0.61),
        ("cifar100", "valid", 0.3),
    ):
        assert TableEvaluator(table, dataset, objective).optimum == pytest.approx(value)


def test_test_objective_and_absent_optional_columns(table, cells):
    found = TableEvaluator(table, "cifar10", "test").evaluate(cells[1], seed=0)
    assert found.value == found.metrics["test"] == pytest.approx(0.61)
    found = TableEvaluator(table, "cifar100", "valid").evaluate(cells[1], seed=0)
    assert found.value == pytest.approx(0.3)
    assert set(found.metrics) == {"macs", "params"}


def test_what_the_table_lacks_is_an_evaluation_error(table, cells):
    evaluator = TableEvaluator(table)
    with pytest.raises(EvaluationError, match="has no accuracy"):
        evaluator.evaluate(cells[1], seed=0)
    with pytest.raises(EvaluationError, match="is not in"):
        evaluator.evaluate(cells[2], seed=0)


def test_errors_of_set_up_are_one_line(table, tmp_path, rng):
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    nameless = tmp_path / "nameless.parquet"
    pd.DataFrame({"c10_valid_200": [50.0]}).to_parquet(nameless)
    others = {"numbers": {"arch": [1]}, "empty": {"arch": ["x"], "c10_valid_200": [None]}}
    for name, columns in others.items():
        frame = pd.DataFrame({"c10_valid_200": [50.0]} | columns)
        frame.to_parquet(tmp_path / f"{name}.parquet")
    for arguments, message in [
        ((tmp_path / "numbers.parquet",), "column arch does not hold text"),
        ((tmp_path / "empty.parquet",), "column c10_valid_200 has no number"),
        ((tmp_path / "absent.parquet",), "no such table"),
        ((text,), "not a readable parquet file"),
        ((tmp_path,), "not a readable parquet file"),
        ((nameless,), "no column arch; accuracies it has: c10_valid_200"),
        (
            (table, "imagenet16-120"),
            "no column in16_valid_200; accuracies it has: c10_valid_200, c10_test_200, c100_valid",
        ),
        ((table, "mnist"), "no data set 'mnist': choose from cifar10, cifar100, imagenet16-120"),
        ((table, "cifar10", "train"), "no objective 'train': choose from valid, test"),
    ]:
        with pytest.raises(UserError) as error:
            TableEvaluator(*arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="supports the space nasbench201, not toy"):
        TableEvaluator(table).evaluate(SPACES["toy"].sample(1, rng)[0], seed=0)


def test_published_best_cell(data_dir):
    best = NASBENCH201.from_str(BEST_CIFAR10)
    path = data_dir / "nb201.parquet"
    found = TableEvaluator(path, "cifar10", "valid").evaluate(best, seed=0)
    assert found.value == pytest.approx(0.916067, abs=1e-6)
    assert found.metrics["test"] == pytest.approx(0.943733, abs=1e-6)
    assert found.metrics["params"] == 1_073_466


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_whole_table_can_be_evaluated_and_counted(data_dir, dataset):
    path = data_dir / "nb201.parquet"
    prefix = {"cifar10": "c10", "cifar100": "c100"}[dataset]
    frame = pd.read_parquet(path, columns=["arch", f"{prefix}_valid_200", f"{prefix}_params"])
    evaluator = build_evaluator(
        NASBENCH201, "table", EvaluatorSettings(table=path, dataset=dataset)
    )
    found = [evaluator.evaluate(NASBENCH201.from_str(a), seed=0) for a in frame.arch[::25]]
    assert [m.metrics["params"] for m in found] == frame[f"{prefix}_params"][::25].tolist()
    values = [100 * m.value for m in found]
    assert values == pytest.approx(frame[f"{prefix}_valid_200"][::25].tolist())
