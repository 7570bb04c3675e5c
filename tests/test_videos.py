import builtins
import pickle
import tracemalloc

import av
import numpy as np
import pytest
from clip_files import moving, write_video

from datamodules import open_clip, read_clip
from datamodules.clips.videos import VIDEO_SUFFIXES

CLIP = moving(23, 32, 48)
# Containers, codecs, and how far pixels may be from those written: lossless ones are exact but for
# the rounding of another colour space.
KINDS = {
    "mp4": ("a.mp4", "libx264", "yuv420p", {}, 12),
    "mp4, all frames are key frames": ("a.mp4", "libx264", "yuv420p", {"g": "1"}, 12),
    "mp4, MPEG-4": ("a.mp4", "mpeg4", "yuv420p", {}, 14),
    "3gp": ("a.3gp", "libx264", "yuv420p", {}, 12),
    "mpg": ("a.mpg", "mpeg1video", "yuv420p", {"qscale": "2"}, 14),
    "mpeg, frames stored out of order": (
        "a.mpeg",
        "mpeg2video",
        "yuv420p",
        {"qscale": "2", "bf": "2"},
        14,
    ),
    "mpg, H.264, as some cameras": ("a.mpg", "libx264", "yuv420p", {"bf": "2"}, 12),
    "mts": ("a.mts", "libx264", "yuv420p", {}, 12),
    "m2ts, frames stored out of order": ("a.m2ts", "libx264", "yuv420p", {"bf": "3"}, 12),
    "ts, frames stored out of order": ("a.ts", "mpeg2video", "yuv420p", {"bf": "2"}, 14),
    "ts, out of order, MPEG-4": ("a.ts", "mpeg4", "yuv420p", {"bf": "2"}, 14),
    "flv": ("a.flv", "flv", "yuv420p", {"qscale": "2"}, 14),
    "flv, out of order, H.264": ("a.flv", "libx264", "yuv420p", {"bf": "3"}, 12),
    "ogv": ("a.ogv", "libvpx", "yuv420p", {"crf": "4", "b": "2000000"}, 14),
    "wmv, out of order, H.264": ("a.wmv", "libx264", "yuv420p", {"bf": "2"}, 12),
    "wmv": ("a.wmv", "wmv2", "yuv420p", {"qscale": "2"}, 14),
    "m4v": ("a.m4v", "libx264", "yuv420p", {}, 12),
    "mov": ("a.mov", "libx264", "yuv444p", {"qp": "0"}, 1),
    "mov with alpha": ("a.mov", "qtrle", "argb", {}, 0),
    "mov, 16 bit with alpha": ("a.mov", "png", "rgba64be", {}, 0.5),
    "webm": ("a.webm", "libvpx-vp9", "yuv420p", {"lossless": "1"}, 8),
    "mkv": ("a.mkv", "ffv1", "bgr0", {}, 0),
    "mkv, frames stored out of order": ("a.mkv", "libx264", "yuv444p", {"qp": "0", "bf": "3"}, 1),
    "avi": ("a.avi", "mpeg4", "yuv420p", {}, 14),
    "avi, frames stored out of order": ("a.avi", "mpeg4", "yuv420p", {"bf": "2"}, 14),
    "avi, out of order, H.264": ("a.avi", "libx264", "yuv444p", {"qp": "0", "bf": "2"}, 1),
}


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder, kind):
    name, codec, pixels, options, tolerance = KINDS[kind]
    return write_video(folder / name, CLIP, codec, pixels, **options), tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_comes_out_in_its_place(tmp_path, kind):
    path, tolerance = written(tmp_path, kind)
    clip = read_clip(path)
    assert clip.dtype == (np.uint16 if "16 bit" in kind else np.uint8)
    pixels = np.moveaxis(clip, 1, 3) * (255 / np.iinfo(clip.dtype).max)
    assert pixels.shape == CLIP.shape
    assert np.abs(pixels - CLIP).mean() <= tolerance
    # The moving square differs from frame to frame by far more than the codec's loss.
    distance = np.abs(pixels[:, None] - CLIP[None]).mean((2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(len(CLIP)))


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_is_the_same_as_of_the_whole(tmp_path, kind):
    path, _ = written(tmp_path, kind)
    whole, clip = read_clip(path), open_clip(path)
    for start, stop, step in [
        (0, 1, 1),
        (22, 23, 1),
        (4, 6, 1),
        (5, 15, 1),
        (6, 23, 4),
        (9, 10, 2),
    ]:
        np.testing.assert_array_equal(clip.read(start, stop, step), whole[start:stop:step])


def test_times_after_seeking_in_a_program_stream_are_not_trusted(tmp_path):
    frames = moving(60, 64, 96)
    path = write_video(tmp_path / "a.mpg", frames, "mpeg1video", "yuv420p", every=10, qscale="2")
    clip = open_clip(path)
    whole = clip.read(0, 60)
    for start in range(0, 60, 5):
        np.testing.assert_array_equal(clip.read(start, start + 1), whole[start : start + 1])


def test_key_frames_of_intra_refresh_are_no_place_to_begin(tmp_path):
    refresh = {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}
    path = write_video(tmp_path / "a.mp4", moving(90, 64, 64), "libx264", "yuv420p", **refresh)
    clip = open_clip(path)
    whole = clip.read(0, 90)
    for start in range(0, 90, 2):
        np.testing.assert_array_equal(clip.read(start, start + 1), whole[start : start + 1])


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.ts", "a.mp4"])
def test_a_recording_that_begins_late_is_whole(tmp_path, name):
    path = write_video(tmp_path / name, CLIP, "libx264", "yuv420p", first=250)
    assert read_clip(path).shape == (23, 3, 32, 48)


@pytest.mark.parametrize(
    ("name", "codec", "pack"),
    [("a.ts", "libx264", 188), ("a.ts", "mpeg2video", 188), ("a.mpg", "mpeg2video", 2048)],
)
def test_a_broadcast_begins_with_the_first_frame_that_can_be_decoded(tmp_path, name, codec, pack):
    frames = moving(60, 64, 96)
    path = write_video(tmp_path / name, frames, codec, "yuv420p", every=10, bf="2", b="2000000")
    whole, content = read_clip(path), path.read_bytes()
    path.write_bytes(content[len(content) // 3 // pack * pack :])
    clip = open_clip(path)
    part = clip.read(0, clip.num_frames)
    assert 20 <= len(part) < 50
    np.testing.assert_array_equal(part, whole[-len(part) :])
    np.testing.assert_array_equal(clip.read(15, 16), part[15:16])


def test_frames_are_decoded_with_those_up_to_the_next_key_frame(tmp_path):
    clip = open_clip(write_video(tmp_path / "a.mkv", CLIP, "libx264", "yuv444p", sc_threshold="0"))
    assert [clip.decoded_with(n) for n in (0, 4, 5, 19, 22)] == [
        range(5),
        range(5),
        range(5, 10),
        range(15, 20),
        range(20, 23),
    ]
    program = open_clip(write_video(tmp_path / "a.mpg", CLIP, "mpeg1video", "yuv420p"))
    assert program.decoded_with(7) == range(23)


def test_a_reader_that_was_sent_to_another_process_reads_the_same(tmp_path):
    path, _ = written(tmp_path, "mp4")
    clip = open_clip(path)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clip)).read(7, 9), clip.read(7, 9))


