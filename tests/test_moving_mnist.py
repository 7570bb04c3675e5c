import math
import pickle
from contextlib import nullcontext
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules import MovingMNISTDataModule, load_digits
from datamodules.moving_mnist import MovingMNIST
from datamodules.moving_mnist_file import MovingMNISTFile
from datamodules.random_streams import stream_key, uniform
from datamodules.trajectories import draw_trajectories

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)


def make(**options):
    defaults = {
        "context_length": 4,
        "target_length": 3,
        "split": "train",
        "size": 100,
        "num_digits": 2,
        "frame_size": (64, 64),
        "speed": (3.6, 3.6),
        "seed": 0,
    }
    return MovingMNIST(IMAGES, **(defaults | options))


def video(batch):
    return torch.cat([batch["context"], batch["target"]], dim=-4)


def datamodule(**options):
    defaults = {"digits": "builtin", "train_size": 40, "val_size": 12, "test_size": 10}
    return MovingMNISTDataModule(**(defaults | options))


def epoch(loader):
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def save(path, frames):
    np.save(path, frames)
    return str(path)


# --- frames, against one sequence at a time, drawn step by step and pixel by pixel ---------------


def slow_sequence(draws, frame_size, speed, steps, images):
    """Srivastava et al.'s generator, from random numbers in [0, 1) of each digit."""
    frames = np.zeros((steps, *frame_size), dtype=np.uint8)
    for image, row, column, turn, pace in draws:
        picture = images[int(image * len(images))]
        free = [frame_size[0] - 28, frame_size[1] - 28]
        position = [row * free[0], column * free[1]]
        length = speed[0] + (speed[1] - speed[0]) * pace
        velocity = [math.sin(2 * math.pi * turn) * length, math.cos(2 * math.pi * turn) * length]
        for step in range(steps):
            for axis in range(2):
                position[axis] += velocity[axis]
                if position[axis] <= 0:
                    position[axis] = 0
                    velocity[axis] = -velocity[axis]
                elif position[axis] >= free[axis]:
                    position[axis] = free[axis]
                    velocity[axis] = -velocity[axis]
            top, left = int(position[0]), int(position[1])
            for y in range(28):
                for x in range(28):
                    pixel = picture[y, x]
                    if pixel > frames[step, top + y, left + x]:
                        frames[step, top + y, left + x] = pixel
    return frames


@pytest.mark.parametrize(
    ("frame_size", "num_digits", "speed"),
    [
        ((64, 64), 2, (3.6, 3.6)),
        ((40, 52), 3, (3.0, 5.0)),
        ((28, 33), 1, (9.0, 9.0)),
        ((64, 64), 2, (0.0, 0.0)),
    ],
)
def test_frames_equal_those_of_a_slow_generator(frame_size, num_digits, speed):
    dataset = make(frame_size=frame_size, num_digits=num_digits, speed=speed)
    batch = dataset.__getitems__([5, 77])
    draws = uniform(stream_key(0, "train"), np.array([5, 77]), num_digits * 5)
    for frames, numbers in zip(video(batch), draws.reshape(2, num_digits, 5).tolist(), strict=True):
        expected = slow_sequence(numbers, frame_size, speed, 7, IMAGES)
        np.testing.assert_array_equal(frames[:, 0], expected)


# --- trajectories ---------------------------------------------------------------------------------


def trajectories(count=20_000, num_frames=20, free=(36, 36), speed=(3.6, 3.6)):
    return draw_trajectories(
        stream_key(0, "train"),
        np.arange(count),
        num_images=10,
        num_digits=2,
        num_frames=num_frames,
        free=free,
        speed=speed,
    )


def test_starts_are_uniform_over_the_free_range():
    # Without movement the first frame shows the start. 36 equally likely rows and columns;
    # chi-squared with 35 degrees of freedom exceeds 80 with a probability of 2e-5.
    _, positions = trajectories(num_frames=1, speed=(0, 0))
    for axis in range(2):
        counts = np.bincount(positions[..., axis].ravel(), minlength=36)
        assert len(counts) == 36
        expected = positions[..., axis].size / 36
        assert ((counts - expected) ** 2 / expected).sum() < 80


