import numpy as np
import pytest
import torch

from datamodules.rendering import render, render_on_device


def test_overlapping_digits_keep_the_brighter_pixel_in_either_order():
    digits = np.stack([np.full((28, 28), 90), np.full((28, 28), 200)]).astype(np.uint8)[None]
    positions = np.array([[[[0, 0], [10, 10]]]])
    frame = render(digits, positions, (40, 40))[0, 0]
    assert frame[5, 5] == 90
    assert frame[15, 15] == 200
    np.testing.assert_array_equal(
        render(digits[:, ::-1], positions[:, :, ::-1], (40, 40))[0, 0], frame
    )


@pytest.mark.parametrize("frame_size", [(64, 64), (30, 41), (28, 28)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_any_device_renders_is_the_same_to_the_bit(frame_size, count):
    random = np.random.default_rng(0)
    digits = random.integers(0, 256, (3, count, 28, 28), dtype=np.uint8)
    free = np.array(frame_size) - 27
    positions = random.integers(0, free, (3, 4, count, 2))
    positions[0, 0, 0], positions[0, 1, 0] = 0, free - 1  # the corners
    expected = render(digits, positions, frame_size)
    frames = render_on_device(torch.from_numpy(digits), torch.from_numpy(positions), frame_size)
    assert frames.dtype == torch.uint8
    np.testing.assert_array_equal(frames.numpy(), expected)
    assert (expected > 0).mean() > 0.15  # there is something to see
