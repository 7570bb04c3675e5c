import numpy as np
import pytest
from clip_files import moving, write_folder
from PIL import Image

from datamodules import open_clip, read_clip

CLIP = moving(12)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".ppm"])
def test_folder_of_images_is_a_clip_in_natural_order(tmp_path, suffix):
    clip = open_clip(write_folder(tmp_path / "clip", CLIP, suffix))
    assert (clip.num_frames, clip.channels, clip.frame_size) == (12, 3, (18, 24))
    expected = np.moveaxis(CLIP, 3, 1)
    np.testing.assert_array_equal(clip.read(0, 12), expected)
    np.testing.assert_array_equal(clip.read(1, 12, 5), expected[1::5])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_images_come_out_in_their_places(tmp_path, suffix):
    clip = np.moveaxis(read_clip(write_folder(tmp_path / "clip", CLIP, suffix)), 1, 3)
    distance = np.abs(clip[:, None].astype(float) - CLIP[None]).mean((2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(12))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_keeps_its_pixels(tmp_path, suffix):
    gray = np.random.default_rng(0).integers(0, 2**16, (3, 8, 9), dtype=np.uint16)
    clip = read_clip(write_folder(tmp_path / "clip", gray, suffix))
    assert clip.dtype == np.uint16
    np.testing.assert_array_equal(clip, gray[:, None])


def test_floats_keep_their_pixels(tmp_path):
    gray = np.random.default_rng(0).random((3, 8, 9), dtype=np.float32)
    clip = read_clip(write_folder(tmp_path / "clip", gray, ".tif"))
    assert clip.dtype == np.float32
    np.testing.assert_array_equal(clip, gray[:, None])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -0.5])
def test_floats_outside_of_0_to_1_are_refused(tmp_path, bad):
    gray = np.zeros((3, 8, 9), dtype=np.float32)
    gray[2, 1, 1] = bad
    with pytest.raises(ValueError, match=r"img2\.tif: .*outside 0 to 1") as caught:
        read_clip(write_folder(tmp_path / "clip", gray, ".tif"))
    assert "damaged" not in one_line(caught)


def test_gray_images_have_one_channel_and_those_among_coloured_ones_three(tmp_path):
    gray = write_folder(tmp_path / "gray", CLIP[..., 0])
    assert open_clip(gray).channels == 1
    Image.fromarray(CLIP[3]).save(gray / "img3.png")
    clip = read_clip(gray)
    np.testing.assert_array_equal(clip[3], np.moveaxis(CLIP[3], 2, 0))
    np.testing.assert_array_equal(clip[4], np.repeat(CLIP[4, ..., :1].T.swapaxes(1, 2), 3, 0))


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_are_read_as_pillow_converts_them(tmp_path, mode):
    (tmp_path / "clip").mkdir()
    suffix = ".tif" if mode == "CMYK" else ".png"
    image = Image.fromarray(CLIP[2]).convert(mode)
    image.save(tmp_path / "clip" / f"img{suffix}")
    expected = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    clip = open_clip(tmp_path / "clip")
    np.testing.assert_array_equal(clip.read(0, 1, channels=3)[0], expected)


def test_what_is_no_image_is_passed_over(tmp_path):
    folder = write_folder(tmp_path / "clip", CLIP)
    (folder / "notes.txt").write_text("text")
    (folder / ".img1.png").write_text("hidden")
    assert open_clip(folder).num_frames == 12


def test_images_of_another_size_or_type_are_named(tmp_path):
    folder = write_folder(tmp_path / "clip", CLIP)
    Image.fromarray(CLIP[0, :9]).save(folder / "img7.png")
    with pytest.raises(
        ValueError, match=r"img7\.png: 9 x 24 pixels, but img0\.png has 18 x 24: bring"
    ) as caught:
        open_clip(folder)
    one_line(caught)
    Image.fromarray(CLIP[0, ..., 0].astype(np.uint16)).save(folder / "img7.png")
    with pytest.raises(
        ValueError, match=r"img7\.png: pixels are uint16, .* uint8: bring"
    ) as caught:
        open_clip(folder)
    one_line(caught)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"])
def test_images_cut_off_or_replaced_by_text_are_named(tmp_path, suffix):
    folder = write_folder(tmp_path / "clip", CLIP[:3], suffix)
    path = folder / f"img1{suffix}"
    whole = path.read_bytes()
    for content in [b"", b"<html>404</html>\n", whole[:7], whole[: len(whole) // 2]]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"img1\{suffix}: ") as caught:
            read_clip(folder)
        one_line(caught)


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a folder without images \(\.png, ") as caught:
        open_clip(tmp_path)
    one_line(caught)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "img.png")
    with pytest.raises(ValueError, match=r"img\.png: .*too large: make it smaller") as caught:
        open_clip(tmp_path)
    one_line(caught)


def test_a_stack_of_pictures_in_one_file_is_refused(tmp_path):
    folder = write_folder(tmp_path / "clip", np.zeros((3, 8, 9), dtype=np.uint8), ".tif")
    pages = [Image.new("L", (9, 8)) for _ in range(5)]
    pages[0].save(folder / "img2.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"img2\.tif: 5 pictures in one file: .*\.npy"):
        read_clip(folder)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_jpegs_are_turned_upright(tmp_path, orientation):
    (tmp_path / "clip").mkdir()
    exif = Image.Exif()
    exif[274] = orientation
    picture = np.zeros((16, 24), dtype=np.uint8)
    picture[:8, :8] = 255  # top left
    for number in range(2):
        Image.fromarray(picture).save(tmp_path / "clip" / f"{number}.jpg", exif=exif)
    clip = open_clip(tmp_path / "clip")
    frames = clip.read(0, 2)
    assert clip.frame_size == frames.shape[2:] == ((24, 16) if orientation == 6 else (16, 24))
    bright = np.argwhere(frames[1, 0] > 128)
    assert bright.min(0).tolist() == {1: [0, 0], 3: [8, 16], 6: [0, 8]}[orientation]


def test_a_png_with_a_wrong_checksum_is_refused_when_it_is_read(tmp_path):
    folder = write_folder(tmp_path / "clip", CLIP)
    path = folder / "img3.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 12] ^= 1
    path.write_bytes(content)
    clip = open_clip(folder)
    clip.read(0, 3)
    with pytest.raises(ValueError, match=r"img3\.png: the PNG is damaged \(a checksum"):
        clip.read(3, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_picture(tmp_path, orientation):
    (tmp_path / "clip").mkdir()
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("L", (24, 16)).save(tmp_path / "clip" / "0.jpg", exif=exif)
    clip = open_clip(tmp_path / "clip")
    assert clip.frame_size == clip.read(0, 1).shape[2:]
