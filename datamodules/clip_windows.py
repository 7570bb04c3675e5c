"""Windows of clips: the frames that a model sees, and those that it is to forecast."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.augmentation import Augmentation, augmented
from datamodules.base import Batch
from datamodules.clips import ClipReader
from datamodules.clips.fitting import Fit
from datamodules.frame_cache import FrameCache
from datamodules.trajectories import uniform

CHUNK = 32  # frames that are kept together
BESIDE = 8  # chunks, as encoders' usual distance from one key frame to the next is 250 frames


class Part(NamedTuple):
    """A clip, or the part of one that a split has.

    Attributes:
        name: Names the clip, wherever its folder is.
        clip: Its frames.
        frames: The numbers of those that belong to the part.
    """

    name: str
    clip: ClipReader
    frames: range


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
        key: Of the random order, see `trajectories.stream_key`; None for windows in order.
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
        self.stride = stride
        self.frame_step = frame_step
        self.span = span(context_length + target_length, frame_step)
        self.channels = channels
        self.frame_size = frame_size
        self.fit = fit
        self.cache = cache
        self.key = key
        self.augment = augment
        types = {part.clip.dtype for part in self.parts}
        self.dtype = types.pop() if len(types) == 1 else np.dtype(np.float32)
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
        chunks, places = np.divmod(numbers, CHUNK)
        wanted = np.unique(chunks).tolist()
        taken: dict[int, NDArray[Any]] = {}  # by chunk, and copied: of the chunks one at a time
        for chunk in wanted:
            if chunk not in taken:
                for place, array in self._chunks(int(clip), chunk, wanted):
                    taken[place] = array[places[chunks == place]]
        frames = np.concatenate([taken[chunk] for chunk in wanted])
        if self.key is not None and self.augment:
            frames = augmented(frames, self.augment, ~self.key, index)  # a stream of its own
        context, target = np.split(frames, [self.context_length])
        return {
            "context": torch.from_numpy(context),
            "target": torch.from_numpy(target),
            "index": torch.tensor(index),
        }

    @property
    def num_bytes(self) -> int:
        """Memory that the frames of all windows take once they are decoded, in whole chunks."""
        frames = 0
        for number, (_, clip, part) in enumerate(self.parts):
            for chunk in range(part.start // CHUNK, -(-part.stop // CHUNK)):
                if self._is_used(number, chunk):
                    frames += min(CHUNK, clip.num_frames - chunk * CHUNK)
        return frames * self._frame_bytes

    @property
    def _frame_bytes(self) -> int:
        return self.channels * math.prod(self.frame_size) * self.dtype.itemsize

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

    def _chunks(
        self, number: int, chunk: int, wanted: Collection[int]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """A chunk of a clip; where it has to be decoded, with those that are decoded with it."""
        clip = self.parts[number].clip
        kept = self.cache.get((clip.path, chunk))
        if kept is not None:
            yield chunk, kept
            return
        run = self._run(number, chunk, wanted)
        done = False
        try:
            for place, array in self._decoded(clip, run):
                done |= place == chunk
                yield place, array
        except ValueError:
            if done:  # what is damaged comes after it
                return
            if len(run) == 1:
                raise
            yield from self._decoded(clip, range(chunk, chunk + 1))

    def _decoded(self, clip: ClipReader, run: range) -> Iterator[tuple[int, NDArray[Any]]]:
        """Decodes chunks and keeps them."""
        frames = clip.frames(
            run.start * CHUNK,
            min(run.stop * CHUNK, clip.num_frames),
            channels=self.channels,
            size=self.frame_size,
            fit=self.fit,
        )
        for place in run:
            array = np.stack([self._typed(frame) for frame in islice(frames, CHUNK)])
            self.cache.put((clip.path, place), array)
            yield place, array

    def _run(self, number: int, chunk: int, wanted: Collection[int]) -> range:
        """The chunks to decode with one: those that are wanted, or that there is room to keep."""
        _, clip, frames = self.parts[number]
        group = clip.decoded_with(chunk * CHUNK)
        lowest = max(-(-group.start // CHUNK), frames.start // CHUNK, chunk - BESIDE)
        highest = min((group.stop - 1) // CHUNK, (frames.stop - 1) // CHUNK, chunk + BESIDE)
        room = self.cache.room // (CHUNK * self._frame_bytes) - 1  # chunks beside the one asked for

        def is_new(place: int) -> bool:
            return (clip.path, place) not in self.cache and self._is_used(number, place)

        first = last = chunk
        while first > lowest and room > 0 and is_new(first - 1):
            first, room = first - 1, room - 1
        while last < highest and (room > 0 or last + 1 in wanted) and is_new(last + 1):
            last, room = last + 1, room - 1
        return range(first, last + 1)

    def _is_used(self, number: int, chunk: int) -> bool:
        """Whether a window reaches into a chunk."""
        frames = self.parts[number].frames
        begin, end = chunk * CHUNK, (chunk + 1) * CHUNK
        # The first window that ends behind the chunk's beginning.
        turn = max(0, -(-(begin - self.span + 1 - frames.start) // self.stride))
        start = frames.start + turn * self.stride
        return start < end and start + self.span <= frames.stop

    def _typed(self, frame: NDArray[Any]) -> NDArray[Any]:
        if frame.dtype == self.dtype:
            return frame
        return frame.astype(np.float32) / np.float32(np.iinfo(frame.dtype).max)


def span(length: int, frame_step: int) -> int:
    """Frames of a clip from a window's first to its last, both counted."""
    return (length - 1) * frame_step + 1
