"""The once-for-all supernet against the published code, both with the same random weights."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from ofa_package import activate, fit, official_names, official_supernet, our_names, pictures
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy

from nag.errors import UserError
from nag.spaces import ABSENT, Architecture
from nag.spaces.mobilenetv3 import LAYERS, MOBILENETV3, ops_from_ofa
from trainers.cost import cost
from trainers.ofa import (
    LARGEST,
    Supernet,
    build_network,
    load_supernet,
    save_supernet,
)
from trainers.ofa.layers import DropPath

_SMALL = LAYERS.index((3, 3))
SMALLEST = Architecture(MOBILENETV3.name, (_SMALL, _SMALL, ABSENT, ABSENT) * 5)
EXPECTED = "expected a once-for-all MobileNetV3 supernet such as ofa_mbv3_d234_e346_k357_w1.0"


def sample(count, seed=0):
    return MOBILENETV3.sample(count, np.random.default_rng(seed))


def images(count=4, resolution=64):
    return pictures(count, resolution, torch.Generator().manual_seed(1))


def write(path, official):
    """The package's weights as they are published: old names, PyTorch's old format."""
    torch.save({"state_dict": official_names(official)}, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module", params=[1.0, 1.2], ids="w{}".format)
def pair(request, tmp_path_factory):
    """The package's supernet, and ours loaded from its file; their statistics change in tests."""
    official = official_supernet(request.param)
    path = tmp_path_factory.mktemp("ofa") / f"ofa_mbv3_d234_e346_k357_w{request.param}"
    supernet = load_supernet(write(path, official))
    torch.testing.assert_close(dict(supernet.state_dict()), our_names(official), rtol=0, atol=0)
    return official, supernet


@pytest.fixture(scope="module")
def of_ten_classes(tmp_path_factory):
    """A file of the package's weights, none of which has its initial value."""
    path = tmp_path_factory.mktemp("ten") / "supernet.pth"
    return write(path, official_supernet(1.0, num_classes=10))


@pytest.fixture
def supernet(of_ten_classes):
    """Ours, with these weights; a test may change it."""
    return load_supernet(of_ten_classes)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_width_and_classes_are_read_off_the_tensors(pair, supernet):
    official, loaded = pair
    assert (loaded.width, loaded.num_classes) == (official.width_mult, 1000)
    assert (supernet.width, supernet.num_classes) == (1.0, 10)
    assert not loaded.training


@pytest.mark.parametrize(("count", "resolution"), [(20, 96), (2, 224), (2, 75)])
@torch.no_grad()
def test_the_package_computes_the_same(pair, count, resolution):
    official, loaded = pair
    batch, seen = images(4, resolution), []
    for arch in [LARGEST, SMALLEST, *sample(count, seed=resolution)][-count:]:
        activate(official, arch)
        # With statistics that fit the network, so that logits depend on the picture.
        close(loaded.train()(batch, arch), fit(official, batch))
        loaded.eval().load_state_dict(our_names(official))
        expected = official(batch)
        close(loaded(batch, arch), expected)
        close(loaded.extract(arch)(batch), official.get_active_subnet().eval()(batch))
        assert expected.std(dim=0).mean() > 0.01
        seen.append(expected)
    assert all((a - b).abs().max() > 0.1 for a, b in pairwise(seen))


