"""Training in two processes that have each batch between them; made pictures."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import colours, folder
from torch import distributed as dist
from torch import multiprocessing, nn

from nag import cli
from nag.devices import resolve_device
from nag.spaces.mobilenetv3 import MOBILENETV3
from orchestrator.train_supernet import app
from trainers.images import Crop, Loader, open_images
from trainers.ofa import Supernet, load_supernet
from trainers.training import parallel
from trainers.training.augment import Augmentation, Normalisation
from trainers.training.loop import Training, TrainingSet
from trainers.training.recipe import find_recipe
from trainers.training.sandwich import sandwich
from trainers.training.task import ImageOptions, ImageTask, Machine

ROOT = Path(__file__).parent.parent
TRAIN = ["--resolution", "32", "--recipe", "small", "--batch-size", "12", "--random", "2"]
TRAIN += ["--epochs", "2", "--width", "0.25"]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("crop", [Crop.random_resized(), Crop.shifted()])
def test_shards_make_up_the_batches(tmp_path, crop, cached):
    """The same pictures, cropped in the same way."""
    split = open_images(folder(tmp_path / "data", train=7)).split("train")
    settings = {"batch_size": 6, "resolution": 8, "crop": crop, "seed": 1}
    settings |= {"cache": tmp_path} if cached else {}
    settings |= {"shuffle": True, "drop_last": True, "workers": 0}
    whole, first, second = (
        list(Loader(split, np.arange(14), shard=shard, **settings).epoch(3))
        for shard in ((0, 1), (0, 2), (1, 2))
    )
    assert [len(labels) for _, labels in first + second] == [3] * 4
    for all_, even, odd in zip(whole, first, second, strict=True):
        for i in range(2):
            assert torch.equal(all_[i][0::2], even[i])
            assert torch.equal(all_[i][1::2], odd[i])


def test_networks_see_the_same_pictures_in_one_process_and_in_two(tmp_path):
    split = open_images(folder(tmp_path / "data", train=8)).split("train")
    recipe = replace(find_recipe("small", epochs=1), cutout=4)
    settings = {"batch_size": 16, "resolution": 16, "crop": recipe.crop, "seed": 1}

    def seen(shard):
        loader = Loader(split, np.arange(16), shuffle=True, workers=0, shard=shard, **settings)
        images = TrainingSet(loader, loader, Normalisation())
        found = []

        def backward(network, images, labels, share, seed):
            found.append(images)
            return torch.zeros(())

        training = Training(
            nn.Linear(1, 1), recipe, images, 0, backward=backward, measure=lambda _: 0.0
        )
        list(training.run(1))
        return torch.cat(found)

    whole, even, odd = (seen(shard) for shard in ((0, 1), (0, 2), (1, 2)))
    assert len(whole) == 16
    assert torch.equal(whole[0::2], even)
    assert torch.equal(whole[1::2], odd)


@pytest.mark.parametrize("policy", ["randaugment", "autoaugment-cifar10"])
def test_policies_draw_other_numbers_in_each_process(policy):
    pytest.importorskip("kornia")
    recipe = replace(find_recipe("small"), policy=policy, flip=False)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8, generator=generator)
    images = image.expand(8, -1, -1, -1).contiguous()

    def augmented(rank):
        torch.manual_seed(5)
        return Augmentation(recipe, Normalisation(), (rank, 2))(images)

    assert torch.equal(augmented(1), augmented(1))
    different = (augmented(0) != augmented(1)).flatten(1).any(1)
    assert different.sum() > 4


def _join(rank, folder):
    """Make two processes of this test one group; they find each other by a file."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=5),
    )