def test_directions_are_uniform_and_speeds_are_as_asked():
    # In a range too wide for walls to matter, truncated by at most one pixel at each end.
    _, positions = trajectories(num_frames=51, free=(10**9, 10**9))
    way = (positions[:, -1] - positions[:, 0]).reshape(-1, 2) / 50
    speed = np.hypot(*way.T)
    assert np.abs(speed - 3.6).max() < 2 / 50
    counts, _ = np.histogram(np.arctan2(*way.T), bins=36, range=(-np.pi, np.pi))
    expected = len(way) / 36
    assert ((counts - expected) ** 2 / expected).sum() < 80  # as above


def test_speed_range_is_drawn_uniformly_for_each_digit():
    _, positions = trajectories(
        num_frames=1001, count=2000, free=(10**10, 10**10), speed=(3.0, 5.0)
    )
    speed = np.hypot(*np.moveaxis((positions[:, -1] - positions[:, 0]) / 1000, -1, 0))
    assert speed.min() > 2.99
    assert speed.max() < 5.01
    deciles = np.percentile(speed, np.arange(10, 100, 10))
    np.testing.assert_allclose(deciles, np.arange(3.2, 5, 0.2), atol=0.06)
    assert abs(np.corrcoef(speed.T)[0, 1]) < 0.1


def test_digits_stay_in_the_frame_and_touch_every_wall():
    _, positions = trajectories(count=2000, free=(36, 20), speed=(3.6, 60.0))
    assert positions.min(axis=(0, 1, 2)).tolist() == [0, 0]
    assert positions.max(axis=(0, 1, 2)).tolist() == [36, 20]


def test_all_images_are_drawn_equally_often_and_independently():
    images, _ = trajectories()
    counts = np.bincount(images[:, 0] * 10 + images[:, 1], minlength=100)
    # chi-squared with 99 degrees of freedom exceeds 165 with a probability of 3e-5
    assert ((counts - 200) ** 2 / 200).sum() < 165


def test_random_numbers_are_those_of_splitmix64():
    # First outputs for the seed 1234567, https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    numbers = uniform(np.uint64(1234567), np.array([0, 1, 2, 3, 4]), 1)
    assert numbers[:, 0].tolist() == [(value >> 11) / 2**53 for value in known]
    rows = uniform(np.uint64(1234567), np.array([1, 0]), 2)
    np.testing.assert_array_equal(rows, numbers[[2, 3, 0, 1], 0].reshape(2, 2))


# --- randomness contract --------------------------------------------------------------------------


def test_sample_is_the_same_alone_and_in_any_batch():
    dataset = make()
    batch = dataset.__getitems__([9, 3, 250, 3])
    for place, index in enumerate([9, 3, 250, 3]):
        single = dataset[index]
        assert single["index"] == index
        assert torch.equal(video(single), video(batch)[place])


@pytest.mark.parametrize(("batch_size", "num_workers"), [(8, 0), (10, 0), (8, 2)])
def test_training_samples_do_not_depend_on_batch_size_or_workers(batch_size, num_workers):
    data = datamodule(batch_size=batch_size, num_workers=num_workers)
    data.setup("fit")
    assert data.train_set is not None
    samples = epoch(data.train_dataloader())
    assert samples["index"].tolist() == list(range(40))
    assert torch.equal(video(samples), torch.stack([video(data.train_set[i]) for i in range(40)]))


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "val"}, {"split": "test"}])
def test_other_seed_and_other_split_give_other_sequences(change):
    indices = np.arange(200)
    positions = make().trajectories(indices).positions
    others = make(**change).trajectories(indices).positions
    assert not (positions == others).all(axis=(1, 2, 3)).any()


def test_training_goes_on_past_an_epoch_without_repeating():
    positions = make(size=100).trajectories(np.arange(5000)).positions
    assert len(np.unique(positions.reshape(5000, -1), axis=0)) == 5000


def test_index_far_beyond_any_epoch_is_drawn_like_the_first():
    sample = make()[10**12]
    assert sample["index"] == 10**12
    assert video(sample).float().mean() > 0


