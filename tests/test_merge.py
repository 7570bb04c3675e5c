import pytest
import torch

from convlstm.merge import MergeDirections


def test_it_starts_as_the_mean_of_both_directions():
    h, c = torch.randn(2, 2, 3, 4, 5, 6)  # each (2, B, H, h, w)
    merge = MergeDirections(4, parts=2)
    merged = merge((h, c))
    for part, both in zip(merged, (h, c), strict=True):
        torch.testing.assert_close(part, both.mean(0, keepdim=True))


@pytest.mark.parametrize("parts", [1, 2])
def test_each_part_has_weights_of_its_own_for_each_direction(parts):
    state = torch.randn(parts, 2, 1, 3, 2, 2, dtype=torch.float64)
    merge = MergeDirections(3, parts).double()
    for parameter in merge.parameters():
        torch.nn.init.normal_(parameter)
    merged = merge(state[0] if parts == 1 else (state[0], state[1]))
    for n, part in enumerate([merged] if parts == 1 else merged):
        weight, bias = merge.parts[n].weight[:, :, 0, 0], merge.parts[n].bias
        forward = torch.einsum("oi,bihw->bohw", weight[:, :3], state[n, 0])
        backward = torch.einsum("oi,bihw->bohw", weight[:, 3:], state[n, 1])
        expected = (forward + backward + bias[:, None, None])[None]
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_runs_in_half_precision_beside_cell_states_of_float32(dtype):
    h, c = torch.randn(2, 1, 3, 2, 2).to(dtype), torch.randn(2, 1, 3, 2, 2)
    merged_h, merged_c = MergeDirections(3, parts=2).to(dtype)((h, c))
    assert (merged_h.dtype, merged_c.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(merged_c[0], c.mean(0), rtol=0.01, atol=0.01)


def test_cell_states_stay_float32_under_autocast():
    h, c = torch.randn(2, 1, 3, 2, 2).bfloat16(), torch.randn(2, 1, 3, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, c = MergeDirections(3, parts=2)((h, c))
    assert (h.dtype, c.dtype) == (torch.bfloat16, torch.float32)
