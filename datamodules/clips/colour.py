"""Gray, RGB and alpha."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# ITU-R BT.601 luma in units of 2**-16, as in Pillow; their sum is 2**16: gray stays itself.
_WEIGHTS = (19595, 38470, 7471)


def is_gray(frames: NDArray[Any]) -> bool:
    """Whether all pixels of (..., C, H, W) with 1 or 3 channels are gray."""
    return bool((frames == frames[..., :1, :, :]).all())


def on_black(frames: NDArray[Any]) -> NDArray[Any]:
    """Lays RGBA frames (..., 4, H, W) over black: (..., 3, H, W) of the same type.

    Alpha goes from 0 to 1 in floats, else from 0 to the type's largest number.
    """
    colour, alpha = frames[..., :3, :, :], frames[..., 3:, :, :]
    if frames.dtype.kind == "f":
        return colour * alpha
    largest = np.iinfo(frames.dtype).max
    product = colour.astype(np.uint32) * alpha  # at most (2**16 - 1)**2
    return ((product + largest // 2) // largest).astype(frames.dtype)


def to_channels(frames: NDArray[Any], channels: int) -> NDArray[Any]:
    """Turns frames (..., 1 or 3, H, W) into ones of 1 or 3 channels, of the same type.

    Colour becomes luma (ITU-R BT.601); gray becomes three equal channels.

    Raises:
        ValueError: If `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: must be 1 (gray) or 3 (RGB)")
    if frames.shape[-3] == channels:
        return frames
    if channels == 3:
        return np.repeat(frames, 3, axis=-3)
    if frames.dtype.kind == "f":
        return (_luma(frames.astype(np.float64)) / 2**16).astype(frames.dtype)
    # At most (2**16 - 1) * 2**16 + 2**15, which is below 2**32.
    return ((_luma(frames.astype(np.uint32)) + 2**15) >> 16).astype(frames.dtype)


def _luma(frames: NDArray[Any]) -> NDArray[Any]:
    red, green, blue = (w * frames[..., i : i + 1, :, :] for i, w in enumerate(_WEIGHTS))
    return red + green + blue
