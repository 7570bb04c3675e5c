"""The published test sequences of Moving MNIST, in their file.

Srivastava et al. 2015, https://arxiv.org/abs/1502.04681.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.base import Batch
from datamodules.clips import open_npy
from datamodules.cutting import NO_GAP, cut


class MovingMNISTFile(Dataset[Batch]):
    """The published test sequences, read from the file as they are needed.

    Args:
        path: A .npy file, uint8, (T, N, H, W).
        context_length: Number of context frames.
        target_length: Number of target frames; frames behind them are left unused.
        frame_size: (height, width) that the file must have.
        max_size: At most so many sequences, from the first one on.
        occlude: The context frames that are blank.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is not a .npy file of that type and shape, or has too few frames.
    """

    def __init__(
        self,
        path: str | Path,
        context_length: int,
        target_length: int,
        *,
        frame_size: tuple[int, int],
        max_size: int,
        occlude: slice = NO_GAP,
    ) -> None:
        self.path = path
        self.context_length = context_length
        self.target_length = target_length
        self.frame_size = frame_size
        self.max_size = max_size
        self.occlude = occlude
        self.frames = open_npy(path)
        _check_test_frames(self.frames, path, context_length + target_length, frame_size)

    def __len__(self) -> int:
        return min(self.max_size, int(self.frames.shape[1]))

    def __getitem__(self, index: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        numbers = np.asarray(indices, dtype=np.int64)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"an index of {indices} is outside of 0 to {len(self) - 1}")
        steps = self.context_length + self.target_length
        frames = torch.from_numpy(self.frames[:steps, numbers]).transpose(0, 1)  # (B, T, H, W)
        return cut(frames, torch.from_numpy(numbers), self.context_length, self.occlude)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is the whole file; a worker opens the file anew.
        return {name: value for name, value in vars(self).items() if name != "frames"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, frames=open_npy(state["path"]))


def _check_test_frames(
    frames: NDArray[Any], path: str | Path, steps: int, frame_size: tuple[int, int]
) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4:
        raise ValueError(
            f"{path}: {frames.dtype} of shape {frames.shape}: expected uint8 "
            "(time, sequence, height, width), as in mnist_test_seq.npy"
        )
    if frames.shape[2:] != frame_size:
        raise ValueError(
            f"{path}: frames are {frames.shape[2]} x {frames.shape[3]} pixels, frame_size is "
            f"{frame_size[0]} x {frame_size[1]}: set frame_size to that of the file"
        )
    if frames.shape[0] < steps:
        raise ValueError(
            f"{path}: {frames.shape[0]} frames a sequence, but context_length + target_length is "
            f"{steps}: lower one of them (the file must be time first)"
        )
    if frames.shape[1] == 0:
        raise ValueError(f"{path}: shape {frames.shape} has no sequences: give another file")
