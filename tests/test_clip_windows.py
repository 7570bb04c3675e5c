import pickle
import tracemalloc

import numpy as np
import pytest
from clip_files import write_video

from datamodules import open_clip
from datamodules.clip_windows import CHUNK, ClipWindows, Part, span
from datamodules.clips import videos
from datamodules.frame_cache import FrameCache
from datamodules.trajectories import stream_key

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


def test_a_clip_is_decoded_once_if_the_cache_has_room_and_again_if_not(parts, monkeypatch):
    decoded = []
    original = type(parts[0].clip)._decode

    def counted(self, numbers):
        decoded.extend(numbers)
        return original(self, numbers)

    monkeypatch.setattr(type(parts[0].clip), "_decode", counted)
    dataset = windows(parts[:1])
    for index in [0, 50, 3, 95, 51, 0]:
        dataset[index]
    assert sorted(decoded) == list(range(100))
    decoded.clear()
    dataset = windows(parts[:1], cache=0)
    dataset[0], dataset[0]
    assert decoded == 2 * list(range(CHUNK))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """200 frames, of which the first and the 101st are key frames."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.broadcast_to(np.arange(200)[:, None, None, None], (200, 16, 16, 3)) // 4 * 5
    options = {"every": 100, "qp": "0", "sc_threshold": "0"}
    write_video(path, frames.astype(np.uint8), "libx264", "yuv444p", **options)
    return Part("a.mp4", open_clip(path), range(200))


def noted_reads(part, monkeypatch):
    read = []
    original = type(part.clip).frames

    def noted(self, start, stop, **options):
        read.append((start, stop))
        return original(self, start, stop, **options)

    monkeypatch.setattr(type(part.clip), "frames", noted)
    return read


def pixels(part):
    return part.clip.read(0, part.clip.num_frames, channels=1)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("budget", [2**30, 7 * CHUNK * 20])
def test_a_video_is_decoded_once_in_whatever_order_if_there_is_room(video, budget, monkeypatch):
    times = []
    original = videos._until_damage

    def counted(*args):
        for frame in original(*args):
            times.append(frame[0])
            yield frame

    monkeypatch.setattr(videos, "_until_damage", counted)
    options = {"context": 10, "target": 10, "key": stream_key(0, "train")}
    dataset = windows([video], cache=budget, **options)
    samples = [frames_of(dataset[i]) for i in range(len(dataset))]
    # What is between two key frames is decoded at once, and 97 to 128 with what is before 101.
    assert len(times) <= 200 + CHUNK
    assert dataset.cache.room >= 0
    again = windows([video], cache=0, **options)
    assert samples[:9] == [frames_of(again[i]) for i in range(9)]
    assert sorted(s[0] for s in samples) == pixels(video)[:181]


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_with_little_room_a_video_is_decoded_in_parts(video, chunks):
    dataset = windows([video], context=10, target=10, cache=chunks * CHUNK * 20)
    for index in [150, 3, 60, 90, 170, 3, 100, 20]:
        assert frames_of(dataset[index]) == pixels(video)[index : index + 20]
        assert dataset.cache.room >= 0


def test_a_window_is_decoded_in_one_go_even_without_a_cache(video, monkeypatch):
    read = noted_reads(video, monkeypatch)
    dataset = windows([video], context=10, target=10, cache=0)
    assert frames_of(dataset[20]) == pixels(video)[20:40]
    assert read == [(0, 64)]
    read.clear()
    dataset = windows([video], context=2, target=1, frame_step=80, cache=0)
    assert frames_of(dataset[0]) == pixels(video)[:161:80]
    assert read == [(0, 32), (64, 96), (160, 192)]


def test_what_no_window_has_is_not_kept(video):
    dataset = windows([video], context=3, target=2, stride=100)
    for index in range(2):
        assert frames_of(dataset[index]) == pixels(video)[100 * index : 100 * index + 5]
    assert dataset.cache.num_bytes == dataset.num_bytes == 2 * CHUNK * 20
    dense = windows([video], context=3, target=2)
    for index in range(len(dense)):
        dense[index]
    assert dense.cache.num_bytes == dense.num_bytes == 200 * 20


@pytest.mark.parametrize("stride", [1, 7, 50, 90])
@pytest.mark.parametrize("frames", [range(200), range(37, 171), range(64, 96)])
@pytest.mark.parametrize("target", [2, 30])
def test_the_memory_of_all_frames_is_what_the_cache_will_hold(video, stride, frames, target):
    dataset = windows(
        [video._replace(frames=frames)], context=2, target=target, stride=stride, frame_step=1
    )
    for index in range(len(dataset)):
        dataset[index]
    assert dataset.cache.num_bytes == dataset.num_bytes


def test_frames_before_and_behind_what_is_damaged_can_be_used(tmp_path):
    frames = np.zeros((200, 4, 5), np.float32)
    frames[100] = np.nan
    np.savez(tmp_path / "a.npz", frames)  # which is decoded as a whole
    part = Part("a.npz", open_clip(tmp_path / "a.npz"), range(200))
    for first in (50, 150):
        dataset = windows([part], context=5, target=5)
        dataset[first]
        readable, errors = [], set()
        for index in range(len(dataset)):
            try:
                dataset[index]
            except ValueError as error:
                errors.add(str(error).partition("a.npz: ")[2])
            else:
                readable.append(index)
        # Without the chunk that the damage is in, 96 to 127.
        assert readable == [*range(87), *range(128, 191)]
        (error,) = errors
        assert error.startswith("frame 100 has pixels that are NaN")


def test_a_window_of_frames_far_apart_takes_little_memory(tmp_path):
    frames = np.zeros((20 * CHUNK, 64, 64), np.uint8)
    np.save(tmp_path / "a.npy", frames)
    part = Part("a.npy", open_clip(tmp_path / "a.npy"), range(len(frames)))
    options = {"context": 10, "target": 10, "frame_step": CHUNK, "frame_size": (64, 64)}
    dataset = windows([part], cache=0, **options)
    tracemalloc.start()
    try:
        dataset[0]
        # The chunk at hand, as a list and as an array, the one before, and what has been taken; all
        # twenty together would be 20 * CHUNK frames.
        assert tracemalloc.get_traced_memory()[1] < 5 * CHUNK * 64 * 64
    finally:
        tracemalloc.stop()


def test_nothing_is_decoded_that_another_split_has(video, monkeypatch):
    read = noted_reads(video, monkeypatch)
    dataset = windows([video._replace(frames=range(70, 90))], context=10, target=10)
    assert frames_of(dataset[0]) == pixels(video)[70:90]
    assert read == [(64, 96)]


def test_memory_for_decoded_frames_stays_within_the_budget(parts):
    budget = 2 * CHUNK * 20
    dataset = windows(parts, cache=budget)
    for index in range(len(dataset)):
        dataset[index]
        assert dataset.cache.num_bytes <= budget


def test_pixels_of_different_types_become_floats(tmp_path):
    frames = np.array([0, 51, 255], dtype=np.uint8)[:, None, None] * np.ones((4, 5), np.uint8)
    kinds = {"a": frames, "b": frames.astype(np.uint16) * 257, "c": np.float32(frames / 255)}
    parts = []
    for name, array in kinds.items():
        np.save(tmp_path / f"{name}.npy", array)
        clip = open_clip(tmp_path / f"{name}.npy")
        parts.append(Part(name, clip, range(3)))
    for part in parts:
        assert windows([part], context=2, target=1)[0]["context"].numpy().dtype == part.clip.dtype
    dataset = windows(parts, context=2, target=1)
    for index in range(3):
        frames = np.concatenate([dataset[index]["context"], dataset[index]["target"]])
        assert frames.dtype == np.float32
        np.testing.assert_allclose(frames[:, 0, 0, 0], [0, 0.2, 1], rtol=1e-7)


def test_a_frame_that_cannot_be_fitted_names_its_clip(parts):
    with pytest.raises(ValueError, match=r"0\.npy: frames of 4 x 5 pixels are smaller than"):
        windows(parts, fit="crop", frame_size=(8, 8))[0]
