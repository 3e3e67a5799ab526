"""Constraints from what a user types."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest

from nag.errors import UserError
from nag.spaces import SPACES
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from trainers.constraints import build_constraints, build_property, parse_constraint
from trainers.cost import NUM_CLASSES, cost, cost_property
from trainers.latency.tables import latency_property

TOY = SPACES["toy"]


def refusal(function, *arguments):
    """The one line of an error."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def latencies(tmp_path, rng):
    """Synthetic: measured networks, 2 ms and 1 ms per 20 M MACs, with errors of 0.5 ms."""
    archs = MOBILENETV3.sample(300, rng)
    frame = pd.DataFrame([MOBILENETV3.to_config(arch) for arch in archs])
    macs = cost_property(MOBILENETV3, "macs", "imagenet")(archs)
    frame["lat_phone"] = 2 + macs / 20e6 + rng.normal(0, 0.5, 300)
    frame.to_parquet(tmp_path / "measured.parquet")
    return str(tmp_path / "measured.parquet")


# Texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs<=300e6", ("macs", True, 3e8)),
        ("macs>=300000000", ("macs", False, 3e8)),
        ("params<=6.5e+6", ("params", True, 6.5e6)),
        ("params >= +.5E6", ("params", False, 5e5)),
        ("  latency  <=  25 ", ("latency", True, 25.0)),
        ("latency<=-1", ("latency", True, -1.0)),
        ("macs<=1e-3", ("macs", True, 1e-3)),
    ],
)
def test_what_is_understood(text, expected):
    assert parse_constraint(text) == expected


BAD = [
    "",
    "macs",
    "macs<300e6",
    "macs=300e6",
    "macs==300e6",
    "macs=<300e6",
    "300e6>=macs",
    "1e6<=macs<=2e6",
    "macs<=1e6,params<=1e6",
    "macs<=",
    "<=300e6",
    "macs<=300 M",
    "macs<=300M",
    "macs<=params",
    "macs<=3e",
    "macs<=1.2.3",
    "macs<=0x10",
    "macs<=nan",
    "macs<=inf",
    "macs>=-inf",
    "macs<=1e999",
    "macs<=300e6\nparams<=6e6",
    "mäcs≤3",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_understood(text):
    assert refusal(parse_constraint, text) == (
        f"{text!r} is not a constraint: expected QUANTITY<=NUMBER or QUANTITY>=NUMBER, "
        "e.g. 'macs<=300e6'"
    )


# Constraints


@pytest.mark.parametrize("name", ["macs", "params"])
@pytest.mark.parametrize("sign", ["<=", ">="])
def test_a_constraint_is_satisfied_as_the_numbers_say(name, sign, rng):
    archs = MOBILENETV3.sample(300, rng)
    counts = np.array([cost(arch, "imagenet")[name] for arch in archs])
    for limit in (np.median(counts), counts[7]):  # one of which an architecture just meets
        text = f"{name}{sign}{limit!r}".replace("np.float64(", "").rstrip(")")
        (constraint,) = build_constraints(MOBILENETV3, [text], None, None)
        expected = counts <= limit if sign == "<=" else counts >= limit
        assert constraint.satisfied(archs).tolist() == expected.tolist()
        assert set(constraint.log_feasible(archs)) == {0.0, -np.inf}


def test_constraints_come_in_the_order_of_their_texts(latencies):
    texts = ["params>=4e6", "latency<=20", "macs<=3e+08", "params<=6e6"]
    found = build_constraints(MOBILENETV3, texts, None, latencies)
    assert [str(constraint) for constraint in found] == [
        "params>=4e+06",
        "latency<=20",
        "macs<=3e+08",
        "params<=6e+06",
    ]
    assert build_constraints(MOBILENETV3, [], None, None) == ()


def test_bounds_that_exclude_each_other_are_refused():
    said = r"macs cannot be at least 3e\+08 and at most 2\.5e\+08"
    with pytest.raises(UserError, match=said):
        build_constraints(MOBILENETV3, ["macs<=250e6", "macs>=300e6", "macs<=1e9"], None, None)
    assert len(build_constraints(MOBILENETV3, ["macs<=3e8", "macs>=3e8"], None, None)) == 2


@pytest.mark.parametrize("dataset", [None, *NUM_CLASSES])
@pytest.mark.parametrize("name", ["macs", "params"])
def test_costs_are_those_of_the_data_set(dataset, name, rng):
    """By default: ImageNet for MobileNetV3, CIFAR-10 for NAS-Bench-201."""
    for space, default in ((MOBILENETV3, "imagenet"), (NASBENCH201, "cifar10")):
        (arch,) = space.sample(1, rng)
        quantity = build_property(space, name, dataset, None)
        assert quantity([arch])[0] == cost(arch, dataset or default)[name]


def test_latency_is_that_of_the_table(latencies, rng):
    archs = MOBILENETV3.sample(20, rng)
    (constraint,) = build_constraints(MOBILENETV3, ["latency<=14"], "imagenet", latencies)
    expected = latency_property(MOBILENETV3, latencies)
    assert constraint.quantity(archs).tolist() == expected(archs).tolist()
    assert constraint.quantity.std == expected.std > 0.3
    probability = np.exp(constraint.log_feasible(archs))
    assert ((probability > 0) & (probability < 1)).any()
    assert (constraint.satisfied(archs) == (expected(archs) <= 14)).all()


# Errors


@pytest.mark.parametrize(
    ("space", "name", "known"),
    [
        (TOY, "macs", "it has none"),
        (NASBENCH201, "latency", "choose from macs, params"),
        *((MOBILENETV3, name, "choose from macs, params, latency") for name in ("MACs", "value")),
    ],
)
def test_what_is_known_of_a_space(space, name, known):
    message = refusal(build_constraints, space, [f"{name}<=1e9"], None, "table.json")
    assert message == f"unknown quantity {name!r} of the space {space.name}: {known}"


def test_a_latency_needs_a_table(tmp_path):
    arguments = [MOBILENETV3, ["latency<=9"], None]
    assert refusal(build_constraints, *arguments, None) == ("latency needs --latency-table")
    missing = tmp_path / "nowhere.json"
    assert refusal(build_constraints, *arguments, str(missing)) == f"no such table: {missing}"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"times": {}}))
    assert "is not a latency table" in refusal(build_constraints, *arguments, str(broken))


