import pytest
import torch

from convlstm.patches import from_patches, to_patches


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_patches_fold_and_unfold(channels, size):
    frames = torch.randn(2, 3, channels, 8, 12)
    patches = to_patches(frames, size)
    assert patches.shape == (2, 3, channels * size**2, 8 // size, 12 // size)
    assert torch.equal(from_patches(patches, size), frames)


def test_for_one_channel_it_is_pixel_unshuffle():
    frames = torch.randn(2, 3, 1, 8, 12)
    assert torch.equal(to_patches(frames, 4), torch.pixel_unshuffle(frames, 4))


def test_a_channel_is_row_column_then_colour():
    frames = torch.randn(1, 2, 8, 12)
    patches = to_patches(frames, 4)
    py, px, c = 2, 3, 1
    assert patches[0, (py * 4 + px) * 2 + c, 1, 2] == frames[0, c, 4 + py, 8 + px]
