"""Folders in the order in which people read them."""

from __future__ import annotations

import re
from pathlib import Path

from datamodules.clips.errors import permitted


def children(folder: Path) -> list[Path]:
    """What a folder holds, in natural order (clip2 before clip10), without hidden names.

    Raises:
        PermissionError: If it may not be read.
        OSError: If there is no such folder.
    """
    with permitted(folder):
        return sorted((p for p in folder.iterdir() if p.name[0] != "."), key=_natural)


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", path.stem.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name
