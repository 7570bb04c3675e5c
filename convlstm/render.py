"""Pictures of forecasts: an animated GIF and a film strip.

Clips are `(T, C, H, W)` with one channel (gray) or three (RGB): `uint8`, `uint16`, or floats in
[0, 1] (clipped for display), as arrays or as tensors on any device. Gray borders mean context,
which truth and forecast share, blue ones the truth and orange ones the forecast. Lead times count
from +1; the last context frame is 0.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from convlstm.files import replacing

Color = tuple[int, int, int]

BACKGROUND: Color = (24, 24, 24)
EMPTY: Color = (40, 40, 40)
TEXT: Color = (225, 225, 225)
CONTEXT: Color = (140, 140, 140)
TRUTH: Color = (80, 160, 255)
FORECAST: Color = (255, 145, 20)

BORDER = 3  # pixels, of every frame's border


def forecast_frames(
    context: ArrayLike,
    forecast: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    scale: int | None = None,
) -> NDArray[np.uint8]:
    """Draw context and forecast as an animation: one panel, or two with the truth at the left.

    Above each panel stand its name and the time: "context 3/10", then the lead time "+1", "+2"
    and so on. Where the forecast begins, the panels' borders and headers turn from gray to their
    colours. Where the truth ends before the forecast, its panel is empty.

    Args:
        context: The frames that the forecast continues, (T, C, H, W).
        forecast: The forecast frames, (T, C, H, W), with the channels and size of the context.
        truth: What really followed, (T, C, H, W); frames beyond the forecast are left out.
        scale: How many pixels wide to draw one pixel of a frame. Default: the smallest whole
            number that makes the longer side at least 192 pixels.

    Returns:
        The animation's frames, (T_context + T_forecast, height, width, 3).

    Raises:
        ValueError: If a clip is not (T, C, H, W) with 1 or 3 channels and at least one frame, has
            another frame size or another number of channels than the context, has NaN in it or is
            neither uint8, uint16 nor float; if `scale` is below 1.
    """
    return _animation(_checked(context, forecast, truth), scale)


def save_gif(
    path: str | os.PathLike[str],
    context: ArrayLike,
    forecast: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    fps: float = 5.0,
    scale: int | None = None,
) -> None:
    """Write `forecast_frames` as a GIF that loops forever and rests on the last frame.

    All frames share one palette without dithering. Gray levels are at most 2 of 255 off; up to
    200 colours are kept exactly, more are reduced to the most useful.

    Args:
        path: The file to write; it appears when it is whole. Its name ends in `.gif`.
        context: See `forecast_frames`.
        forecast: See `forecast_frames`.
        truth: See `forecast_frames`.
        fps: Frames a second, from 0.1 to 50; GIF rounds a frame's time to 1/100 s.
        scale: See `forecast_frames`.

    Raises:
        ValueError: As `forecast_frames`; if `fps` is out of range; if `path` has another suffix.
        OSError: If the file cannot be written.
    """
    _check_suffix(path, ".gif")
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
    """The content of the file that `save_gif` writes."""
    if not 0.1 <= fps <= 50:  # viewers show frames of less than 2/100 s slower, not faster
        raise ValueError(f"fps is {fps}, expected a number from 0.1 to 50")
    clips = _checked(context, forecast, truth)
    indices, palette = _indexed(_animation(clips, scale), clips)
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


def save_strip(
    path: str | os.PathLike[str],
    context: ArrayLike,
    forecast: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    scale: int | None = None,
    columns: int = 20,
) -> None:
    """Write a PNG film strip: a row of context, below it the truth, if known, and the forecast.

    Truth and forecast of the same lead time stand below each other.

    Args:
        path: The file to write; it appears when it is whole. Its name ends in `.png`.
        context: See `forecast_frames`.
        forecast: See `forecast_frames`.
        truth: See `forecast_frames`.
        scale: How many pixels wide to draw one pixel of a frame. Default: the smallest whole
            number that makes the longer side at least 64 pixels; frames above 256 pixels are shrunk
            by a whole number until they fit.
        columns: The most frames in a row, at least 2. Of longer clips every second, third, ...
            frame is shown, and always the first and the last.

    Raises:
        ValueError: As `forecast_frames`; if `columns` is below 2; if `path` has another suffix.
        OSError: If the file cannot be written.
    """
    _check_suffix(path, ".png")
    _check_whole("columns", columns, 2)
    strip = _strip(_checked(context, forecast, truth), scale, columns)
    with replacing(path) as temporary:
        strip.save(temporary)


class _Clips(NamedTuple):
    """What to draw, each (T, H, W, 3)."""

    context: NDArray[np.uint8]
    forecast: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None


def _animation(clips: _Clips, scale: int | None) -> NDArray[np.uint8]:
    context, forecast, truth = clips
    scale = _scale(scale, context, 192)
    seen, steps = len(context), len(forecast)
    text_size, margin, gap, header = 16, 12, 16, 26
    height, width = (scale * side + 2 * BORDER for side in context.shape[1:3])
    labels = [f"context {t + 1}/{seen}" for t in range(seen)] + [f"+{t + 1}" for t in range(steps)]
    panel = max(width, _text_width("forecast", text_size) + gap + _widest(labels, text_size))

    panels = [("forecast", forecast, FORECAST)]
    if truth is not None:
        panels.insert(0, ("truth", truth, TRUTH))
    size = (
        2 * margin + len(panels) * panel + (len(panels) - 1) * gap,
        header + height + margin,
    )

    def draw(t: int) -> Image.Image:
        image = Image.new("RGB", size, BACKGROUND)
        pen = ImageDraw.Draw(image)
        for number, (title, future, colour) in enumerate(panels):
            left = margin + number * (panel + gap)
            frame = context[t] if t < seen else _at(future, t - seen)
            colour = CONTEXT if t < seen or frame is None else colour
            middle = header // 2 + 1
            pen.text((left, middle), title, TEXT, _font(text_size), anchor="lm")
            pen.text((left + panel, middle), labels[t], colour, _font(text_size), anchor="rm")
            corner = (left + (panel - width) // 2, header)
            _draw_frame(image, corner, (width, height), frame, colour)
        return image

    return np.stack([np.asarray(draw(t)) for t in range(seen + steps)])


def _strip(clips: _Clips, scale: int | None, columns: int) -> Image.Image:
    context, forecast, truth = clips
    shrink = 1
    if scale is None:
        shrink = -(-max(context.shape[1:3]) // 256)
    scale = _scale(scale, context, 64)
    past, future = _thinned(len(context), columns), _thinned(len(forecast), columns)
    text_size, margin, gap, header = 13, 12, 4, 20
    height, width = (-(-scale * side // shrink) + 2 * BORDER for side in context.shape[1:3])

    past_labels = [str(t + 1 - len(context)) for t in past]
    future_labels = [f"+{t + 1}" for t in future]
    names = _widest(["context", "truth", "forecast"], text_size) + 2 * gap
    cell = max(width, _widest(past_labels + future_labels, text_size))
    rows = [("context", context, CONTEXT, past, past_labels)]
    if truth is not None:
        rows.append(("truth", truth, TRUTH, future, future_labels))
    rows.append(("forecast", forecast, FORECAST, future, future_labels if truth is None else []))

    size = (
        2 * margin + names + max(len(past), len(future)) * (cell + gap) - gap,
        2 * (header + margin // 2) + len(rows) * (height + gap),
    )
    image = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(image)
    top = margin // 2
    for name, clip, colour, times, labels in rows:
        for column, label in enumerate(labels):
            middle = (margin + names + column * (cell + gap) + cell // 2, top + header // 2)
            pen.text(middle, label, TEXT, _font(text_size), anchor="mm")
        top += header if labels else 0
        pen.text((margin, top + height // 2), name, colour, _font(text_size), anchor="lm")
        for column, t in enumerate(times):
            left = margin + names + column * (cell + gap) + (cell - width) // 2
            _draw_frame(image, (left, top), (width, height), _at(clip, t), colour, shrink)
        top += height + gap
    return image


def _draw_frame(
    image: Image.Image,
    corner: tuple[int, int],
    size: tuple[int, int],
    frame: NDArray[np.uint8] | None,
    colour: Color,
    shrink: int = 1,
) -> None:
    """Draw a frame (H, W, 3) with its border; a dash stands for a frame that does not exist."""
    (left, top), (width, height) = corner, size
    inner = (width - 2 * BORDER, height - 2 * BORDER)
    if frame is None:
        picture = Image.new("RGB", inner, EMPTY)
        middle, half = (inner[0] // 2, inner[1] // 2), min(10, inner[0] // 4)
        ImageDraw.Draw(picture).line(
            (middle[0] - half, middle[1], middle[0] + half, middle[1]), CONTEXT, width=2
        )
        colour = EMPTY
    elif shrink > 1:
        picture = Image.fromarray(frame).reduce(shrink)
    else:
        picture = Image.fromarray(frame).resize(inner, Image.Resampling.NEAREST)
    image.paste(colour, (left, top, left + width, top + height))
    image.paste(picture, (left + BORDER, top + BORDER))


def _indexed(
    frames: NDArray[np.uint8], clips: _Clips
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


def _palette(clips: _Clips) -> NDArray[np.uint8]:
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


def _checked(context: ArrayLike, forecast: ArrayLike, truth: ArrayLike | None) -> _Clips:
    given = {"context": context, "forecast": forecast, "truth": truth}
    arrays = {name: _array(name, clip) for name, clip in given.items() if clip is not None}
    expected = arrays["context"].shape[1:]
    for name, array in arrays.items():
        if array.shape[1:] != expected:
            raise ValueError(
                f"{name} frames are {array.shape[1:]}, expected {expected} (channels, height, "
                "width) as in the context"
            )
    drawn = {name: _pixels(name, array) for name, array in arrays.items()}
    past, future = drawn["context"], drawn["forecast"]
    return _Clips(past, future, drawn["truth"][: len(future)] if truth is not None else None)


def _array(name: str, clip: Any) -> NDArray[Any]:
    if hasattr(clip, "detach"):  # a tensor; NumPy knows no bfloat16
        clip = clip.detach().cpu()
        clip = (clip.float() if clip.is_floating_point() else clip).numpy()
    array = np.asarray(clip)
    if array.ndim != 4:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (time, channels, height, width)"
        )
    if array.shape[1] not in (1, 3):
        raise ValueError(f"{name} has {array.shape[1]} channels, expected 1 (gray) or 3 (RGB)")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected at least one frame and pixel")
    return array


def _pixels(name: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert (T, C, H, W) of any accepted type to uint8 (T, H, W, 3)."""
    if array.dtype == np.uint16:
        array = np.rint(array / np.float32(257)).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        broken = np.isnan(array).any(axis=(1, 2, 3))
        if broken.any():
            raise ValueError(f"{name} frame {broken.argmax()} is NaN, expected values in [0, 1]")
        array = np.rint(array.clip(0, 1) * np.float32(255)).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"{name} has type {array.dtype}, expected uint8, uint16 or float")
    return np.broadcast_to(array.transpose(0, 2, 3, 1), (len(array), *array.shape[2:], 3)).copy()


def _scale(scale: int | None, context: NDArray[np.uint8], least: int) -> int:
    if scale is None:
        return -(-least // int(max(context.shape[1:3])))
    _check_whole("scale", scale, 1)
    return scale


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} is {value}, expected a whole number of {least} or more")


def _check_suffix(path: str | os.PathLike[str], suffix: str) -> None:
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"path is {os.fspath(path)!r}, expected a name that ends in {suffix}")


def _thinned(count: int, most: int) -> list[int]:
    """Choose up to `most` of `count` frames at equal steps, the first and the last included."""
    step = -(-(count - 1) // (most - 1)) or 1
    return [*range(0, count - 1, step), count - 1]


def _at(clip: NDArray[np.uint8], t: int) -> NDArray[np.uint8] | None:
    return clip[t] if t < len(clip) else None


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own font: the same pictures on every machine. It has no minus sign and no dash.
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    return int(np.ceil(_font(size).getlength(text)))


def _widest(texts: list[str], size: int) -> int:
    return max(_text_width(text, size) for text in texts)
