import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from datamodules import read_clip
from datamodules.clips import arrays

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 12, 14), dtype=np.uint8)
# Few colours, so that the GIF's palette holds them exactly.
RGB = np.array([[0, 0, 0], [255, 0, 0], [0, 200, 40], [9, 8, 255]], dtype=np.uint8)[
    RNG.integers(0, 4, (5, 12, 14))
]


def save(path, array):
    np.save(path, array)
    return path


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float32])
def test_npy_of_a_supported_type_keeps_its_pixels(tmp_path, dtype):
    frames = GRAY.astype(dtype)
    if frames.dtype.kind == "f":
        frames /= 255
    clip = read_clip(save(tmp_path / "clip.npy", frames))
    assert clip.dtype == frames.dtype.newbyteorder("=")
    np.testing.assert_array_equal(clip, frames[:, None])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_npy_of_other_float_types_becomes_float32(tmp_path, dtype):
    frames = (GRAY / 255).astype(dtype)
    clip = read_clip(save(tmp_path / "clip.npy", frames))
    assert clip.dtype == np.float32
    np.testing.assert_array_equal(clip, frames[:, None].astype(np.float32))


def test_npy_of_bool_becomes_black_and_white(tmp_path):
    clip = read_clip(save(tmp_path / "clip.npy", GRAY > 100))
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip[:, 0], np.where(GRAY > 100, 255, 0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_npy_with_channels_second_or_last_is_turned_to_channels_second(tmp_path, channels, last):
    frames = RNG.integers(0, 256, (4, channels, 6, 7), dtype=np.uint8)
    clip = read_clip(save(tmp_path / "clip.npy", np.moveaxis(frames, 1, 3) if last else frames))
    np.testing.assert_array_equal(clip, frames)
    assert clip.flags.c_contiguous


def test_npy_whose_second_axis_can_be_channels_is_read_so_however_narrow_the_frame(tmp_path):
    frames = RNG.integers(0, 256, (4, 3, 6, 1), dtype=np.uint8)
    np.testing.assert_array_equal(read_clip(save(tmp_path / "clip.npy", frames)), frames)


def test_clip_can_be_changed_without_changing_the_file(tmp_path):
    path = save(tmp_path / "clip.npy", GRAY)
    read_clip(path)[:] = 0
    np.testing.assert_array_equal(np.load(path), GRAY)


def test_path_may_be_a_string_and_the_suffix_upper_case(tmp_path):
    path = tmp_path / "clip.npy"
    np.save(path, GRAY)
    path = path.rename(tmp_path / "CLIP.NPY")
    np.testing.assert_array_equal(read_clip(str(path)), GRAY[:, None])


@pytest.mark.parametrize("shape", [(6,), (6, 7), (4, 2, 6, 7), (4, 6, 7, 5), (1, 4, 3, 6, 7)])
def test_npy_of_another_shape_is_refused_by_its_shape(tmp_path, shape):
    with pytest.raises(ValueError, match="is not a clip") as caught:
        read_clip(save(tmp_path / "clip.npy", np.zeros(shape, dtype=np.uint8)))
    assert str(shape) in one_line(caught)


@pytest.mark.parametrize("shape", [(0, 6, 7), (4, 0, 7), (4, 3, 6, 0)])
def test_npy_without_pixels_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match=r"clip\.npy: ") as caught:
        read_clip(save(tmp_path / "clip.npy", np.zeros(shape, dtype=np.uint8)))
    one_line(caught)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint32, np.complex64])
def test_npy_of_another_type_is_refused_by_its_type(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"pixels are {np.dtype(dtype)}: give uint8"):
        read_clip(save(tmp_path / "clip.npy", np.zeros((4, 6, 7), dtype=dtype)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_npy_with_pixels_that_are_no_numbers_names_the_first_such_frame(tmp_path, bad):
    frames = np.zeros((5, 6, 7))
    frames[3, 2, 2] = frames[4, 0, 0] = bad
    with pytest.raises(ValueError, match="frame 3 has pixels that are NaN or infinite"):
        read_clip(save(tmp_path / "clip.npy", frames))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-0.5, 1), (0, 1.5)])
