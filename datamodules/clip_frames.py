"""Frames of clips, resized, and decoded in runs that are kept for the next time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.clips import ClipReader
from datamodules.clips.fitting import Fit
from datamodules.frame_cache import FrameCache

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


class ClipFrames:
    """Frames of the windows of clips, all of one size and type, in chunks that a cache keeps.

    What a chunk is decoded with, such as the frames from a key frame to the next, is kept as well,
    as far as windows have it and there is room.

    Args:
        parts: The clips.
        span: Frames of a clip from a window's first to its last, both counted.
        stride: Frames from the start of a window to that of the next.
        channels: 1 for gray, 3 for RGB.
        frame_size: (height, width) in pixels.
        fit: How frames are brought to that size.
        cache: Keeps decoded frames.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        span: int,
        stride: int,
        channels: int,
        frame_size: tuple[int, int],
        fit: Fit,
        cache: FrameCache,
    ) -> None:
        self.parts = list(parts)
        self.span = span
        self.stride = stride
        self.channels = channels
        self.frame_size = frame_size
        self.fit = fit
        self.cache = cache
        types = {part.clip.dtype for part in self.parts}
        self.dtype = types.pop() if len(types) == 1 else np.dtype(np.float32)

    def take(self, number: int, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames of a part.

        Args:
            number: Which of the parts.
            frames: Numbers of the clip's frames, rising.

        Returns:
            (T, C, H, W), a copy: uint8, uint16 if all clips are, or float32 in [0, 1].

        Raises:
            OSError: If a file can no longer be read.
            ValueError: If it is damaged where these frames are, or they are too small to crop.
        """
        chunks, places = np.divmod(frames, CHUNK)
        wanted = np.unique(chunks).tolist()
        taken: dict[int, NDArray[Any]] = {}  # of the chunks, one at a time
        for chunk in wanted:
            if chunk not in taken:
                for place, array in self._chunks(number, chunk, wanted):
                    taken[place] = array[places[chunks == place]]
        return np.concatenate([taken[chunk] for chunk in wanted])

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
