"""Latencies measured on this machine: the table of blocks, and the metric of evaluations.

Logic is tested by a synthetic clock that only blocks move; one tiny table is measured for real.
"""

import itertools
import json
import time
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import colours
from test_image_search import SEARCH, outcome
from torch import nn

from nag.errors import UserError
from nag.spaces.mobilenetv3 import ABSENT, LAYERS, MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from orchestrator.run_bo import app as run_bo
from trainers.build import EvaluatorSettings, build_evaluator
from trainers.build_latency_table import app, report, tables
from trainers.evaluate import evaluate_row
from trainers.latency import timing
from trainers.latency.block_times import BlockTimer
from trainers.latency.tables import latency_property, once_for_all_block, once_for_all_ends
from trainers.latency.timing import CpuStopwatch, CudaStopwatch, latency, stopwatch
from trainers.ofa import LARGEST, Supernet, save_supernet
from trainers.ofa.layers import Block
from trainers.partial import Partial
from trainers.plans import mobilenetv3_plan
from trainers.training.sandwich import SMALLEST
from trainers.training.task import NetworkOptions, Place

CPU = torch.device("cpu")
ABOUT = {"device": "synthetic", "width": 1.0}


def synthetic_ms(slot, kernel, expand):
    """Made up for a block; the same at every resolution."""
    shape = (slot.inputs, slot.outputs, slot.stride, kernel, expand)
    return 1 + crc32(repr(shape).encode()) % 97


@pytest.fixture
def clock(monkeypatch):
    """Synthetic time, in seconds: a block takes what is made up for it, everything else nothing.

    Every other run of a block takes 5 s more, as if it had to wait for its weights.
    """
    now, init, forward = [0.0], Block.__init__, Block.forward

    def remember(self, slot, kernel, expand, *rest):
        init(self, slot, kernel, expand, *rest)
        self.synthetic_seconds, self.cold = synthetic_ms(slot, kernel, expand) / 1000, True

    def run(self, x):
        now[0] += self.synthetic_seconds + 5 * self.cold
        self.cold = not self.cold
        return forward(self, x)

    monkeypatch.setattr(Block, "__init__", remember)
    monkeypatch.setattr(Block, "forward", run)
    monkeypatch.setattr(
        "trainers.latency.block_times.stopwatch", lambda device: CpuStopwatch(lambda: now[0])
    )
    return now


@pytest.mark.parametrize(("width", "resolution"), [(1.0, 32), (1.2, 40)])
def test_synthetic_times_go_to_the_blocks_that_take_them(clock, width, resolution):
    archs = [SMALLEST, LARGEST, *MOBILENETV3.sample(1, np.random.default_rng(0))]
    timer = BlockTimer(archs, resolution=resolution, width=width, batch_size=1, device=CPU)
    layers, networks = timer.measure(np.random.default_rng(0))
    plan = mobilenetv3_plan(resolution, width)
    assert len(layers) == 96
    stem, first, *others = once_for_all_ends(plan)
    assert layers.pop(first) == pytest.approx([synthetic_ms(plan.first, 3, 1)] * 9)
    for end in (stem, *others):
        assert layers.pop(end) == [0] * 9
    assert layers == {
        once_for_all_block(slot, k, e): [pytest.approx(synthetic_ms(slot, k, e))]
        for slot in plan.slots
        for k, e in LAYERS
    }
    for arch in archs:
        nodes = zip(plan.slots, arch.ops, strict=True)
        blocks = [synthetic_ms(slot, *LAYERS[op]) for slot, op in nodes if op != ABSENT]
        total = sum(blocks) + synthetic_ms(plan.first, 3, 1)
        assert networks[MOBILENETV3.to_str(arch)] == pytest.approx([total])


def test_neighbours_differ_from_pass_to_pass(clock, monkeypatch):
    timer = BlockTimer([], resolution=32, width=1.0, batch_size=1, device=CPU)
    chosen = []
    monkeypatch.setattr(timer, "_second_run", lambda network: chosen.append(network.blocks) or [])
    monkeypatch.setattr(timer, "_layers", lambda ops: [])
    for seed in (1, 1, 2):
        timer.measure(np.random.default_rng(seed))
    assert all(len(blocks) == 11 for blocks in chosen)
    first, same, other = (
        [[id(block) for block in blocks] for blocks in chosen[i : i + 9]] for i in (0, 9, 18)
    )
    assert first == same
    assert first != other


