"""Opens a clip with the reader for its kind."""

from __future__ import annotations

from pathlib import Path

from datamodules.clips.animations import ANIMATION_SUFFIXES, AnimationReader
from datamodules.clips.arrays import ARRAY_SUFFIXES, ArrayReader
from datamodules.clips.errors import require_file
from datamodules.clips.reader import Clip, ClipReader
from datamodules.clips.stills import FolderReader
from datamodules.clips.videos import VIDEO_SUFFIXES, VideoReader

FILE_SUFFIXES = (*ARRAY_SUFFIXES, *ANIMATION_SUFFIXES, *VIDEO_SUFFIXES)

MOST_PIXELS_AT_ONCE = 2**32  # that read_clip puts into memory


def open_clip(path: str | Path, *, axes: str | None = None, array: str | None = None) -> ClipReader:
    """Opens a clip, whose frames are read on demand.

    - ``.npy``, ``.npz``: (T, H, W), (T, C, H, W) or (T, H, W, C), with C = 1, 3, or 4 with alpha:
      C is the second axis before the last, but 1 or 3 before 4; ``axes`` gives any other order.
      uint8 and uint16 are kept, bool becomes 0 and 255, floats must be in [0, 1].
    - ``.gif``, ``.png``, ``.apng``, ``.webp``: animated, or a single frame.
    - ``.mp4``, ``.m4v``, ``.mov``, ``.3gp``, ``.avi``, ``.mkv``, ``.webm``, ``.wmv``, ``.mpg``,
      ``.mpeg``, ``.mts``, ``.m2ts``, ``.ts``, ``.flv``, ``.ogv``: all frames of the first video
      stream, regardless of timestamps; uint16 above 8 bits. Requires the extra ``video``.
    - A folder of images: one image per frame, in natural order.

    Alpha is composited over black. A clip has one channel if all its pixels are gray, else three;
    arrays keep their channels.

    Args:
        path: The file or folder.
        axes: The axes of an array, such as "HWT" or "CTHW": T time, C channels, H height, W width.
            Ignored for other formats.
        array: Name of the array in a .npz file with several arrays.

    Returns:
        A reader with the clip's size and access to its frames.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it may not be read.
        ValueError: If it is not of the kind that its suffix says, is damaged, holds something
            other than a clip, or frames of more than 2**26 pixels; or if its kind needs a package
            that is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return FolderReader(path)
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return ArrayReader(path, axes, array)
    if suffix in ANIMATION_SUFFIXES:
        return AnimationReader(path)
    if suffix in VIDEO_SUFFIXES:
        return VideoReader(path)
    require_file(path)
    raise ValueError(
        f"{path}: suffix {path.suffix!r} is not supported: give a folder of images or one of "
        f"{', '.join(FILE_SUFFIXES)}"
    )


def read_clip(path: str | Path, *, axes: str | None = None, array: str | None = None) -> Clip:
    """Reads a whole clip.

    Args:
        path: The file or folder: see `open_clip`.
        axes: As in `open_clip`.
        array: As in `open_clip`.

    Returns:
        (T, C, H, W): uint8, uint16 or float32 in [0, 1].

    Raises:
        OSError: As from `open_clip`.
        ValueError: As from `open_clip`; also if the clip has more than 2**32 pixels.
    """
    clip = open_clip(path, axes=axes, array=array)
    height, width = clip.frame_size
    if clip.num_frames * height * width > MOST_PIXELS_AT_ONCE:
        raise ValueError(
            f"{path}: {clip.num_frames:,} frames of {height} x {width} pixels are too many to read "
            "at once: read parts of them with open_clip, or shorten the clip"
        )
    return clip.read(0, clip.num_frames)
