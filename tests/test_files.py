import errno
import json
import os
import stat
import sys

import pytest

from convlstm.files import check_folder, replacing, write_json


def names(directory):
    return [path.name for path in directory.iterdir()]


def test_file_gets_its_name_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "deep" / "out.gif"
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".gif"
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["out.gif"]


def test_path_may_be_a_string(tmp_path):
    with replacing(str(tmp_path / "a.txt")) as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_file_that_stood_there_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_interrupted_write_leaves_everything_as_it_was(tmp_path, problem, old):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise problem

    with pytest.raises(problem):
        write_half()
    assert names(tmp_path) == ([] if old is None else ["a.txt"])
    assert old is None or path.read_text() == old


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # its block ends last
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a")}
    assert modes["a"] == modes["plain"]


def test_contents_reach_the_disk_before_the_rename(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    there = []
    monkeypatch.setattr(os, "fsync", lambda _: there.append(path.exists()))
    with replacing(path) as temporary:
        temporary.write_text("x")
    assert there == [False]


@pytest.mark.parametrize("below", ["a.gif", "deeper/a.gif"])
def test_parent_that_is_a_file_is_named(tmp_path, below):
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / below
    with pytest.raises(NotADirectoryError) as caught, replacing(path):
        pytest.fail("the block ran")
    assert caught.value.filename == str(path)
    assert (tmp_path / "file").read_text() == "x"


def test_directory_in_the_place_of_the_file_is_named_and_kept(tmp_path):
    path = tmp_path / "a.gif"
    path.mkdir()
    with pytest.raises(OSError, match=r"a\.gif") as caught, replacing(path) as temporary:
        temporary.write_text("x")
    assert caught.value.filename == str(path)
    assert caught.value.filename2 is None
    assert names(tmp_path) == ["a.gif"]


def test_full_disk_names_the_users_path_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught, replacing(path) as temporary:
        temporary.write_text("new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.gif"]


def test_error_about_the_temporary_name_names_the_users_path(tmp_path):
    path = tmp_path / "a.gif"
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        pass  # writes nothing
    assert caught.value.filename == str(path)


def test_error_about_another_file_stays_itself(tmp_path):
    other = tmp_path / "input.gif"
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.gif"):
        other.read_bytes()
    assert caught.value.filename == str(other)


def test_json_has_null_for_nan_and_infinity(tmp_path):
    write_json(tmp_path / "a.json", {"psnr": [1.5, float("inf")], "of": {"ssim": float("nan")}})
    text = (tmp_path / "a.json").read_text()
    read = json.loads(text, parse_constant=pytest.fail)
    assert read == {"psnr": [1.5, None], "of": {"ssim": None}}


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(PermissionError) as caught:
        check_folder(tmp_path / "new" / "deep")
    assert caught.value.filename == str(tmp_path)


def test_json_has_null_in_tuples_too(tmp_path):
    write_json(tmp_path / "a.json", {"a": (1.0, float("nan"))})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.0, None]}