def test_an_unknown_data_set():
    message = refusal(build_constraints, MOBILENETV3, ["macs<=3e8"], "mnist", None)
    assert "unknown data set 'mnist'" in message


def test_the_first_bad_text_is_named():
    message = refusal(build_constraints, MOBILENETV3, ["macs<=3e8", "size<=1", "x"], None, None)
    assert message.startswith("unknown quantity 'size' of the space mobilenetv3: ")


@pytest.mark.parametrize(
    ("space", "text", "known"),
    [
        (MOBILENETV3, "macs<=121278671", "macs is between 1.21279e+08 and 5.66171e+08"),
        (MOBILENETV3, "macs>=566170657", "macs is between 1.21279e+08 and 5.66171e+08"),
        (NASBENCH201, "params<=73305", "params is between 73306 and 1.53155e+06"),
        (NASBENCH201, "params>=1531547", "params is between 73306 and 1.53155e+06"),
    ],
)
def test_a_limit_that_nothing_meets(space, text, known):
    """And one that is a unit weaker is met by something."""
    message = refusal(build_constraints, space, [text], None, None)
    assert message == f"no architecture of {space.name} satisfies {text!r}: {known}"
    name, at_most, limit = parse_constraint(text)
    weaker = f"{name}{'<=' if at_most else '>='}{limit + (1 if at_most else -1):.0f}"
    (constraint,) = build_constraints(space, [weaker], None, None)
    assert constraint.possible


def test_what_a_limit_leaves_of_a_space(rng):
    """NAS-Bench-201 without convolutions: 729 cells, and each of these has the least parameters."""
    (constraint,) = build_constraints(NASBENCH201, ["params<=73306"], None, None)
    cells = [NASBENCH201.render((0, *ops, 1)) for ops in product(range(2, 7), repeat=6)]
    archs = [NASBENCH201.from_str(cell) for cell in cells]
    kept = constraint.satisfied(archs)
    assert kept.sum() == 729
    assert kept.tolist() == ["conv" not in cell for cell in cells]
