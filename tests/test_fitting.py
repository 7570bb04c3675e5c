import numpy as np
import pytest
from PIL import Image

from datamodules.clips.fitting import FITS, fitted

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (3, 20, 30), dtype=np.uint8)


def by_pillow(frame, size):
    """Bilinear, with a filter as wide as the pixels that become one."""
    image = Image.fromarray(np.moveaxis(frame, 0, 2))
    image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.moveaxis(np.asarray(image), 2, 0).astype(int)


@pytest.mark.parametrize("size", [(8, 9), (20, 10), (40, 60), (7, 50)])
def test_stretch_resizes_the_whole_frame(size):
    result = fitted(FRAME, size, "stretch")
    assert (result.dtype, result.shape) == (np.uint8, (3, *size))
    # Pillow rounds its weights to fixed point, and after each of the two directions.
    assert np.abs(result - by_pillow(FRAME, size)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 64), (64, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 7), (2, 2), (64, 64)])
@pytest.mark.parametrize("turned", [False, True])
def test_bytes_are_resized_as_floats_are_whatever_the_sides(channels, height, width, size, turned):
    frame = np.moveaxis(RNG.integers(0, 256, (height, width, channels), dtype=np.uint8), 2, 0)
    if turned:
        frame = np.rot90(frame, axes=(1, 2))
    exact = 255 * fitted(np.float32(frame / 255), size, "stretch")
    # Rounded after each of the two directions, to a half each, with weights in fixed point.
    assert np.abs(fitted(frame, size, "stretch") - exact).max() <= 1.01


def test_what_is_cropped_does_not_keep_the_whole_frame():
    assert fitted(FRAME, (10, 13), "crop").base is None


@pytest.mark.parametrize(
    ("size", "part"),
    [
        ((10, 10), FRAME[:, :, 5:25]),
        ((5, 30), FRAME[:, 7:12]),
        ((40, 20), FRAME[:, :, 10:20]),
    ],
)
def test_cover_keeps_the_proportions_of_the_largest_part_in_the_middle(size, part):
    result = fitted(FRAME, size, "cover")
    assert np.abs(result - by_pillow(part, size)).max() <= 1


def test_crop_takes_the_middle_as_it_is():
    np.testing.assert_array_equal(fitted(FRAME, (10, 13), "crop"), FRAME[:, 5:15, 8:21])


@pytest.mark.parametrize("size", [(21, 5), (5, 31)])
def test_crop_of_more_than_there_is_raises(size):
    with pytest.raises(ValueError, match=r"frames of 20 x 30 pixels are smaller than frame_size"):
        fitted(FRAME, size, "crop")


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_frames_of_the_right_size_pass_unchanged(fit, dtype):
    frame = (FRAME / 255 * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    np.testing.assert_array_equal(fitted(frame, (20, 30), fit), frame)


@pytest.mark.parametrize("fit", ["cover", "stretch"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(3, 40), (64, 64), (1, 1)])
def test_a_white_frame_stays_white_in_each_type(fit, dtype, size):
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    result = fitted(np.full((1, 20, 30), white, dtype), size, fit)
    assert result.dtype == dtype
    # Floats: the filter's weights add up to 1 within their rounding.
    np.testing.assert_allclose(result, white, rtol=1e-6 if dtype == np.float32 else 0)
    assert result.max() <= white


def test_a_frame_far_from_the_proportions_can_still_cover():
    assert fitted(FRAME[:, :1], (30, 1), "cover").shape == (3, 30, 1)
