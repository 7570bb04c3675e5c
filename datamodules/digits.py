"""Images of digits: MNIST and its kin, or glyphs of a font that need no download."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import socket
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

DigitsName = Literal["mnist", "fashion_mnist", "kmnist", "builtin"]
Split = Literal["train", "val", "test"]

DIGIT_SIZE = 28

_LIBRARY: dict[str, Any] = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "kmnist": KMNIST}
_VAL_IMAGES = 5_000
_TIMEOUT_S = 20.0

_BUILTIN_SEEDS = {"train": 0, "val": 1, "test": 2}
_BUILTIN_IMAGES = {"train": 2_000, "val": 500, "test": 500}
_LARGE = (2 * DIGIT_SIZE, 2 * DIGIT_SIZE)
_STROKES = (0, 1, 2)  # added on each side of a stroke, in pixels of the large glyphs
_BEND = 0.06  # standard deviation, in half image widths


def load_digits(name: DigitsName, root: str | Path, split: Split) -> NDArray[np.uint8]:
    """Loads digit images, white on black.

    Args:
        name: "mnist", "fashion_mnist", "kmnist"
            (https://docs.pytorch.org/vision/stable/datasets.html), or "builtin", which needs
            neither files nor a network.
        root: Folder of the images, in torchvision's layout (``root/MNIST/raw``); missing images are
            downloaded. Unused by "builtin".
        split: "train": the first 55,000 images of the training split; "val": its last 5,000;
            "test": the 10,000 of the test split. "builtin" has 2,000, 500 and 500.

    Returns:
        (n, 28, 28) uint8; those of "builtin" are read-only.

    Raises:
        ValueError: If the name or the split is unknown, or a file is damaged.
        FileNotFoundError: If the images are missing and cannot be downloaded.
        OSError: If they cannot be read or written.
    """
    if name not in get_args(DigitsName):
        raise ValueError(f"digits is {name!r}: must be one of {', '.join(get_args(DigitsName))}")
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}: must be one of {', '.join(get_args(Split))}")
    if name == "builtin":
        return _builtin_digits(split)
    images = _library_digits(name, Path(root), train=split != "test")
    if split == "train":
        return images[:-_VAL_IMAGES]
    return images[-_VAL_IMAGES:] if split == "val" else images


def _library_digits(name: str, root: Path, train: bool) -> NDArray[np.uint8]:
    dataset = _LIBRARY[name]
    raw = root / dataset.__name__ / "raw"
    files = [raw / Path(file).stem for file, _ in dataset.resources]
    if not all(file.is_file() for file in files):
        _download(dataset, root, name)
    damaged = ValueError(
        f"the {name} files in {raw} are damaged: delete them, so that they are downloaded anew"
    )
    try:
        images: NDArray[np.uint8] = dataset(root, train=train).data.numpy()
    except OSError:
        raise
    except Exception as error:  # whatever the library's parser stumbles over
        raise damaged from error
    if images.shape != (60_000 if train else 10_000, DIGIT_SIZE, DIGIT_SIZE):
        raise damaged
    return images


def _download(dataset: Any, root: Path, name: str) -> None:
    """Puts a data set into root, all of it or nothing."""
    raw = root / dataset.__name__ / "raw"
    try:
        with _new_folder(raw) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
            workspace = Path(scratch) / dataset.__name__ / "raw"
            workspace.mkdir(parents=True)
            for archive in raw.glob("*.gz"):  # put there by hand: only to be unpacked
                shutil.copy(archive, workspace)
            with contextlib.redirect_stderr(io.StringIO()), _socket_timeout(_TIMEOUT_S):
                dataset(scratch, download=True)
            for file, _ in dataset.resources:
                (workspace / Path(file).stem).replace(raw / Path(file).stem)
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(
            f"{name} not found in {root}, download failed ({lines[-1].strip('<>')}): put the four "
            f"files into {raw} or use `digits: builtin`"
        ) from error


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder and its parents; takes away those that are still empty at the end."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """A limit for silent servers: torchvision sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@functools.cache
def _builtin_digits(split: str) -> NDArray[np.uint8]:
    """Glyphs of Pillow's embedded font, varied so that they look written by many hands.

    Image i shows the digit i % 10.
    """
    count = _BUILTIN_IMAGES[split]
    random = torch.Generator().manual_seed(_BUILTIN_SEEDS[split])

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    # Rotation, shear, scale and shift, from the final image's coordinates to the glyph's.
    angle, shear = between(-0.25, 0.25), between(-0.35, 0.35)
    scale_y, scale_x = between(0.9, 1.2), between(0.9, 1.3)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([scale_x * (cos + shear * sin), scale_x * (shear * cos - sin)], dim=1)
    row_y = torch.stack([scale_y * sin, scale_y * cos], dim=1)
    shift = torch.stack([between(-0.05, 0.05), between(-0.05, 0.05)], dim=1)
    affine = torch.cat([torch.stack([row_x, row_y], dim=1), shift[:, :, None]], dim=2)
    grid = functional.affine_grid(affine, [count, 1, *_LARGE], align_corners=False)

    # A smooth random field bends the strokes.
    bend = _BEND * torch.randn(count, 2, 5, 5, generator=random)
    bend = functional.interpolate(bend, _LARGE, mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)

    digits = torch.arange(count) % 10
    strokes = torch.randint(len(_STROKES), (count,), generator=random)
    glyphs = torch.stack([_glyphs(stroke) for stroke in _STROKES])[strokes, digits]
    images = functional.grid_sample(glyphs, grid, align_corners=False)  # (count, 1, 56, 56)
    images = functional.avg_pool2d(images, 2).squeeze(1)
    result: NDArray[np.uint8] = (255 * images).round().to(torch.uint8).numpy()
    result.setflags(write=False)
    return result


def _glyphs(stroke: int) -> torch.Tensor:
    """The digits 0 to 9 at twice the final size, (10, 1, 56, 56) float32 in [0, 1]."""
    height, width = _LARGE
    font = ImageFont.load_default(52)
    glyphs = np.zeros((10, 1, height, width), dtype=np.float32)
    for digit in range(10):
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).text(
            (width / 2, height / 2),
            str(digit),
            fill=255,
            font=font,
            anchor="mm",
            stroke_width=stroke,
        )
        glyphs[digit, 0] = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(glyphs)