def test_npy_with_floats_outside_of_0_to_1_names_their_range(tmp_path, low, high):
    frames = np.zeros((4, 6, 7))
    frames[2] = np.linspace(low, high, 6 * 7).reshape(6, 7)
    with pytest.raises(ValueError, match=rf"of frame 2 range from {low} to {high}, .* in \[0, 1\]"):
        read_clip(save(tmp_path / "clip.npy", frames))


def test_npy_with_floats_that_rounding_made_leave_the_range_is_read(tmp_path):
    frames = np.full((2, 6, 7), [[-1e-6] * 6 + [1 + 1e-6]], dtype=np.float32)
    np.testing.assert_array_equal(read_clip(save(tmp_path / "clip.npy", frames))[:, 0], frames)


@pytest.mark.parametrize("axes", ["HWT", "WHT", "CTHW", "THWC", "HWCT", "TCHW"])
def test_axes_say_what_an_array_holds(tmp_path, axes):
    frames = RNG.integers(0, 256, (4, 3, 6, 7), dtype=np.uint8)
    if "C" not in axes:
        frames = frames[:, :1]
    letters = "TCHW" if "C" in axes else "THW"
    array = frames if "C" in axes else frames[:, 0]
    array = array.transpose([letters.index(axis) for axis in axes])
    np.testing.assert_array_equal(read_clip(save(tmp_path / "clip.npy", array), axes=axes), frames)


@pytest.mark.parametrize(("axes", "shape"), [("HW", (1, 1, 6, 7)), ("HWC", (1, 3, 6, 7))])
def test_axes_without_time_make_a_clip_of_one_frame(tmp_path, axes, shape):
    frames = RNG.integers(0, 256, shape, dtype=np.uint8)
    array = frames[0, 0] if axes == "HW" else np.moveaxis(frames[0], 0, 2)
    np.testing.assert_array_equal(read_clip(save(tmp_path / "clip.npy", array), axes=axes), frames)


@pytest.mark.parametrize("axes", ["", "TC", "THWX", "THHW", "thw", "BTHW"])
def test_axes_that_make_no_sense_are_refused(tmp_path, axes):
    with pytest.raises(ValueError, match=rf"axes is '{axes}': must be H, W and") as caught:
        read_clip(save(tmp_path / "clip.npy", GRAY), axes=axes)
    one_line(caught)


@pytest.mark.parametrize("axes", ["HW", "TCHW"])
def test_axes_of_another_number_than_the_arrays_are_refused(tmp_path, axes):
    with pytest.raises(ValueError, match=rf"axes '{axes}' are {len(axes)}, but .*\(5, 12, 14\)"):
        read_clip(save(tmp_path / "clip.npy", GRAY), axes=axes)