def test_splits_share_no_digit_image():
    data = datamodule()
    data.setup()
    seen = [data.train_set.images, data.val_set.images, data.test_set.images]
    for images, split in zip(seen, ["train", "val", "test"], strict=True):
        np.testing.assert_array_equal(images, load_digits("builtin", "data", split))
    flat = np.concatenate(seen).reshape(-1, 28 * 28)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_dataset_gives_the_same_after_the_way_to_a_spawned_worker():
    dataset = make()
    assert torch.equal(video(pickle.loads(pickle.dumps(dataset))[7]), video(dataset[7]))


# --- datamodule -----------------------------------------------------------------------------------


def test_batch_has_the_shapes_and_types_of_the_contract():
    data = datamodule(context_length=5, target_length=7, frame_size=[32, 48], batch_size=4)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch["context"].shape == (4, 5, 1, 32, 48)
        assert batch["target"].shape == (4, 7, 1, 32, 48)
        assert batch["context"].dtype == batch["target"].dtype == torch.uint8
        assert batch["index"].dtype == torch.int64
        assert batch["context"].is_contiguous()
        assert batch["target"].is_contiguous()
    assert (data.channels, data.frame_size) == (1, (32, 48))


def test_defaults_are_those_of_the_benchmark():
    data = MovingMNISTDataModule()
    assert (data.num_digits, data.frame_size, data.speed) == (2, (64, 64), (3.6, 3.6))
    assert (data.context_length, data.target_length) == (10, 10)
    assert (data.train_size, data.test_size) == (10_000, 10_000)


@pytest.mark.parametrize(
    ("stage", "made"),
    [
        ("fit", {"train_set", "val_set"}),
        ("validate", {"val_set"}),
        ("test", {"test_set"}),
        (None, {"train_set", "val_set", "test_set"}),
    ],
)
def test_stage_makes_only_what_it_needs(stage, made):
    data = datamodule()
    data.setup(stage)
    assert {name for name in ("train_set", "val_set", "test_set") if getattr(data, name)} == made


def test_validation_and_test_yield_their_sizes_whole():
    data = datamodule(batch_size=8)
    data.setup()
    assert epoch(data.val_dataloader())["index"].tolist() == list(range(12))
    assert epoch(data.test_dataloader())["index"].tolist() == list(range(10))


