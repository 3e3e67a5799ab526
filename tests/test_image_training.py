"""Training on images, on made pictures whose colour tells the class. Synthetic."""

import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import colours
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from nag.errors import UserError
from nag.spaces.mobilenetv3 import MOBILENETV3
from nag.spaces.nasbench201 import NASBENCH201
from trainers.base import EvaluationError
from trainers.cells import CellNetwork
from trainers.cost import Task, cost
from trainers.evaluators.supernet import SupernetEvaluator
from trainers.evaluators.training import TrainingEvaluator
from trainers.images import Crop
from trainers.ofa import LARGEST, Supernet
from trainers.training.augment import Augmentation, Normalisation, _Choice
from trainers.training.checkpoint import NoCheckpointError
from trainers.training.loop import DivergedError, Training, accuracy, learning_rate
from trainers.training.recipe import RECIPES, Recipe, find_recipe
from trainers.training.sandwich import SMALLEST, sandwich
from trainers.training.task import ImageOptions, ImageTask, Machine

POOL, CONV = (
    f"|{op}~0|+|none~0|none~1|+|{op}~0|none~1|none~2|" for op in ("avg_pool_3x3", "nor_conv_1x1")
)
RECIPE = Recipe(
    name="of a test",
    epochs=3,
    batch_size=8,
    learning_rate=0.1,
    momentum=0.9,
    ema=0.9,
    crop=Crop.shifted(padding=1),
    centre=Crop.center(ratio=1.0),
    cutout=2,
    statistics="data",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def task(data, tmp_path):
    options = ImageOptions(data=data, resolution=16, held_out=9)
    return ImageTask(options, NASBENCH201, Machine(cache=tmp_path / "cache"))


def training(task, recipe=RECIPE, text=CONV, seed=1, **changes):
    torch.manual_seed(0)
    evaluator = TrainingEvaluator(NASBENCH201, task, recipe, recipe.epochs)
    network = evaluator._network(NASBENCH201.from_str(text))
    return Training(network, recipe, task.training_set(recipe, seed), seed, **changes)


def weights(training):
    return {name: value.clone() for name, value in training.network.state_dict().items()}


def test_colours_are_learned(task):
    found = list(training(task, replace(RECIPE, epochs=16)).run(16))
    assert [epoch.epoch for epoch in found] == list(range(1, 17))
    assert found[-1].loss < 0.5 * found[0].loss
    assert found[-1].accuracy > 0.8


class _KilledError(Exception):
    pass


def stop_at(training, step):
    """Ends a training in the middle, as a killed process would."""
    one_step = training._one_step

    def stopping(images, labels):
        if training.step == step:
            raise _KilledError
        return one_step(images, labels)

    training._one_step = stopping


@pytest.mark.parametrize("step", [2, 4, 9])  # in an epoch of four steps, after it, near the end
def test_a_killed_training_continues_bit_by_bit(task, tmp_path, monkeypatch, step):
    monkeypatch.setattr("trainers.training.checkpoint._SAVE_SECONDS", 0.0)
    killed, path = training(task), tmp_path / "deep" / "t.safetensors"
    stop_at(killed, step)
    with pytest.raises(_KilledError):
        list(killed.run(3, path))
    torch.manual_seed(99)
    continued(task, path, step)


def continued(task, path, step):
    """Checks that what was saved there after so many steps ends as a training never stopped."""
    whole, again = training(task), training(task)
    curve = [(epoch.loss, epoch.accuracy) for epoch in whole.run(3)]
    again.load(path)
    assert again.step == step
    list(again.run(3, path))
    assert [(epoch.loss, epoch.accuracy) for epoch in again.curve] == curve
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name
        assert torch.equal(again.average[name], whole.average[name]), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_ends_its_step_and_is_saved(task, tmp_path, number):
    before = signal.signal(number, signal.default_int_handler)
    begun, path = training(task), tmp_path / "t.safetensors"
    one_step = begun._one_step

    def interrupted(images, labels):
        if begun.step == 5:
            signal.raise_signal(number)
        return one_step(images, labels)

    begun._one_step = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            list(begun.run(3, path))
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    continued(task, path, step=6)


def test_an_interrupted_reading_of_losses_loses_none(task, tmp_path):
    class Interrupting(list):
        def clear(self):
            if self:
                super().clear()
                signal.raise_signal(signal.SIGINT)

    begun, path = training(task), tmp_path / "t.safetensors"
    begun._unread = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        list(begun.run(3, path))
    continued(task, path, step=4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, _KilledError])
