"""Two directions made one: the states of a bidirectional encoder for a forecaster that has one."""

import torch
from torch import Tensor, nn

from convlstm.convolution import convolved
from convlstm.stages import State


class MergeDirections(nn.Module):
    """A 1×1 convolution over the last states of both directions, for each part of the state.

    It starts as their mean.

    Args:
        hidden_size: Channels of the state of one direction, H.
        parts: 1 for h, 2 for (h, c).
    """

    def __init__(self, hidden_size: int, parts: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_mean_of_two(hidden_size) for _ in range(parts))

    def forward(self, state: State) -> State:
        """Each part (2, B, H, h, w), forward direction first → (1, B, H, h, w)."""
        if isinstance(state, Tensor):
            return self._merge(0, state)
        h, c = state
        return self._merge(0, h), self._merge(1, c)

    def _merge(self, part: int, both: Tensor) -> Tensor:
        merge = self.parts[part]
        assert isinstance(merge, nn.Conv2d)
        maps = torch.cat([both[0], both[1]], dim=1).to(merge.weight.dtype)
        merged = convolved(merge, maps)[None]
        return merged.to(both.dtype)  # cell states are float32 even in bfloat16


def _mean_of_two(channels: int) -> nn.Conv2d:
    """A convolution that so far takes the mean of the two halves of its input."""
    merge = nn.Conv2d(2 * channels, channels, 1)
    half = torch.eye(channels).repeat(1, 2) / 2  # (H, 2H)
    merge.weight.data.copy_(half[:, :, None, None])
    merge.bias = nn.Parameter(torch.zeros(channels))
    return merge
