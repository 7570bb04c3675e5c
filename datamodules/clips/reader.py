"""The common interface of all clips: size, and access to any range of frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.clips.colour import is_gray, to_channels
from datamodules.clips.fitting import Fit, fitted

Clip = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]

MOST_PIXELS = 2**26  # of a frame: 8192 x 8192, which 8K video (2**25) fits in


class ClipReader(ABC):
    """A clip whose frames are read on demand.

    It keeps no file open, so it can be sent to other processes.

    Attributes:
        path: The file or folder.
        num_frames: How many frames it has, >= 1.
        frame_size: (height, width) in pixels.
        dtype: Of its pixels: uint8, uint16 or float32.
    """

    path: Path
    num_frames: int
    frame_size: tuple[int, int]
    dtype: np.dtype[Any]
    _channels: int | None = None  # None: not known yet
    _begins: NDArray[np.int64] | None = None  # frames to begin decoding with; None: any

    @property
    def channels(self) -> int:
        """1 where all pixels are gray, else 3.

        Where neither the file nor the frames read so far tell, this decodes up to the first
        coloured frame.
        """
        if self._channels is None:
            gray = all(is_gray(frame) for frame in self._decode(range(self.num_frames)))
            self._channels = 1 if gray else 3
        return self._channels

    def read(
        self,
        start: int,
        stop: int,
        step: int = 1,
        *,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        fit: Fit = "cover",
    ) -> Clip:
        """Reads the frames start, start + step, ... before stop.

        Args:
            start: The first frame, from 0.
            stop: Behind the last frame; above start, at most num_frames.
            step: 2 takes every second frame.
            channels: 1 or 3 turns colour into gray or gray into RGB; None keeps the clip's own.
            size: (height, width) in pixels to bring frames to; None keeps the clip's own.
            fit: How, see `fitted`.

        Returns:
            (T, C, H, W), uint8, uint16 or float32 in [0, 1], writeable and contiguous.

        Raises:
            OSError: If the file can no longer be read.
            ValueError: If there are no such frames, the file is damaged where they are, or they are
                smaller than what "crop" is to cut out.
        """
        frames: Iterable[NDArray[Any]] = self._decode(self._numbers(start, stop, step))
        if channels is None:
            frames = list(frames)
            if self._channels is None:
                gray = all(map(is_gray, frames))
                if not gray or len(frames) == self.num_frames:
                    self._channels = 1 if gray else 3
            channels = self.channels
        # Decoders have colour last, and numpy.stack would keep that order in memory.
        return np.ascontiguousarray(np.stack(list(self._made(frames, channels, size, fit))))

    def frames(
        self,
        start: int,
        stop: int,
        step: int = 1,
        *,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        fit: Fit = "cover",
    ) -> Iterator[Clip]:
        """The same as `read`, but frame by frame, (C, H, W), in the memory of one."""
        numbers = self._numbers(start, stop, step)
        return self._made(self._decode(numbers), channels or self.channels, size, fit)

    def decoded_with(self, number: int) -> range:
        """The frames that one is decoded with: those before it have to be, to get at it."""
        if self._begins is None:
            return range(number, number + 1)
        place = int(np.searchsorted(self._begins, number, side="right"))
        last = place == len(self._begins)
        return range(
            int(self._begins[place - 1]), self.num_frames if last else int(self._begins[place])
        )

    def _made(
        self, frames: Iterable[NDArray[Any]], channels: int, size: tuple[int, int] | None, fit: Fit
    ) -> Iterator[Clip]:
        for frame in frames:
            if size is not None:
                try:
                    frame = fitted(frame, size, fit)
                except ValueError as error:
                    raise ValueError(f"{self.path}: {error}") from error
            yield to_channels(frame, channels)  # last, as it takes longest for large frames

    def _numbers(self, start: int, stop: int, step: int) -> range:
        if not 0 <= start < stop <= self.num_frames or step < 1:
            raise ValueError(
                f"{self.path}: asked for frames {start} to {stop} by {step}, but it has frames 0 "
                f"to {self.num_frames}"
            )
        return range(start, stop, step)

    @abstractmethod
    def _decode(self, numbers: range) -> Iterator[NDArray[Any]]:
        """The frames with these numbers, as the file has them: (C, H, W) with C = 1 or 3."""

    def _set_frame_size(self, height: int, width: int) -> None:
        if height * width > MOST_PIXELS:
            raise ValueError(
                f"{self.path}: frames of {height} x {width} pixels are too large: make them "
                f"smaller, at most {MOST_PIXELS:,} pixels"
            )
        self.frame_size = height, width
