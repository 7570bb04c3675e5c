"""The frames of an animation: a panel for the forecast, and one for the truth beside it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from convlstm.render.clips import Clips, checked, frame_at
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
    text_width,
    widest,
)


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
    return animation(checked(context, forecast, truth), scale)


def animation(clips: Clips, scale: int | None) -> NDArray[np.uint8]:
    """`forecast_frames` of clips that are checked."""
    context, forecast, truth = clips
    scale = enlargement(scale, context, 192)
    seen, steps = len(context), len(forecast)
    text_size, margin, gap, header = 16, 12, 16, 26
    height, width = (scale * side + 2 * BORDER for side in context.shape[1:3])
    labels = [f"context {t + 1}/{seen}" for t in range(seen)] + [f"+{t + 1}" for t in range(steps)]
    panel = max(width, text_width("forecast", text_size) + gap + widest(labels, text_size))

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
            frame = context[t] if t < seen else frame_at(future, t - seen)
            colour = CONTEXT if t < seen or frame is None else colour
            middle = header // 2 + 1
            pen.text((left, middle), title, TEXT, font(text_size), anchor="lm")
            pen.text((left + panel, middle), labels[t], colour, font(text_size), anchor="rm")
            corner = (left + (panel - width) // 2, header)
            draw_frame(image, corner, (width, height), frame, colour)
        return image

    return np.stack([np.asarray(draw(t)) for t in range(seen + steps)])
