"""Random numbers that are a function of a seed, a split and a sample's index alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


def stream_key(seed: int, split: str) -> np.uint64:
    """The key of a split's random stream; different for each seed >= 0 and each split."""
    words = np.random.SeedSequence([seed, SPLITS.index(split)]).generate_state(1, np.uint64)
    return np.uint64(words[0])


def uniform(key: np.uint64, indices: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Random numbers for each index, whatever other indices stand beside it.

    The n-th output of SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2714064.2660195) is
    a function of n, so that a whole batch can be drawn at once, without a generator per sample.

    Args:
        key: State that the stream starts from.
        indices: (B,) numbers >= 0; number i gets the outputs i * draws + 1 to (i + 1) * draws.
        draws: How many numbers each index gets.

    Returns:
        (B, draws) float64, uniform in [0, 1).
    """
    # Unsigned arithmetic wraps around at 2**64, as it should here.
    z: NDArray[np.uint64] = np.arange(1, draws + 1, dtype=np.uint64)
    z = z + indices.astype(np.uint64)[:, None] * np.uint64(draws)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += key
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
