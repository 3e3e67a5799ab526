"""One contract for all search spaces, then what is particular to each."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import chisquare
from toy_law import ARCHS as TOY_ARCHS

from nag.spaces import (
    ABSENT,
    SPACES,
    Architecture,
    InvalidArchitectureError,
    Stage,
    StagedSpace,
)
from nag.spaces.mobilenetv3 import MOBILENETV3, ops_from_ofa
from nag.spaces.nasbench201 import NASBENCH201
from nag.spaces.toy import TOY

SIZES = {"mobilenetv3": 7371**5, "nasbench201": 5**6, "toy": 12**2}
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
NETWORK = "2-3-3_2-7-6_0-0-0_0-0-0_" + "_".join(["4-5-4"] * 4 + ["3-3-6"] * 3) + "_0-0-0_"
NETWORK += "_".join(["2-7-3"] * 2 + ["0-0-0"] * 2 + ["4-3-4"] * 4)
DERIVED_TEXTS = (
    "3-3,7-6/5-4,5-4,5-4,5-4/3-6,3-6,3-6/7-3,7-3/3-4,3-4,3-4,3-4",  # NETWORK
    "input/nor_conv_3x3/none/skip_connect/avg_pool_3x3/nor_conv_1x1/none/output",  # CELL
)

# Spaces of which all but name, operators and stages is derived.
DERIVED = {
    space: StagedSpace(f"derived-{space.name}", space.operators, space.stages)
    for space in (MOBILENETV3, NASBENCH201)
}
MIXED = StagedSpace(
    name="mixed",
    operators=("w", "a", "b"),
    stages=(Stage(choices=((0,),), depths=(1,)), Stage(choices=((1, 2), (1,)), depths=(0, 2))),
)
ALL = {space.name: space for space in (*SPACES.values(), *DERIVED.values(), MIXED)}


@pytest.fixture(params=ALL.values(), ids=ALL)
def space(request):
    return request.param


# The paths of a cell of NAS-Bench-201 from input to output, as nodes.
PATHS = ((4,), (1, 5), (2, 6), (1, 3, 6))
NONE = 2


def in_use(arch):
    """The cell of NAS-Bench-201 in which operators on no path are `none`; others as they are."""
    if arch.space != NASBENCH201.name:
        return arch
    nodes = {i for path in PATHS if all(arch.ops[i] != NONE for i in path) for i in path}
    ops = (op if i in nodes | {0, 7} else NONE for i, op in enumerate(arch.ops))
    return Architecture(arch.space, tuple(ops))


def stage_operators(space, arch):
    """The operators of the present nodes of each stage."""
    ops, first, out = arch.ops, 0, []
    for stage in space.stages:
        rows = ops[first : first + len(stage.choices)]
        depth = sum(op != ABSENT for op in rows)
        assert rows[depth:] == (ABSENT,) * (len(rows) - depth)  # a prefix is present
        out.append(rows[:depth])
        first += len(stage.choices)
    return out


# The contract.


def test_encode_then_decode(space, rng):
    archs = space.sample(500, rng)
    x = space.encode(archs)
    assert x.shape == (500, *space.shape)
    assert x.dtype == torch.float32
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    assert space.decode(x) == archs
    assert not space.check(x).any()


def test_decoding_counts_entries_above_one_half(space, rng):
    archs = space.sample(100, rng)
    noise = torch.from_numpy(rng.uniform(-0.49, 0.49, (100, *space.shape)))
    assert space.decode(space.encode(archs) + noise) == archs
    assert space.decode(torch.full((1, *space.shape), 0.5)) == [None]  # nothing is present


def test_text_round_trip(space, rng):
    for arch in space.sample(200, rng):
        text = space.to_str(arch)
        assert space.from_str(text) == arch
        assert space.from_str(f"  {text}\n") == arch


@pytest.mark.parametrize("space", ALL.values(), ids=ALL)
def test_operators_are_read_where_their_encoding_is_valid(space, rng):
    """Of random operators and of architectures with an operator or two replaced."""
    any_text = replace(space, render=json.dumps, parse=lambda text: tuple(json.loads(text)))
    n, f = space.shape
    rows = [list(arch.ops) for arch in space.sample(200, rng)]
    for row in rows:
        for node in rng.integers(n, size=rng.integers(3)):
            row[node] = int(rng.integers(ABSENT, f))
    rows += rng.integers(ABSENT, f, size=(50, n)).tolist()
    valid = space.check(space.encode([Architecture(space.name, tuple(row)) for row in rows])) == 0
    assert 0 < valid.sum() < len(rows)
    for row, ok in zip(rows, valid.tolist(), strict=True):
        assert _is_read(any_text, json.dumps(row)) == ok
    for row in rows[:10]:
        assert not _is_read(any_text, json.dumps(row[:-1]))
        assert not _is_read(any_text, json.dumps([*row, 0]))


def _is_read(space, text):
    try:
        space.from_str(text)
    except InvalidArchitectureError:
        return False
    return True


def test_an_architecture_is_its_own_identity(space, rng):
    archs = space.sample(300, rng)
    copies = [Architecture(arch.space, tuple(arch.ops)) for arch in archs]
    assert copies == archs
    assert [hash(a) for a in copies] == [hash(a) for a in archs]
    texts = {space.to_str(arch) for arch in archs}
    assert len(set(archs)) == len(texts)  # distinct architectures, distinct texts
    assert {arch.space for arch in archs} == {space.name}


def test_mutation_changes_one_decision(space, rng):
    depths_changed = 0
    for arch in space.sample(300, rng):
        mutant = space.mutate(arch, rng)
        assert space.decode(space.encode([mutant])) == [mutant]
        before, after = stage_operators(space, arch), stage_operators(space, mutant)
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(changed) == 1
        ((a, b),) = changed
        differences = sum(x != y for x, y in zip(a, b, strict=False))  # in layers of both
        assert differences == (1 if len(a) == len(b) else 0)
        depths_changed += len(a) != len(b)
    assert (depths_changed > 0) == any(len(stage.depths) > 1 for stage in space.stages)


def test_sampling_follows_the_uniform_law(space, rng):
    """Every allowed depth of a stage is equally likely, every operator of a present node too."""
    sampled = [stage_operators(space, arch) for arch in space.sample(4000, rng)]
    p_values = []
    for s, stage in enumerate(space.stages):
        drawn = [ops[s] for ops in sampled]
        depths = [len(ops) for ops in drawn]
        assert set(depths) == set(stage.depths)
        p_values.append(chisquare(np.unique(depths, return_counts=True)[1]).pvalue)
        for j, choices in enumerate(stage.choices):
            operators = [ops[j] for ops in drawn if len(ops) > j]
            assert set(operators) == set(choices)
            p_values.append(chisquare(np.unique(operators, return_counts=True)[1]).pvalue)
    p_values = [p for p in p_values if not np.isnan(p)]  # nan: only one outcome is possible
    assert min(p_values) > 1e-3 / len(p_values)


def test_sampling_is_a_function_of_the_generator(space):
    first, again, other = (space.sample(50, np.random.default_rng(s)) for s in (7, 7, 8))
    assert first == again != other
    assert space.sample(0, np.random.default_rng(0)) == []


def test_size(space):
    if space.name not in SIZES:
        pytest.skip("no published size")
    assert space.size == SIZES[space.name]


def test_slots_name_the_stage_and_position_of_each_node(space):
    expected = [(s, j) for s, stage in enumerate(space.stages) for j in range(len(stage.choices))]
    assert space.slots.tolist() == [list(pair) for pair in expected]


def test_configuration_is_json(space, rng):
    configs = [space.to_config(arch) for arch in space.sample(20, rng)]
    assert json.loads(json.dumps(configs)) == configs


def test_features_are_smooth_and_tell_architectures_apart(space, rng):
    archs = list(dict.fromkeys(map(in_use, space.sample(50, rng))))
    x = space.encode(archs).double().requires_grad_()
    features = torch.cat(space.features(x), dim=1)
    assert features.shape[0] == len(archs)
    assert len(features.detach().unique(dim=0)) == len(archs)
    (gradient,) = torch.autograd.grad(features.sum(), x)
    assert gradient.isfinite().all()


@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet="abc-/ "),
        st.text(alphabet="wab,/ "),
        st.text(alphabet="0123456-_٣"),
        st.from_regex(r"\|[a-z]*~[0-9]\|\+\|.*", fullmatch=True),
        st.builds(
            lambda text, i, c: text[:i] + c + text[i + 1 :],
            st.sampled_from([CELL, NETWORK, "ab/c-", *DERIVED_TEXTS, "w/b,a"]),
            st.integers(0, 120),
            st.one_of(st.characters(), st.sampled_from("0123456789-_|~+/,٣")),
        ),
    )
)
@example(text=NETWORK.replace("2-3-3", "2-٣-3"))  # a digit, but not an ASCII one
@pytest.mark.parametrize("name", ALL)
def test_any_text_is_read_or_refused(name, text):
    """What is accepted is the published notation; all else is InvalidArchitectureError."""
    space = ALL[name]
    try:
        arch = space.from_str(text)
    except InvalidArchitectureError:
        return
    assert space.to_str(arch) == text.strip()


# Invalid encodings: which code, and the first rule wins.


def set_row(x, node, *operators):
    x[:, node] = 0
    x[:, node, list(operators)] = 1


def nb201_two_operators(x):
    set_row(x, 3, 2, 4)


def nb201_empty_row(x):
    set_row(x, 7)


def nb201_wrong_input(x):
    set_row(x, 0, 5)


def nb201_wrong_output(x):
    set_row(x, 7, 0)


def nb201_input_inside(x):
    set_row(x, 6, 0)


def nb201_output_inside(x):
    set_row(x, 1, 1)


def mbv3_two_operators(x):
    set_row(x, 4, 0, 8)


def mbv3_first_absent(x):
    set_row(x, 8)


def mbv3_second_absent(x):
    set_row(x, 9)


def mbv3_hole(x):
    set_row(x, 18)
    set_row(x, 19, 3)


def toy_two_operators(x):
    set_row(x, 1, 0, 1)


def toy_first_absent(x):
    set_row(x, 2)


BREAKAGES = [
    (NASBENCH201, 1, [nb201_two_operators]),
    (NASBENCH201, 2, [nb201_empty_row]),
    (NASBENCH201, 3, [nb201_wrong_input, nb201_wrong_output]),
    (NASBENCH201, 3, [nb201_input_inside, nb201_output_inside]),
    (MOBILENETV3, 1, [mbv3_two_operators]),
    (MOBILENETV3, 2, [mbv3_first_absent, mbv3_second_absent, mbv3_hole]),
    (TOY, 1, [toy_two_operators]),
    (TOY, 2, [toy_first_absent]),
]


@pytest.mark.parametrize(
    ("space", "code", "breakage"),
    [
        pytest.param(space, code, breakage, id=f"{space.name}-{breakage.__name__}")
        for space, code, breakages in BREAKAGES
        for breakage in breakages
    ],
)
def test_error_codes(space, code, breakage, rng):
    x = space.encode(space.sample(20, rng))
    breakage(x)
    assert space.check(x).tolist() == [code] * 20
    assert space.decode(x) == [None] * 20
    assert code in space.errors


@pytest.mark.parametrize(
    ("space", "breakages"),
    [
        (NASBENCH201, [(1, nb201_two_operators), (2, nb201_empty_row), (3, nb201_input_inside)]),
        (MOBILENETV3, [(1, mbv3_two_operators), (2, mbv3_first_absent)]),
        (TOY, [(1, toy_two_operators), (2, toy_first_absent)]),
    ],
    ids=["nasbench201", "mobilenetv3", "toy"],
)
def test_of_several_errors_the_first_rule_wins(space, breakages, rng):
    for count in range(2, len(breakages) + 1):
        for together in itertools.combinations(breakages, count):
            x = space.encode(space.sample(5, rng))
            for _, breakage in together:
                breakage(x)
            assert space.check(x).tolist() == [min(code for code, _ in together)] * 5


def test_one_broken_sample_does_not_spoil_its_batch(space, rng):
    archs = space.sample(3, rng)
    x = space.encode(archs)
    x[1] = 1.0
    assert space.decode(x) == [archs[0], None, archs[2]]
    assert space.check(x).tolist() == [0, 1, 0]


def is_a_cell(on):
    """One operator a node; input and output at the ends and nowhere else."""
    ends = on[:, 0, 0] & on[:, 7, 1]
    return (on.sum(2) == 1).all(1) & ends & ~on[:, 1:7, :2].any((1, 2))


def is_a_network(on):
    """At most one operator a layer; of a stage the first two, and the fourth after the third."""
    first, second, third, fourth = on.any(2).reshape(-1, 5, 4).transpose(2, 0, 1)
    return (on.sum(2) <= 1).all(1) & (first & second & (third | ~fourth)).all(1)


@pytest.mark.parametrize(
    ("space", "is_valid"),
    [(NASBENCH201, is_a_cell), (MOBILENETV3, is_a_network)],
    ids=["nasbench201", "mobilenetv3"],
)
def test_the_published_spaces_accept_what_their_papers_describe(space, is_valid, rng):
    """Encodings of which a few entries were set at random, or a row copied or cleared."""
    x = space.encode(space.sample(6000, rng)).numpy()
    for row in x:
        for _ in range(rng.integers(4)):
            node, source = rng.integers(len(row), size=2)
            kind = rng.integers(3)
            if kind == 0:
                row[node, rng.integers(row.shape[1])] = rng.integers(2)
            else:
                row[node] = row[source] if kind == 1 else 0
    valid = is_valid(x > 0.5)
    np.testing.assert_array_equal(space.check(torch.from_numpy(x)) == 0, valid)
    assert 0.1 < valid.mean() < 0.9


# What a space derives from its stages.


def test_of_all_matrices_only_encodings_are_valid():
    """512 matrices (3, 3), of which three are encodings."""
    entries = itertools.product((0.0, 1.0), repeat=9)
    x = torch.tensor(list(entries)).view(-1, *MIXED.shape)
    found = [arch for arch in MIXED.decode(x) if arch is not None]
    assert {*found} == {Architecture("mixed", ops) for ops in ((0, -1, -1), (0, 1, 1), (0, 2, 1))}
    assert len(found) == MIXED.size == 3
    assert torch.equal(MIXED.encode(found), x[MIXED.check(x) == 0])
    assert {*MIXED.check(x).tolist()} == {0, *MIXED.errors}


@pytest.mark.parametrize(
    ("space", "ops", "text"),
    [
        (MIXED, (0, ABSENT, ABSENT), "w/"),
        (MIXED, (0, 2, 1), "w/b,a"),
        (DERIVED[MOBILENETV3], MOBILENETV3.from_str(NETWORK).ops, DERIVED_TEXTS[0]),
        (DERIVED[NASBENCH201], NASBENCH201.from_str(CELL).ops, DERIVED_TEXTS[1]),
    ],
)
def test_the_derived_text_and_configuration_name_operators(space, ops, text):
    arch = Architecture(space.name, ops)
    assert space.to_str(arch) == text
    assert space.from_str(text) == arch
    stages = [stage.split(",") if stage else [] for stage in text.split("/")]
    assert space.to_config(arch) == {"stages": stages}


@pytest.mark.parametrize("space", [*DERIVED.values(), MIXED], ids=lambda space: space.name)
def test_a_derived_text_is_read_or_refused_after_any_edit(space, rng):
    accepted = refused = 0
    for arch in space.sample(1000, rng):
        pieces = re.split(r"([,/])", space.to_str(arch))  # names and what is between them
        new = str(rng.choice([*space.operators, ",", "/", "", " ", "?"]))
        pieces[rng.integers(len(pieces))] = new
        text = "".join(pieces)
        try:
            assert space.to_str(space.from_str(text)) == text.strip()
            accepted += 1
        except InvalidArchitectureError:
            refused += 1
    assert min(accepted, refused) > 50


def test_the_derived_graph_is_a_chain():
    assert successors(MIXED.adjacency) == {0: [1], 1: [2], 2: []}
    assert torch.equal(DERIVED[MOBILENETV3].adjacency, MOBILENETV3.adjacency)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"render": str}, "render and parse go together"),
        ({"parse": tuple}, "render and parse go together"),
        *[
            ({"operators": ("w", "a", name)}, "distinct names without ',' and '/'")
            for name in ("a", "", "a,b", "a/b", " b")
        ],
    ],
)
def test_what_cannot_be_derived_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(MIXED, **fields)


@pytest.mark.parametrize(
    ("choices", "depths", "message"),
    [
        (((0, 3),), (1,), r"mixed, stage 2: .* operators, 0 to 2, not \(0, 3\)"),
        (((0, 0),), (1,), r"not \(0, 0\)"),
        (((),), (1,), r"not \(\)"),
        ((0, 1), (2,), "not 0"),  # a comma is missing: ((0, 1),)
        (((0, 1),), (1, 2), r"mixed, stage 2: depths .* nodes, 1, .* not \(1, 2\)"),
        (((0, 1),) * 2, (1,), r"nodes, 2, and include it, not \(1,\)"),
        (((0, 1),), (1, 1), r"not \(1, 1\)"),
        (((0, 1),), 1, "not 1"),
        ((), (), r"nodes, 0, .* not \(\)"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(choices, depths, message):
    with pytest.raises(ValueError, match=message):
        replace(MIXED, stages=(MIXED.stages[0], Stage(choices, depths)))


@pytest.mark.parametrize("stages", [(), (Stage((), (0,)),)], ids=["no stage", "no node"])
def test_a_space_without_nodes_is_refused(stages):
    with pytest.raises(ValueError, match="mixed: needs at least one stage with a node"):
        replace(MIXED, stages=stages)


# NAS-Bench-201.


def all_cells():
    """All 15,625 published strings."""
    operators = NASBENCH201.operators[2:]
    for a, b, c, d, e, f in itertools.product(operators, repeat=6):
        yield f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def test_all_cells_of_nasbench201_round_trip():
    texts = list(all_cells())
    archs = [NASBENCH201.from_str(text) for text in texts]
    assert len(set(archs)) == 15_625
    assert NASBENCH201.decode(NASBENCH201.encode(archs)) == archs
    assert [NASBENCH201.to_str(arch) for arch in archs] == texts


def test_operators_that_compute_nothing_are_no_features():
    """All cells: their features are equal where they are without what lies on no path."""
    archs = [NASBENCH201.from_str(text) for text in all_cells()]
    reduced = [in_use(arch) for arch in archs]
    assert len(set(reduced)) < len(archs) / 1.2
    features, same = (
        torch.cat(NASBENCH201.features(NASBENCH201.encode(a)), 1) for a in (archs, reduced)
    )
    assert torch.equal(features, same)
    assert len(features.unique(dim=0)) == len(set(reduced))


def test_nasbench201_nodes_are_cell_edges_in_the_order_of_the_string():
    arch = NASBENCH201.from_str(CELL)
    assert [NASBENCH201.operators[op] for op in arch.ops] == [
        "input",
        "nor_conv_3x3",
        "none",
        "skip_connect",
        "avg_pool_3x3",
        "nor_conv_1x1",
        "none",
        "output",
    ]
    assert NASBENCH201.to_config(arch)["arch_str"] == CELL


def successors(adjacency):
    return {u: row.nonzero().flatten().tolist() for u, row in enumerate(adjacency)}


def test_nasbench201_graph_is_the_line_graph_of_the_cell():
    assert successors(NASBENCH201.adjacency) == {
        0: [1, 2, 4],
        1: [3, 5],
        2: [6],
        3: [6],
        4: [7],
        5: [7],
        6: [7],
        7: [],
    }


def test_nasbench201_transitive_closure():
    reach = NASBENCH201.adjacency.clone()
    for k in range(8):
        reach |= reach[:, k, None] & reach[None, k]
    assert successors(reach) == {
        0: [1, 2, 3, 4, 5, 6, 7],
        1: [3, 5, 6, 7],
        2: [6, 7],
        3: [6, 7],
        4: [7],
        5: [7],
        6: [7],
        7: [],
    }


def test_a_disconnected_cell_is_valid():
    text = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    arch = NASBENCH201.from_str(text)
    assert NASBENCH201.decode(NASBENCH201.encode([arch])) == [arch]


# MobileNetV3.


def test_mobilenetv3_text_names_depth_kernel_and_expand_ratio():
    arch = MOBILENETV3.from_str(NETWORK)
    assert MOBILENETV3.to_config(arch) == {
        "ks": [3, 7, 0, 0, 5, 5, 5, 5, 3, 3, 3, 0, 7, 7, 0, 0, 3, 3, 3, 3],
        "e": [3, 6, 0, 0, 4, 4, 4, 4, 6, 6, 6, 0, 3, 3, 0, 0, 4, 4, 4, 4],
        "d": [2, 4, 3, 2, 4],
    }
    assert MOBILENETV3.to_str(arch) == NETWORK
    assert MOBILENETV3.operators[arch.ops[1]] == "7-6"
    assert arch.ops[:4] == (0, 8, ABSENT, ABSENT)


def test_mobilenetv3_graph_is_a_chain():
    assert successors(MOBILENETV3.adjacency) == {i: [i + 1] for i in range(19)} | {19: []}


def test_ofa_values_of_absent_layers_do_not_matter(rng):
    for arch in MOBILENETV3.sample(50, rng):
        config = MOBILENETV3.to_config(arch)
        assert ops_from_ofa(**config) == arch.ops
        for key, choices in (("ks", (0, 3, 5, 7)), ("e", (0, 3, 4, 6))):
            config[key] = [v or int(rng.choice(choices)) for v in config[key]]
        assert ops_from_ofa(**config) == arch.ops


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (MOBILENETV3, "", "expected 20 tokens depth-kernel-expand joined by '_', found 1"),
        (MOBILENETV3, NETWORK + "_0-0-0", "found 21"),
        (MOBILENETV3, NETWORK.replace("2-7-6", "2-7-5"), "kernel in (3, 5, 7), expand in (3, 4, 6"),
        (MOBILENETV3, NETWORK.replace("2-7-6", "1-7-6"), "depth in (2, 3, 4)"),
        (MOBILENETV3, NETWORK.replace("2-7-6", "2-7"), "'2-7' in"),
        (MOBILENETV3, NETWORK.replace("2-7-6", "3-7-6"), "stage 1 of"),
        (MOBILENETV3, NETWORK.replace("2-7-6_0-0-0", "0-0-0_2-7-6"), "stage 1 of"),
        (MOBILENETV3, "_".join(["0-0-0"] * 20), "is not an architecture of mobilenetv3"),
        (NASBENCH201, "", "expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"),
        (NASBENCH201, CELL.replace("none", "identity"), "with op one of none, skip_connect"),
        (NASBENCH201, CELL.replace("none", "input"), "with op one of none, skip_connect"),
        (NASBENCH201, CELL.replace("~2", "~1"), "is not a NAS-Bench-201 cell"),
        (TOY, "abc", "e.g. 'ab/c-'"),
        (TOY, "-a/b-", "is not an architecture of toy"),
        (MIXED, "", "expected operators joined by ',' in 2 stages joined by '/'"),
        (MIXED, "w/c", "expected operators joined by ',' in 2 stages joined by '/'"),
        (MIXED, "w/a", "'w/a' is not an architecture of mixed"),
        (MIXED, "w/a,a,a", "is not an architecture of mixed"),
        (MIXED, "w/a,b", "is not an architecture of mixed"),
    ],
)
def test_malformed_text_is_refused_with_one_helpful_line(space, text, message):
    with pytest.raises(InvalidArchitectureError) as error:
        space.from_str(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# The toy space.


def test_the_toy_space_can_be_listed():
    assert len(set(TOY_ARCHS)) == TOY.size == 144
    assert TOY.decode(TOY.encode(TOY_ARCHS)) == TOY_ARCHS


def test_every_mutant_one_decision_away_can_occur(rng):
    arch = TOY.from_str("a-/bc")
    neighbours = {"b-/bc", "c-/bc", "a-/ac", "a-/cc", "a-/ba", "a-/bb"}  # an operator
    neighbours |= {"aa/bc", "ab/bc", "ac/bc", "a-/b-"}  # a depth
    assert {TOY.to_str(TOY.mutate(arch, rng)) for _ in range(500)} == neighbours
