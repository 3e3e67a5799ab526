"""Latency from tables of layers and of networks: synthetic ones, and the published ones."""

import json
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from nag.errors import UserError
from nag.spaces import ABSENT, SPACES, Architecture
from nag.spaces.mobilenetv3 import EXPANDS, KERNELS, LAYERS, MAX_DEPTH, MOBILENETV3, ops_from_ofa
from trainers.cost import Task
from trainers.latency.tables import latency_property

STRIDES, SQUEEZE_EXCITE, HARD_SWISH = (2, 2, 2, 1, 2), (0, 1, 0, 1, 1), (0, 0, 1, 1, 1)
CHANNELS = {"tables": (24, 32, 48, 96, 136, 192), "table": (16, 24, 40, 80, 112, 160)}

# The sub-network of the once-for-all tutorial.
PUBLISHED = Architecture(
    MOBILENETV3.name,
    ops_from_ofa(
        ks=[5, 3, 0, 0, 5, 3, 0, 0, 7, 7, 3, 0, 5, 5, 7, 3, 3, 3, 5, 0],
        e=[3, 3, 0, 0, 4, 4, 0, 0, 6, 3, 4, 0, 4, 4, 4, 3, 6, 6, 6, 0],
        d=[2, 2, 3, 4, 3],
    ),
)


def synthetic_ms(layer):
    """A made-up time of a layer, by its key."""
    return 0.1 + crc32(layer.encode()) % 1000 / 1000


