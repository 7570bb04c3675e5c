import numpy as np
import pytest
from clip_files import moving, write_gif
from PIL import Image

from datamodules import open_clip, read_clip

CLIP = moving(6)


def save(path, frames, **options):
    first, *rest = map(Image.fromarray, frames)
    if path.suffix == ".webp":
        options = {"lossless": True, "exact": True, **options}
    elif path.suffix == ".apng":
        options = {"format": "PNG", **options}
    first.save(path, save_all=True, append_images=rest, duration=40, **options)
    return path


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".png", ".apng", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_animation_has_its_exact_pixels(tmp_path, suffix, channels):
    frames = CLIP if channels == 3 else CLIP[..., 0]
    clip = open_clip(save(tmp_path / f"clip{suffix}", frames))
    assert (clip.num_frames, clip.channels, clip.frame_size) == (6, channels, (18, 24))
    expected = np.moveaxis(CLIP[..., :channels], 3, 1)
    np.testing.assert_array_equal(clip.read(0, 6), expected)
    np.testing.assert_array_equal(clip.read(1, 6, 2), expected[1::2])
    np.testing.assert_array_equal(clip.read(5, 6), expected[5:])


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_alpha_is_laid_over_black(tmp_path, suffix):
    alpha = np.broadcast_to(np.arange(24, dtype=np.uint8) * 10, CLIP.shape[:3])[..., None]
    path = save(tmp_path / f"clip{suffix}", np.concatenate([CLIP, alpha], axis=-1))
    expected = np.round(CLIP / 255 * alpha)
    np.testing.assert_array_equal(read_clip(path), np.moveaxis(expected, 3, 1))


def test_the_picture_that_stands_for_an_animation_is_none_of_its_frames(tmp_path):
    path = save(tmp_path / "clip.png", CLIP, default_image=True)
    np.testing.assert_array_equal(read_clip(path), np.moveaxis(CLIP[1:], 3, 1))


def test_png_of_one_frame_and_16_bits_is_a_clip_of_one_frame(tmp_path):
    gray = np.random.default_rng(0).integers(0, 2**16, (8, 9), dtype=np.uint16)
    Image.fromarray(gray).save(tmp_path / "clip.png")
    clip = read_clip(tmp_path / "clip.png")
    assert clip.dtype == np.uint16
    np.testing.assert_array_equal(clip, gray[None, None])


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animation_cut_off_anywhere_is_refused(tmp_path, suffix):
    path = save(tmp_path / f"clip{suffix}", CLIP[:3, :5, :5])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"clip\{suffix}: ") as caught:
            read_clip(path)
        one_line(caught)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_damaged_animation_is_refused_or_read_but_never_fails_otherwise(tmp_path, suffix):
    path = save(tmp_path / f"clip{suffix}", CLIP)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(100):
        damaged = bytearray(whole)
        for at in rng.integers(40, len(whole) - 1, size=3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_clip(path).ndim == 4
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(message.startswith(str(path)) and "\n" not in message for message in refused)


@pytest.mark.parametrize("suffix", [".png", ".apng", ".webp"])
def test_text_under_the_name_of_an_animation_is_refused(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_text("<html>404</html>\n")
    with pytest.raises(ValueError, match=rf"clip\{suffix}: not a ") as caught:
        read_clip(path)
    one_line(caught)


@pytest.mark.parametrize("size", [10_000, 8_193])
def test_huge_frames_are_refused_before_they_are_decoded(tmp_path, size):
    gif, png = tmp_path / "clip.gif", tmp_path / "clip.png"
    save(gif, CLIP[..., 0])
    content = bytearray(gif.read_bytes())
    content[6:10] = size.to_bytes(2, "little") * 2  # the size of the screen
    gif.write_bytes(content)
    Image.new("1", (size, size)).save(png)
    for path in (gif, png):
        with pytest.raises(
            ValueError, match=r"too large: make (it|them) smaller, at most"
        ) as caught:
            read_clip(path)
        one_line(caught)


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path):
    """A flipped bit in compressed pixels may decode to other ones without an error."""
    path = save(tmp_path / "clip.apng", CLIP)
    content = path.read_bytes()
    for chunk in (b"IDAT", b"fdAT", b"fcTL"):
        damaged = bytearray(content)
        damaged[damaged.index(chunk) + 12] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"clip\.apng: the PNG is damaged \(a checksum"):
            open_clip(path)
    path.write_bytes(content)
    assert open_clip(path).num_frames == len(CLIP)


@pytest.mark.parametrize("end", [b"\0", b"\r\n"])
def test_a_gif_with_padding_behind_its_end_is_whole(tmp_path, end):
    path = write_gif(tmp_path / "a.gif", moving(3))
    path.write_bytes(path.read_bytes() + end)
    assert open_clip(path).num_frames == 3
