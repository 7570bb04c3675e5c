import tracemalloc

import numpy as np
import pytest
from clip_files import write_video

from datamodules import open_clip
from datamodules.clip_frames import CHUNK, ClipFrames, Part
from datamodules.clips import videos
from datamodules.frame_cache import FrameCache

LENGTH = 200  # frames of a clip
SIZE = (4, 5)
FRAME = 20  # bytes


@pytest.fixture(scope="module")
def array(tmp_path_factory):
    """Frames in gray, of which each has its number."""
    path = tmp_path_factory.mktemp("array") / "a.npy"
    frames = np.broadcast_to(np.arange(LENGTH, dtype=np.uint8)[:, None, None], (LENGTH, *SIZE))
    np.save(path, frames)
    return Part("a.npy", open_clip(path), range(LENGTH))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """The first and the 101st frame are key frames."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.broadcast_to(np.arange(LENGTH)[:, None, None, None], (LENGTH, 16, 16, 3)) // 4 * 5
    options = {"every": 100, "qp": "0", "sc_threshold": "0"}
    write_video(path, frames.astype(np.uint8), "libx264", "yuv444p", **options)
    return Part("a.mp4", open_clip(path), range(LENGTH))


def source(*parts, span=20, stride=1, cache=2**30, **options):
    defaults = {"channels": 1, "frame_size": SIZE, "fit": "cover", **options}
    return ClipFrames(parts, span=span, stride=stride, cache=FrameCache(cache), **defaults)


def taken(frames, numbers):
    return frames.take(0, np.array(numbers))[:, 0, 0, 0].tolist()


def pixels(part):
    return part.clip.read(0, part.clip.num_frames, channels=1)[:, 0, 0, 0].tolist()


def windows(frames):
    """The frames' numbers of each window of the first part."""
    part = frames.parts[0].frames
    starts = range(part.start, part.stop - frames.span + 1, frames.stride)
    return [range(start, start + frames.span) for start in starts]


def noted(kind, method, monkeypatch):
    """What a method is called with from now on, by position."""
    calls = []
    original = getattr(kind, method)

    def note(self, *args, **options):
        calls.append(args)
        return original(self, *args, **options)

    monkeypatch.setattr(kind, method, note)
    return calls


def test_any_frames_are_taken_in_their_order(array, video):
    for part in (array, video):
        frames, expected = source(part), pixels(part)
        for numbers in ([0], range(60, 70), range(3, 200, 49), [31, 32, 33, 96, 199]):
            assert taken(frames, numbers) == [expected[number] for number in numbers]


def test_a_clip_is_decoded_once_if_the_cache_has_room_and_again_if_not(array, monkeypatch):
    calls = noted(type(array.clip), "_decode", monkeypatch)
    frames = source(array)
    for start in [0, 50, 3, 180, 51, 100, 120, 0]:
        taken(frames, range(start, start + 20))
    assert sorted(number for (numbers,) in calls for number in numbers) == list(range(LENGTH))
    calls.clear()
    frames = source(array, cache=0)
    for _ in range(2):
        taken(frames, range(20))
    assert calls == 2 * [(range(CHUNK),)]


@pytest.mark.parametrize("budget", [2**30, 7 * CHUNK * FRAME])
def test_a_video_is_decoded_once_in_whatever_order_if_there_is_room(video, budget, monkeypatch):
    expected, times = pixels(video), []
    original = videos._until_damage

    def counted(*args):
        for frame in original(*args):
            times.append(frame[0])
            yield frame

    monkeypatch.setattr(videos, "_until_damage", counted)
    frames = source(video, cache=budget)
    for window in np.random.default_rng(0).permutation(np.array(windows(frames))):
        assert taken(frames, window) == expected[window[0] : window[0] + 20]
        assert frames.cache.room >= 0
    # What is between two key frames is decoded at once, and 97 to 128 with what is before 101.
    assert len(times) <= LENGTH + CHUNK


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_with_little_room_a_video_is_decoded_in_parts(video, chunks):
    frames, expected = source(video, cache=chunks * CHUNK * FRAME), pixels(video)
    for start in [150, 3, 60, 90, 170, 3, 100, 20]:
        assert taken(frames, range(start, start + 20)) == expected[start : start + 20]
        assert frames.cache.room >= 0


def test_a_window_is_decoded_in_one_go_even_without_a_cache(video, monkeypatch):
    calls = noted(type(video.clip), "frames", monkeypatch)
    taken(source(video, cache=0), range(20, 40))
    assert calls == [(0, 64)]
    calls.clear()
    taken(source(video, span=161, cache=0), range(0, 161, 80))
    assert calls == [(0, 32), (64, 96), (160, 192)]


