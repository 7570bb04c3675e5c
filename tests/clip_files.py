"""Writes the clips that tests read."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np


def moving(frames=12, height=18, width=24, seed=0):
    """(T, H, W, 3) uint8: a bright square that moves over a dark ramp; every frame differs."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(120, 256, 3)
    clip = np.zeros((frames, height, width, 3), dtype=np.uint8)
    clip[..., 2] = np.arange(width, dtype=np.uint8)
    top, left = rng.integers(0, height - 5), rng.integers(0, width)
    for t, frame in enumerate(clip):
        columns = (left + 2 * t + np.arange(5)) % width
        frame[top : top + 5, columns] = colour
        frame[0, 0] = 15 * t % 256
    return clip


def write_video(path, frames, codec, pixels, *, source="rgb24", every=5, first=0, **options):
    """Writes (T, H, W, C) with a key frame at least every so many frames, 25 a second.

    The first frame is shown at the time of frame number `first`.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = pixels, every
        for number, array in enumerate(frames, start=first):
            frame = av.VideoFrame.from_ndarray(array, format=source)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_gif(path, frames):
    """Writes (T, H, W, 3) of at most 256 colours."""
    iio.imwrite(path, frames, duration=40, plugin="pillow", loop=0)
    return Path(path)


def write_folder(path, frames, suffix=".png"):
    """Writes images whose names are in order only if numbers are."""
    path.mkdir()
    for number, frame in enumerate(frames):
        iio.imwrite(path / f"img{number}{suffix}", frame)
    return path
