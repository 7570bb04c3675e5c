import socket
import struct
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from datamodules import load_digits
from datamodules.digits import _builtin_digits

SPLITS = ["train", "val", "test"]
LIBRARY = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "kmnist": KMNIST}


def write_idx(folder):
    """Writes four files in MNIST's format whose images hold their own number in two pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[:, 0, 0], images[:, 0, 1] = divmod(np.arange(count), 256)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + bytes(count))


def numbers(images):
    return images[:, 0, 0].astype(int) * 256 + images[:, 0, 1]


@pytest.fixture(scope="module")
def idx_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    write_idx(root / "MNIST" / "raw")
    return root


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to download fails, and is noted."""
    attempts = []

    def fail(url, *args, **kwargs):
        attempts.append(url)
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    return attempts


def test_validation_images_are_the_last_5000_of_the_training_split(idx_root, no_network):
    splits = {split: load_digits("mnist", idx_root, split) for split in SPLITS}
    np.testing.assert_array_equal(numbers(splits["train"]), np.arange(55_000))
    np.testing.assert_array_equal(numbers(splits["val"]), np.arange(55_000, 60_000))
    np.testing.assert_array_equal(numbers(splits["test"]), np.arange(10_000))
    assert all(images.dtype == np.uint8 for images in splits.values())
    assert no_network == []


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("existing", [True, False])
def test_missing_images_that_cannot_be_downloaded_give_one_line_and_leave_nothing(
    name, existing, tmp_path, no_network, capfd
):
    root = tmp_path if existing else tmp_path / "some" / "data"
    with pytest.raises(FileNotFoundError) as caught:
        load_digits(name, root, "train")
    message = str(caught.value)
    raw = root / LIBRARY[name].__name__ / "raw"
    assert message == (
        f"{name} not found in {root}, download failed (urlopen error no route to host): put the "
        f"four files into {raw} or use `digits: builtin`"
    )
    assert no_network != []
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "failure", [RuntimeError("a\nb"), TimeoutError("b"), IncompleteRead(b"x"), EOFError()]
)
def test_every_kind_of_failed_download_leaves_no_part_of_it(tmp_path, monkeypatch, failure):
    def fail(self):
        (Path(self.raw_folder) / "train-images-idx3-ubyte").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(MNIST, "download", fail)
    with pytest.raises(FileNotFoundError, match=r"^mnist not found in [^\n]*`$"):
        load_digits("mnist", tmp_path, "test")
    assert list(tmp_path.iterdir()) == []


def test_failed_download_keeps_the_files_that_were_there(tmp_path, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"mine")
    with pytest.raises(FileNotFoundError):
        load_digits("mnist", tmp_path, "test")
    assert [path.name for path in raw.iterdir()] == ["t10k-labels-idx1-ubyte"]


def test_download_puts_all_four_files_in_place_and_is_not_repeated(tmp_path, monkeypatch):
    downloads = []

    def download(self):
        downloads.append(socket.getdefaulttimeout())
        write_idx(Path(self.raw_folder))

    monkeypatch.setattr(MNIST, "download", download)
    before = socket.getdefaulttimeout()
    for _ in range(2):
        assert len(load_digits("mnist", tmp_path, "test")) == 10_000
    assert len(downloads) == 1
    assert downloads[0] is not None
    assert socket.getdefaulttimeout() == before
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    assert sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir()) == [
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
    ]


def test_archives_put_there_by_hand_are_handed_to_the_library_for_unpacking(tmp_path, monkeypatch):
    found = []

    def download(self):
        found.extend(path.name for path in Path(self.raw_folder).iterdir())
        raise URLError("offline")

    monkeypatch.setattr(MNIST, "download", download)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"packed")
    with pytest.raises(FileNotFoundError, match="offline"):
        load_digits("mnist", tmp_path, "train")
    assert found == ["train-images-idx3-ubyte.gz"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "short"])
