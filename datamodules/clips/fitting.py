"""Brings frames of any size to one size."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

Fit = Literal["cover", "stretch", "crop"]
FITS: tuple[Fit, ...] = get_args(Fit)


def fitted(frame: NDArray[Any], size: tuple[int, int], fit: Fit) -> NDArray[Any]:
    """Brings a frame to a size.

    Args:
        frame: (C, H, W), uint8, uint16 or float32 in [0, 1].
        size: (height, width) in pixels.
        fit: "cover" resizes the largest part in the middle that has the right proportions,
            "stretch" resizes the whole frame, "crop" cuts the middle out as it is.

    Returns:
        (C, height, width), of the same type. Resizing is bilinear, with a filter as wide as the
        pixels that become one; uint8 is rounded after each of the two directions.

    Raises:
        ValueError: If the frame is smaller than what "crop" is to cut out.
    """
    height, width = frame.shape[1:]
    if fit == "crop":
        if height < size[0] or width < size[1]:
            raise ValueError(
                f"frames of {height} x {width} pixels are smaller than frame_size "
                f"{size[0]} x {size[1]}: lower it, or choose fit cover or stretch"
            )
        return _middle(frame, *size).copy()  # lest the whole frame be kept
    if fit == "cover":
        # Exact integers: the larger of the two ratios decides.
        if height * size[1] > width * size[0]:
            height = max(1, round(width * size[0] / size[1]))
        else:
            width = max(1, round(height * size[1] / size[0]))
        frame = _middle(frame, height, width)
    return frame if frame.shape[1:] == size else _resized(frame, size)


def _middle(frame: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    top, left = (frame.shape[1] - height) // 2, (frame.shape[2] - width) // 2
    return frame[:, top : top + height, left : left + width]


def _resized(frame: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    # PyTorch resizes bytes as they are, fastest with colour last in memory, as decoders have it;
    # but wrongly, or not at all, where a side is 1 (2.14).
    as_bytes = frame.dtype == np.uint8 and min(*frame.shape[1:], *size) > 1
    pixels = frame.copy("K") if as_bytes else frame.astype(np.float32, order="C")
    batch = torch.from_numpy(pixels)[None]
    resized = interpolate(batch, size, mode="bilinear", antialias=True)[0].numpy()
    if as_bytes:
        return resized
    if frame.dtype == np.float32:
        return resized.clip(0, 1)
    return resized.round().clip(0, np.iinfo(frame.dtype).max).astype(frame.dtype)
