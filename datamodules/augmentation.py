"""Training windows made of others, if clips are few: mirrored, turned, played backwards."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datamodules.random_streams import uniform

Augmentation = Literal["hflip", "vflip", "rotate90", "reverse"]
AUGMENTATIONS = get_args(Augmentation)


def augmented(
    frames: NDArray[Any], names: Collection[Augmentation], key: np.uint64, index: int
) -> NDArray[Any]:
    """A window as sample `index` shows it.

    Args:
        frames: (T, C, H, W); H = W for "rotate90".
        names: What may be done to it: "hflip" and "vflip" mirror it left to right and upside down,
            "reverse" plays it backwards, each in every second sample; "rotate90" turns it by a
            quarter, a half, three quarters or not at all.
        key: Of the random stream, see `random_streams.stream_key`.
        index: The sample's number, on which the draw hangs, so that it can be made again.

    Returns:
        (T, C, H, W), in memory of its own order.
    """
    draws = dict(zip(AUGMENTATIONS, uniform(key, np.array([index]), 4)[0], strict=True))
    if "rotate90" in names:
        frames = np.rot90(frames, int(4 * draws["rotate90"]), axes=(2, 3))
    for name, axis in (("hflip", 3), ("vflip", 2), ("reverse", 0)):
        if name in names and draws[name] < 0.5:
            frames = np.flip(frames, axis)
    return np.ascontiguousarray(frames)
