"""Attention of a forecaster over what the encoder saw.

Source: M.-T. Luong et al., "Effective Approaches to Attention-based Neural Machine Translation",
EMNLP 2015, https://arxiv.org/abs/1508.04025, equations 5, 7 ("general" score) and 8, at each point
of the map, and with the scores divided by √H as in https://arxiv.org/abs/1706.03762:

    score_j = h · W_a e_j / √H            for each e_j in the neighbourhood, of all context frames
    a = Σ_j softmax(score)_j e_j
    h' = tanh(W_c [h; a] + b_c)

Letters: S forecast steps, T context frames, B batch, H channels of the forecaster's hidden state h,
E channels of the encoder's e, n side of the neighbourhood, h×w map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlstm.convolution import convolved

Memory = tuple[Tensor, Tensor]  # keys (B·h·w, T·n·n, H) and values (B·h·w, T·n·n, E)


class ContextAttention(nn.Module):
    """Lets each point of the forecaster's maps look back at all context frames.

    Args:
        hidden_size: Channels of the forecaster's hidden state, H.
        memory_size: Channels of the encoder's hidden states, E.
        neighbourhood: Side n of the square of map points around its own that a point looks at, odd;
            1 for its own alone.

    Raises:
        ValueError: The neighbourhood is not odd.
    """

    def __init__(self, hidden_size: int, memory_size: int, neighbourhood: int) -> None:
        super().__init__()
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise ValueError(
                f"attention must be the odd side of a neighbourhood, or 0, got {neighbourhood}"
            )
        self.neighbourhood = neighbourhood
        # Without bias: it would add the same to all scores.
        self.key = nn.Conv2d(memory_size, hidden_size, 1, bias=False)
        self.combine = nn.Conv2d(hidden_size + memory_size, hidden_size, 1)

    def remember(self, series: Tensor, before: Memory | None = None) -> Memory:
        """Prepares the encoder's hidden states, once for all steps.

        Args:
            series: (T, B, E, h, w).
            before: Those of frames read earlier, which these follow.
        """
        keys = convolved(self.key, series.flatten(0, 1)).unflatten(0, series.shape[:2])
        new = self._windows(keys), self._windows(series)
        if before is None:
            return new
        return torch.cat([before[0], new[0]], dim=1), torch.cat([before[1], new[1]], dim=1)

    def forward(self, hidden: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attends, at each step on its own.

        Args:
            hidden: The forecaster's hidden states (S, B, H, h, w).
            memory: What `remember` made of the encoder's.

        Returns:
            h' (S, B, H, h, w), and the weights (B, S, T, n, n, h, w), which add up to 1 over frames
            and neighbourhood; they are 0 outside of the map.
        """
        keys, values = (part.to(hidden.dtype) for part in memory)  # autocast may have come or gone
        steps, batch, channels, height, width = hidden.shape
        n = self.neighbourhood
        query = hidden.permute(1, 3, 4, 0, 2).reshape(-1, steps, channels)  # (B·h·w, S, H)
        scores = query @ keys.mT / channels**0.5  # (B·h·w, S, T·n·n)
        scores = scores.unflatten(0, (batch, height, width)).unflatten(-1, (-1, n, n))
        inside = self._inside(hidden)[:, :, None, None]  # (h, w, 1, 1, n, n)
        weights = scores.masked_fill(~inside, -torch.inf).flatten(-3).softmax(-1)
        read = weights.flatten(0, 2) @ values  # (B·h·w, S, E)
        read = read.unflatten(0, (batch, height, width)).permute(3, 0, 4, 1, 2)  # (S, B, E, h, w)
        both = torch.cat([hidden, read], dim=2)
        attended = torch.tanh(convolved(self.combine, both.flatten(0, 1)))
        attended = attended.unflatten(0, (steps, batch))
        weights = weights.unflatten(-1, (-1, n, n))  # (B, h, w, S, T, n, n)
        return attended, weights.permute(0, 3, 4, 5, 6, 1, 2)

    def _windows(self, maps: Tensor) -> Tensor:
        """Each point's neighbourhood in all frames: (T, B, C, h, w) → (B·h·w, T·n·n, C).

        Zero outside of the map. `F.unfold` copies channel by channel, which takes several times as
        long.
        """
        height, width = maps.shape[3:]
        n, edge = self.neighbourhood, self.neighbourhood // 2
        padded = F.pad(maps.movedim(2, -1), (0, 0, edge, edge, edge, edge))
        padded = padded.permute(1, 2, 3, 0, 4)  # (B, h + n - 1, w + n - 1, T, C)
        shifted = [padded[:, y : y + height, x : x + width] for y in range(n) for x in range(n)]
        return torch.stack(shifted, dim=4).flatten(0, 2).flatten(1, 2)

    def _inside(self, like: Tensor) -> Tensor:
        """Which points of each neighbourhood are on the map: (h, w, n, n)."""
        n, size = self.neighbourhood, like.shape[3:]
        return self._windows(like.new_ones(1, 1, 1, *size)).view(*size, n, n) > 0