def test_axes_that_make_a_large_axis_the_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"14 channels \(axes 'THCW' .* give 1, 3, or 4"):
        read_clip(save(tmp_path / "clip.npy", np.zeros((5, 12, 14, 6), np.uint8)), axes="THCW")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_array_that_may_be_one_image_asks_for_axes(tmp_path, channels):
    path = save(tmp_path / "clip.npy", np.zeros((48, 64, channels), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"\(48, 64, \d\) may be one image or .* axes HWC or THW$"):
        read_clip(path)
    assert len(read_clip(path, axes="HWC")) == 1
    assert len(read_clip(path, axes="THW")) == 48


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("last", [False, True])
def test_alpha_of_an_array_is_laid_over_black(tmp_path, dtype, last):
    largest = 1 if dtype == np.float32 else np.iinfo(dtype).max
    frames = (RNG.random((4, 4, 6, 7)) * largest).astype(dtype)
    expected = frames[:, :3] / largest * frames[:, 3:]
    expected = expected.astype(dtype) if dtype == np.float32 else np.round(expected)
    path = save(tmp_path / "clip.npy", np.moveaxis(frames, 1, 3) if last else frames)
    # Products of floats are rounded once more or less.
    np.testing.assert_allclose(read_clip(path), expected, rtol=2e-7 if dtype == np.float32 else 0)


def test_npz_of_one_array_is_that_array_and_of_several_the_named_one(tmp_path):
    path = tmp_path / "clip.npz"
    np.savez(path, GRAY)
    np.testing.assert_array_equal(read_clip(path), GRAY[:, None])
    np.savez_compressed(path, frames=GRAY, mask=GRAY[:2] > 9)
    with pytest.raises(
        ValueError, match=r"has several arrays: choose .*array.*frames, mask"
    ) as one:
        read_clip(path)
    one_line(one)
    with pytest.raises(ValueError, match=r"has no array 'frame': .* frames, mask"):
        read_clip(path, array="frame")
    np.testing.assert_array_equal(read_clip(path, array="frames"), GRAY[:, None])
    assert read_clip(path, array="mask").max() == 255


def test_an_archive_without_arrays_is_named_so(tmp_path):
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match=r"empty\.npz: there is no array in it"):
        read_clip(tmp_path / "empty.npz")


def test_npz_cut_off_anywhere_or_damaged_is_refused(tmp_path):
    path = tmp_path / "clip.npz"
    np.savez_compressed(path, GRAY)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    for content in [*(whole[:n] for n in range(0, len(whole), 29)), damaged, b"<html>"]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"clip\.npz: ") as caught:
            read_clip(path)
        one_line(caught)