def sizes_after(resolution):
    """Side of the map after the stem and after each stage."""
    sizes = [-(-resolution // 2)]
    for stride in STRIDES:
        sizes.append(-(-sizes[-1] // stride))
    return sizes


def block_key(kind, node, kernel, expand, resolution):
    stage, position = divmod(node, MAX_DEPTH)
    sizes, channels = sizes_after(resolution), CHANNELS[kind]
    start, skip, stride = (stage + 1, 1, 1) if position else (stage, 0, STRIDES[stage])
    a, b, c, d = sizes[start], channels[start], sizes[stage + 1], channels[stage + 1]
    shapes = f"input:{a}x{a}x{b}-output:{c}x{c}x{d}"
    end = f"kernel:{kernel}-stride:{stride}-idskip:{skip}-se:{SQUEEZE_EXCITE[stage]}"
    if kind == "tables":
        return f"expanded_conv-{shapes}-expand:{b * expand}-{end}-hs:{HARD_SWISH[stage]}"
    return f"MBConv-{shapes}-expand:{expand}-{end}"


def end_keys(kind, resolution):
    r, s, f = resolution, sizes_after(resolution)[0], sizes_after(resolution)[-1]
    if kind == "tables":
        return [
            f"Conv-input:{r}x{r}x3-output:{s}x{s}x24",
            f"expanded_conv-input:{s}x{s}x24-output:{s}x{s}x24-expand:24-kernel:3-stride:1"
            "-idskip:1-se:0-hs:0",
            f"Conv_1-input:{f}x{f}x192-output:{f}x{f}x1152",
            f"AvgPool2D-input:{f}x{f}x1152-output:1x1x1152",
            "Conv_2-input:1x1x1152-output:1x1x1536",
            "Logits-input:1x1x1536-output:1000",
        ]
    return [
        f"first_conv-input:{r}x{r}x3-output:{s}x{s}x16",
        f"MBConv-input:{s}x{s}x16-output:{s}x{s}x16-expand:1-kernel:3-stride:1-idskip:1-se:0",
        f"final_expand_layer-input:{f}x{f}x160-output:{f}x{f}x960",
        "feature_mix_layer-input:1x1x960-output:1x1x1280",
        "classifier-input:1280-output:1000",
    ]


def synthetic_times(kind, resolution):
    blocks = [block_key(kind, i, k, e, resolution) for i in range(20) for k, e in LAYERS]
    return {layer: synthetic_ms(layer) for layer in (*end_keys(kind, resolution), *blocks)}


def synthetic_content(kind, resolutions):
    times = {str(r): synthetic_times(kind, r) for r in resolutions}
    if kind == "tables":
        return {"unit": "ms", "tables": times}
    return {"table": {layer: ms for one in times.values() for layer, ms in one.items()}}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["tables", "table"])
@pytest.mark.parametrize("resolution", [224, 180])
def test_layers_of_a_synthetic_table_are_added_up(kind, resolution, tmp_path, rng):
    path = write(tmp_path / "synthetic.json", synthetic_content(kind, (180, 224)))
    latency = latency_property(MOBILENETV3, f"{path}:{resolution}")
    assert (latency.name, latency.std) == ("latency", 0)
    archs = MOBILENETV3.sample(200, rng)
    expected = [
        sum(synthetic_ms(key) for key in end_keys(kind, resolution))
        + sum(
            synthetic_ms(block_key(kind, node, *LAYERS[op], resolution))
            for node, op in enumerate(arch.ops)
            if op != ABSENT
        )
        for arch in archs
    ]
    assert latency(archs) == pytest.approx(expected)


def test_default_resolution_and_colons_in_names(tmp_path, rng):
    folder = tmp_path / "12:30"
    folder.mkdir()
    path = write(folder / "synthetic.json", synthetic_content("tables", (192, 224)))
    archs = MOBILENETV3.sample(10, rng)
    default, same, other = (
        latency_property(MOBILENETV3, f"{path}{key}")(archs) for key in ("", ":224", ":192")
    )
    assert (default == same).all()
    assert (default != other).all()
    task = Task(10, resolution=192, width=1.2)
    of_the_task = latency_property(MOBILENETV3, str(path), task)(archs)
    assert (of_the_task == other).all()
    asked_for = latency_property(MOBILENETV3, f"{path}:224", task)(archs)
    assert (asked_for == default).all()


def synthetic_networks(n, rng, noise=0.0):
    """Made-up measurements, and the true latency (n,) of the same networks at 224 pixels.

    A layer takes a constant, plus pixels of its output times kernel times expand ratio.
    """
    archs = MOBILENETV3.sample(n, rng)
    resolution = rng.choice(np.arange(128, 228, 4), n)
    measured = [synthetic_ms_of(*pair) for pair in zip(archs, resolution.tolist(), strict=True)]
    configs = [MOBILENETV3.to_config(arch) for arch in archs]
    table = pd.DataFrame({name: [c[name] for c in configs] for name in ("ks", "e", "d")})
    table["r"] = resolution
    table["lat_synthetic"] = measured + noise * rng.normal(size=n)
    return table, archs, synthetic_latencies(archs, 224)


def synthetic_latencies(archs, resolution):
    return np.array([synthetic_ms_of(arch, resolution) for arch in archs])


def synthetic_ms_of(arch, resolution):
    sizes, total = sizes_after(resolution), 1 + 1e-5 * resolution**2
    for node, op in enumerate(arch.ops):
        if op != ABSENT:
            k, e = LAYERS[op]
            total += 0.1 + 1e-4 * sizes[node // MAX_DEPTH + 1] ** 2 * k * e
    return total


def test_fit_finds_a_synthetic_law_at_224_pixels(tmp_path, rng):
    table, archs, truth = synthetic_networks(1500, rng)
    table.to_parquet(tmp_path / "synthetic.parquet")
    latency = latency_property(MOBILENETV3, str(tmp_path / "synthetic.parquet"))
    assert latency.name == "latency"
    error = latency(archs) - truth
    assert error.std() < 0.02 * truth.std()
    assert latency.std < 0.02 * truth.std()


def test_fit_finds_a_synthetic_law_at_the_resolution_of_the_task(tmp_path, rng):
    table, archs, _ = synthetic_networks(1500, rng)
    table.to_parquet(tmp_path / "synthetic.parquet")
    latency = latency_property(
        MOBILENETV3, str(tmp_path / "synthetic.parquet"), Task(10, resolution=160)
    )
    truth = synthetic_latencies(archs, 160)
    error = latency(archs) - truth
    assert abs(error.mean()) < 0.02 * truth.std()
    assert error.std() < 0.02 * truth.std()


def test_std_of_the_fit_is_the_noise(tmp_path, rng):
    table, archs, truth = synthetic_networks(3000, rng, noise=0.5)
    table["lat_other"] = 7.0
    table.to_parquet(tmp_path / "synthetic.parquet")
    latency = latency_property(MOBILENETV3, f"{tmp_path / 'synthetic.parquet'}:lat_synthetic")
    assert latency.std == pytest.approx(0.5, rel=0.15)
    assert np.abs(latency(archs) - truth).mean() < 0.25
    again = latency_property(MOBILENETV3, f"{tmp_path / 'synthetic.parquet'}:lat_synthetic")
    assert (again.coefficients == latency.coefficients).all()
    constant = latency_property(MOBILENETV3, f"{tmp_path / 'synthetic.parquet'}:lat_other")
    assert constant(archs) == pytest.approx(7.0)


def test_unmeasured_networks_are_left_out_and_r_is_optional(tmp_path, rng):
    table, archs, truth = synthetic_networks(1500, rng)
    table["lat_synthetic"] = np.where(np.arange(1500) % 10 == 0, np.nan, truth)
    table.drop(columns="r").to_parquet(tmp_path / "synthetic.parquet")
    latency = latency_property(MOBILENETV3, str(tmp_path / "synthetic.parquet"))
    assert (latency(archs) - truth).std() < 0.02 * truth.std()


def message(table, space=MOBILENETV3):
    with pytest.raises(UserError) as caught:
        latency_property(space, str(table))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_of_any_table(tmp_path):
    assert message("a.json", SPACES["nasbench201"]) == (
        "latency tables are for the space mobilenetv3, not nasbench201"
    )
    assert "is not a latency table: choose a file that ends in .json or .parquet" in message(
        "a.yaml"
    )
    for name in ("absent.json", "absent.parquet", "absent.json:224", "absent.parquet:lat_x"):
        file = name.split(":")[0]
        assert message(tmp_path / name) == f"no such table: {tmp_path / file}"
    for suffix, kind in (("json", "JSON"), ("parquet", "parquet")):
        path = tmp_path / f"text.{suffix}"
        path.write_text("{ not a table")
        assert message(path) == f"{path} is not a readable {kind} file"
        (tmp_path / f"folder.{suffix}").mkdir()
        assert f"is not a readable {kind} file" in message(tmp_path / f"folder.{suffix}")


@pytest.mark.parametrize("content", [[], {"unit": "ms"}, {"tables": [1]}, {"table": None}])
def test_json_that_is_no_latency_table(content, tmp_path):
    path = write(tmp_path / "synthetic.json", content)
    assert (
        message(path) == f"{path} is not a latency table: expected an object named tables or table"
    )


@pytest.mark.parametrize("kind", ["tables", "table"])
def test_unknown_resolution(kind, tmp_path):
    path = write(tmp_path / "synthetic.json", synthetic_content(kind, (192, 96)))
    assert message(path) == f"{path} has no resolution '224': choose from 96, 192"
    assert message(f"{path}:large") == f"{path} has no resolution 'large': choose from 96, 192"
    empty = write(tmp_path / "empty.json", {kind: {}})
    assert message(empty) == f"{empty} has no resolution '224': choose from none"
    with pytest.raises(UserError, match=r"has no resolution '64': choose from 96, 192$"):
        latency_property(MOBILENETV3, str(path), Task(10, resolution=64))


@pytest.mark.parametrize("value", [None, "3.5", float("nan"), -1.0])
@pytest.mark.parametrize("kind", ["tables", "table"])
def test_missing_layers_are_named(kind, value, tmp_path):
    content = synthetic_content(kind, (224,))
    times = content["tables"]["224"] if kind == "tables" else content["table"]
    layer = block_key(kind, 7, 5, 4, 224)
    times[layer] = value
    path = write(tmp_path / "synthetic.json", content)
    # The layers of a stage after its first are alike: nodes 5, 6 and 7 here.
    assert message(path) == f"{path} lacks times in ms of 3 layers, such as {layer}"


def test_errors_of_tables_of_networks(tmp_path, rng):
    good, _, _ = synthetic_networks(20, rng)
    good["r"] = 224

    def message_of(key="", **columns):
        path = tmp_path / "synthetic.parquet"
        good.drop(columns=[c for c, v in columns.items() if v is None]).assign(
            **{c: v for c, v in columns.items() if v is not None}
        ).to_parquet(path)
        return message(f"{path}{key}").removeprefix(str(path))

    assert message_of(lat_b=1.0) == " has several latencies: add :KEY, one of lat_synthetic, lat_b"
    assert message_of(":lat_x") == " has no latency lat_x: it has lat_synthetic"
    assert message_of(lat_synthetic=None) == " has no latencies: columns with names lat_*"
    assert message_of(ks=None) == " has no column ks; it has e, d, r, lat_synthetic"
    assert message_of(lat_synthetic="slow") == ": column lat_synthetic does not hold numbers"
    assert message_of(r="large") == ": column r does not hold numbers"
    for column in ({"d": [[5] * 5] * 20}, {"ks": [[9] * 20] * 20}, {"e": [[3]] * 20}, {"d": 2}):
        assert message_of(**column) == (
            f" has a row that is not a network: allowed are ks in {KERNELS}, e in {EXPANDS} "
            "and d in (2, 3, 4)"
        )
    assert message_of(lat_synthetic=[1.0] * 4 + [np.nan] * 16) == (
        " has 4 networks with lat_synthetic: at least 5 are needed"
    )
    assert message_of(lat_synthetic=[1.0] * 19 + [-3.0]) == (
        " has a lat_synthetic of -3: latencies must be positive"
    )
    assert message_of(r=[128, 192] * 10) == (
        " has networks at 128 to 192 pixels, but 224 is outside this range"
    )


def test_published_latency_of_the_once_for_all_table(data_dir):
    table = data_dir / "ofa_note10_latency_lut.json"
    latency = latency_property(MOBILENETV3, f"{table}:192")
    assert latency([PUBLISHED])[0] == pytest.approx(24.730, abs=5e-4)
    for resolution in (160, 176, 208, 224):
        assert latency_property(MOBILENETV3, f"{table}:{resolution}").std == 0
    assert "choose from 160, 176, 192, 208, 224" in message(f"{table}:128")


def test_msunas_table_has_every_layer_at_every_resolution(data_dir):
    table = data_dir / "msunas_i7-8700K_lut.json"
    latencies = [
        latency_property(MOBILENETV3, f"{table}:{r}")([PUBLISHED])[0] for r in (96, 160, 224, 256)
    ]
    assert latencies == sorted(latencies)
    assert latency_property(MOBILENETV3, str(table))([PUBLISHED])[0] == latencies[2]
    times = json.loads(table.read_text())["table"]
    expected = sum(times[key] for key in end_keys("table", 224)) + sum(
        times[block_key("table", node, *LAYERS[op], 224)]
        for node, op in enumerate(PUBLISHED.ops)
        if op != ABSENT
    )
    assert latencies[2] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("column", "least_r2", "largest_std"),
    [("lat_ms_v100_64", 0.995, 0.25), ("lat_ms_titan_xp_1", 0.55, 1.3)],
)
def test_fit_predicts_measured_networks_it_did_not_see(
    column, least_r2, largest_std, data_dir, tmp_path
):
    table = pd.read_parquet(data_dir / "mbv3_latency.parquet")
    unseen = table[table.r == 224].iloc[::2]
    table.drop(unseen.index).to_parquet(tmp_path / "seen.parquet")
    latency = latency_property(MOBILENETV3, f"{tmp_path / 'seen.parquet'}:{column}")
    networks = unseen[["ks", "e", "d"]].itertuples(index=False)
    predicted = latency(
        [Architecture(MOBILENETV3.name, ops_from_ofa(*network)) for network in networks]
    )
    residual = unseen[column] - predicted
    r2 = 1 - (residual**2).mean() / unseen[column].var(ddof=0)
    assert r2 > least_r2
    assert latency.std < largest_std
