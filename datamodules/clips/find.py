"""Finds the clips in files and folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datamodules.clips.animations import is_animated
from datamodules.clips.folders import children
from datamodules.clips.opening import FILE_SUFFIXES
from datamodules.clips.stills import STILL_SUFFIXES


def find_clips(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Finds the clips in files and folders, in natural order (clip2 before clip10).

    Folders are searched recursively. A folder that holds images and no clip files is itself a clip.
    Still images next to clip files are ignored, and so are names that start with a dot. PNG and
    WebP files are clips if the first of them in their folder is animated.

    Paths without clips stay in the list as they were given, so that opening them raises an error
    that explains what is wrong.

    Args:
        paths: Files and folders.

    Returns:
        Files and folders for `open_clip`, without duplicates.

    Raises:
        FileNotFoundError: If all paths are folders without clips.
        PermissionError: If a folder may not be read.
    """
    given = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    found = {path: _inside(path, set()) if path.is_dir() else [path] for path in given}
    if not any(found.values()):
        raise FileNotFoundError(
            f"{', '.join(map(str, given)) or 'no paths'}: no clips there: give files "
            f"({', '.join(FILE_SUFFIXES)}), folders of them, or folders of images "
            f"({', '.join(STILL_SUFFIXES)})"
        )
    return list(dict.fromkeys(clip for path in given for clip in found[path] or [path]))


def _inside(folder: Path, seen: set[Path]) -> list[Path]:
    """The clips of a folder; `seen` are the folders above, which a link may lead back to."""
    real = folder.resolve()
    if real in seen:
        return []
    entries = children(folder)
    files = [p for p in entries if p.is_file() and p.suffix.lower() in FILE_SUFFIXES]
    either = [p for p in files if p.suffix.lower() in STILL_SUFFIXES]
    if either and not is_animated(either[0]):
        files = [p for p in files if p not in either]
    stills = any(p.is_file() and p.suffix.lower() in STILL_SUFFIXES for p in entries)
    clips = [folder] if stills and not files else []
    for entry in entries:
        if entry.is_dir():
            clips += _inside(entry, seen | {real})
        elif entry in files:
            clips.append(entry)
    return clips