def test_missing_digits_are_reported_before_training(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("offline")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    with pytest.raises(FileNotFoundError, match="use `digits: builtin`"):
        datamodule(digits="mnist", root=str(tmp_path)).prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_digits": 0}, "num_digits is 0: must be 1 or more"),
        ({"train_size": 0}, "train_size is 0: must be 1 or more"),
        ({"val_size": -1}, "val_size is -1: must be 1 or more"),
        ({"test_size": 0}, "test_size is 0: must be 1 or more"),
        ({"target_length": 0}, "target_length is 0: must be 1 or more"),
        ({"frame_size": 27}, "frame_size is 27: must be .* at least 28, the size of a digit"),
        ({"frame_size": [64, 20]}, r"frame_size is \[64, 20\]: must be "),
        ({"frame_size": [64]}, r"frame_size is \[64\]: must be one number or \[height, width\]"),
        ({"frame_size": [64, 64, 1]}, r"frame_size is \[64, 64, 1\]: must be "),
        ({"speed": -1.0}, r"speed is -1\.0: must be "),
        ({"speed": [5.0, 3.0]}, r"speed is \[5\.0, 3\.0\]: must be .*\[slowest, fastest\]"),
        ({"speed": [3.0]}, r"speed is \[3\.0\]: must be "),
        ({"speed": math.nan}, "speed is nan: must be "),
        ({"speed": math.inf}, "speed is inf: must be "),
    ],
)
def test_option_out_of_its_range_is_refused_at_once_in_one_line(options, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        datamodule(**options)
    assert "\n" not in str(caught.value)


# --- the published test file ----------------------------------------------------------------------

FILE_FRAMES = np.random.default_rng(1).integers(0, 256, (20, 6, 64, 64), dtype=np.uint8)


@pytest.mark.parametrize("lengths", [(10, 10), (5, 3)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_file_is_read_time_first_from_its_first_frame(tmp_path, lengths, num_workers):
    data = datamodule(
        test_file=save(tmp_path / "test.npy", FILE_FRAMES),
        context_length=lengths[0],
        target_length=lengths[1],
        batch_size=4,
        num_workers=num_workers,
    )
    data.setup("test")
    samples = epoch(data.test_dataloader())
    expected = np.moveaxis(FILE_FRAMES[: sum(lengths)], 1, 0)
    np.testing.assert_array_equal(video(samples)[:, :, 0], expected)
    assert samples["context"].shape == (6, lengths[0], 1, 64, 64)
    assert samples["index"].tolist() == list(range(6))


def test_single_sequence_of_the_file_equals_its_place_in_a_batch(tmp_path):
    dataset = MovingMNISTFile(
        save(tmp_path / "t.npy", FILE_FRAMES), 10, 10, frame_size=(64, 64), max_size=9
    )
    assert torch.equal(video(dataset[4]), video(dataset.__getitems__([2, 4]))[1])
    with pytest.raises(IndexError, match="outside of 0 to 5"):
        dataset[6]


def test_test_size_below_that_of_the_file_takes_its_first_sequences(tmp_path):
    data = datamodule(test_file=save(tmp_path / "test.npy", FILE_FRAMES), test_size=2)
    data.setup("test")
    samples = epoch(data.test_dataloader())
    np.testing.assert_array_equal(video(samples)[:, :, 0], np.moveaxis(FILE_FRAMES[:, :2], 1, 0))


def test_file_is_opened_anew_in_a_spawned_worker_rather_than_sent(tmp_path):
    dataset = MovingMNISTFile(
        save(tmp_path / "t.npy", FILE_FRAMES), 10, 10, frame_size=(64, 64), max_size=9
    )
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000
    assert torch.equal(video(pickle.loads(sent)[1]), video(dataset[1]))


def test_test_with_a_file_needs_no_digits(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("digits are loaded")

    data = datamodule(digits="mnist", test_file=save(tmp_path / "test.npy", FILE_FRAMES))
    monkeypatch.setattr("datamodules.moving_mnist.load_digits", fail)
    data.trainer = type("Testing", (), {"state": type("State", (), {"fn": "test"})})()
    data.prepare_data()
    data.setup("test")
    assert len(data.test_set) == 6


@pytest.mark.parametrize(("verb", "asked"), [("fit", True), ("validate", False), ("test", False)])
def test_only_a_training_asks_for_the_test_file_beforehand(tmp_path, verb, asked):
    data = datamodule(test_file=str(tmp_path / "missing.npy"))
    data.trainer = type("Running", (), {"state": type("State", (), {"fn": verb})})()
    with pytest.raises(FileNotFoundError) if asked else nullcontext():
        data.prepare_data()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FILE_FRAMES.astype(np.float32), r"float32 of shape \(20, 6, 64, 64\): expected uint8"),
        (FILE_FRAMES[:, 0], r"uint8 of shape \(20, 64, 64\): expected uint8 \(time, sequence"),
        (FILE_FRAMES[:, :, :32], "frames are 32 x 64 pixels, frame_size is 64 x 64: set "),
        (FILE_FRAMES[:19], "19 frames a sequence, but context_length .* is 20: lower one"),
        (FILE_FRAMES.swapaxes(0, 1), r"6 frames a sequence.*time first"),
        (FILE_FRAMES[:, :0], r"\.npy: "),
    ],
)
def test_file_of_another_kind_is_refused_in_one_line(tmp_path, frames, message):
    data = datamodule(test_file=save(tmp_path / "test.npy", frames))
    with pytest.raises(ValueError, match=message) as caught:
        data.setup("test")
    assert "\n" not in str(caught.value)


def test_missing_file_and_text_file_are_refused_in_one_line(tmp_path):
    path = tmp_path / "mnist_test_seq.npy"
    data = datamodule(test_file=str(path))
    with pytest.raises(FileNotFoundError, match=r"mnist_test_seq\.npy: no such file"):
        data.setup("test")
    path.write_text("404")
    with pytest.raises(ValueError, match=r"not a \.npy file"):
        data.setup("test")


# --- frames drawn on another device ---------------------------------------------------------------


class Watcher(pl.LightningModule):
    """Keeps the batches that it gets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = {"fit": [], "val": [], "test": []}

    def training_step(self, batch):
        self.batches["fit"].append(batch)
        return self.weight * batch["context"].float().mean()

    def validation_step(self, batch):
        self.batches["val"].append(batch)

    def test_step(self, batch):
        self.batches["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "options",
    [{}, {"occlude": [2, 3], "num_digits": 3, "frame_size": [40, 52]}, {"num_workers": 1}],
)
def test_a_trainer_on_another_device_gets_the_same_frames_drawn_there(
    tmp_path, monkeypatch, options
):
    carried = []

    def carry(self, batch, device, dataloader_idx):
        carried.append(set(batch))
        return batch

    monkeypatch.setattr(MovingMNISTDataModule, "transfer_batch_to_device", carry)
    monkeypatch.setattr("datamodules.moving_mnist.HOST", "none")  # the CPU counts as another
    data = datamodule(batch_size=4, **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=3,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Watcher()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert {frozenset(names) for names in carried} == {frozenset({"digits", "positions", "index"})}

    plain = datamodule(batch_size=4, **options | {"num_workers": 0})
    plain.setup()
    loaders = {
        "fit": islice(plain.train_dataloader(), 3),
        "val": plain.val_dataloader(),
        "test": plain.test_dataloader(),
    }
    for name, loader in loaders.items():
        for batch, expected in zip(model.batches[name], loader, strict=True):
            assert batch.keys() == expected.keys()
            for key, value in expected.items():
                assert torch.equal(batch[key], value)
                assert batch[key].is_contiguous()
    after = next(iter(data.val_dataloader()))  # the Trainer, still attached, has finished
    assert set(after) == {"context", "target", "index"}


def test_frames_of_the_published_file_are_not_drawn_again(tmp_path):
    data = datamodule_set_up(test_file=save(tmp_path / "test.npy", FILE_FRAMES))
    batch = next(iter(data.test_dataloader()))
    assert data.on_after_batch_transfer(batch, 0) is batch


# --- hidden frames -------------------------------------------------------------------------------


def test_occlusion_blanks_frames_of_the_context_and_nothing_else():
    hidden = epoch(datamodule_set_up(occlude=[3, 4]).test_dataloader())
    seen = epoch(datamodule_set_up().test_dataloader())
    assert (hidden["context"][:, 3:7] == 0).all()
    for frames in (slice(0, 3), slice(7, 10)):
        assert torch.equal(hidden["context"][:, frames], seen["context"][:, frames])
    assert torch.equal(hidden["target"], seen["target"])
    assert (seen["context"][:, 3:7] > 0).any()


def test_occlusion_blanks_the_files_frames_but_not_the_file(tmp_path):
    frames = np.full((20, 3, 64, 64), 7, dtype=np.uint8)
    path = save(tmp_path / "test.npy", frames)
    data = datamodule_set_up(test_file=path, occlude=[9, 1])
    for _ in range(2):
        batch = epoch(data.test_dataloader())
        assert (batch["context"][:, :9] == 7).all()
        assert (batch["context"][:, 9] == 0).all()
        assert (batch["target"] == 7).all()
    assert (np.load(path) == 7).all()


@pytest.mark.parametrize("occlude", [[3], [-1, 2], [0, 0], [8, 3], [1, 2, 3]])
def test_occlusion_outside_of_the_context_is_refused(occlude):
    with pytest.raises(ValueError, match="within the 10 context frames"):
        datamodule(occlude=occlude)


def datamodule_set_up(**options):
    data = datamodule(**options)
    data.setup("test")
    return data


def test_what_was_hidden_is_named_as_it_is_given():
    data = MovingMNISTDataModule(digits="builtin", occlude=[2, 3])
    data.setup("fit")
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)
    assert data.state_dict()["sequences"]["occlude"] == [2, 3]