def test_frames_one_by_one_take_the_memory_of_one(tmp_path):
    frames = np.repeat(moving(23, 64, 96), 20, 0)
    clip = open_clip(write_video(tmp_path / "a.mp4", frames, "libx264", "yuv420p"))
    tracemalloc.start()
    try:
        assert sum(1 for _ in clip.frames(0, clip.num_frames, channels=3)) == 460
        assert tracemalloc.get_traced_memory()[1] < 10 * frames[0].nbytes
    finally:
        tracemalloc.stop()


def test_16_bit_gray_keeps_its_pixels(tmp_path):
    frames = np.random.default_rng(0).integers(0, 2**16, (5, 8, 10), dtype=np.uint16)
    write_video(tmp_path / "a.mkv", frames, "ffv1", "gray16le", source="gray16le")
    clip = read_clip(tmp_path / "a.mkv")
    assert clip.dtype == np.uint16
    np.testing.assert_array_equal(clip, frames[:, None])


def test_gray_in_a_coloured_format_has_one_channel(tmp_path):
    gray = np.repeat(CLIP[..., :1], 3, axis=-1)
    clip = open_clip(write_video(tmp_path / "a.mkv", gray, "ffv1", "bgr0"))
    assert clip.channels == 1
    np.testing.assert_array_equal(clip.read(0, 23)[:, 0], CLIP[..., 0])