def build(out, resolution=(32,), **changes):
    settings = {"device": "cpu", "repeats": 2, "networks": 2, **changes}
    options = [(f"--{name}", value) for name, value in settings.items()]
    return outcome(app, "--out", out, "--resolution", *resolution, *itertools.chain(*options))


def test_a_synthetic_table_adds_up_to_its_networks(clock, tmp_path):
    code, text, _ = build(tmp_path / "T.json", (32, 48), width=0.5)
    assert code == 0
    assert "48 pixels: networks take" in text
    assert (
        text.count(
            "sum of layers / network measured as a whole: 1.000 on average over 2 random networks"
        )
        == 2
    )
    latency = latency_property(MOBILENETV3, f"{tmp_path / 'T.json'}:48")
    plan = mobilenetv3_plan(48, 0.5)
    total = sum(synthetic_ms(slot, 7, 6) for slot in plan.slots)
    assert latency([LARGEST])[0] == pytest.approx(total + synthetic_ms(plan.first, 3, 1))


def test_a_table_that_ranks_networks_wrongly_says_so(clock, tmp_path):
    out = tmp_path / "T.json"
    _, text, _ = build(out, networks=4)
    assert "rank correlation (Spearman) 1.000\n" in text
    assert "warning" not in text
    content = json.loads(out.read_text())
    content["networks"]["32"] = {arch: 1 / ms for arch, ms in content["networks"]["32"].items()}
    out.write_text(json.dumps(content))
    *_, ranks, warning = report(out, 32)
    assert ranks == "  rank correlation (Spearman) -1.000"
    assert "delete the table and measure again" in warning


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A table that was measured here, and what the command said.

    In seconds of this process: those in which others have the processor do not count.
    """
    out = tmp_path_factory.mktemp("real") / "T.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "trainers.latency.block_times.stopwatch", lambda device: CpuStopwatch(time.process_time)
        )
        code, text, err = build(out, (112,), repeats=3, networks=3)
    assert code == 0, err
    return out, text


def test_a_real_table(real):
    """Larger blocks are slower: on the whole, for a single one may be disturbed."""
    out, text = real
    assert "rank correlation (Spearman)" in text
    assert not out.with_name("T.json.partial").exists()
    table = json.loads(out.read_text())
    assert (table["width"], table["batch_size"], table["torch"]) == (1.0, 1, torch.__version__)
    assert (table["device"], table["passes"]) == (timing.device_name(CPU), {"112": 3})
    assert table["tables"]["112"].keys() == table["spread"]["112"].keys()
    assert all(ms > 0 for ms in table["tables"]["112"].values())
    assert all(ms > 0 for ms in table["networks"]["112"].values())
    times = latency_property(MOBILENETV3, f"{out}:112").coefficients.reshape(20, 3, 3).sum(0)
    assert times[:, 2].sum() > times[:, 0].sum()  # expand 6 and 3
    assert times[2, 2] > times[0, 0]  # kernel 7, expand 6 and 3, 3
    low, high = (latency_property(MOBILENETV3, f"{out}:112")([a])[0] for a in (SMALLEST, LARGEST))
    assert 0 < low < high


def test_an_interrupted_table_continues(clock, tmp_path, monkeypatch):
    out, measure, seen = tmp_path / "T.json", BlockTimer.measure, []

    def interrupted(self, rng):
        seen.append(rng)
        if len(seen) == 4:  # one warms up, two are kept
            raise KeyboardInterrupt
        return measure(self, rng)

    monkeypatch.setattr(BlockTimer, "measure", interrupted)
    code, _, err = build(out, repeats=5)
    assert (code, "interrupted: repeat the command to continue" in err) == (130, True)
    assert not out.exists()
    partial = out.with_name("T.json.partial")
    assert len(partial.read_text().splitlines()) == 3
    with partial.open("a") as file:
        file.write('{"resolution": 32, "laye')  # torn
    code, _, err = build(out, repeats=5, width=0.75)
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: {partial} was started with other settings (width is 1.0 there, 0.75 here): "
        "delete it to start again",
    )
    assert build(out, repeats=5)[0] == 0
    assert len(seen) == 4 + 1 + 3
    assert not partial.exists()
    whole = tmp_path / "whole.json"
    assert build(whole, repeats=5)[0] == 0
    assert json.loads(out.read_text()) == json.loads(whole.read_text())


def test_a_table_that_is_there_is_not_overwritten(clock, tmp_path, monkeypatch):
    out = tmp_path / "T.json"
    code, text, _ = build(out, repeats=1)
    assert (code, "interquartile range" in text) == (0, False)  # one time has no spread
    before = out.read_bytes()
    monkeypatch.setattr(BlockTimer, "measure", None)
    code, again, err = build(out, repeats=1)
    assert (code, again) == (0, text)
    assert "T.json already exists, measured with these settings" in err
    for changes, message in (
        ({"width": 0.75}, "(width is 1.0 there, 0.75 here)"),
        ({"networks": 3}, "(networks is 2 there, 3 here)"),
        ({"repeats": 2}, "(passes is {'32': 1} there, {'32': 2} here)"),
    ):
        code, _, err = build(out, **{"repeats": 1, **changes})
        assert (code, message in err) == (2, True)
    assert out.read_bytes() == before
    out.write_text("mine")
    code, _, err = build(out)
    assert (code, "exists and is not a table of this command" in err) == (2, True)
    assert err.count("\n") == 1
    assert out.read_text() == "mine"


def test_medians_and_spreads_are_those_of_all_passes(tmp_path):
    path = tmp_path / "T.json.partial"
    partial = Partial(path, ABOUT)
    for i in range(5):
        times = {"a": [float(i), 10.0 * i]}
        partial.add({"resolution": 32, "layers": times, "networks": {"n": [1.0 + i]}})
    partial.add({"resolution": 48, "layers": {"a": [7.0]}, "networks": {}})
    partial.close()
    assert tables(Partial(path, ABOUT), (32, 48, 64)) == {
        "passes": {"32": 5, "48": 1, "64": 0},
        "tables": {"32": {"a": 3.5}, "48": {"a": 7.0}, "64": {}},
        "spread": {"32": {"a": 16.25}, "48": {"a": 0.0}, "64": {}},
        "networks": {"32": {"n": 3.0}, "48": {}, "64": {}},
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--out", "T.txt"), "--out T.txt must end in .json"),
        (("--out", "no/where.json"), "no such folder: no"),
        (("--width", 0.123), "--width must be more than 0, at most 4, and a multiple of 0.01"),
        (("--width", "nan"), "--width must be more than 0, at most 4, and a multiple of 0.01"),
        (("--resolution", 224, 4), "--resolution must be at least 8"),
        (("--resolution",), "--resolution must be at least 8"),
        (("--threads", 100_000), "--threads must be at most"),
        (("--repeats", 0), "--batch-size, --threads and --repeats must be at least 1"),
        (("--threads", 0), "--batch-size, --threads and --repeats must be at least 1"),
        (("--batch-size", 0), "--batch-size, --threads and --repeats must be at least 1"),
        (("--networks", -1), "--networks must not be negative"),
        (("--device", "luck"), "device 'luck' is not available"),
        (("--device", "meta"), "device 'meta' is not available"),
    ],
)
def test_bad_settings(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = argv if "--out" in argv else ("--out", "T.json", *argv)
    code, out, err = outcome(app, *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_one_line(tmp_path, monkeypatch):
    def full(self, rng):
        raise torch.OutOfMemoryError("synthetic")

    monkeypatch.setattr(BlockTimer, "measure", full)
    code, _, err = build(tmp_path / "T.json")
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: not enough memory for batches of 1: lower --batch-size",
    )


@pytest.mark.parametrize("width", [0, -1, "wide", None, 5])
def test_a_table_of_no_width(width, tmp_path):
    path = tmp_path / "synthetic.json"
    path.write_text(json.dumps({"width": width, "tables": {}}))
    with pytest.raises(UserError, match=r"is for networks of width .*: expected"):
        latency_property(MOBILENETV3, str(path))


@pytest.mark.parametrize("unit", ["us", "\u00b5s", "s"])
def test_a_table_in_another_unit(unit, tmp_path):
    path = tmp_path / "synthetic.json"
    path.write_text(json.dumps({"unit": unit, "tables": {}}))
    with pytest.raises(UserError, match=f"has times in {unit!r}: expected ms"):
        latency_property(MOBILENETV3, str(path))


def test_laps_of_a_gpu_are_between_its_events(monkeypatch):
    """Synthetic events: there is no GPU here."""
    ticks, calls = itertools.count(), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream"
            self.at = next(ticks) ** 2

        def synchronize(self):
            calls.append(("event", self.at))

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("device"))
    watch = stopwatch(torch.device("cuda"))
    assert isinstance(watch, CudaStopwatch)
    watch.start()
    watch.lap()
    watch.lap()
    assert calls == ["device"]
    assert watch.stop() == [1, 3]
    assert calls == ["device", ("event", 4)]


class _Seen(nn.Module):
    """Notes how it is run, and takes 100 s less every time."""

    def __init__(self, now, runs):
        super().__init__()
        self.linear, self.now, self.runs = nn.Linear(1, 1), now, runs

    def __deepcopy__(self, memo):
        return _Seen(self.now, self.runs)

    def forward(self, images):
        self.runs.append((images.shape, self.training, torch.is_inference_mode_enabled()))
        self.now[0] += 3.0 - 0.1 * len(self.runs)
        return images


def test_the_latency_of_a_network_is_the_median_after_a_warm_up(monkeypatch):
    now, runs = [0.0], []
    monkeypatch.setattr(timing, "stopwatch", lambda device: CpuStopwatch(lambda: now[0]))
    network = _Seen(now, runs).train()
    ms, device = latency(network, batch_size=2, resolution=16, device=CPU)
    assert set(runs) == {((2, 3, 16, 16), False, True)}
    assert len(runs) == timing._WARM_UP + timing._REPEATS
    middle = timing._WARM_UP + (timing._REPEATS + 1) // 2
    assert ms == pytest.approx(1000 * (3.0 - 0.1 * middle))
    assert device.startswith(timing.device_name(CPU))
    assert device.endswith(", batches of 2")
    assert network.training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def evaluator(data, tmp_path):
    def built(name, space, **options):
        networks = NetworkOptions(data=data, held_out=9, recipe="small", **options)
        place = Place(device="cpu", cache=tmp_path / "cache")
        return build_evaluator(space, name, EvaluatorSettings(networks=networks, place=place))

    return built


def test_evaluators_measure_latency_where_it_is_asked_for(evaluator, tmp_path):
    torch.manual_seed(0)
    save_supernet(Supernet(3), tmp_path / "W.pt", {})
    inherits = {"resolution": 32, "weights": tmp_path / "W.pt", "calibration": 12}
    cell = NASBENCH201.sample(1, np.random.default_rng(0))[0]
    cases = [
        ("supernet", MOBILENETV3, SMALLEST, inherits),
        ("train", NASBENCH201, cell, {"resolution": 16, "epochs": 1}),
    ]
    for name, space, arch, options in cases:
        plain = evaluator(name, space, **options).evaluate(arch, seed=0)
        timed = evaluator(name, space, **options, latency_batch=2).evaluate(arch, seed=0)
        assert (plain.device, "latency" in plain.metrics) == ("", False)
        assert timed.value == plain.value
        assert 0 < timed.metrics["latency"] < 60_000
        assert timed.device == f"{timing.device_name(CPU)}, batches of 2"
        row = evaluate_row(evaluator(name, space, **options, latency_batch=2), space, arch, 0)[0]
        assert row["device"] == timed.device


def test_a_search_keeps_to_a_table_and_measures(real, data, tmp_path):
    """What is in its trials is measured; which networks are tried, the table decides."""
    table, out = f"{real[0]}:112", tmp_path / "run"
    torch.manual_seed(0)
    save_supernet(Supernet(3), tmp_path / "W.pt", {"resolution": 32, "recipe": "small"})
    predicted = latency_property(MOBILENETV3, table)
    limit = sum(predicted.extremes) / 2
    argv = ["--evaluator", "supernet", "--weights", tmp_path / "W.pt", "--data", data]
    argv += ["--calibration", 12, *SEARCH, "--budget", 2, "--n-init", 2, "--out", out]
    argv += ["--constraint", f"latency<={limit}", "--latency-table", table]
    code, said, err = outcome(run_bo, *argv, "--latency-batch", 1)
    assert code == 0, said + err
    found = pd.read_parquet(out / "trials.parquet")
    archs = [MOBILENETV3.from_str(text) for text in found["arch"]]
    assert (predicted(archs) <= limit).all()
    assert (found["latency"] > 0).all()
    assert not np.isclose(found["latency"], predicted(archs), rtol=1e-6).any()
    assert set(found["device"]) == {f"{timing.device_name(CPU)}, batches of 1"}
    code, _, err = outcome(run_bo, *argv)
    assert (code, "latency_batch is 1 there, None here" in err) == (2, True)
    argv[argv.index(out)] = tmp_path / "other"
    assert outcome(run_bo, *argv)[0] == 0
    other = pd.read_parquet(tmp_path / "other" / "trials.parquet")
    assert other["latency"].tolist() == pytest.approx(predicted(archs))
    assert "device" not in other.columns


def test_bad_latency_batches(evaluator):
    with pytest.raises(UserError, match="--latency-batch must be at least 1"):
        evaluator("train", NASBENCH201, resolution=16, latency_batch=0)