def test_a_training_that_ends_while_it_is_measured_continues(task, tmp_path, monkeypatch, error):
    monkeypatch.setattr("trainers.training.checkpoint._SAVE_SECONDS", 0.0)

    def measure(network):
        raise error

    path = tmp_path / "t.safetensors"
    with pytest.raises(error):
        list(training(task, measure=measure).run(3, path))
    continued(task, path, step=4)


@pytest.mark.parametrize("number", [1, 2])  # averaged weights are put in, then out again
def test_an_interrupt_while_averaged_weights_come_and_go_loses_none(task, tmp_path, number):
    begun, path, loads = training(task), tmp_path / "t.safetensors", []
    load = begun.network.load_state_dict

    def interrupted(state):
        loads.append(state)
        if len(loads) == number:
            load(dict(list(state.items())[:3]), strict=False)
            signal.raise_signal(signal.SIGINT)
        return load(state)

    begun.network.load_state_dict = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(begun.run(3, path))
    continued(task, path, step=4)


def test_checkpoints_of_others_and_damaged_ones_are_refused(task, tmp_path):
    path = tmp_path / "t.safetensors"
    training(task, identity={"width": 1, "random": 2}).save(path)
    with pytest.raises(NoCheckpointError, match=r"another training \(width is 1 there, 2 here\)$"):
        training(task, identity={"width": 2, "random": 2}).load(path)
    with pytest.raises(NoCheckpointError, match=r"\(random is 2 there, None here, width is 1 "):
        training(task).load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(NoCheckpointError):
        training(task, identity={"width": 1, "random": 2}).load(path)


