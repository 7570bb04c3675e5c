"""What training minimizes: a mean over all pixels of all frames and clips.

Each loss takes what the network's head gives (frames; for the cross-entropy their logits) and the
true frames in [0, 1], of one shape, and returns a scalar.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Loss = Literal["mse", "mae", "mse+mae", "cross_entropy"]


def mse_plus_mae(forecast: Tensor, truth: Tensor) -> Tensor:
    """Mean squared plus mean absolute error: the second keeps small errors from being ignored."""
    return F.mse_loss(forecast, truth) + F.l1_loss(forecast, truth)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "mse+mae": mse_plus_mae,
    # -Σ t·log p + (1-t)·log(1-p), https://arxiv.org/abs/1506.04214 section 4.1, from logits.
    "cross_entropy": F.binary_cross_entropy_with_logits,
}
