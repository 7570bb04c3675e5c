import numpy as np
import pytest
from clip_files import moving, write_folder, write_gif
from PIL import Image

from datamodules import find_clips, open_clip

CLIP = moving(3)


def gifs(folder, *names):
    folder.mkdir(exist_ok=True)
    return [write_gif(folder / f"{name}.gif", CLIP) for name in names]


def test_folder_of_clips_gives_them_in_natural_order_with_those_of_its_subfolders(tmp_path):
    two, ten, one = gifs(tmp_path, "clip2", "clip10", "Clip1")
    inner = gifs(tmp_path / "clip5", "b", "a")
    assert find_clips(tmp_path) == [one, two, inner[1], inner[0], ten]
    assert find_clips(str(tmp_path)) == find_clips([tmp_path])


def test_numbers_of_any_length_and_names_that_differ_in_case_alone_have_an_order(tmp_path):
    names = ["2", "a", "A", "a1b", "a01b", "1" * 40]
    gifs(tmp_path, *names)
    assert [path.stem for path in find_clips(tmp_path)] == ["2", "1" * 40, "A", "a", "a01b", "a1b"]


def test_folder_of_images_is_one_clip_wherever_it_lies(tmp_path):
    (gif,) = gifs(tmp_path, "a")
    inner = write_folder(tmp_path / "b", CLIP)
    assert find_clips(tmp_path) == [gif, inner]
    assert find_clips(inner) == [inner]
    assert find_clips([inner, gif]) == [inner, gif]


def test_stills_beside_clip_files_are_passed_over(tmp_path):
    (gif,) = gifs(tmp_path, "clip")
    Image.fromarray(CLIP[0]).save(tmp_path / "clip.png")
    (tmp_path / "notes.txt").write_text("text")
    np.save(tmp_path / "clip.npy", CLIP)
    assert find_clips(tmp_path) == [gif, tmp_path / "clip.npy"]


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animated_pictures_are_clips_each(tmp_path, suffix):
    first, *rest = map(Image.fromarray, CLIP)
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        first.save(path, save_all=True, append_images=rest)
    assert find_clips(tmp_path) == paths


def test_hidden_names_are_passed_over(tmp_path):
    gifs(tmp_path / ".hidden", "a")
    gifs(tmp_path, ".a")
    (shown,) = gifs(tmp_path, "b")
    assert find_clips(tmp_path) == [shown]


def test_each_clip_is_found_once(tmp_path):
    (gif,) = gifs(tmp_path, "a")
    assert find_clips([gif, tmp_path, gif]) == [gif]


def test_a_link_to_a_folder_above_ends_the_search(tmp_path):
    (gif,) = gifs(tmp_path, "a")
    (tmp_path / "again").symlink_to(tmp_path)
    assert find_clips(tmp_path) == [gif]


def test_what_is_no_clip_stays_so_that_opening_it_tells_why(tmp_path):
    (gif,) = gifs(tmp_path / "clips", "a")
    (tmp_path / "none").mkdir()
    given = [tmp_path / "missing.gif", tmp_path / "none", gif]
    assert find_clips(given) == given
    for path in given[:2]:
        with pytest.raises((OSError, ValueError), match=path.name):
            open_clip(path)


@pytest.mark.parametrize("kind", ["one", "several", "no"])
def test_nothing_found_is_one_clear_error(tmp_path, kind):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("text")
    paths = {"one": tmp_path, "several": [tmp_path / "a", tmp_path / "b"], "no": []}[kind]
    with pytest.raises(FileNotFoundError, match=r"no clips there: give files \(\.npy, ") as caught:
        find_clips(paths)
    assert "\n" not in str(caught.value)


def test_capitals_do_not_change_the_order(tmp_path):
    for name in ("b", "A", "C"):
        write_gif(tmp_path / f"{name}.gif", moving(3))
    assert [path.stem for path in find_clips(tmp_path)] == ["A", "b", "C"]


def test_a_damaged_picture_beside_clips_is_passed_over(tmp_path):
    gif = write_gif(tmp_path / "b.gif", moving(3))
    (tmp_path / "a.png").write_text("no picture")
    assert find_clips(tmp_path) == [gif]
