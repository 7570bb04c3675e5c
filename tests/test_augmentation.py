from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.augmentation import AUGMENTATIONS, augmented
from datamodules.random_streams import stream_key

KEY = stream_key(0, "train")
FRAMES = np.arange(2 * 3 * 5 * 5, dtype=np.uint8).reshape(2, 3, 5, 5)


def variants(names):
    """Every way to change FRAMES, by torch, as bytes: how many draws make each."""
    made = [torch.from_numpy(FRAMES)]
    if "rotate90" in names:
        made = [torch.rot90(frames, turns, (2, 3)) for frames in made for turns in range(4)]
    for name, axis in (("hflip", 3), ("vflip", 2), ("reverse", 0)):
        if name in names:
            made += [frames.flip(axis) for frames in made]
    return Counter(frames.numpy().tobytes() for frames in made)


@pytest.mark.parametrize(
    "names",
    [["hflip"], ["vflip"], ["rotate90"], ["reverse"], ["reverse", "hflip"], list(AUGMENTATIONS)],
)
def test_every_variant_is_as_frequent_as_it_should_be_and_no_other_comes(names):
    samples = 3200
    seen = Counter(augmented(FRAMES, names, KEY, i).tobytes() for i in range(samples))
    expected = variants(names)
    assert set(seen) == set(expected)
    for variant, draws in expected.items():
        mean = samples * draws / expected.total()
        assert abs(seen[variant] - mean) < 5 * mean**0.5, (seen, expected)


def test_a_sample_is_changed_in_the_same_way_again_and_lies_in_order_in_memory():
    for index in range(20):
        first, second = (augmented(FRAMES, AUGMENTATIONS, KEY, index) for _ in range(2))
        assert np.array_equal(first, second)
        assert first.flags.c_contiguous
        assert first.dtype == np.uint8
    other = stream_key(1, "train")
    assert any(
        not np.array_equal(
            augmented(FRAMES, ["hflip"], KEY, i), augmented(FRAMES, ["hflip"], other, i)
        )
        for i in range(20)
    )


def test_without_names_nothing_changes():
    assert np.array_equal(augmented(FRAMES, [], KEY, 3), FRAMES)
