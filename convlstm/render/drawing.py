"""Frames with their borders, and text: what animation and strip are drawn with."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convlstm.render.clips import check_whole

Color = tuple[int, int, int]

BACKGROUND: Color = (24, 24, 24)
EMPTY: Color = (40, 40, 40)
TEXT: Color = (225, 225, 225)
CONTEXT: Color = (140, 140, 140)
TRUTH: Color = (80, 160, 255)
FORECAST: Color = (255, 145, 20)

BORDER = 3  # pixels, of every frame's border


def draw_frame(
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


def enlargement(scale: int | None, context: NDArray[np.uint8], least: int) -> int:
    """The scale, or the smallest that makes the longer side at least so many pixels."""
    if scale is None:
        return -(-least // int(max(context.shape[1:3])))
    check_whole("scale", scale, 1)
    return scale


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all text, of a height in pixels."""
    # Pillow's own font: the same pictures on every machine. It has no minus sign and no dash.
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """In pixels."""
    return int(np.ceil(font(size).getlength(text)))


def widest(texts: list[str], size: int) -> int:
    """The width of the widest text, in pixels."""
    return max(text_width(text, size) for text in texts)