def test_damaged_files_are_named(tmp_path, idx_root, damage, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (idx_root / "MNIST" / "raw").iterdir():
        (raw / path.name).symlink_to(path)
    images = raw / "t10k-images-idx3-ubyte"
    content = {
        "truncated": images.read_bytes()[:1000],
        "empty": b"",
        "text": b"not found",
        "short": struct.pack(">IIII", 0x803, 1, 28, 28) + bytes(784),
    }[damage]
    images.unlink()
    images.write_bytes(content)
    with pytest.raises(ValueError, match=r"^the mnist files in .*raw are damaged: delete them.*$"):
        load_digits("mnist", tmp_path, "test")


def test_unknown_name_and_split_are_refused(tmp_path):
    with pytest.raises(ValueError, match="digits is 'emnist': must be one of mnist, "):
        load_digits("emnist", tmp_path, "train")
    with pytest.raises(ValueError, match="split is 'dev': must be one of train, val, test"):
        load_digits("builtin", tmp_path, "dev")


def test_builtin_digits_have_the_shape_of_mnist_and_write_nothing(tmp_path, no_network):
    sizes = {split: load_digits("builtin", tmp_path, split).shape for split in SPLITS}
    assert sizes == {"train": (2000, 28, 28), "val": (500, 28, 28), "test": (500, 28, 28)}
    assert list(tmp_path.iterdir()) == []
    assert no_network == []


def test_builtin_digits_are_all_different_within_and_between_splits(tmp_path):
    images = np.concatenate([load_digits("builtin", tmp_path, split) for split in SPLITS])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 3000


def test_builtin_digits_are_made_once_and_cannot_be_changed(tmp_path):
    images = load_digits("builtin", tmp_path, "val")
    assert load_digits("builtin", tmp_path, "val") is images
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_builtin_digits_are_the_same_whatever_the_callers_random_state_which_stays(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        again = _builtin_digits.__wrapped__("test")
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(again, load_digits("builtin", tmp_path, "test"))


def test_builtin_digits_are_as_bright_large_and_centred_as_mnist(tmp_path):
    # MNIST's training split: 13 % of the pixels are brighter than 128, glyphs are 20 pixels high,
    # the mean image's centre is within one pixel of the frame's.
    images = load_digits("builtin", tmp_path, "train").astype(float)
    assert 0.09 < (images > 128).mean() < 0.18
    assert images.max(axis=(1, 2)).min() > 200
    heights = (images > 40).any(axis=2).sum(axis=1)
    assert 18 < heights.mean() < 22
    mean = images.mean(axis=0)
    centre = np.array([np.average(np.arange(28), weights=mean.sum(axis)) for axis in (1, 0)])
    assert np.abs(centre - 13.5).max() < 1


def test_builtin_digits_can_be_told_apart_by_their_nearest_neighbour(tmp_path):
    # Image i shows digit i % 10. Legible digits lie nearest to others of their kind.
    train = load_digits("builtin", tmp_path, "train").reshape(2000, -1).astype(np.float32)
    test = load_digits("builtin", tmp_path, "test").reshape(500, -1).astype(np.float32)
    distances = (train**2).sum(1)[None] - 2 * test @ train.T
    assert (distances.argmin(axis=1) % 10 == np.arange(500) % 10).mean() > 0.8  # chance: 0.1


def test_builtin_digits_vary_in_thickness_and_slant(tmp_path):
    ones = load_digits("builtin", tmp_path, "train")[1::10].astype(float)
    ink = ones.sum(axis=(1, 2)) / 255
    assert np.percentile(ink, 90) > 1.5 * np.percentile(ink, 10)
    rows = np.arange(28)[:, None] - 13.5
    columns = np.arange(28)[None] - 13.5
    slant = (ones * rows * columns).sum((1, 2)) / (ones * rows**2).sum((1, 2))
    assert slant.std() > 0.1
