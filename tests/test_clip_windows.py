import pickle

import numpy as np
import pytest

from datamodules import open_clip
from datamodules.clip_frames import Part
from datamodules.clip_windows import ClipWindows, span
from datamodules.frame_cache import FrameCache
from datamodules.random_streams import stream_key

LENGTHS = (100, 7, 40)  # more than a chunk, less than a window, and between


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Clips whose pixels are 70 times the clip's number plus the frame's, in gray."""
    folder = tmp_path_factory.mktemp("clips")
    result = []
    for number, length in enumerate(LENGTHS):
        frames = np.broadcast_to(70 * number + np.arange(length)[:, None, None], (length, 4, 5))
        np.save(folder / f"{number}.npy", frames.astype(np.uint8))
        clip = open_clip(folder / f"{number}.npy")
        result.append(Part(f"{number}.npy", clip, range(length)))
    return result


def windows(parts, *, context=3, target=2, key=None, cache=2**30, **options):
    defaults = {"stride": 1, "frame_step": 1, "channels": 1, "frame_size": (4, 5)}
    defaults |= {"fit": "cover", **options}
    return ClipWindows(parts, context, target, cache=FrameCache(cache), key=key, **defaults)


def frames_of(sample):
    return [int(f[0, 0, 0]) for part in ("context", "target") for f in sample[part]]


@pytest.mark.parametrize(("stride", "step"), [(1, 1), (5, 1), (3, 4), (200, 1), (1, 9)])
def test_windows_are_all_that_fit_the_first_of_each_clip_first(parts, stride, step):
    dataset = windows(parts, stride=stride, frame_step=step)
    length = span(5, step)
    expected = [
        [70 * number + start + step * t for t in range(5)]
        for start in range(0, max(LENGTHS), stride)
        for number, frames in enumerate(LENGTHS)
        if start + length <= frames
    ]
    assert [frames_of(dataset[i]) for i in range(len(dataset))] == expected


def test_windows_stay_within_the_part_that_a_split_has(parts):
    cut = [parts[0]._replace(frames=range(20, 27)), parts[2]._replace(frames=range(36, 40))]
    dataset = windows(cut)
    assert [frames_of(dataset[i])[0] for i in range(len(dataset))] == [20, 21, 22]


def test_with_a_key_windows_are_changed_at_random_whole_and_differently_in_each_epoch(parts):
    dataset = windows(parts[:1], key=stream_key(0, "train"), augment=["reverse"])
    first, second = (
        [frames_of(dataset[epoch * len(dataset) + i]) for i in range(len(dataset))]
        for epoch in range(2)
    )
    plain = [[start + t for t in range(5)] for start in range(96)]
    for epoch in (first, second):
        assert sorted(sorted(window) for window in epoch) == plain
        assert all(window in (sorted(window), sorted(window)[::-1]) for window in epoch)
        assert 30 < sum(window not in plain for window in epoch) < 66  # 48 of 96, six deviations
    turned = [{tuple(w) for w in epoch if w not in plain} for epoch in (first, second)]
    assert turned[0] != turned[1]


def test_without_a_key_windows_stay_as_they_are(parts):
    dataset = windows(parts[:1], augment=["reverse"])
    assert [frames_of(dataset[i])[0] for i in range(len(dataset))] == list(range(96))


def test_a_sample_has_context_target_and_its_number(parts):
    sample = windows(parts)[4]
    assert sample["context"].shape == (3, 1, 4, 5)
    assert sample["target"].shape == (2, 1, 4, 5)
    assert sample["index"] == 4


def test_each_epoch_has_all_windows_in_an_order_of_its_own(parts):
    plain, dataset = windows(parts), windows(parts, key=stream_key(0, "train"))
    size = len(plain)
    everything = sorted(frames_of(plain[i]) for i in range(size))
    epochs = [[frames_of(dataset[e * size + p]) for p in range(size)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == everything
        assert epoch != everything
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_sample_depends_on_its_number_and_the_key_alone(parts):
    key = stream_key(0, "train")
    numbers = [3, 500, 0, 12_345, 4, 501]
    dataset = windows(parts, key=key)
    once = [frames_of(dataset[i]) for i in numbers]
    assert [frames_of(windows(parts, key=key, cache=0)[i]) for i in numbers] == once
    assert [frames_of(pickle.loads(pickle.dumps(dataset))[i]) for i in numbers] == once
    other = windows(parts, key=stream_key(1, "train"))
    assert [frames_of(other[i]) for i in numbers] != once


def test_numbers_that_are_no_sample_raise(parts):
    plain, endless = windows(parts), windows(parts, key=stream_key(0, "train"))
    for dataset, index in [(plain, -1), (plain, len(plain)), (endless, -1)]:
        with pytest.raises(IndexError, match=f"index is {index}: must be"):
            dataset[index]