def test_a_colour_late_in_the_clip_gives_all_of_it_three_channels(tmp_path):
    frames = np.repeat(CLIP[..., :1], 3, axis=-1)
    frames[-1, 0, 0] = [9, 8, 7]
    clip = open_clip(write_video(tmp_path / "a.mkv", frames, "ffv1", "bgr0"))
    np.testing.assert_array_equal(clip.read(2, 4), np.moveaxis(frames[2:4], 3, 1))


def test_transparent_pixels_are_black(tmp_path):
    alpha = np.full((*CLIP.shape[:3], 1), 255, dtype=np.uint8)
    alpha[:, :, :7] = 0
    frames = np.concatenate([CLIP, alpha], axis=-1)
    write_video(tmp_path / "a.mov", frames, "qtrle", "argb", source="rgba")
    clip = read_clip(tmp_path / "a.mov")
    np.testing.assert_array_equal(clip, np.moveaxis(CLIP * (alpha > 0), 3, 1))


def test_a_video_that_was_filmed_sideways_is_turned_upright(tmp_path):
    path = tmp_path / "a.mov"
    write_video(path, CLIP, "qtrle", "argb")
    content = path.read_bytes()
    fixed = [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    upright = b"".join(n.to_bytes(4) for n in fixed)
    # As phones write it: shown a quarter turn clockwise.
    turned = [0, 1 << 16, 0, 2**32 - (1 << 16), 0, 0, CLIP.shape[1] << 16, 0, 1 << 30]
    at = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(
        content[:at] + b"".join(n.to_bytes(4) for n in turned) + content[at + len(upright) :]
    )
    clip = open_clip(path)
    assert clip.frame_size == (48, 32)
    shown = np.rot90(CLIP, -1, axes=(1, 2))
    np.testing.assert_array_equal(clip.read(0, 23), np.moveaxis(shown, 3, 1))


@pytest.mark.parametrize("kind", ["mp4", "mov", "avi", "avi, out of order, H.264"])
def test_a_file_cut_off_is_refused_or_lacks_at_most_its_last_frame(tmp_path, kind):
    path, _ = written(tmp_path, kind)
    whole, content = read_clip(path), path.read_bytes()
    refused = []
    for length in np.linspace(1, len(content) - 1, 24, dtype=int):
        path.write_bytes(content[:length])
        try:
            clip = read_clip(path)
            assert len(clip) >= len(whole) - 1
            np.testing.assert_array_equal(clip, whole[: len(clip)])
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 20
    assert all(m.startswith(str(path)) and "\n" not in m for m in refused)


@pytest.mark.parametrize("kind", ["webm", "mkv"])
def test_a_file_that_lost_more_than_its_last_frames_is_refused(tmp_path, kind):
    """Matroska does not say how many frames it has, only how long it is."""
    path, _ = written(tmp_path, kind)
    content = path.read_bytes()
    for length in np.linspace(1, 0.8 * len(content), 16, dtype=int):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"truncated|not a video|without frames") as caught:
            read_clip(path)
        one_line(caught)


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv", "avi", "mpg", "wmv", "mts", "flv", "ogv"])
def test_a_damaged_video_is_refused_or_read_as_a_clip_but_never_fails_otherwise(tmp_path, kind):
    path, _ = written(tmp_path, kind)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(30):
        damaged = bytearray(whole)
        start = rng.integers(0, len(whole) - 100)
        damaged[start : start + 100] = rng.bytes(100)
        path.write_bytes(damaged)
        try:
            assert read_clip(path).shape[2:] == CLIP.shape[1:3]
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 1
    assert all(m.startswith(str(path)) and "\n" not in m for m in refused)


