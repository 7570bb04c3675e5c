"""The animation as a GIF, with one palette for all its frames."""

import os

import imageio.v3 as iio
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from convlstm.files import replacing
from convlstm.render.animation import animation
from convlstm.render.clips import Clips, check_fps, check_suffix, checked
from convlstm.render.drawing import BACKGROUND, CONTEXT, EMPTY, FORECAST, TEXT, TRUTH

LARGEST = 65535  # pixels a side of a GIF


def save_gif(
    path: str | os.PathLike[str],
    context: ArrayLike,
    forecast: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    fps: float = 5.0,
    scale: int | None = None,
) -> None:
    """Write `forecast_frames` as a GIF that loops forever and pauses on the last frame.

    All frames share one palette without dithering. Gray levels are off by at most 2 of 255. Up to
    200 colours are kept exactly; more are reduced to fit the palette.

    Args:
        path: The file to write, completely or not at all. Its name must end in `.gif`.
        context: See `forecast_frames`.
        forecast: See `forecast_frames`.
        truth: See `forecast_frames`.
        fps: Frames per second, from 0.1 to 50; GIF rounds frame durations to 1/100 s.
        scale: See `forecast_frames`.

    Raises:
        ValueError: As `forecast_frames`; if `fps` is out of range; if `path` has another suffix; if
            a side of the animation has more than 65,535 pixels.
        OSError: If the file cannot be written.
    """
    check_suffix(path, ".gif")
    data = encode_gif(context, forecast, truth, fps=fps, scale=scale)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def encode_gif(
    context: ArrayLike,
    forecast: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    fps: float = 5.0,
    scale: int | None = None,
) -> bytes:
    """The content of the file that `save_gif` writes.

    Takes the same arguments, and raises the same errors but for those of the path.
    """
    check_fps(fps)
    clips = checked(context, forecast, truth)
    frames = animation(clips, scale)
    if max(frames.shape[1:3]) > LARGEST:
        height, width = frames.shape[1:3]
        raise ValueError(
            f"a GIF holds at most {LARGEST:,} pixels a side, these frames have {height:,} x "
            f"{width:,}: write other formats, such as png and npy"
        )
    indices, palette = _indexed(frames, clips)
    durations = [10 * round(100 / fps)] * len(indices)  # milliseconds
    durations[-1] += 1500
    data: bytes = iio.imwrite(
        "<bytes>",
        indices,
        plugin="pillow",
        extension=".gif",
        is_batch=True,
        palette=palette.tobytes(),
        duration=durations,
        loop=0,
    )
    return data


def _indexed(
    frames: NDArray[np.uint8], clips: Clips
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reduce frames (T, H, W, 3) to indices (T, H, W) into one palette (up to 256, 3)."""
    palette = _palette(clips)
    packed = _packed(frames)
    used = np.zeros(1 << 24, bool)
    used[packed] = True
    table = np.zeros(1 << 24, np.uint8)
    colours = np.flatnonzero(used)
    for part in np.array_split(colours, len(colours) // 65536 + 1):
        table[part] = _nearest(part, palette)
    return table[packed], palette


def _palette(clips: Clips) -> NDArray[np.uint8]:
    """Choose the colours: of borders and text always, of the clips all or the best."""
    ramp = np.linspace(0, 1, 8)[:, None]  # text fades into the background in 8 levels
    own = [EMPTY] + [
        level
        for colour in (TEXT, CONTEXT, TRUTH, FORECAST)
        for level in np.rint(BACKGROUND + ramp * (np.array(colour) - BACKGROUND)).tolist()
    ]
    fixed = np.unique(np.array(own, np.uint8), axis=0)
    free = 256 - len(fixed)
    pixels = np.concatenate([clip.reshape(-1, 3) for clip in clips if clip is not None])
    used = np.zeros(1 << 24, bool)
    used[_packed(pixels)] = True
    colours = _unpacked(np.flatnonzero(used))
    if len(colours) > free:
        # Each colour counts once: what is small and bright keeps its colour on a large background.
        sample = colours[:: len(colours) // (1 << 15) + 1]
        reduced = Image.fromarray(sample[None]).quantize(free, Image.Quantize.MEDIANCUT, kmeans=1)
        colours = np.array(reduced.getpalette(), np.uint8).reshape(-1, 3)
    return np.unique(np.concatenate([fixed, colours]), axis=0)


def _nearest(packed: NDArray[np.int64], palette: NDArray[np.uint8]) -> NDArray[np.int64]:
    colours, choices = _unpacked(packed).astype(np.float32), palette.astype(np.float32)
    # |colour - choice|^2 without the part that is the same for all choices; exact in float32
    nearest: NDArray[np.int64] = np.argmin((choices**2).sum(1) - 2 * colours @ choices.T, axis=1)
    return nearest


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    packed: NDArray[np.int32] = red << 16 | green << 8 | blue
    return packed


def _unpacked(packed: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)
