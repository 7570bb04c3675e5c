"""The film strip: all frames beside each other in one picture."""

import os

from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from convlstm.files import replacing
from convlstm.render.clips import Clips, check_suffix, check_whole, checked, frame_at
from convlstm.render.drawing import (
    BACKGROUND,
    BORDER,
    CONTEXT,
    FORECAST,
    TEXT,
    TRUTH,
    draw_frame,
    enlargement,
    font,
    widest,
)


def save_strip(
    path: str | os.PathLike[str],
    context: ArrayLike,
    forecast: ArrayLike,
    truth: ArrayLike | None = None,
    *,
    scale: int | None = None,
    columns: int = 20,
) -> None:
    """Write a PNG film strip: a row of context frames, then the truth, if known, and the forecast.

    Truth and forecast of the same lead time are aligned vertically.

    Args:
        path: The file to write, completely or not at all. Its name must end in `.png`.
        context: See `forecast_frames`.
        forecast: See `forecast_frames`.
        truth: See `forecast_frames`.
        scale: Enlargement of each pixel. Default: the smallest integer that makes the longer side
            at least 64 pixels; frames above 256 pixels are shrunk by an integer factor to fit.
        columns: Maximum number of frames in a row, at least 2. For longer clips, every second,
            third, ... frame is shown, and always the first and the last.

    Raises:
        ValueError: As `forecast_frames`; if `columns` is below 2; if `path` has another suffix.
        OSError: If the file cannot be written.
    """
    check_suffix(path, ".png")
    check_whole("columns", columns, 2)
    strip = _strip(checked(context, forecast, truth), scale, columns)
    with replacing(path) as temporary:
        strip.save(temporary)


def _strip(clips: Clips, scale: int | None, columns: int) -> Image.Image:
    context, forecast, truth = clips
    shrink = 1
    if scale is None:
        shrink = -(-max(context.shape[1:3]) // 256)
    scale = enlargement(scale, context, 64)
    past, future = _thinned(len(context), columns), _thinned(len(forecast), columns)
    text_size, margin, gap, header = 13, 12, 4, 20
    height, width = (-(-scale * side // shrink) + 2 * BORDER for side in context.shape[1:3])

    past_labels = [str(t + 1 - len(context)) for t in past]
    future_labels = [f"+{t + 1}" for t in future]
    names = widest(["context", "truth", "forecast"], text_size) + 2 * gap
    cell = max(width, widest(past_labels + future_labels, text_size))
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
            pen.text(middle, label, TEXT, font(text_size), anchor="mm")
        top += header if labels else 0
        pen.text((margin, top + height // 2), name, colour, font(text_size), anchor="lm")
        for column, t in enumerate(times):
            left = margin + names + column * (cell + gap) + (cell - width) // 2
            draw_frame(image, (left, top), (width, height), frame_at(clip, t), colour, shrink)
        top += height + gap
    return image


def _thinned(count: int, most: int) -> list[int]:
    """Choose up to `most` of `count` frames at equal steps, the first and the last included."""
    step = -(-(count - 1) // (most - 1)) or 1
    return [*range(0, count - 1, step), count - 1]