def test_frames_that_cannot_be_decoded_are_named(tmp_path):
    path, _ = written(tmp_path, "mkv")
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    clip = open_clip(path)
    with pytest.raises(
        ValueError, match=r"a\.mkv: frame \d+ cannot be decoded, .*damaged"
    ) as caught:
        clip.read(0, clip.num_frames)
    one_line(caught)


@pytest.mark.parametrize("suffix", sorted({*VIDEO_SUFFIXES} - {".m4v"}))
def test_text_under_the_name_of_a_video_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("<html>404</html>\n")
    with pytest.raises(ValueError, match=r"not a video, whatever its name says") as caught:
        read_clip(path)
    one_line(caught)


def test_a_file_with_sound_alone_is_refused(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a\.mkv: no video in it "):
        read_clip(path)


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "a.mkv"
    write_video(path, np.zeros((1, 300, 300), dtype=np.uint8), "ffv1", "gray", source="gray")
    content = path.read_bytes()
    for element in (b"\xb0\x82", b"\xba\x82"):  # Matroska's width and height, of two bytes
        assert content.count(element + (300).to_bytes(2)) == 1
        content = content.replace(element + (300).to_bytes(2), element + (10_000).to_bytes(2))
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"frames of 10000 x 10000 pixels are too large: make"
    ) as c:
        open_clip(path)
    one_line(c)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    path, _ = written(tmp_path, "mp4")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"a\.mp4: .* pip install av$"):
        read_clip(path)


@pytest.mark.parametrize("pixels", ["yuv420p10le", "gbrp12le"])
def test_colour_of_more_than_8_bits_says_so(tmp_path, pixels):
    frames = np.random.default_rng(0).integers(0, 2**16, (3, 8, 10, 3), dtype=np.uint16)
    write_video(tmp_path / "a.mkv", frames, "ffv1", pixels, source="rgb48le")
    clip = open_clip(tmp_path / "a.mkv")
    assert clip.dtype == clip.read(0, 3).dtype == np.uint16


def test_a_title_that_is_not_utf8_does_not_matter(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf\u00e9"
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = CLIP.shape[1:3]
        for frame in CLIP:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    expected = read_clip(path)
    content = path.read_bytes()
    assert "caf\u00e9".encode() in content
    path.write_bytes(content.replace("caf\u00e9".encode(), "caf\u00e9 ".encode("latin-1")))
    np.testing.assert_array_equal(read_clip(path), expected)


def test_an_avi_in_the_order_that_it_is_shown_in_is_read_from_key_frames_on(tmp_path):
    clip = open_clip(write_video(tmp_path / "a.avi", moving(), "mpeg4", "yuv420p"))
    assert [clip.decoded_with(number) for number in (0, 7)] == [range(5), range(5, 10)]


def test_mpeg_2_in_a_transport_stream_is_read_from_key_frames_on(tmp_path):
    clip = open_clip(write_video(tmp_path / "a.ts", moving(23, 32, 48), "mpeg2video", "yuv420p"))
    assert clip.decoded_with(12).start > 0