@torch.no_grad()
def test_training_updates_the_statistics_that_the_package_updates():
    official, ours = official_supernet(1.0, num_classes=10), Supernet(10)
    official.load_state_dict(ours.state_dict())
    official.train()
    for arch in [SMALLEST, *sample(3)]:
        activate(official, arch)
        close(ours(images(), arch), official(images()))
    theirs = [v for k, v in official.state_dict().items() if "running_" in k]
    mine = [v for k, v in ours.state_dict().items() if "running_" in k]
    torch.testing.assert_close(mine, theirs)
    assert ours.state_dict()["blocks.4.conv.point_linear.bn.num_batches_tracked"] == sum(
        arch.ops[3] != ABSENT for arch in [SMALLEST, *sample(3)]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_an_extracted_network_gives_the_same_logits(supernet, dtype):
    supernet.to(dtype)
    batch = images().to(dtype)
    for arch in [LARGEST, SMALLEST, *sample(5)]:
        supernet.train()(batch, arch)
        network = supernet.eval().extract(arch, dropout=0.5, drop_path=0.5)
        assert not network.training
        torch.testing.assert_close(network(batch), supernet(batch, arch), rtol=0, atol=1e-6)
        assert {p.dtype for p in network.parameters()} == {dtype}


def test_an_extracted_network_is_a_copy(supernet):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    network = supernet.extract(LARGEST).train()
    network(images()).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= parameter.grad
    torch.testing.assert_close(dict(supernet.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_gradients_are_those_of_the_network_and_reach_nothing_else(supernet):
    """Of a network whose kernels are all 7, so that no weight is transformed."""
    rng = np.random.default_rng(0)
    depth = [2, 3, 4, 2, 3]
    ops = ops_from_ofa([7] * 20, rng.choice([3, 4, 6], 20), depth)
    arch = Architecture(MOBILENETV3.name, ops)
    batch, labels = images(8), torch.arange(8)
    network = supernet.extract(arch).train()
    cross_entropy(network(batch), labels).backward()
    cross_entropy(supernet.train()(batch, arch), labels).backward()

    positions = [0, *(1 + node for node, op in enumerate(ops) if op != ABSENT)]
    expected = {}
    for name, parameter in network.named_parameters():
        head, _, rest = name.partition(".")
        if head == "blocks":
            block, _, rest = rest.partition(".")
            name = f"blocks.{positions[int(block)]}.{rest}"
        expected[name] = parameter.grad
    for name, parameter in supernet.named_parameters():
        if name not in expected:
            assert parameter.grad is None, name
            continue
        gradient = expected[name]
        assert gradient.abs().max() > 0, name
        padded = torch.zeros_like(parameter)
        padded[tuple(slice(size) for size in gradient.shape)] = gradient
        torch.testing.assert_close(parameter.grad, padded)


@pytest.mark.parametrize(("kernel", "used"), [(3, 5), (5, 5), (7, 7)])
def test_gradients_reach_the_kernels_and_matrices_in_use(supernet, kernel, used):
    ops = (LAYERS.index((kernel, 6)),) * 20
    arch = Architecture(MOBILENETV3.name, ops)
    supernet.train()(images(2, 224), arch).square().sum().backward()
    for block in supernet.blocks[1:]:
        conv = block.conv.depth_conv.conv
        touched = conv.weight.grad.abs().sum((0, 1)) > 0
        inside = torch.zeros(7, 7, dtype=torch.bool)
        margin = (7 - used) // 2
        inside[margin : 7 - margin, margin : 7 - margin] = True
        assert torch.equal(touched & ~inside, torch.zeros_like(touched))
        assert touched[inside].all()
        for name, least in [("7to5_matrix", 7), ("5to3_matrix", 5)]:
            gradient = conv.get_parameter(name).grad
            assert (gradient is not None) == (kernel < least)
            assert gradient is None or gradient.abs().max() > 0


def counted(network, resolution=224):
    """Multiply-accumulates and parameters, from the modules as they run."""
    total = []

    def count(module, inputs, output):
        pixels = output[0, 0].numel() if output.dim() == 4 else 1
        total.append(module.weight.numel() * pixels)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, resolution, resolution))
    return {"macs": sum(total), "params": sum(p.numel() for p in network.parameters())}


@pytest.mark.parametrize(("dataset", "classes"), [("imagenet", 1000), ("cifar100", 100)])
def test_networks_cost_what_the_cost_model_says(dataset, classes):
    for arch in [LARGEST, SMALLEST, *sample(4)]:
        assert counted(build_network(arch, num_classes=classes)) == cost(arch, dataset)


def test_networks_have_the_published_costs(data_dir):
    columns = ["ks", "e", "d", "macs", "params"]
    table = pd.read_parquet(data_dir / "mbv3_imagenet_top1.parquet", columns=columns)
    supernet = Supernet()
    for row in table.sample(8, random_state=0).itertuples():
        arch = Architecture(MOBILENETV3.name, ops_from_ofa(row.ks, row.e, row.d))
        assert counted(supernet.extract(arch)) == {"macs": row.macs, "params": row.params}


def test_another_number_of_classes_gets_a_new_classifier(supernet):
    network = supernet.extract(SMALLEST, num_classes=37, dropout=0.2)
    assert network(images()).shape == (4, 37)
    assert network.classifier.dropout.p == 0.2
    assert network.classifier.linear.weight.abs().max() > 0
    assert not network.classifier.linear.bias.any()
    same = supernet.extract(SMALLEST, num_classes=10)
    assert torch.equal(same.classifier.linear.weight, supernet.classifier.linear.weight)


def test_drop_path_grows_with_depth_and_keeps_the_mean(supernet):
    network = supernet.extract(LARGEST, drop_path=0.2)
    rates = [block.drop_path.rate for block in network.blocks]
    expected = [0.2 * i / 21 if block.skip else 0 for i, block in enumerate(network.blocks)]
    assert rates == expected
    assert max(rates) == 0.2 * 20 / 21
    drop = network.blocks[20].drop_path.train()
    torch.manual_seed(0)
    ones = drop(torch.ones(20_000, 2, 3, 3))
    assert (ones.flatten(1).std(dim=1) == 0).all()  # a whole picture or nothing
    assert (ones[:, 0, 0, 0] == 0).float().mean() == pytest.approx(rates[20], abs=0.01)
    assert ones.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(drop.eval()(ones), ones)


def test_drop_path_keeps_its_rate_in_half_precision():
    drop = DropPath(0.001).train()
    torch.manual_seed(0)
    found = drop(torch.ones(200_000, 1, 1, 1, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert (found == 0).float().mean() == pytest.approx(0.001, rel=0.2)


def test_a_fresh_network_passes_on_signal_and_gradient():
    torch.manual_seed(0)
    for arch in [LARGEST, SMALLEST]:
        network = build_network(arch, num_classes=10)
        logits = network(images(16))
        assert 0.01 < logits.std(dim=0).mean() < 10
        cross_entropy(logits, torch.arange(16) % 10).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_a_network_can_be_exported_for_other_runtimes(supernet):
    network = supernet.extract(sample(1)[0])
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(network, (images(),), dynamic_shapes=[{0: batch}])
    close(program.module()(images(3)), network(images(3)))
    last = network(images()).detach()
    close(network.to(memory_format=torch.channels_last)(images()), last)


# On disk


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net"])
def test_saved_weights_come_back(supernet, tmp_path, name):
    path = tmp_path / "new folder" / name
    save_supernet(supernet.to(memory_format=torch.channels_last), path, {"epochs": 3})
    loaded = load_supernet(path)
    torch.testing.assert_close(loaded.state_dict(), supernet.state_dict(), rtol=0, atol=0)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            meta = file.metadata()["meta"]
    else:
        meta = torch.load(path, weights_only=True)["meta"]
    assert json.loads(meta) == {"epochs": 3}
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_the_package_loads_what_we_save(supernet, tmp_path):
    save_supernet(supernet, tmp_path / "net.pth", {})
    official = official_supernet(1.0, num_classes=10, seed=5)
    official.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True)["state_dict"])
    activate(official, LARGEST)
    close(official(images()), supernet(images(), LARGEST))


def test_checkpoints_as_they_occur(supernet, tmp_path):
    plain = supernet.state_dict()
    other = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    prefixed = {f"module.{name}": tensor for name, tensor in plain.items()}
    checkpoints = [
        plain,
        prefixed,
        {"epoch": 7, "state_dict": prefixed, "optimizer": {"state": {}, "param_groups": []}},
        {"state_dict": other, "state_dict_ema": plain},
        {"model": {f"_orig_mod.{name}": tensor for name, tensor in plain.items()}},
        {"n_averaged": torch.tensor(9), **prefixed},
        {name: v for name, v in plain.items() if not name.endswith("num_batches_tracked")},
        {name: v.half() if v.is_floating_point() else v for name, v in plain.items()},
    ]
    for number, checkpoint in enumerate(checkpoints):
        path = tmp_path / f"{number}.pth"
        torch.save(checkpoint, path)
        loaded = load_supernet(path)
        for name, tensor in loaded.named_parameters():
            torch.testing.assert_close(tensor, supernet.get_parameter(name), rtol=1e-3, atol=1e-3)
            assert tensor.dtype == torch.float32


def error_of(path):
    with pytest.raises(UserError) as caught:
        load_supernet(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_no_supernet_is_refused_in_one_line(supernet, tmp_path):
    path = tmp_path / "net.pth"
    assert error_of(path) == f"no such file: {path}"
    assert error_of(tmp_path) == f"no such file: {tmp_path}"

    save_supernet(supernet, path, {})
    damaged = path.read_bytes()[:100_000]
    for junk in [b"", b"some text", b"PK\x03\x04", damaged]:
        for name in ["junk", "junk.safetensors"]:
            (tmp_path / name).write_bytes(junk)
            assert error_of(tmp_path / name) == (
                f"{tmp_path / name} is damaged, or not a file of plain tensors (PyTorch or "
                f".safetensors): {EXPECTED}"
            )
    for record in ("[1]", '{"resolution": "large"}', '{"held_out": null}'):
        torch.save({"state_dict": supernet.state_dict(), "meta": record}, path)
        assert error_of(path) == f"{path} is damaged: its metadata is not a valid record"
    torch.save(supernet, path)  # a pickled module: it would run code
    assert "not a file of plain tensors" in error_of(path)

    state = dict(supernet.state_dict())
    name = "blocks.3.conv.point_linear.conv.weight"
    without = {k: v for k, v in state.items() if k != name}
    for checkpoint, problem in [
        ([1, 2], "holds 0 tensors but no classifier.linear.weight"),
        ({"fc.weight": torch.ones(10, 512)}, "holds 1 tensors but no classifier.linear.weight"),
        (without, f"holds another network (1 tensors are missing, such as {name})"),
        (
            state | {"feature_mix_layer.bn.weight": torch.ones(1280)},
            "holds another network (1 tensors are unexpected, such as feature_mix_layer.bn.weight)",
        ),
        (
            state | {name: torch.ones(24, 96, 1, 1)},
            f"holds another network ({name} has shape (24, 96, 1, 1), not (24, 144, 1, 1))",
        ),
        (
            dict(supernet.extract(LARGEST).state_dict()),
            "holds another network (40 tensors are missing, such as "
            "blocks.1.conv.depth_conv.conv.7to5_matrix)",
        ),
    ]:
        torch.save(checkpoint, path)
        assert error_of(path) == f"{path} {problem}: {EXPECTED}"
