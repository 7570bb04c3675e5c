"""Where the digits of Moving MNIST are: drawn at random, then bouncing off the walls.

Everything here runs on the CPU in float64 for a whole batch at a time, so that whatever renders
the frames, on whichever device, works from the same digit numbers and integer positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.random_streams import uniform

_DRAWS_PER_DIGIT = 5  # image, two coordinates, direction, speed


class Trajectories(NamedTuple):
    """Which digits move where, for B sequences of T frames with D digits each.

    Attributes:
        images: (B, D) int64, numbers of the digit images.
        positions: (B, T, D, 2) int64, pixel (row, column) of each digit image's upper left corner.
    """

    images: NDArray[np.int64]
    positions: NDArray[np.int64]


def draw_trajectories(
    key: np.uint64,
    indices: NDArray[np.int64],
    *,
    num_images: int,
    num_digits: int,
    num_frames: int,
    free: tuple[int, int],
    speed: tuple[float, float],
) -> Trajectories:
    """Draws sequences by number; each is a function of its number and the key alone.

    As in Srivastava et al. 2015 (https://arxiv.org/abs/1502.04681): start uniform in the free
    range, direction uniform on the circle; each frame moves first, then clamps at a wall and
    reverses that component, then truncates to whole pixels.

    Args:
        key: Names the random stream: see `random_streams.stream_key`.
        indices: (B,) numbers of the sequences, each >= 0.
        num_images: Number of digit images to choose from.
        num_digits: Digits in a sequence, D.
        num_frames: Frames in a sequence, T.
        free: Largest row and column that a digit's upper left corner can have, in pixels.
        speed: Range of the speed, drawn uniformly for each digit, in pixels a frame.

    Returns:
        Digit numbers and positions.
    """
    draws = uniform(key, indices, num_digits * _DRAWS_PER_DIGIT)
    # (B, D * 5) -> 5 x (B, D)
    image, row, column, turn, pace = np.moveaxis(
        draws.reshape(len(indices), num_digits, _DRAWS_PER_DIGIT), -1, 0
    )
    walls = np.array(free, dtype=np.float64)
    position = np.stack([row, column], axis=-1) * walls  # (B, D, 2)
    angle = 2 * np.pi * turn
    pixels = speed[0] + (speed[1] - speed[0]) * pace
    velocity = np.stack([np.sin(angle) * pixels, np.cos(angle) * pixels], axis=-1)

    positions = np.empty((len(indices), num_frames, num_digits, 2), dtype=np.int64)
    for frame in range(num_frames):
        position += velocity
        hit = (position <= 0) | (position >= walls)
        np.negative(velocity, out=velocity, where=hit)
        np.clip(position, 0, walls, out=position)
        positions[:, frame] = position
    return Trajectories((image * num_images).astype(np.int64), positions)
