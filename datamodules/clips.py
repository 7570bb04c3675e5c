"""Reads clips from files: NumPy arrays and GIFs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

Clip = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]


def read_clip(path: str | Path) -> Clip:
    """Reads a clip, by the kind of file that its suffix names.

    - ``.npy``: (T, H, W), (T, C, H, W) or, where the second axis cannot be C, (T, H, W, C), with
      C = 1 or 3. uint8 and uint16 stay as they are, bool becomes 0 and 255, floats must lie in
      [0, 1].
    - ``.gif``: RGB, or one channel if all pixels are gray. Transparent pixels are black.

    Args:
        path: The file.

    Returns:
        (T, C, H, W): uint8, uint16 or float32 in [0, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is a directory or cannot be read.
        ValueError: If the file is not of the kind that its suffix says, is damaged, or holds
            something other than a clip.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        _require_file(path)
        raise ValueError(
            f"{path}: suffix {suffix!r} is not supported: give one of {', '.join(_READERS)}"
        )
    return _READERS[suffix](path)


def open_npy(path: str | Path) -> NDArray[Any]:
    """Opens a .npy file as a read-only memory map.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is a directory or cannot be read.
        ValueError: If it is not a .npy file, is truncated, or holds Python objects or nothing.
    """
    path = Path(path)
    _require_file(path)
    with path.open("rb") as file:
        magic = file.read(6)
    if magic != b"\x93NUMPY":
        raise ValueError(f"{path}: not a .npy file: write it with numpy.save")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: cannot be read ({_first_line(error)}): the file is truncated or damaged, or "
            "holds no numbers; write it anew with numpy.save"
        ) from error
    return array


def _read_npy(path: Path) -> Clip:
    array = open_npy(path)
    frames = _channels_second(array, path)
    if frames.size == 0:
        raise ValueError(f"{path}: shape {array.shape} holds no pixels: give at least one frame")
    if frames.dtype == np.bool_:
        return frames.astype(np.uint8) * np.uint8(255)
    if frames.dtype.kind == "u" and frames.dtype.itemsize <= 2:
        # A copy in this machine's byte order, independent of the file.
        return np.array(frames, dtype=f"=u{frames.dtype.itemsize}", order="C")
    if frames.dtype.kind == "f":
        return _checked_floats(frames, path)
    raise ValueError(
        f"{path}: pixels are {frames.dtype}: give uint8, uint16, bool, or floats in [0, 1]"
    )


def _channels_second(array: NDArray[Any], path: Path) -> NDArray[Any]:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.moveaxis(array, 3, 1)
    raise ValueError(
        f"{path}: shape {array.shape} is not a clip: expected (T, H, W) or (T, C, H, W) with 1 or "
        "3 channels"
    )


def _checked_floats(frames: NDArray[Any], path: Path) -> NDArray[np.float32]:
    finite = np.isfinite(frames).all(axis=(1, 2, 3))
    if not finite.all():
        raise ValueError(
            f"{path}: frame {np.argmin(finite)} has pixels that are NaN or infinite: give floats "
            "in [0, 1]"
        )
    low, high = frames.min(), frames.max()
    if low < 0 or high > 1:
        raise ValueError(
            f"{path}: pixels range from {low:g} to {high:g}, but floats must lie in [0, 1]: divide "
            "them by their maximum, or save 8-bit pixels as uint8"
        )
    return np.array(frames, dtype=np.float32, order="C")


def _read_gif(path: Path) -> Clip:
    _require_file(path)
    data = path.read_bytes()
    if data[:6] not in (b"GIF87a", b"GIF89a"):
        raise ValueError(f"{path}: not a GIF, whatever its name says: give a GIF file")
    # The decoder passes over missing frames in silence, but then the end marker is missing too.
    if not data.rstrip(b"\0\r\n ").endswith(b";"):
        raise ValueError(f"{path}: the GIF has no end, the file is truncated: copy it anew")
    try:
        rgba = iio.imread(data, plugin="pillow", extension=".gif", mode="RGBA")
    except MemoryError:
        raise
    except Exception as error:  # the decoder lets all kinds escape, even AttributeError
        raise ValueError(
            f"{path}: the GIF is damaged ({_first_line(error)}): copy or write it anew"
        ) from error
    rgb = np.where(rgba[..., 3:] > 0, rgba[..., :3], 0)  # GIF knows no half transparency
    if (rgb == rgb[..., :1]).all():
        rgb = rgb[..., :1]
    return np.ascontiguousarray(np.moveaxis(rgb, -1, 1), dtype=np.uint8)


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory: give a file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file: check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty: write it anew")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_READERS: dict[str, Callable[[Path], Clip]] = {".npy": _read_npy, ".gif": _read_gif}