@pytest.mark.parametrize(("ema", "kept"), [(0.9, "average"), (0.0, "network")])
def test_an_ended_training_keeps_what_is_measured(task, tmp_path, ema, kept):
    recipe, path = replace(RECIPE, ema=ema, epochs=2), tmp_path / "t.safetensors"
    ended, again = training(task, recipe), training(task, recipe)
    for groups in ({"network", "momentum", kept}, {kept}):  # after the first epoch it goes on
        next(ended.run(2, path))
        with safe_open(path, framework="pt") as file:
            assert {name.split(".")[0] for name in file.keys()} == groups  # noqa: SIM118
    with torch.no_grad():
        again.network.classifier.weight.zero_()
    again.load(path)
    assert again.curve == ended.curve
    assert list(again.run(2, path)) == []
    with ended.averaged() as network, again.averaged() as loaded:
        for name, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_a_training_goes_on_where_nothing_can_be_saved(task, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert len(list(training(task).run(1, tmp_path / "file" / "t.safetensors"))) == 1
    assert list(tmp_path.glob("*.tmp")) == []
    assert "cannot be written" in caplog.text


class _Small(nn.Module):
    """A linear network that has memory for so many images at a time."""

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, []
        self.linear = nn.Linear(3 * 16 * 16, 3)

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("synthetic")
        self.seen.append(len(images))
        return self.linear(images.flatten(1))


@pytest.mark.parametrize(("most", "parts"), [(8, 1), (5, 2), (2, 4)])
def test_a_batch_too_large_for_the_memory_is_split_to_the_same_step(task, most, parts, caplog):
    found = []
    recipe = replace(RECIPE, ema=0.0, clip=1.0)
    for limit in (8, most):
        torch.manual_seed(0)
        begun = Training(_Small(limit), recipe, task.training_set(recipe, 1), 1)
        images, labels = next(begun.images.train.epoch(0))
        begun._one_step(images, labels)
        found.append(begun)
    assert found[1].parts == parts
    assert ("out of memory" in caplog.text) == (parts > 1)
    assert sum(found[1].network.seen[-parts:]) == 8
    for a, b in zip(found[0].network.parameters(), found[1].network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_memory_for_one_image_is_too_little(task):
    with pytest.raises(torch.OutOfMemoryError):
        list(Training(_Small(1), RECIPE, task.training_set(RECIPE, 1), 1).run(1))


def test_a_loss_that_is_no_number_ends_the_trial(task):
    begun = training(task)
    with torch.no_grad():
        begun.network.classifier.bias[0] = math.nan
    with pytest.raises(DivergedError, match="the loss is nan in epoch 1") as error:
        list(begun.run(1))
    assert isinstance(error.value, EvaluationError)


def test_weights_that_are_no_numbers_are_never_saved(task, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.training.checkpoint._SAVE_SECONDS", 0.0)
    begun, again, path = training(task), training(task), tmp_path / "t.safetensors"
    one_step = begun._one_step

    def step(images, labels):
        if begun.step == 2:
            begun.network.classifier.bias.data[0] = math.nan
        return one_step(images, labels)

    begun._one_step = step
    with pytest.raises(DivergedError):
        list(begun.run(1, path))
    again.load(path)
    assert again.step == 2
    assert all(value.isfinite().all() for value in weights(again).values())


def test_averaged_weights_are_the_stated_average(task):
    """average <- d average + (1 - d) w after each step, with d = min(ema, (1 + n) / (10 + n))."""
    begun, expected = training(task, replace(RECIPE, ema=0.2)), {}
    one_step = begun._one_step

    def step(images, labels):
        before = {name: value.clone() for name, value in begun.average.items()}
        loss = one_step(images, labels)
        decay = min(0.2, (1 + begun.step) / (10 + begun.step))
        for name, value in weights(begun).items():
            moves = value.is_floating_point()
            expected[name] = before[name].lerp(value, 1 - decay) if moves else value
        return loss

    begun._one_step = step
    list(begun.run(1))
    assert begun.average.keys() == expected.keys()
    assert all(torch.equal(begun.average[name], expected[name]) for name in expected)


def test_what_is_loaded_lies_in_memory_as_the_network_does(task, tmp_path):
    """Else every step of a resumed training is slow on a GPU."""
    path, recipe = tmp_path / "t.safetensors", replace(RECIPE, epochs=2)
    begun, again = (
        Training(
            CellNetwork(NASBENCH201.from_str(CONV), 3).to(memory_format=torch.channels_last),
            recipe,
            task.training_set(recipe, 1),
            1,
        )
        for _ in range(2)
    )
    next(begun.run(2, path))
    again.load(path)
    for parameter, state in again.optimizer.state.items():
        assert state["momentum_buffer"].stride() == parameter.stride()
    for name, value in again.network.state_dict().items():
        assert again.average[name].stride() == value.stride()


def test_learning_rate():
    recipe = replace(RECIPE, epochs=10, warm_up=2.0, learning_rate=0.4)
    assert learning_rate(recipe, 1.0) == pytest.approx(0.2)
    assert learning_rate(recipe, 2.0) == pytest.approx(0.4)
    assert learning_rate(recipe, 6.0) == pytest.approx(0.2)
    assert learning_rate(recipe, 10.0) == pytest.approx(0.0)


def test_a_learning_rate_by_epoch():
    recipe = replace(RECIPE, epochs=12, warm_up=0.0, by_epoch=True, learning_rate=0.1)
    assert learning_rate(recipe, 0.0) == learning_rate(recipe, 0.99) == 0.1
    assert learning_rate(recipe, 6.0) == learning_rate(recipe, 6.5) == pytest.approx(0.05)


def test_the_optimiser_follows_the_schedule(task):
    begun = training(task)
    list(begun.run(3))
    last = RECIPE.learning_rate * 0.5 * (1 + math.cos(math.pi * 11 / 12))
    assert begun.optimizer.param_groups[0]["lr"] == pytest.approx(last)


@pytest.mark.parametrize("decay_all", [True, False])
def test_biases_and_norms_decay_if_asked(task, decay_all):
    recipe = replace(RECIPE, decay_all=decay_all, weight_decay=0.1)
    groups = training(task, recipe).optimizer.param_groups
    decays = {p.ndim > 1: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {True: 0.1, False: 0.1 if decay_all else 0.0}


def test_averaged_weights_are_measured_and_put_back(task):
    begun = training(task)
    list(begun.run(1))
    raw = weights(begun)
    with begun.averaged() as network:
        assert all(
            torch.equal(value, begun.average[name]) for name, value in network.state_dict().items()
        )
    assert all(torch.equal(value, raw[name]) for name, value in weights(begun).items())
    assert not torch.equal(raw["classifier.weight"], begun.average["classifier.weight"])


def test_top_1_and_top_5():
    class Fixed(nn.Module):
        def forward(self, images):
            return -torch.arange(8.0).repeat(len(images), 1)  # ranks the classes 0, 1, 2, ...

    class Batches:
        def epoch(self, number):
            yield torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 4, 5])
            yield torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([3])

    assert accuracy(Fixed(), Batches(), Normalisation()) == pytest.approx((2 / 5, 4 / 5))


class TestAugmentation:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 16, 16), dtype=torch.uint8, generator=generator)

    def test_normalisation(self):
        by_itself = Normalisation.of(self.images.split(7))
        found = by_itself(self.images)
        x = self.images.double() / 255
        assert by_itself.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), rel=1e-12)
        assert by_itself.std == pytest.approx(x.std((0, 2, 3)).tolist(), rel=1e-12)
        assert found.mean((0, 2, 3)).abs().max() < 1e-5
        assert (found.std((0, 2, 3)) - 1).abs().max() < 1e-3
        as_fractions = by_itself(self.images.float() / 255)
        torch.testing.assert_close(found, as_fractions)

    def test_half_are_mirrored_as_a_whole(self):
        augment = Augmentation(replace(RECIPE, cutout=0), Normalisation())
        torch.manual_seed(0)
        found, plain = augment(self.images), Normalisation()(self.images)
        same = (found == plain).flatten(1).all(1)
        mirrored = (found == plain.flip(-1)).flatten(1).all(1)
        assert (same | mirrored).all()
        assert 20 < mirrored.sum() < 44

    def test_a_square_is_cut_out(self):
        augment = Augmentation(replace(RECIPE, cutout=5, flip=False), Normalisation())
        torch.manual_seed(0)
        cut = (augment(self.images) == 0).all(1)  # (B, R, R)
        sizes = cut.flatten(1).sum(1)
        assert sizes.max() == 25
        assert sizes.min() >= 9  # a corner
        rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
        assert torch.equal(rows * columns, sizes)

    @pytest.mark.parametrize("policy", ["randaugment", "autoaugment-cifar10"])
    def test_policies(self, policy):
        pytest.importorskip("kornia")
        augment = Augmentation(replace(RECIPE, policy=policy, cutout=0), Normalisation())
        found = []
        for _ in range(2):
            torch.manual_seed(3)
            found.append(augment(self.images))
        assert torch.equal(*found)
        assert found[0].isfinite().all()
        assert not torch.equal(found[0], Normalisation()(self.images))

    @pytest.mark.parametrize("policy", ["randaugment", "autoaugment-cifar10"])
    def test_policies_draw_for_every_picture(self, policy):
        pytest.importorskip("kornia")
        recipe = replace(RECIPE, policy=policy, cutout=0, flip=False)
        augment = Augmentation(recipe, Normalisation())
        equal = self.images[:1].expand(64, -1, -1, -1).contiguous()
        for batch in range(8):
            torch.manual_seed(batch)
            assert len(augment(equal).unique(dim=0)) > 20

    @pytest.mark.parametrize(
        ("name", "strength"),
        [
            ("brightness", lambda x: x.mean((1, 2, 3))),
            ("contrast", lambda x: x.mean((1, 2, 3))),
            ("color", lambda x: x.std(1).mean((1, 2))),
            ("sharpness", lambda x: x.std((2, 3)).mean(1)),
        ],
    )
    def test_randaugment_goes_both_ways(self, name, strength, monkeypatch):
        """On pictures about grey, of which nothing is cut off."""
        module = "kornia.augmentation.auto.rand_augment.rand_augment"
        kornia = pytest.importorskip(module)
        policy = [one for one in kornia.default_policy if one[0][0] == name]
        monkeypatch.setattr(f"{module}.default_policy", policy)
        recipe = replace(RECIPE, policy="randaugment", cutout=0, flip=False)
        augment = Augmentation(recipe, Normalisation((0, 0, 0), (1, 1, 1)))
        grey = (115 + self.images[:1] // 10).expand(256, -1, -1, -1).contiguous()
        torch.manual_seed(0)
        found, before = augment(grey), grey / 255
        assert found.mean().item() == pytest.approx(before.mean().item(), abs=0.05)
        change = strength(found) - strength(before)
        assert min((change < -1e-3).sum(), (change > 1e-3).sum()) > 40

    @pytest.mark.parametrize(
        ("name", "twice"), [("solarize", [51, 153, 25]), ("solarize_add", [117, 153, 230])]
    )
    def test_randaugment_solarizes_little(self, name, twice, monkeypatch):
        """As torchvision (from 178.5 on) and the authors (33 more below 128) have it."""
        module = "kornia.augmentation.auto.rand_augment.rand_augment"
        pytest.importorskip(module)
        monkeypatch.setattr(f"{module}.default_policy", [[(name, 0.0, 1.0)]])
        recipe = replace(RECIPE, policy="randaugment", cutout=0, flip=False)
        augment = Augmentation(recipe, Normalisation((0, 0, 0), (1, 1, 1)))
        before = torch.tensor([51, 153, 230], dtype=torch.uint8).view(1, 3, 1, 1)
        found = (255 * augment(before.expand(-1, -1, 4, 4).contiguous())).round()
        assert found[0, :, 0, 0].tolist() == twice

    @pytest.mark.parametrize(
        ("name", "magnitude", "result"),
        [
            ("solarize", 2, [51, 153, 25]),  # from 198 or 205 on
            ("solarize", 8, [204, 102, 25]),  # from 28 or 51 on
            ("posterize", 7, [48, 152, 224]),  # 5 bits
        ],
    )
    def test_autoaugment_magnitudes_are_strengths(self, name, magnitude, result, monkeypatch):
        """As torchvision and, where two numbers are given, the authors have it."""
        module = "kornia.augmentation.auto.autoaugment.autoaugment"
        pytest.importorskip(module)
        monkeypatch.setattr(f"{module}.cifar10_policy", [[(name, 1.0, magnitude)]])
        recipe = replace(RECIPE, policy="autoaugment-cifar10", cutout=0, flip=False)
        augment = Augmentation(recipe, Normalisation((0, 0, 0), (1, 1, 1)))
        before = torch.tensor([51, 153, 230], dtype=torch.uint8).view(1, 3, 1, 1)
        found = (255 * augment(before.expand(-1, -1, 4, 4).contiguous())).round()
        assert found[0, :, 0, 0].tolist() == result

    @pytest.mark.parametrize("policy", ["randaugment", "autoaugment-cifar10"])
    def test_what_is_moved_into_a_picture_is_of_the_mean_colour(self, policy, monkeypatch):
        """So a picture of that colour stays what it is wherever it is moved."""
        auto = pytest.importorskip("kornia.augmentation.auto")
        most = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.1}
        ranges = [[(name, -one, one)] for name, one in (most | {"translate_y": 0.1}).items()]
        rand_augment = "kornia.augmentation.auto.rand_augment.rand_augment"
        monkeypatch.setattr(f"{rand_augment}.default_policy", ranges)
        found = auto.AutoAugment([[(name, 0.9, 9)] for ((name, _, _),) in ranges])
        monkeypatch.setattr(auto, "AutoAugment", lambda _: found)
        augment = Augmentation(
            replace(RECIPE, policy=policy, cutout=0, flip=False), Normalisation((0.25, 0.5, 0.75))
        )
        colour = torch.tensor([64, 128, 191], dtype=torch.uint8).view(1, 3, 1, 1)
        images = colour.expand(64, -1, 16, 16).contiguous()
        torch.manual_seed(0)
        assert augment(images).abs().max() < 0.02
        assert (augment(self.images) - Normalisation()(self.images)).abs().max() > 1

    def test_each_picture_stays_in_its_place(self):
        images = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        torch.manual_seed(0)
        added = _Choice([lambda x: x + 0.25, lambda x: x + 0.5], times=2)(images) - images
        assert added.unique().tolist() == [0.5, 0.75, 1.0]
        assert (added == added[:, :1, :1, :1]).all()


