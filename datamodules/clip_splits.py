"""Which clips are for training, for validation and for the test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from datamodules.random_streams import SPLITS


def split_names(
    names: Sequence[str], fractions: Sequence[float], seed: int
) -> dict[str, list[str]]:
    """Shares names out at random, each to one split.

    Where a name goes depends on the seed and on the set of names, not on their order.

    Args:
        names: At least three.
        fractions: Those of train, val and test, adding up to 1; each split gets at least one name.
        seed: Another seed gives another split.

    Returns:
        For "train", "val" and "test" the names, in the order that they were given in.
    """
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    val = min(max(1, round(fractions[1] * len(names))), len(names) - 2)
    test = min(max(1, round(fractions[2] * len(names))), len(names) - 1 - val)
    parts = drawn[val + test :], drawn[:val], drawn[val : val + test]
    place = {name: split for split, part in zip(SPLITS, parts, strict=True) for name in part}
    return {split: [name for name in names if place[name] == split] for split in SPLITS}


def split_frames(num_frames: int, fractions: Sequence[float]) -> dict[str, range]:
    """Cuts a clip in time: first the frames for training, then validation, at the end the test."""
    val = round(num_frames * fractions[0])
    test = round(num_frames * (fractions[0] + fractions[1]))
    parts = range(val), range(val, test), range(test, num_frames)
    return dict(zip(SPLITS, parts, strict=True))