def test_npz_that_unpacks_to_very_much_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MOST_PACKED_BYTES", 1000)
    path = tmp_path / "clip.npz"
    np.savez_compressed(path, np.zeros((9, 12, 14), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"arr_0 has 1,640 bytes .*: save it with numpy\.save"):
        read_clip(path)


def test_npy_cut_off_anywhere_is_refused(tmp_path):
    whole = save(tmp_path / "whole.npy", GRAY).read_bytes()
    path = tmp_path / "clip.npy"
    for length in [0, 1, 7, 9, 50, 127, 128, 129, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"clip\.npy: ") as caught:
            read_clip(path)
        one_line(caught)


def test_npy_of_python_objects_is_refused_and_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "clip.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read_clip(path)
    one_line(caught)


@pytest.mark.parametrize("suffix", [".npy", ".gif"])
def test_text_under_the_name_of_a_clip_is_refused(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_text("<html>404</html>\n")
    with pytest.raises(ValueError, match=rf"clip\{suffix}: not a ") as caught:
        read_clip(path)
    one_line(caught)


@pytest.mark.parametrize("suffix", [".npy", ".gif", ".txt"])
def test_missing_empty_and_directory_are_told_apart(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with pytest.raises(FileNotFoundError, match=r"no such file: check the path$"):
        read_clip(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is empty"):
        read_clip(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"a folder without images .*: give "):
        read_clip(path)


def test_unsupported_suffix_lists_the_supported_ones(tmp_path):
    path = tmp_path / "clip.bmp"
    path.write_bytes(b"BM")
    with pytest.raises(ValueError, match=r"suffix '\.bmp' is not supported: .*\.npy, .*\.gif, "):
        read_clip(path)


def test_gray_gif_has_one_channel_and_its_exact_pixels(tmp_path):
    iio.imwrite(tmp_path / "clip.gif", GRAY, duration=100, plugin="pillow")
    clip = read_clip(tmp_path / "clip.gif")
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, GRAY[:, None])


def test_coloured_gif_has_three_channels_and_its_exact_pixels(tmp_path):
    iio.imwrite(tmp_path / "clip.gif", RGB, duration=100, plugin="pillow")
    np.testing.assert_array_equal(read_clip(tmp_path / "clip.gif"), np.moveaxis(RGB, 3, 1))


def test_gif_of_one_frame_is_a_clip_of_one_frame(tmp_path):
    Image.fromarray(GRAY[0]).save(tmp_path / "clip.gif")
    np.testing.assert_array_equal(read_clip(tmp_path / "clip.gif"), GRAY[:1, None])


def palette_image(pixels):
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    palette = image.convert("P")
    palette.putdata(list(np.asarray(pixels, dtype=np.uint8).ravel()))
    palette.putpalette([0, 0, 0, 250, 10, 20, 30, 240, 50])
    return palette


def test_gif_whose_frames_update_a_part_comes_out_composed(tmp_path):
    first = np.ones((8, 8), dtype=int)
    second = np.zeros((8, 8), dtype=int)  # 0 is transparent: the first frame stays
    second[2:4, 5:7] = 2
    palette_image(first).save(
        tmp_path / "clip.gif",
        save_all=True,
        append_images=[palette_image(second)],
        transparency=0,
        disposal=1,
        optimize=False,
    )
    clip = np.moveaxis(read_clip(tmp_path / "clip.gif"), 1, 3)
    expected = np.full((2, 8, 8, 3), [250, 10, 20])
    expected[1, 2:4, 5:7] = [30, 240, 50]
    np.testing.assert_array_equal(clip, expected)


def test_transparent_pixels_of_a_gif_are_black(tmp_path):
    image = palette_image(np.arange(64).reshape(8, 8) % 3)
    image.save(tmp_path / "clip.gif", transparency=1, optimize=False)
    clip = np.moveaxis(read_clip(tmp_path / "clip.gif"), 1, 3)
    colours = np.array([[0, 0, 0], [0, 0, 0], [30, 240, 50]])
    np.testing.assert_array_equal(clip[0], colours[np.arange(64).reshape(8, 8) % 3])


def test_gif_cut_off_anywhere_is_refused(tmp_path):
    iio.imwrite(tmp_path / "whole.gif", GRAY[:3, :5, :5], duration=100, plugin="pillow")
    whole = (tmp_path / "whole.gif").read_bytes()
    path = tmp_path / "clip.gif"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"clip\.gif: ") as caught:
            read_clip(path)
        one_line(caught)


def test_damaged_gif_is_refused_or_read_as_a_clip_but_never_fails_otherwise(tmp_path):
    iio.imwrite(tmp_path / "whole.gif", GRAY, duration=100, plugin="pillow")
    whole = (tmp_path / "whole.gif").read_bytes()
    path = tmp_path / "clip.gif"
    refused = []
    for _ in range(200):
        damaged = bytearray(whole)
        for at in RNG.integers(6, len(whole) - 1, size=3):
            damaged[at] = RNG.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_clip(path).ndim == 4
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        (b"'shape': ", b"'shape#: "),  # a tokenizer's error
        (b"(4, 6, 7)", b"(9**9,9,)"),
        (b"(4, 6, 7)", b"(True,6,)"),
        (b"{'descr'", b"{['escr'"),
    ],
)
def test_npy_with_a_damaged_header_is_refused_in_one_line(tmp_path, part, instead):
    path = save(tmp_path / "clip.npy", np.zeros((4, 6, 7), dtype=np.uint8))
    content = path.read_bytes()
    assert part in content
    path.write_bytes(content.replace(part, instead))
    with pytest.raises(ValueError, match=r"clip\.npy: cannot be read") as caught:
        read_clip(path)
    assert "\n" not in str(caught.value)


def test_four_rows_of_colour(tmp_path):
    np.save(tmp_path / "clip.npy", np.zeros((9, 4, 8, 3), dtype=np.uint8))
    assert read_clip(tmp_path / "clip.npy").shape == (9, 3, 4, 8)