def test_statistics_are_found_once_for_equal_images(task, data, monkeypatch):
    seen = []
    original = ImageTask.training_images
    monkeypatch.setattr(
        ImageTask, "training_images", lambda *of: (seen.append(of[0]), original(*of))[1]
    )
    monkeypatch.setattr("trainers.training.task._statistics", {})
    first = task.normalisation(RECIPE)
    equal = ImageTask(ImageOptions(data=data, resolution=16, held_out=9), NASBENCH201, task.place)
    assert equal.normalisation(replace(RECIPE, learning_rate=1.0)) == first
    assert len(seen) == 1
    others = (task.at_resolution(8), RECIPE), (task.with_fraction(0.5), RECIPE)
    for other, recipe in (*others, (task, replace(RECIPE, centre=Crop.center(0.5)))):
        other.normalisation(recipe)
    assert len(seen) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
    assert find_recipe(name, epochs=7).epochs == 7
    assert 0 < find_recipe(name).learning_rate < 1


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("name", RECIPES)
def test_short_trainings_warm_up_and_decay(name, epochs):
    recipe = find_recipe(name, epochs)
    assert learning_rate(recipe, 0.2 * epochs) > 0.9 * recipe.learning_rate
    assert learning_rate(recipe, 0.99 * epochs) < 0.01 * recipe.learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_themselves_at_their_own_length(name):
    assert find_recipe(name) == find_recipe(name, RECIPES[name].epochs) == RECIPES[name]


