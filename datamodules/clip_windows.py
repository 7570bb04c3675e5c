"""Windows of clips: the frames that a model sees, and those that it is to forecast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.augmentation import Augmentation, augmented
from datamodules.base import Batch
from datamodules.clip_frames import ClipFrames, Part
from datamodules.clips.fitting import Fit
from datamodules.frame_cache import FrameCache
from datamodules.random_streams import uniform


class ClipWindows(Dataset[Batch]):
    """Windows of clips: sample i is a function of the clips, the key and i.

    The windows are numbered so that the first ones are the first of each clip, then come the second
    ones, and so on. With a key, any number >= 0 is a valid index, and each epoch, which is the
    dataset's length, has all windows in an order of its own.

    Args:
        parts: The clips; from those with fewer frames than a window there is none.
        context_length: Number of context frames.
        target_length: Number of target frames.
        stride: Frames from the start of a window to that of the next.
        frame_step: 2 takes every second frame.
        channels: 1 for gray, 3 for RGB.
        frame_size: (height, width) in pixels.
        fit: How frames are brought to that size.
        cache: Keeps decoded frames.
        key: Of the random order, see `random_streams.stream_key`; None for windows in order.
        augment: What is done to windows at random, with a key; see `augmented`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        context_length: int,
        target_length: int,
        *,
        stride: int,
        frame_step: int,
        channels: int,
        frame_size: tuple[int, int],
        fit: Fit,
        cache: FrameCache,
        key: np.uint64 | None = None,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        self.parts = list(parts)
        self.context_length = context_length
        self.frame_step = frame_step
        self.span = span(context_length + target_length, frame_step)
        self.key = key
        self.augment = augment
        self.source = ClipFrames(
            self.parts,
            span=self.span,
            stride=stride,
            channels=channels,
            frame_size=frame_size,
            fit=fit,
            cache=cache,
        )
        starts = [
            np.arange(part.frames.start, part.frames.stop - self.span + 1, stride)
            for part in self.parts
        ]
        counts = [len(s) for s in starts]
        clips = np.repeat(np.arange(len(counts)), counts)
        turns = np.concatenate([np.arange(0), *map(np.arange, counts)])
        order = np.lexsort([clips, turns])
        # (N, 2): number of the clip, first frame
        self.windows = np.stack([clips, np.concatenate([np.arange(0), *starts])], axis=1)[order]
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.arange(0))  # of the latest epoch

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Batch:
        clip, start = self.windows[self._window(index)]
        numbers = np.arange(start, start + self.span, self.frame_step)
        frames = self.source.take(int(clip), numbers)
        if self.key is not None and self.augment:
            frames = augmented(frames, self.augment, ~self.key, index)  # a stream of its own
        context, target = np.split(frames, [self.context_length])
        return {
            "context": torch.from_numpy(context),
            "target": torch.from_numpy(target),
            "index": torch.tensor(index),
        }

    def _window(self, index: int) -> int:
        """The number of the window that is sample `index`."""
        if index < 0 or (self.key is None and index >= len(self)):
            raise IndexError(f"index is {index}: must be from 0 to {len(self) - 1}")
        if self.key is None:
            return index
        epoch, position = divmod(index, len(self))
        if self._order[0] != epoch:
            numbers = epoch * len(self) + np.arange(len(self))
            self._order = epoch, np.argsort(uniform(self.key, numbers, 1)[:, 0], kind="stable")
        return int(self._order[1][position])


def span(length: int, frame_step: int) -> int:
    """Frames of a clip from a window's first to its last, both counted."""
    return (length - 1) * frame_step + 1
