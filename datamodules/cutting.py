"""Cuts the sequences of Moving MNIST into what a model sees and what it is to forecast."""

from __future__ import annotations

from torch import Tensor

from datamodules.base import Batch

NO_GAP = slice(0, 0)


def cut(frames: Tensor, index: Tensor, context_length: int, occlude: slice) -> Batch:
    """Cuts frames (B, T, H, W) into a context, some of which may be blank, and a target."""
    context, target = (
        part.contiguous() for part in frames[:, :, None].tensor_split([context_length], dim=1)
    )  # C = 1
    context[:, occlude] = 0
    return {"context": context, "target": target, "index": index}
