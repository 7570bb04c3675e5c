"""What there is to draw: context, forecast and truth as pixels of one kind and size."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Clips(NamedTuple):
    """What to draw, each (T, H, W, 3)."""

    context: NDArray[np.uint8]
    forecast: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None


def checked(context: ArrayLike, forecast: ArrayLike, truth: ArrayLike | None) -> Clips:
    """Clips (T, C, H, W) of any accepted type as pixels, the truth no longer than the forecast."""
    given = {"context": context, "forecast": forecast, "truth": truth}
    arrays = {name: _array(name, clip) for name, clip in given.items() if clip is not None}
    expected = arrays["context"].shape[1:]
    for name, array in arrays.items():
        if array.shape[1:] != expected:
            raise ValueError(
                f"{name} frames are {array.shape[1:]}, expected {expected} (channels, height, "
                "width) as in the context"
            )
    drawn = {name: _pixels(name, array) for name, array in arrays.items()}
    past, future = drawn["context"], drawn["forecast"]
    return Clips(past, future, drawn["truth"][: len(future)] if truth is not None else None)


def check_whole(name: str, value: int, least: int) -> None:
    """Raises ValueError unless it is a whole number of `least` or more."""
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} is {value}, expected a whole number of {least} or more")


def check_suffix(path: str | os.PathLike[str], suffix: str) -> None:
    """Raises ValueError unless the file's name ends so."""
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"path is {os.fspath(path)!r}, expected a name that ends in {suffix}")


def check_fps(fps: float) -> None:
    """Raises ValueError unless the frames a second are such as viewers keep to."""
    if not 0.1 <= fps <= 50:  # viewers show a GIF's frames of less than 2/100 s slower, not faster
        raise ValueError(f"fps is {fps}, expected a number from 0.1 to 50")


def frame_at(clip: NDArray[np.uint8], t: int) -> NDArray[np.uint8] | None:
    """Frame t of (T, H, W, 3), or None behind the end."""
    return clip[t] if t < len(clip) else None


def _array(name: str, clip: Any) -> NDArray[Any]:
    if hasattr(clip, "detach"):  # a tensor; NumPy knows no bfloat16
        clip = clip.detach().cpu()
        clip = (clip.float() if clip.is_floating_point() else clip).numpy()
    array = np.asarray(clip)
    if array.ndim != 4:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (time, channels, height, width)"
        )
    if array.shape[1] not in (1, 3):
        raise ValueError(f"{name} has {array.shape[1]} channels, expected 1 (gray) or 3 (RGB)")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected at least one frame and pixel")
    return array


def _pixels(name: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert (T, C, H, W) of any accepted type to uint8 (T, H, W, 3)."""
    if array.dtype == np.uint16:
        array = np.rint(array / np.float32(257)).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        broken = np.isnan(array).any(axis=(1, 2, 3))
        if broken.any():
            raise ValueError(f"{name} frame {broken.argmax()} is NaN, expected values in [0, 1]")
        array = np.rint(array.clip(0, 1) * np.float32(255)).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"{name} has type {array.dtype}, expected uint8, uint16 or float")
    return np.broadcast_to(array.transpose(0, 2, 3, 1), (len(array), *array.shape[2:], 3)).copy()
