"""Clips in animated pictures: GIF, PNG and WebP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.clips.errors import damage, require_file
from datamodules.clips.pictures import check_png, opened, pixel_type, pixels
from datamodules.clips.reader import ClipReader

ANIMATION_SUFFIXES = (".gif", ".png", ".apng", ".webp")

_KINDS = {".gif": "GIF", ".png": "PNG", ".apng": "PNG", ".webp": "WebP"}
_TAIL = 256  # bytes in which a file's end is looked for


class AnimationReader(ClipReader):
    """A clip in a GIF, PNG or WebP, animated or of one frame; frames are decoded from the first on.

    Args:
        path: The file.

    Raises:
        OSError: If there is no such file or it may not be read.
        ValueError: If it is not of the kind that its suffix says, or is truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = _KINDS[path.suffix.lower()]
        _require_whole(path, self.kind)
        if self.kind == "PNG":
            check_png(path)
        with opened(path) as image:
            self._set_frame_size(image.height, image.width)
            with damage(path, self.kind):
                # A PNG may begin with a picture for those who cannot play it.
                self._first = 1 if image.info.get("default_image") else 0
                self.num_frames = getattr(image, "n_frames", 1) - self._first
                self.dtype = pixel_type(image)
        self._begins = np.zeros(1, dtype=np.int64)

    def _decode(self, numbers: range) -> Iterator[NDArray[Any]]:
        with opened(self.path) as image:
            for number in numbers:
                with damage(self.path, self.kind):
                    image.seek(number + self._first)
                    frame = pixels(image)
                yield frame


def is_animated(path: Path) -> bool:
    """Whether a picture has several frames; a file that cannot be read is not said to."""
    try:
        with opened(path) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError):
        return False


def _require_whole(path: Path, kind: str) -> None:
    """Raises unless the file begins and ends as one of its kind.

    Decoders pass over missing frames in silence, but then the end is missing too.
    """
    require_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if kind == "GIF":
        right = head[:6] in (b"GIF87a", b"GIF89a")
        whole = tail.rstrip(b"\0\r\n ").endswith(b";")
    elif kind == "PNG":
        right = head[:8] == b"\x89PNG\r\n\x1a\n"
        whole = b"IEND\xaeB`\x82" in tail
    else:
        right = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
        whole = size >= int.from_bytes(head[4:8], "little") + 8
    if not right:
        raise ValueError(f"{path}: not a {kind}, whatever its name says: give a {kind} file")
    if not whole:
        raise ValueError(f"{path}: the {kind} has no end, the file is truncated: copy it anew")
