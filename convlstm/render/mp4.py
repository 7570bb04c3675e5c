"""The animation as an MP4 video."""

import io
import os
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from convlstm.files import replacing
from convlstm.render.animation import animation
from convlstm.render.clips import check_fps, check_suffix, checked
from convlstm.render.drawing import BACKGROUND


def save_mp4(
    path: str | os.PathLike[str],
    context: ArrayLike,
    forecast: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    fps: float = 5.0,
    scale: int | None = None,
) -> None:
    """Write `forecast_frames` as an MP4 (H.264), which browsers and players support.

    Args:
        path: The file to write, completely or not at all. Its name must end in `.mp4`.
        context: See `forecast_frames`.
        forecast: See `forecast_frames`.
        truth: See `forecast_frames`.
        fps: Frames per second, from 0.1 to 50.
        scale: See `forecast_frames`.

    Raises:
        ValueError: As `forecast_frames`; if `fps` is out of range; if `path` has another suffix; if
            PyAV (the extra `video`) is not installed; if the frames are too large for H.264.
        OSError: If the file cannot be written.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(f"{path}: writing videos needs PyAV: pip install av") from error
    check_suffix(path, ".mp4")
    check_fps(fps)
    frames = animation(checked(context, forecast, truth), scale)
    _, height, width, _ = frames.shape
    data = io.BytesIO()  # so that a full disk is an error of the system's, not of the encoder's
    try:
        with av.open(data, "w", format="mp4") as video:
            stream = video.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.pix_fmt = "yuv420p"  # what every player knows; it takes even sizes only
            stream.height, stream.width = height + height % 2, width + width % 2
            stream.options = {"crf": "18"}  # lines and letters stay sharp
            canvas = np.empty((stream.height, stream.width, 3), np.uint8)
            canvas[:] = BACKGROUND
            for frame in frames:
                canvas[:height, :width] = frame
                video.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))
            video.mux(stream.encode())  # what the encoder still holds
    except av.FFmpegError as error:
        raise ValueError(
            f"{path}: frames of {height:,} x {width:,} pixels cannot be encoded as H.264 "
            f"({error.strerror}): write other formats, such as gif, png and npy"
        ) from error
    with replacing(path) as temporary:
        temporary.write_bytes(data.getvalue())
