import shutil
import warnings
from itertools import chain

import numpy as np
import pytest
import torch
from clip_files import moving, write_folder, write_gif, write_video
from test_data_base import Recorder, train

from datamodules import ClipDataModule
from datamodules.random_streams import SPLITS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*worker processes in total"),  # on one core
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


KINDS = ["a.gif", "b", "c.mp4", "d.npy", "e.npz"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten GIFs of 12 frames."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(10):
        write_gif(root / f"clip{number}.gif", moving(seed=number))
    return root


def module(root, **options):
    defaults = {"frame_size": [12, 16], "context_length": 3, "target_length": 2, "batch_size": 4}
    return ClipDataModule(str(root), **{**defaults, **options})


def write_gifs(root, count=4, frames=12):
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_gif(root / f"{number}.gif", moving(frames))
    return root


def ready(root, **options):
    data = module(root, **options)
    data.setup()
    return data


def names(dataset):
    return [part.name for part in dataset.parts]


def sets(data):
    return data.train_set, data.val_set, data.test_set


def test_each_clip_is_in_one_split(folder):
    train_set, val_set, test_set = map(names, sets(ready(folder)))
    assert (len(train_set), len(val_set), len(test_set)) == (8, 1, 1)
    assert sorted(train_set + val_set + test_set) == [f"clip{n}.gif" for n in range(10)]
    assert list(map(names, sets(ready(folder)))) == [train_set, val_set, test_set]
    assert list(map(names, sets(ready(folder, seed=1)))) != [train_set, val_set, test_set]


def test_training_has_all_windows_and_evaluation_those_that_do_not_overlap(folder):
    assert [len(s) for s in sets(ready(folder))] == [8 * 8, 2, 2]
    assert [len(s) for s in sets(ready(folder, stride=3, eval_stride=4))] == [8 * 3, 2, 2]
    assert [len(s) for s in sets(ready(folder, frame_step=2))] == [8 * 4, 1, 1]


def test_what_there_is_to_train_on_is_told(folder):
    told = "Clips: 8 for training (64 windows), 1 for validation (2 windows)"
    assert ready(folder).describe() == told


def test_a_cache_that_is_too_small_is_told(folder):
    # 9 clips of 12 frames of 64 x 64 pixels and 3 channels: 1.27 MiB.
    assert ready(folder, cache_mib=1, frame_size=64).describe().splitlines()[1] == (
        "Their decoded frames take 2 MiB, of which data.cache_mib keeps 1; the others are decoded "
        "again for each window"
    )
    assert "\n" not in ready(folder, cache_mib=2, frame_size=64).describe()


def test_a_stage_opens_only_the_clips_that_it_needs(folder):
    data = module(folder)
    data.setup("test")
    assert data.train_set is data.val_set is None
    data = module(folder)
    data.setup("validate")
    assert data.train_set is data.test_set is None
    data.setup("fit")
    assert data.test_set is None


def test_batches_are_as_every_datamodules(folder):
    data = ready(folder)
    batch = next(iter(data.train_dataloader()))
    assert batch["context"].shape == (4, 3, 3, 12, 16)
    assert batch["target"].shape == (4, 2, 3, 12, 16)
    assert batch["context"].dtype == torch.uint8
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert next(iter(ready(folder, channels=1).val_dataloader()))["context"].shape[2] == 1


def test_batches_of_several_processes_are_those_of_one(folder):
    alone, shared = (
        [b for loader in (d.train_dataloader(), d.val_dataloader()) for b in loader]
        for d in (ready(folder), ready(folder, num_workers=2))
    )
    assert len(alone) == len(shared) == 17
    for ours, theirs in zip(alone, shared, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_folders_train_val_and_test_are_the_splits(tmp_path):
    for name, count in (("train", 2), ("val", 1), ("test", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            write_gif(tmp_path / name / f"{number}.gif", moving(seed=number))
    assert list(map(names, sets(ready(tmp_path)))) == [
        ["train/0.gif", "train/1.gif"],
        ["val/0.gif"],
        ["test/0.gif", "test/1.gif", "test/2.gif"],
    ]
    (tmp_path / "test").rename(tmp_path / "Test")
    assert names(ready(tmp_path).test_set) == ["Test/0.gif", "Test/1.gif", "Test/2.gif"]
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"Test, test, .*make one folder a split|test, Test, "):
        module(tmp_path).setup("fit")
    (tmp_path / "test").rmdir()
    (tmp_path / "val").rename(tmp_path / "validation")
    with pytest.raises(FileNotFoundError, match=r"val: no such folder, but .* make it, or none"):
        module(tmp_path).setup("fit")


def test_clips_of_all_kinds_train_together(tmp_path):
    write_gif(tmp_path / "a.gif", moving())
    write_folder(tmp_path / "b", moving(height=30))
    write_video(tmp_path / "c.mp4", moving(height=40, width=50), "libx264", "yuv420p")
    np.save(tmp_path / "d.npy", moving()[..., 0])
    np.savez(tmp_path / "e.npz", moving().astype(np.uint16) * 257)
    data = ready(tmp_path)
    assert sorted(chain.from_iterable(map(names, sets(data)))) == KINDS
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert batch["context"].shape[1:] == (3, 3, 12, 16)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_clips_are_refused_unless_each_is_cut_in_time(tmp_path, count):
    for number in range(count):
        write_gif(tmp_path / f"{number}.gif", moving(60, seed=number))
    with pytest.raises(ValueError, match=f"{count} clips are too few .* choose split_by time"):
        module(tmp_path).setup("fit")
    data = ready(tmp_path, split_by="time")
    for dataset, frames in zip(sets(data), (range(48), range(48, 54), range(54, 60)), strict=True):
        assert [part.frames for part in dataset.parts] == count * [frames]
        used = [dataset.windows[:, 1].min(), dataset.windows[:, 1].max() + 4]
        assert frames[0] <= used[0] < used[1] <= frames[-1]


def test_clips_that_are_too_short_are_left_out_with_a_warning(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(5):
            write_gif(tmp_path / split / f"{number}.gif", moving(4 + (number >= 4)))
    data = module(tmp_path)
    with pytest.warns(UserWarning, match="are left out") as caught:
        data.setup("fit")
    assert [str(warning.message) for warning in caught] == [
        f"4 of 5 clips for {split} are left out, as they have fewer than a window's 5 frames: "
        f"{split}/0.gif, {split}/1.gif, {split}/2.gif, ..."
        for split in ("train", "val")
    ]
    assert len(data.train_set) == len(data.val_set) == 1


def test_a_split_without_a_clip_that_is_long_enough_is_refused(folder):
    message = r"a window has 13 frames, but the longest clip for train has 12: lower"
    with pytest.raises(ValueError, match=message):
        module(folder, target_length=10).setup("fit")


def test_a_part_in_time_that_is_too_short_says_what_makes_it_longer(folder):
    with pytest.raises(ValueError, match=r"clip for val has 1: .*give val a larger part of split"):
        module(folder, split_by="time").setup("fit")


def test_a_damaged_clip_is_named(tmp_path):
    for number in range(3):
        path = write_gif(tmp_path / f"{number}.gif", moving())
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"\d\.gif: the GIF has no end, the file is truncated"):
        module(tmp_path).setup("fit")


def test_folder_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder: set data\.root"):
        module(tmp_path / "nowhere").setup("fit")
    with pytest.raises(FileNotFoundError, match="no clips there"):
        module(tmp_path).setup("fit")


def test_all_clips_that_cannot_be_read_are_named_at_once(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in ("a.gif", "b.npy", "c.npz"):
            (tmp_path / split / name).write_text("none")
    write_gif(tmp_path / "train" / "good.gif", moving())
    with pytest.raises(ValueError, match=r"train/a\.gif: .*; 2 more of 4 clips cannot be read: "):
        module(tmp_path).setup("fit")
    with pytest.raises(ValueError, match=r"of 3 clips cannot be read: val/b\.npy, val/c\.npz$"):
        module(tmp_path).setup("validate")
    for name in ("b.npy", "c.npz"):
        (tmp_path / "val" / name).unlink()
    with pytest.raises(ValueError, match=r"^\S+val/a\.gif: ") as caught:
        module(tmp_path).setup("validate")
    assert "more" not in str(caught.value)


def test_a_file_as_root_is_told_to_be_one(folder):
    with pytest.raises(NotADirectoryError, match=r"is a file: set data\.root to the fol"):
        module(folder / "clip0.gif").setup("fit")


def test_clips_beside_the_folders_of_the_splits_are_warned_of(folder, tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(folder, tmp_path / split)
    (tmp_path / "raw").mkdir()
    write_gif(tmp_path / "raw" / "clip.gif", moving())  # somebody's own affair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(tmp_path).setup("fit")
    for number in range(4):
        shutil.copy(folder / f"clip{number}.gif", tmp_path)
    told = r"4 clips in \S+ are left out, .* train, val, test: clip0\.gif, clip1\.gif, .*, \.\.\.$"
    with pytest.warns(UserWarning, match=told):
        module(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("frame_size", 0, "frame_size is 0: must be"),
        ("frame_size", [1, 2, 3], r"frame_size is \[1, 2, 3\]: must be"),
        ("fit", "fill", "fit is 'fill': must be one of cover, stretch, crop"),
        ("channels", 2, r"channels is 2: must be 1 \(gray\) or 3"),
        ("split", [0.9, 0.1], r"split is \[0.9, 0.1\]: must be three fractions"),
        ("split", [0.9, 0.1, 0.0], "split is .* above 0"),
        ("split", [0.8, 0.1, 0.2], "split is .* add up to 1"),
        ("split_by", "window", "split_by is 'window': must be clip or time"),
        ("frame_step", 0, "frame_step is 0: must be 1 or more"),
        ("stride", 0, "stride is 0: must be 1 or more"),
        ("eval_stride", 0, "eval_stride is 0: must be 1 or more"),
        ("cache_mib", -1, "cache_mib is -1: must be 0 or more"),
        (
            "augment",
            "hflip",
            "augment is 'hflip': must be a list",
        ),
        (
            "augment",
            ["hflip", "zoom"],
            "augment has 'zoom': must be a list of hflip, vflip, rotate90",
        ),
    ],
)
def test_options_out_of_range_are_named(tmp_path, option, value, message):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **{option: value})


def test_only_square_frames_are_turned_by_quarters(tmp_path):
    with pytest.raises(
        ValueError, match=r"rotate90 is for square frames, but frame_size is \[4, 6"
    ):
        module(tmp_path, frame_size=[4, 6], augment=["rotate90"])


EPOCHS = [[e * 64 + p + i for i in range(4)] for e in range(2) for p in range(0, 64, 4)]


class Pixels(Recorder):
    """Notes numbers and pixels."""

    def training_step(self, batch):
        self.seen.append((batch["index"].tolist(), batch["context"].sum().item()))
        return self.weight * batch["context"].float().mean()


@pytest.mark.parametrize(("stop", "num_workers"), [(3, 0), (16, 0), (19, 2)])
def test_a_stopped_training_resumes_at_the_next_sample(folder, tmp_path, stop, num_workers):
    def data(**options):
        return module(folder, augment=["reverse", "hflip"], **options)

    whole, _ = train(tmp_path, data=data(), model=Pixels(), max_epochs=2)
    assert [numbers for numbers, _ in whole] == EPOCHS
    before, trainer = train(tmp_path, data=data(), model=Pixels(), max_steps=stop)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    after, _ = train(
        tmp_path,
        data=data(num_workers=num_workers),
        model=Pixels(),
        ckpt=tmp_path / "stopped.ckpt",
        max_epochs=9,
        max_steps=32,
    )
    assert before + after == whole


@pytest.mark.parametrize(
    "change",
    [
        "longer clip",
        "other name",
        "one clip more",
        "stride",
        "frame_step",
        "lengths",
        "seed",
        "augment",
        "channels",
        "frame_size",
        "fit",
    ],
)
def test_resuming_on_other_data_is_refused(tmp_path, change):
    root = tmp_path / "videos"
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        write_gif(root / split / "0.gif", moving())
    _, trainer = train(tmp_path, data=module(root, batch_size=2), max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    options = {
        "stride": {"stride": 2},
        "frame_step": {"frame_step": 2},
        "lengths": {"context_length": 2},
        "seed": {"seed": 1},
        "augment": {"augment": ["hflip"]},
        "channels": {"channels": 1},
        "frame_size": {"frame_size": 12},
        "fit": {"fit": "stretch"},
    }.get(change, {})
    first = root / "train" / "0.gif"
    if change == "longer clip":
        write_gif(first, moving(13))
    elif change == "other name":
        first.rename(root / "train" / "1.gif")
    elif change == "one clip more":
        write_gif(root / "train" / "1.gif", moving())
    with pytest.raises(ValueError, match="keep ") as caught:
        train(
            tmp_path,
            data=module(root, batch_size=2, **options),
            ckpt=tmp_path / "stopped.ckpt",
            max_steps=3,
        )
    assert "\n" not in str(caught.value)


def test_the_folder_may_move_between_stop_and_resume(tmp_path):
    root = write_gifs(tmp_path / "videos")
    before, trainer = train(tmp_path, data=module(root), max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    root = root.rename(tmp_path / "moved")
    after, _ = train(tmp_path, data=module(root), ckpt=tmp_path / "stopped.ckpt", max_steps=2)
    assert before + after == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("split_by", ["clip", "time"])
def test_clips_that_the_model_was_trained_on_are_told_of_in_a_test(tmp_path, split_by, recwarn):
    root = write_gifs(tmp_path / "videos", 6, frames=40)
    options = {"split_by": split_by, "split": [0.5, 0.25, 0.25]}
    data = module(root, **options)
    _, trainer = train(tmp_path, data=data, max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    state = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["ClipDataModule"]
    same = module(root, **options)
    same.setup("test")
    same.load_state_dict(state)
    assert not [w for w in recwarn if "trained on" in str(w.message)]
    other = module(root, **{**options, "split": [0.2, 0.2, 0.6]})
    other.setup("test")
    trained = set(names(data.train_set)) & set(names(other.test_set))
    count, example = len(trained), next(n for n in names(other.test_set) if n in trained)
    told = rf"{count} of the \d clips for test are ones that the model was trained on, .* {example}"
    with pytest.warns(UserWarning, match=told):
        other.load_state_dict(state)


@pytest.mark.parametrize("split_by", ["clip", "time"])
def test_clips_in_folders_of_splits_are_whole(tmp_path, split_by):
    for split in SPLITS:
        write_gifs(tmp_path / split, 1)
    assert [s.parts[0].frames for s in sets(ready(tmp_path, split_by=split_by))] == [range(12)] * 3


def test_a_file_called_as_a_split_is_none(tmp_path):
    write_gifs(tmp_path)
    (tmp_path / "test").write_text("notes")
    assert len(ready(tmp_path).train_set.parts) == 2


@pytest.mark.filterwarnings("error")
def test_a_folder_called_as_a_clip_is_none_that_is_left_out(tmp_path):
    for split in SPLITS:
        write_gifs(tmp_path / split, 1)
    (tmp_path / "raw.npy").mkdir()
    ready(tmp_path)


def test_the_order_of_augmentations_may_change_between_stop_and_resume(tmp_path):
    root = write_gifs(tmp_path / "videos")
    _, trainer = train(tmp_path, data=module(root, augment=["hflip", "vflip"]), max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    data = module(root, augment=["vflip", "hflip", "hflip"])
    train(tmp_path, data=data, ckpt=tmp_path / "stopped.ckpt", max_steps=2)


def test_a_checkpoint_that_does_not_say_how_frames_were_read_goes_on(tmp_path):
    root = write_gifs(tmp_path / "videos")
    _, trainer = train(tmp_path, data=module(root), max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    stopped = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    del stopped["ClipDataModule"]["frames"]
    torch.save(stopped, tmp_path / "stopped.ckpt")
    seen, _ = train(tmp_path, data=module(root), ckpt=tmp_path / "stopped.ckpt", max_steps=2)
    assert seen == [[4, 5, 6, 7]]


def test_axes_and_array_are_kept_when_a_training_goes_on(tmp_path):
    root = tmp_path / "videos"
    for split in SPLITS:
        (root / split).mkdir(parents=True)
        np.savez(root / split / "0.npz", a=moving(16, 16, 16)[..., 0], b=moving(16, 16, 16)[..., 0])
    options = {"frame_size": 16, "batch_size": 2}
    _, trainer = train(tmp_path, data=module(root, array="a", **options), max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    for changed in ({"array": "b"}, {"array": "a", "axes": "TWH"}):
        with pytest.raises(ValueError, match="keep channels"):
            train(
                tmp_path,
                data=module(root, **changed, **options),
                ckpt=tmp_path / "stopped.ckpt",
                max_steps=3,
            )


def test_another_stride_with_as_many_windows_is_refused(tmp_path):
    root = tmp_path / "videos"
    for split in SPLITS:
        write_gifs(root / split, 1)
    _, trainer = train(tmp_path, data=module(root, batch_size=2, stride=6), max_steps=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    with pytest.raises(ValueError, match="keep names, lengths, stride"):
        train(
            tmp_path,
            data=module(root, batch_size=2, stride=7),
            ckpt=tmp_path / "stopped.ckpt",
            max_steps=3,
        )


def test_fractions_that_nearly_add_up_are_refused(tmp_path):
    with pytest.raises(ValueError, match="three fractions above 0 that add up to 1"):
        module(tmp_path, split=[0.8, 0.1, 0.05])
