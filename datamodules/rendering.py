"""Draws digits at their positions into frames: in NumPy, and on any device to the same bits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor


def render(
    digits: NDArray[np.uint8], positions: NDArray[np.int64], frame_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Draws digit images into black frames; where they overlap, the brighter pixel wins.

    Args:
        digits: (B, D, h, w) uint8, the digit images of each sequence.
        positions: (B, T, D, 2), row and column of each one's upper left corner in each frame.
        frame_size: (height, width) in pixels.

    Returns:
        (B, T, height, width) uint8.
    """
    sequences, steps, count, _ = positions.shape
    frames = np.zeros((sequences, steps, *frame_size), dtype=np.uint8)
    # windows[b, t, row, column] is the piece of a frame that a digit at (row, column) covers.
    windows = sliding_window_view(frames, digits.shape[2:], axis=(2, 3), writeable=True)
    sequence = np.arange(sequences)[:, None]
    step = np.arange(steps)[None, :]
    for digit in range(count):
        image = digits[:, digit, None]  # (B, 1, h, w)
        at = (sequence, step, positions[:, :, digit, 0], positions[:, :, digit, 1])
        windows[at] = image if digit == 0 else np.maximum(windows[at], image)
    return frames


def render_on_device(digits: Tensor, positions: Tensor, frame_size: tuple[int, int]) -> Tensor:
    """`render`, on the device of the tensors.

    It goes pixel by pixel, because not every device can write to overlapping views. On a CPU that
    takes more than twice as long.
    """
    sequences, steps, count, _ = positions.shape
    height, width = frame_size
    rows, columns = (torch.arange(size, device=digits.device) for size in digits.shape[2:])
    inside = (rows[:, None] * width + columns).flatten()  # a digit's pixels, from its corner on
    corners = positions[..., 0] * width + positions[..., 1]  # (B, T, D)
    frames = digits.new_zeros(sequences, steps, height * width)
    for digit in range(count):
        at = corners[:, :, digit, None] + inside  # (B, T, h * w)
        image = digits[:, digit, None].flatten(2).expand(at.shape)
        frames.scatter_(2, at, torch.maximum(frames.gather(2, at), image))
    return frames.unflatten(2, frame_size)