def test_the_short_trainings_of_the_benchmark_are_as_it_had_them():
    recipe = find_recipe("nasbench201", 12)
    last = 0.1 * 0.5 * (1 + math.cos(math.pi * 11 / 12))
    assert learning_rate(recipe, 11.0) == learning_rate(recipe, 11.9) == pytest.approx(last)


def test_unknown_recipes():
    with pytest.raises(UserError, match="unknown recipe 'x': choose from nasbench201"):
        find_recipe("x")
    with pytest.raises(UserError, match="at least 1"):
        find_recipe("small", epochs=0)


def test_where_memory_is_short_only_what_is_measured_by_is_cached(task, tmp_path, monkeypatch):
    wanted = list(task.held_out_images(RECIPE).epoch(0))
    (tmp_path / "cache").rename(tmp_path / "of all 45")
    monkeypatch.setattr("trainers.images.pixels._memory", lambda: 4 * 3 * 16**2 * 10)
    held_out = list(task.held_out_images(RECIPE).epoch(0))
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert len(np.load(file, mmap_mode="r")) == 9
    for (x, y), (a, b) in zip(held_out, wanted, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    list(task.training_set(replace(RECIPE, crop=Crop.random_resized()), 0).train.epoch(0))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


class TestTrainingEvaluator:
    def evaluator(self, data, tmp_path, **changes):
        options = ImageOptions(data=data, resolution=16, held_out=9)
        task = ImageTask(options, NASBENCH201, Machine(cache=tmp_path / "cache"))
        return TrainingEvaluator(
            NASBENCH201,
            task,
            replace(RECIPE, **changes),
            RECIPE.epochs,
            checkpoints=tmp_path / "checkpoints",
        )

    def test_measurement(self, data, tmp_path):
        arch = NASBENCH201.from_str(CONV)
        found = self.evaluator(data, tmp_path).evaluate(arch, seed=3)
        assert len(found.curve) == 3
        assert found.curve[-1] == found.value
        assert 0 <= found.metrics["test"] <= 1
        assert cost(arch, Task(3, 16)).items() <= found.metrics.items()
        assert found.seconds > 0

    def test_more_epochs_of_a_training_go_on_with_it(self, data, tmp_path, caplog):
        arch = NASBENCH201.from_str(CONV)
        brief, whole = (self.evaluator(data, tmp_path / name) for name in ("brief", "whole"))
        first = brief.at(12).evaluate(arch, seed=3)
        assert len(first.curve) == 1
        (checkpoint,) = (tmp_path / "brief" / "checkpoints").iterdir()
        steps = []
        original = Training._one_step

        def counted(training, images, labels):
            steps.append(training.step)
            return original(training, images, labels)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "_one_step", counted)
            after = brief.evaluate(arch, seed=77)  # another trial of the same architecture
        assert steps == list(range(4, 12))
        undisturbed = whole.evaluate(arch, seed=3)
        assert (after.curve, after.metrics) == (undisturbed.curve, undisturbed.metrics)
        assert after.curve[0] == first.value
        assert caplog.text == ""
        checkpoint.write_bytes(b"damaged")
        assert brief.at(12).evaluate(arch, seed=3).curve == first.curve
        assert "restarting the training from scratch" in caplog.text

    def test_another_recipe_or_network_is_another_training(self, data, tmp_path):
        arch, other = NASBENCH201.from_str(CONV), NASBENCH201.from_str(POOL)
        first, second = (
            self.evaluator(data, tmp_path, **changes) for changes in ({}, {"learning_rate": 0.05})
        )
        assert len({first._name(arch), first._name(other), second._name(arch)}) == 3
        assert first._name(arch) == first.at(12)._name(arch)

    def test_epochs_beyond_the_recipe(self, data, tmp_path):
        evaluator = self.evaluator(data, tmp_path)
        with pytest.raises(UserError, match="epochs must be 1 to 3, not 4"):
            evaluator.at(270)
        assert [evaluator.at(epochs).epochs for epochs in (1, 12, 100, 200)] == [1, 1, 2, 3]

    def test_brief_training_may_have_fewer_images_or_pixels(self, data, tmp_path):
        whole = self.evaluator(data, tmp_path)
        images = replace(whole, fidelity="images").at(100)
        pixels = replace(whole, fidelity="resolution").at(50)
        assert set(images.task.train) < set(whole.task.train)
        assert len(images.task.train) == pytest.approx(len(whole.task.train) / 2, abs=1.5)
        assert (images.task.resolution, pixels.task.resolution) == (16, 8)
        assert (images.epochs, pixels.epochs) == (3, 3)
        arch = NASBENCH201.from_str(CONV)
        assert len({one._name(arch) for one in (whole, images, pixels)}) == 3
        assert pixels.evaluate(arch, seed=0).metrics["macs"] == cost(arch, Task(3, 8))["macs"]
        assert replace(whole, fidelity="resolution").at(1).task.resolution == 8


