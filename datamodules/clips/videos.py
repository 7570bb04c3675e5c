"""Clips in video files, decoded by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.clips.colour import on_black
from datamodules.clips.errors import damage, require_file
from datamodules.clips.reader import ClipReader

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.format import VideoFormat
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".3gp",
    ".avi",
    ".mkv",
    ".webm",
    ".wmv",
    ".mpg",
    ".mpeg",
    ".mts",
    ".m2ts",
    ".ts",
    ".flv",
    ".ogv",
)

# These may begin anywhere: between two key frames, if a broadcast was recorded.
_STREAMS = ("mpeg", "mpegts")
_MICROSECOND = Fraction(1, 10**6)  # the unit of a container's duration


class VideoReader(ClipReader):
    """A clip in a video file: all frames of its first video stream, whatever their times.

    Opening reads through the file without decoding it, so that every frame has a number; reading
    starts at the key frame before the frames asked for, or at the first frame where times are not
    to be trusted (MPG, AVI and WMV with frames stored out of order, MPEG-4 Part 2 in TS). Pixels
    are uint8, or uint16 where the video has more than 8 bits. Videos are turned upright as their
    file says. A TS or MPG that begins between two key frames, as a recorded broadcast does, has the
    frames from the first one that can be decoded on.

    Args:
        path: The file.

    Raises:
        OSError: If there is no such file or it may not be read.
        ValueError: If it is no video, is truncated or damaged, or PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require_file(path)
        with self._opened() as (container, stream):
            self._set_frame_size(stream.height, stream.width)
            with damage(path, "video"):
                begin = self._begin() if container.format.name in _STREAMS else None
                times, keys, length, timed = _packets(container, stream, begin)
            if not times:
                raise ValueError(f"{path}: a video without frames: give another file")
            promised = max(
                _seconds(container.duration, _MICROSECOND),
                _seconds(stream.duration, stream.time_base),
            )
            if length < 0.99 * promised - length / len(times):
                raise ValueError(
                    f"{path}: the video ends after {length:.2f} of {promised:.2f} seconds, the "
                    "file is truncated: copy it anew"
                )
        self._timed = timed
        self._times = np.unique(times)
        # The first frame counts as a key frame.
        self._begins = np.unique([0, *np.searchsorted(self._times, keys)])
        self.num_frames = len(self._times)
        (first,) = self._decoded(range(1))
        self._form = _form(first.format)
        deep = self._form not in ("gray", "rgb24", "rgba")
        self.dtype = np.dtype(np.uint16 if deep else np.uint8)
        if self._form.startswith("gray"):
            self._channels = 1
        self._quarter_turns = first.rotation // 90
        if self._quarter_turns % 2:
            self.frame_size = self.frame_size[::-1]

    def _begin(self) -> int | None:
        """The time of the first frame that can be decoded; None if there is none."""
        with self._opened() as (container, stream):
            frames = _until_damage(container, stream, None, timed=True)
            return next((time for time, frame in frames if not frame.is_corrupt), None)

    def _decode(self, numbers: range) -> Iterator[NDArray[Any]]:
        for frame in self._decoded(numbers):
            array = frame.to_ndarray(format=self._form)
            array = np.rot90(array, self._quarter_turns)
            if array.shape[:2] != self.frame_size:
                raise ValueError(
                    f"{self.path}: frames of {array.shape[:2]} and of {self.frame_size} pixels: "
                    "bring all frames to one size"
                )
            array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
            yield on_black(array) if len(array) == 4 else array

    def _decoded(self, numbers: range) -> Iterator[VideoFrame]:
        """The frames with these numbers."""
        wanted = self._times[numbers.start : numbers.stop : numbers.step]
        key = self.decoded_with(numbers.start).start
        done = 0
        # Where seeking leads behind the first frame that is wanted, decode from the beginning.
        for origin in (int(self._times[key]), None) if key > 0 else (None,):
            for frame in self._decoded_from(origin, wanted[done:]):
                done += 1
                yield frame
            if done == len(wanted):
                return
        raise ValueError(
            f"{self.path}: frame {numbers[done]} cannot be decoded, the video is damaged: copy or "
            "write it anew"
        )

    def _decoded_from(self, origin: int | None, wanted: NDArray[np.int64]) -> Iterator[VideoFrame]:
        """The frames with the wanted times, up to the first that is missing."""
        with self._opened() as (container, stream):
            frames = _until_damage(container, stream, origin, self._timed)
            for time in wanted:
                here, frame = next((f for f in frames if f[0] >= time), (None, None))
                if frame is None or here != time or frame.is_corrupt:
                    return
                yield frame

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            import av
        except ImportError as error:
            raise ValueError(f"{self.path}: reading videos needs PyAV: pip install av") from error
        try:
            container = av.open(str(self.path), metadata_errors="replace")
        except av.FFmpegError as error:
            raise ValueError(
                f"{self.path}: not a video, whatever its name says, or a truncated or damaged one "
                f"({error.strerror}): copy or write it anew"
            ) from error
        with container:
            stream = next(iter(container.streams.video), None)
            if stream is None or not stream.codec_context:  # none where no decoder is known
                raise ValueError(
                    f"{self.path}: no video in it that can be decoded: give another file"
                )
            yield container, stream