def test_nothing_is_decoded_that_another_split_has(video, monkeypatch):
    calls = noted(type(video.clip), "frames", monkeypatch)
    taken(source(video._replace(frames=range(70, 90))), range(70, 90))
    assert calls == [(64, 96)]


def test_what_no_window_has_is_not_kept(video):
    frames = source(video, span=5, stride=100)
    for window in windows(frames):
        taken(frames, window)
    assert frames.cache.num_bytes == frames.num_bytes == 2 * CHUNK * FRAME


@pytest.mark.parametrize("span", [4, 32])
@pytest.mark.parametrize("stride", [1, 7, 50, 90])
@pytest.mark.parametrize("part", [range(LENGTH), range(37, 171), range(64, 96)])
def test_the_memory_of_all_frames_is_what_the_cache_will_hold(video, span, stride, part):
    frames = source(video._replace(frames=part), span=span, stride=stride)
    for window in windows(frames):
        taken(frames, window)
    assert frames.cache.num_bytes == frames.num_bytes > 0


def test_memory_for_decoded_frames_stays_within_the_budget(array):
    frames = source(array, cache=2 * CHUNK * FRAME)
    for window in windows(frames):
        taken(frames, window)
        assert frames.cache.num_bytes <= 2 * CHUNK * FRAME


def test_frames_far_apart_take_little_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20 * CHUNK, 64, 64), np.uint8))
    part = Part("a.npy", open_clip(tmp_path / "a.npy"), range(20 * CHUNK))
    frames = source(part, span=20 * CHUNK, cache=0, frame_size=(64, 64))
    tracemalloc.start()
    try:
        taken(frames, range(0, 20 * CHUNK, CHUNK))
        # The chunk at hand, as a list and as an array, the one before, and what has been taken; all
        # twenty together would be 20 * CHUNK frames.
        assert tracemalloc.get_traced_memory()[1] < 5 * CHUNK * 64 * 64
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("first", [50, 150])
def test_frames_before_and_behind_what_is_damaged_can_be_used(tmp_path, first):
    pixels = np.zeros((LENGTH, *SIZE), np.float32)
    pixels[100] = np.nan
    np.savez(tmp_path / "a.npz", pixels)  # which is decoded as a whole
    frames = source(Part("a.npz", open_clip(tmp_path / "a.npz"), range(LENGTH)))
    taken(frames, range(first, first + 20))
    readable, errors = [], set()
    for window in windows(frames):
        try:
            taken(frames, window)
        except ValueError as error:
            errors.add(str(error).partition("a.npz: ")[2])
        else:
            readable.append(window.start)
    # Without the chunk that the damage is in, 96 to 127.
    assert readable == [*range(77), *range(128, 181)]
    (error,) = errors
    assert error.startswith("frame 100 has pixels that are NaN")


def test_pixels_of_different_types_become_floats(tmp_path):
    pixels = np.array([0, 51, 255], dtype=np.uint8)[:, None, None] * np.ones(SIZE, np.uint8)
    kinds = {"a": pixels, "b": pixels.astype(np.uint16) * 257, "c": np.float32(pixels / 255)}
    parts = []
    for name, value in kinds.items():
        np.save(tmp_path / f"{name}.npy", value)
        parts.append(Part(name, open_clip(tmp_path / f"{name}.npy"), range(3)))
    for part in parts:
        assert source(part, span=3).take(0, np.arange(3)).dtype == part.clip.dtype
    together = source(*parts, span=3)
    for number in range(3):
        frames = together.take(number, np.arange(3))
        assert frames.dtype == np.float32
        np.testing.assert_allclose(frames[:, 0, 0, 0], [0, 0.2, 1], rtol=1e-7)


def test_a_frame_that_cannot_be_fitted_names_its_clip(array):
    with pytest.raises(ValueError, match=r"a\.npy: frames of 4 x 5 pixels are smaller than"):
        taken(source(array, fit="crop", frame_size=(8, 8)), [0])


def test_decoding_begins_behind_the_chunk_in_which_the_key_frame_is(video, monkeypatch):
    calls = noted(videos.VideoReader, "_decode", monkeypatch)
    taken(source(video), range(130, 150))
    assert calls == [(range(4 * CHUNK, LENGTH),)]


def test_damage_does_not_fill_the_cache(tmp_path):
    pixels = np.zeros((LENGTH, *SIZE), np.float32)
    pixels[100] = np.nan
    np.savez(tmp_path / "a.npz", pixels)
    frames = source(Part("a.npz", open_clip(tmp_path / "a.npz"), range(LENGTH)))
    taken(frames, range(50, 70))
    assert frames.cache.num_bytes == 3 * CHUNK * FRAME * 4