class TestSupernet:
    @pytest.fixture
    def task(self, data, tmp_path):
        options = ImageOptions(data=data, resolution=32, held_out=9)
        return ImageTask(options, MOBILENETV3, Machine(cache=tmp_path / "cache"))

    @pytest.fixture
    def supernet(self, task):
        """Batch norms that have seen nothing: only calibration makes it see colours."""
        torch.manual_seed(0)
        return Supernet(3).eval()

    def test_evaluation(self, task, supernet):
        evaluator = SupernetEvaluator(task, RECIPE, supernet)
        before = {name: value.clone() for name, value in supernet.state_dict().items()}
        found = evaluator.evaluate(SMALLEST, seed=0)
        assert evaluator.evaluate(SMALLEST, seed=1).value == found.value
        assert cost(SMALLEST, Task(3, 32)).items() <= found.metrics.items()
        assert all(
            torch.equal(value, before[name]) for name, value in supernet.state_dict().items()
        )

    def test_batch_norms_are_those_of_the_subnet(self, task, supernet, monkeypatch):
        networks = []
        monkeypatch.setattr(
            "trainers.evaluators.supernet.accuracy",
            lambda network, *_: (networks.append(network), (0, 0))[1],
        )
        monkeypatch.setattr(ImageTask, "_test_images", lambda *_: None)
        monkeypatch.setattr("trainers.evaluators.supernet._BATCH", 12)
        recipe = replace(RECIPE, batch_size=12)
        SupernetEvaluator(task, RECIPE, supernet).evaluate(SMALLEST, seed=0)
        (network,) = networks
        batches = list(task.training_images(recipe, 2_000).epoch(0))
        assert [len(set(labels.tolist())) for _, labels in batches] == [3, 3, 3]  # not by class
        images = torch.cat([x for x, _ in batches])
        seen = []
        network.first_conv.conv.register_forward_hook(lambda m, i, output: seen.append(output))
        with torch.no_grad():
            network.eval()(task.normalisation(recipe)(images))
        mean = seen[0].mean((0, 2, 3))
        torch.testing.assert_close(network.first_conv.bn.running_mean, mean, rtol=0.01, atol=0.01)

    def test_one_step_reaches_the_networks_it_should(self, task, supernet):
        """The gradient is the mean of those of labels and of imitations, by their definition."""
        backward, images = sandwich(1, 0.1), torch.randn(4, 3, 32, 32)
        labels = torch.tensor([0, 1, 2, 0])
        (drawn,) = MOBILENETV3.sample(1, np.random.default_rng(5))
        logits = supernet(images, LARGEST)
        expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        taught = logits.detach().softmax(-1)
        total = expected
        for arch in (SMALLEST, drawn):
            total = total - (taught * supernet(images, arch).log_softmax(-1)).sum(-1).mean()
        supernet.zero_grad()
        (0.5 * total / 3).backward()
        gradients = {name: p.grad for name, p in supernet.named_parameters()}
        supernet.zero_grad()
        loss = backward(supernet, images, labels, 0.5, 5)
        torch.testing.assert_close(loss, expected.detach())
        for name, parameter in supernet.named_parameters():
            if gradients[name] is None:  # a kernel's transform that none of the three needs
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "device", "capability", "dtype"),
    [
        ("auto", "cuda", (9, 0), torch.bfloat16),
        ("auto", "cuda", (8, 0), torch.bfloat16),
        ("auto", "cuda", (7, 5), torch.float32),  # a T4 emulates it, without cuDNN
        ("auto", "cpu", None, torch.float32),
        ("bfloat16", "cpu", None, torch.bfloat16),
        ("float32", "cuda", (9, 0), torch.float32),
    ],
)
def test_precision(precision, device, capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    recipe = find_recipe("small", precision=precision)
    assert recipe.dtype(torch.device(device)) == dtype


def test_training_in_bfloat16_is_close_to_that_in_float32(task):
    calm = replace(RECIPE, learning_rate=0.03)  # at 0.1, rounding errors grow by chance
    losses = {
        precision: next(training(task, replace(calm, precision=precision)).run(1)).loss
        for precision in ("float32", "bfloat16")
    }
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)


@pytest.mark.parametrize("with_supernet", [False, True])
def test_losses_are_in_float32(task, with_supernet, monkeypatch):
    """On a GPU, autocast does not see to it: it leaves logarithms of bfloat16 in bfloat16."""
    seen = []

    def watched(logits, *args, found=F.cross_entropy, **options):
        seen.append(logits.dtype)
        return found(logits, *args, **options)

    monkeypatch.setattr(F, "cross_entropy", watched)
    recipe = replace(RECIPE, precision="bfloat16", ema=0.0)
    more = {"backward": sandwich(1, 0.1), "measure": lambda network: 0.5} if with_supernet else {}
    network = Supernet(3, width=0.25) if with_supernet else training(task, recipe).network
    begun = Training(network, recipe, task.training_set(recipe, 1), 1, **more)
    begun._one_step(*next(begun.images.train.epoch(0)))
    assert seen == [torch.float32] * (3 if with_supernet else 1)
