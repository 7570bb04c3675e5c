"""Pixels of pictures, as Pillow decodes them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from datamodules.clips.colour import on_black
from datamodules.clips.errors import OutOfRange, damage, require_file
from datamodules.clips.reader import MOST_PIXELS

_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT")
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens a picture, of which so far only the header is read.

    Raises:
        OSError: If there is no such file or it may not be read.
        ValueError: If it is no picture, or one with very many pixels.
    """
    require_file(path)
    try:
        with damage(path, "picture"):
            image = Image.open(path)
    except ValueError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ValueError(
                f"{path}: not a picture, whatever its name says, or a damaged one: give another"
            ) from error
        if isinstance(error.__cause__, _BOMBS):
            raise ValueError(
                f"{path}: the picture is too large: make it smaller, at most {MOST_PIXELS:,} pixels"
            ) from error
        raise
    with image:
        yield image


def check_png(path: Path) -> None:
    """Compares the checksums of what makes a PNG's pixels, at which Pillow does not look.

    Raises:
        ValueError: One is wrong.
    """
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            left, checksum = int.from_bytes(head[:4], "big"), zlib.crc32(head[4:])
            while part := file.read(min(left, 2**20)):
                left, checksum = left - len(part), zlib.crc32(part, checksum)
            if file.read(4) != checksum.to_bytes(4, "big") and head[4:] in _PIXEL_CHUNKS:
                raise ValueError(f"{path}: the PNG is damaged (a checksum is wrong): copy it anew")


def pixel_type(image: Image.Image) -> np.dtype[Any]:
    """What `pixels` gives: uint16 for 16-bit gray, float32 for floats, else uint8."""
    if image.mode == "F":
        return np.dtype(np.float32)
    return np.dtype(np.uint16 if image.mode.startswith("I") else np.uint8)


def pixels(image: Image.Image) -> NDArray[Any]:
    """The pixels of a picture in any mode, (C, H, W) with C = 1 or 3; transparent ones are black.

    Raises:
        OutOfRange: If floats are outside [0, 1] or integers above 65535.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        gray = np.asarray(image)[None]
        largest = 1 if image.mode == "F" else 65535
        if not (gray.min() >= 0 and gray.max() <= largest):
            raise OutOfRange(
                f"pixels from {gray.min():g} to {gray.max():g} are outside 0 to {largest}: scale "
                "all images by the same numbers"
            )
        return gray.astype(pixel_type(image))
    if image.has_transparency_data:
        return on_black(np.moveaxis(np.asarray(image.convert("RGBA")), -1, 0))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[None]
    return np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