def _packets(
    container: InputContainer, stream: VideoStream, begin: int | None
) -> tuple[list[int], list[int], float, bool]:
    """Goes through a file.

    Args:
        container: The file.
        stream: Its video.
        begin: Time of the first frame that counts; None for all frames.

    Returns:
        Times of the frames and of the key frames, in the stream's unit; the file's length in
        seconds; and whether the times are right, after seeking too. Where they are not, frames are
        counted from the first one on: AVI has no times, and where frames are stored in another
        order than shown, those made up for it are wrong, as in ASF; MPEG program streams have some,
        and those of frames decoded after seeking may be wrong, as may those of some codecs in MPEG
        transport streams.
    """
    form = container.format.name
    times: list[int] = []
    keys: list[int] = []
    untimed = 0
    start = end = 0.0  # most containers count a file's length from zero on, wherever it begins
    reordered = False
    for packet in container.demux():
        if packet.is_discard or not packet.size:
            continue
        time = packet.pts
        if time is not None:
            start = min(start, _seconds(time, packet.time_base))
            end = max(end, _seconds(time + (packet.duration or 0), packet.time_base))
        if packet.stream is not stream:
            continue
        if begin is not None and (not times if time is None else time < begin):
            continue
        reordered |= time != packet.dts
        if time is None:
            untimed += 1
            continue
        times.append(time)
        if packet.is_keyframe:
            keys.append(time)
    wrong = form == "mpeg" or (form in ("avi", "asf") and reordered)
    wrong |= form == "mpegts" and stream.codec_context.name not in ("h264", "hevc", "mpeg2video")
    if wrong or untimed:
        return list(range(len(times) + untimed)), [], end - start, False
    return times, keys, end - start, True


def _seconds(time: int | None, unit: Fraction | None) -> float:
    return 0.0 if time is None or unit is None else float(time * unit)


def _until_damage(
    container: InputContainer, stream: VideoStream, origin: int | None, timed: bool
) -> Iterator[tuple[int, VideoFrame]]:
    """Decodes from the key frame at a time on, or from the beginning: times or numbers, frames."""
    from av import FFmpegError

    try:
        if origin is not None:
            container.seek(origin, stream=stream)
        for number, frame in enumerate(container.decode(stream)):
            if not timed:
                yield number, frame
            elif frame.pts is not None:
                if origin is not None and frame.pts > origin:
                    return  # with intra refresh, what is called a key frame cannot be decoded alone
                if frame.pts == origin:
                    origin = None
                yield frame.pts, frame
    except FFmpegError:
        return


def _form(format: VideoFormat) -> str:
    """The form in which to take the pixels of a video's format."""
    deep = max(component.bits for component in format.components) > 8
    if len(format.components) == 1 and not format.has_palette:
        return "gray16le" if deep else "gray"
    if any(component.is_alpha for component in format.components):
        return "rgba64le" if deep else "rgba"
    return "rgb48le" if deep else "rgb24"
