"""Clips in NumPy's files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.clips.colour import on_black
from datamodules.clips.errors import damage, first_line, require_file
from datamodules.clips.reader import ClipReader

ARRAY_SUFFIXES = (".npy", ".npz")

ROUNDING = 1e-5  # by which floats may leave [0, 1]
MOST_PACKED_BYTES = 2**32  # of an array in a .npz, which has to be unpacked as a whole


class ArrayReader(ClipReader):
    """A clip in a .npy file, which is mapped into memory, or in a .npz file.

    Pixels are uint8, uint16, bool (which becomes 0 and 255) or floats in [0, 1].

    Args:
        path: The file.
        axes: What the array's axes are, such as "THWC": T time, C channels (1, 3, or 4 with
            alpha), H height and W width, each once; without T it is one frame, without C gray.
            None for (T, H, W), (T, C, H, W) or, where the second axis cannot be C, (T, H, W, C).
        array: The array's name in a .npz file that has several.

    Raises:
        OSError: If there is no such file or it may not be read.
        ValueError: If it is damaged or holds something other than a clip.
    """

    def __init__(self, path: Path, axes: str | None = None, array: str | None = None) -> None:
        self.path = path
        self.array = array
        stored = self._load()
        self.axes = axes = _axes(stored.shape, path) if axes is None else _checked(axes, path)
        if len(axes) != stored.ndim:
            raise ValueError(
                f"{path}: axes {axes!r} are {len(axes)}, but the array's shape is {stored.shape}"
            )
        if stored.size == 0:
            raise ValueError(
                f"{path}: shape {stored.shape} holds no pixels: give at least one frame"
            )
        frames = _channels_second(stored, axes)
        if frames.shape[1] not in (1, 3, 4):
            raise ValueError(
                f"{path}: {frames.shape[1]} channels (axes {axes!r} of shape {stored.shape}): give "
                "1, 3, or 4 with alpha"
            )
        self.num_frames = len(frames)
        self.dtype = _pixel_type(stored.dtype, path)
        self._channels = 1 if frames.shape[1] == 1 else 3
        if path.suffix.lower() == ".npz":  # which is unpacked as a whole
            self._begins = np.zeros(1, dtype=np.int64)
        self._set_frame_size(*frames.shape[2:])

    def _load(self) -> NDArray[Any]:
        if self.path.suffix.lower() == ".npy":
            return open_npy(self.path)
        return _load_npz(self.path, self.array)

    def _decode(self, numbers: range) -> Iterator[NDArray[Any]]:
        frames = _channels_second(self._load(), self.axes)
        for number in numbers:
            frame = frames[number]
            if frame.dtype.kind == "f":
                _check_unit(frame, number, self.path)
            elif frame.dtype == np.bool_:
                frame = frame.astype(np.uint8) * np.uint8(255)
            # In this machine's byte order, independent of the file.
            frame = frame.astype(self.dtype)
            yield on_black(frame) if len(frame) == 4 else frame


def open_npy(path: str | Path) -> NDArray[Any]:
    """Opens a .npy file as a read-only memory map.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is a directory or cannot be read.
        ValueError: If it is not a .npy file, is truncated, or holds Python objects or nothing.
    """
    path = Path(path)
    require_file(path)
    with path.open("rb") as file:
        magic = file.read(6)
    if magic != b"\x93NUMPY":
        raise ValueError(f"{path}: not a .npy file: write it with numpy.save")
    try:
        with damage(path, ".npy file"):
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ValueError(
            f"{path}: cannot be read ({first_line(cause)}): the file is truncated or damaged, or "
            "holds no numbers; write it anew with numpy.save"
        ) from error
    return array


def _load_npz(path: Path, name: str | None) -> NDArray[Any]:
    require_file(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a .npz file, or a truncated one: write it with numpy.savez")
    with damage(path, ".npz file"):
        archive = np.load(path, allow_pickle=False)
    with archive:
        names = list(archive.files)
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            if not names:
                raise ValueError(f"{path}: there is no array in it")
            told = "has several arrays" if name is None else f"has no array {name!r}"
            raise ValueError(
                f"{path}: {told}: choose one by its name (array), of {', '.join(names)}"
            )
        unpacked = archive.zip.getinfo(
            f"{name}.npy" if f"{name}.npy" in archive.zip.namelist() else name
        ).file_size
        if unpacked > MOST_PACKED_BYTES:
            raise ValueError(
                f"{path}: {name} has {unpacked:,} bytes and would be unpacked as a whole: save it "
                "with numpy.save, as .npy files are read in parts"
            )
        with damage(path, ".npz file"):
            array: NDArray[Any] = archive[name]
    return array


def _axes(shape: tuple[int, ...], path: Path) -> str:
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        raise ValueError(
            f"{path}: shape {shape} may be one image or frames {shape[2]} pixels wide: say which "
            "by axes HWC or THW"
        )
    if len(shape) == 3:
        return "THW"
    if len(shape) == 4:
        for channels in ((1, 3), (4,)):
            if shape[1] in channels:
                return "TCHW"
            if shape[3] in channels:
                return "THWC"
    raise ValueError(
        f"{path}: shape {shape} is not a clip: expected (T, H, W), (T, C, H, W) or (T, H, W, C) "
        "with 1, 3 or 4 channels; other orders need axes, such as HWT; of several clips in one "
        "array, save each as a file of its own"
    )


def _checked(axes: str, path: Path) -> str:
    if len(set(axes)) != len(axes) or not {"H", "W"} <= set(axes) <= set("TCHW"):
        raise ValueError(
            f"{path}: axes is {axes!r}: must be H, W and, where the array has them, T and C, each "
            "once, such as THWC"
        )
    return axes


def _channels_second(array: NDArray[Any], axes: str) -> NDArray[Any]:
    """A view (T, C, H, W) of an array with these axes."""
    missing = [axis for axis in "TC" if axis not in axes]
    array = np.expand_dims(array, tuple(range(len(missing))))
    order = "".join(missing) + axes
    return array.transpose([order.index(axis) for axis in "TCHW"])


def _pixel_type(dtype: np.dtype[Any], path: Path) -> np.dtype[Any]:
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return np.dtype(f"=u{dtype.itemsize}")
    if dtype.kind == "f":
        return np.dtype(np.float32)
    raise ValueError(f"{path}: pixels are {dtype}: give uint8, uint16, bool, or floats in [0, 1]")


def _check_unit(frame: NDArray[Any], number: int, path: Path) -> None:
    low, high = frame.min(), frame.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            f"{path}: frame {number} has pixels that are NaN or infinite: give floats in [0, 1]"
        )
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"{path}: pixels of frame {number} range from {low:g} to {high:g}, but floats must lie "
            "in [0, 1]: subtract their minimum and divide by their range, the same numbers for all "
            "clips, or save 8-bit pixels as uint8"
        )