def _average(rank, folder):
    """One of two processes: the gradient of its half of a batch, averaged with the other's."""
    _join(rank, folder)
    torch.manual_seed(0)
    network, images = nn.Linear(3, 2), torch.randn(8, 3)
    loss = network(images[rank::2]).square().mean()
    loss.backward()
    total = loss.detach()
    parallel.average(network, total)
    torch.save((network.weight.grad, total), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_gradients_are_those_of_the_whole_batch(tmp_path):
    multiprocessing.spawn(_average, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    network, images = nn.Linear(3, 2), torch.randn(8, 3)
    loss = network(images).square().mean()
    loss.backward()
    for rank in range(2):
        gradient, total = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(gradient, network.weight.grad)
        torch.testing.assert_close(total, loss.detach())


def _short_of_memory(rank, folder, data):
    """One of two processes that train a supernet; the second has memory for two pictures."""
    _join(rank, folder)
    torch.set_num_threads(1)
    options = ImageOptions(data=data, resolution=32, held_out=9, train_fraction=0.5)
    task = ImageTask(options, MOBILENETV3, Machine(workers=0, cache=Path(folder) / f"cache{rank}"))
    recipe = replace(find_recipe("small", epochs=1), batch_size=8)
    rule, drawn = sandwich(2, 0.1), []

    def backward(supernet, images, labels, share, seed):
        loss = rule(supernet, images, labels, share, seed)
        if rank == 1 and len(images) > 2:
            raise torch.OutOfMemoryError("synthetic")
        return loss

    torch.manual_seed(0)
    supernet = Supernet(3, width=0.25)
    forward = supernet.forward
    supernet.forward = lambda x, arch: (drawn.append(arch), forward(x, arch))[1]
    images = task.training_set(recipe, seed=0)
    training = Training(supernet, recipe, images, 0, backward=backward, measure=lambda _: 0.0)
    list(training.run(1))
    torch.save(
        (training.parts, [a.ops for a in drawn], supernet.state_dict()), Path(folder) / f"{rank}.pt"
    )
    dist.destroy_process_group()


def test_processes_agree_where_one_is_out_of_memory(tmp_path):
    """All repeat the step in parts, and train the same networks with every part."""
    data = colours(tmp_path / "data")
    multiprocessing.spawn(_short_of_memory, (str(tmp_path), data), nprocs=2)
    (parts, drawn, state), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (parts, drawn) == other[:2]
    assert parts == 2
    first, *steps = [drawn[i : i + 4] for i in range(0, len(drawn), 4)]
    assert len(steps) == 2 * 2  # parts of steps
    assert first == steps[0]
    assert all(one == two for one, two in zip(steps[::2], steps[1::2], strict=True))
    assert len({tuple(networks[2]) for networks in steps}) == 2
    for name, value in state.items():
        if ".bn." not in name or name.endswith(("weight", "bias")):
            assert torch.equal(value, other[2][name]), name


@pytest.fixture
def four_gpus(monkeypatch):
    """A pretended machine of four GPUs; what was called."""
    calls, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, device: empty(*sizes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: [0, *calls][-1])
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: None)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    return calls


@pytest.mark.parametrize(
    ("device", "gpus", "backend"),
    [
        ("auto", True, "nccl"),
        ("cuda", True, "nccl"),
        ("cuda:1", True, "nccl"),
        ("cpu", True, "gloo"),
        ("auto", False, "gloo"),
        ("cpu", False, "gloo"),
    ],
)
def test_the_backend_follows_the_device(device, gpus, backend):
    assert parallel.backend(device, gpus) == backend


def test_processes_on_cpus_take_no_gpu(four_gpus):
    parallel.join("cpu")
    assert four_gpus == []


def test_each_process_has_a_gpu_of_its_own(four_gpus):
    parallel.join("auto")
    for device in ("auto", "cuda"):
        assert resolve_device(device) == torch.device("cuda", 3)
    four_gpus.append(2)  # as Ray Train does, which may give a process more than one
    for device in ("auto", "cuda"):
        assert resolve_device(device) == torch.device("cuda", 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("options", "device"),
    [
        (["--device", "cuda", "--gpus-per-worker", "1"], "cuda"),
        (["--gpus-per-worker", "1"], "auto"),
        ([], "cpu"),
    ],
)
def test_the_driver_needs_no_gpu(tmp_path, options, device, monkeypatch):
    """It looks at the images on its CPU; workers without a GPU of their own compute on theirs."""
    sent = []
    monkeypatch.setattr(
        "orchestrator.train_supernet.fit", lambda settings, **_: sent.append(settings["place"])
    )
    argv = ["--data", str(colours(tmp_path / "data")), "--out", str(tmp_path / "W.pt")]
    with pytest.raises(SystemExit) as exit_:
        cli.run(app, [*argv, *options])
    assert not exit_.value.code
    assert [place.device for place in sent] == [device]


def run(*command):
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def check(out, data):
    made = load_supernet(out).meta
    assert made["processes"] == 2
    lines = [json.loads(line) for line in out.with_name(f"{out.name}.jsonl").open()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(line["largest"] >= 0 for line in lines)
    assert not out.with_name(f"{out.name}.training").exists()


@pytest.mark.slow
def test_torchrun(tmp_path):
    data, out = colours(tmp_path / "data"), tmp_path / "W.pt"
    torchrun = ["torch.distributed.run", "--nproc-per-node", 2]
    torchrun += ["--standalone", "--local-addr", "127.0.0.1"]  # which finds a port by itself
    done = run(*torchrun, "-m", "trainers.train_supernet", "--data", data, *TRAIN, "--out", out)
    assert done.returncode == 0, done.stderr
    check(out, data)


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray(tmp_path):
    data, out = colours(tmp_path / "data"), tmp_path / "W.pt"
    command = ["orchestrator.train_supernet", "--workers", 2, "--auth", "disabled"]
    done = run(*command, "--data", data, *TRAIN, "--out", out)
    assert done.returncode == 0, done.stderr
    check(out, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--workers", "0"], "--workers must be at least 1"),
        (["--cpus-per-worker", "0"], "--cpus-per-worker must be more than 0"),
        (["--cpus-per-worker", "nan"], "--cpus-per-worker must be more than 0"),
        (["--gpus-per-worker", "-1"], "--gpus-per-worker must be 0 to 1 or a whole number"),
        (["--gpus-per-worker", "1.5"], "--gpus-per-worker must be 0 to 1 or a whole number"),
        (["--device", "cuda"], "--device cuda needs GPUs: set --gpus-per-worker 1"),
        (
            ["--workers", "2", "--gpus-per-worker", "0.5"],
            "--gpus-per-worker must be whole: NCCL refuses processes that share a GPU",
        ),
        (["--auth", "password"], 'Invalid value "password" for --auth'),
        (
            ["--workers", "2", "--batch-size", "7"],
            "--batch-size 7 is not divisible by the 2 processes",
        ),
    ],
)
def test_bad_settings(tmp_path, changes, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(app, ["--data", str(tmp_path), "--out", "W.pt", *changes])
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
