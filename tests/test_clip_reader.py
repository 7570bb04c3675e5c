"""What holds for clips of every kind."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from clip_files import moving, write_folder, write_gif, write_video
from PIL import Image

from datamodules import open_clip, read_clip
from datamodules.clips import opening
from datamodules.clips.colour import to_channels
from datamodules.clips.fitting import FITS, fitted

CLIP = moving(9)
VIDEO = np.moveaxis(CLIP, 3, 1)  # (T, C, H, W)


def webp(path, frames):
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, lossless=True)
    return path


def saved(path, frames):
    (np.save if path.suffix == ".npy" else np.savez_compressed)(path, frames)
    return path


KINDS = {
    ".npy": saved,
    ".npz": saved,
    ".gif": write_gif,
    ".webp": webp,
    ".mkv": lambda path, frames: write_video(path, frames, "ffv1", "bgr0"),
    "folder": write_folder,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def written(folder, kind, frames=CLIP):
    return KINDS[kind](folder / f"clip{kind.replace('folder', '')}", frames)


@each_kind
def test_size_is_known_and_any_part_is_that_of_the_whole(tmp_path, kind):
    clip = open_clip(written(tmp_path, kind))
    assert (clip.num_frames, clip.channels, clip.frame_size) == (9, 3, (18, 24))
    assert clip.dtype == np.uint8
    for start, stop, step in [(0, 9, 1), (8, 9, 1), (2, 7, 3), (0, 9, 20)]:
        part = clip.read(start, stop, step)
        np.testing.assert_array_equal(part, VIDEO[start:stop:step])
        assert part.flags.c_contiguous
        assert part.flags.writeable
        np.testing.assert_array_equal(list(clip.frames(start, stop, step)), part)


@each_kind
def test_one_frame_is_a_clip(tmp_path, kind):
    np.testing.assert_array_equal(read_clip(written(tmp_path, kind, CLIP[:1])), VIDEO[:1])


@each_kind
def test_frames_that_are_not_there_are_named(tmp_path, kind):
    clip = open_clip(written(tmp_path, kind))
    for start, stop, step in [(-1, 3, 1), (3, 10, 1), (4, 4, 1), (5, 4, 1), (0, 9, 0)]:
        message = rf"clip.*: asked for frames {start} to {stop} by {step}, but it has .* 0 to 9$"
        with pytest.raises(ValueError, match=message):
            clip.read(start, stop, step)


@each_kind
def test_colour_can_be_had_as_luma(tmp_path, kind):
    clip = open_clip(written(tmp_path, kind))
    luma = [np.asarray(Image.fromarray(frame).convert("L")) for frame in CLIP]
    np.testing.assert_array_equal(clip.read(0, 9, channels=1)[:, 0], luma)


@each_kind
def test_gray_has_one_channel_and_can_be_had_with_three(tmp_path, kind):
    gray = np.repeat(CLIP[..., :1], 3, axis=-1)
    clip = open_clip(written(tmp_path, kind, gray))
    np.testing.assert_array_equal(clip.read(0, 9, channels=3), VIDEO[:, [0, 0, 0]])
    np.testing.assert_array_equal(clip.read(0, 9, channels=1), VIDEO[:, :1])
    assert clip.channels == (3 if kind in (".npy", ".npz") else 1)  # arrays keep their own
    assert clip.read(3, 5).shape[1] == clip.channels


@each_kind
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_can_be_had_in_another_size(tmp_path, kind, fit, channels):
    clip = open_clip(written(tmp_path, kind))
    result = clip.read(2, 9, 3, channels=channels, size=(8, 9), fit=fit)
    assert result.flags.c_contiguous
    for frame, own in zip(result, VIDEO[2:9:3], strict=True):
        np.testing.assert_array_equal(frame, to_channels(fitted(own, (8, 9), fit), channels))
    frames = clip.frames(2, 9, 3, channels=channels, size=(8, 9), fit=fit)
    np.testing.assert_array_equal(list(frames), result)


@each_kind
def test_gray_frames_are_the_same_whether_they_are_resized_first_or_last(tmp_path, kind):
    clip = open_clip(written(tmp_path, kind))
    first = clip.read(0, 9, channels=1, size=(8, 9)).astype(int)
    last = [fitted(frame, (8, 9), "cover") for frame in clip.read(0, 9, channels=1)]
    # Each of the two directions and luma are rounded, to a half each.
    assert np.abs(first - last).max() <= 2


@each_kind
def test_what_a_frame_is_decoded_with_ends_before_the_next_key_frame(tmp_path, kind):
    clip = open_clip(written(tmp_path, kind))
    for number in range(9):
        if kind in (".npy", "folder"):
            expected = range(number, number + 1)
        elif kind == ".mkv":
            expected = range(5) if number < 5 else range(5, 9)
        else:
            expected = range(9)
        assert clip.decoded_with(number) == expected


def test_other_numbers_of_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"channels is 2: must be 1 \(gray\) or 3"):
        open_clip(written(tmp_path, ".gif")).read(0, 9, channels=2)


@each_kind
def test_a_reader_keeps_no_file_open_and_can_be_sent_to_another_process(tmp_path, kind):
    clip = open_clip(written(tmp_path, kind))
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    clip.read(0, 4)
    assert not descriptors.exists() or len(list(descriptors.iterdir())) == before
    content = pickle.dumps(clip)
    assert len(content) < CLIP[0].nbytes + 1000
    np.testing.assert_array_equal(pickle.loads(content).read(3, 5), VIDEO[3:5])


@each_kind
def test_missing_and_forbidden_are_told_in_one_line(tmp_path, kind, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nothing\.gif: no such file: check the path$"):
        open_clip(tmp_path / "nothing.gif")
    path = written(tmp_path, kind)

    def forbidden(self, *args, **kwargs):  # what root may read all the same
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(PermissionError, match=r"clip.*: no permission to read it: ") as caught:
        open_clip(path)
    assert "\n" not in str(caught.value)


def test_a_clip_too_long_to_read_at_once_can_still_be_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MOST_PIXELS_AT_ONCE", VIDEO[0, 0].size * 8)
    path = written(tmp_path, ".gif")
    with pytest.raises(ValueError, match=r"clip\.gif: 9 frames of 18 x 24 pixels are too many"):
        read_clip(path)
    np.testing.assert_array_equal(open_clip(path).read(3, 5), VIDEO[3:5])


def test_huge_frames_of_an_array_are_refused(tmp_path):
    path = tmp_path / "clip.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (1, 10_000, 10_000))  # a hole, not written
    with pytest.raises(ValueError, match="frames of 10000 x 10000 pixels are too large"):
        open_clip(path)


@pytest.mark.parametrize("dark", [0, 1, 2])
def test_pixels_in_which_two_colours_agree_are_not_gray(tmp_path, dark):
    frames = np.full((1, 8, 8, 3), 200, np.uint8)
    frames[..., dark] = 0
    clip = open_clip(write_gif(tmp_path / "a.gif", frames))
    assert clip.read(0, 1).shape[1] == clip.channels == 3
