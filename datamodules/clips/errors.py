"""What is said of a file that is no clip."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image


def require_file(path: Path) -> None:
    """Raises unless there is a file that can be read and is not empty.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a directory.
        PermissionError: It may not be read.
        ValueError: It is empty, or no regular file, such as a pipe.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory: give a file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file: check the path")
    if not path.is_file():
        raise ValueError(f"{path}: no regular file, such as a pipe: copy what it gives into one")
    with permitted(path), path.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{path}: the file is empty: write it anew")


@contextmanager
def permitted(path: Path) -> Iterator[None]:
    """Says in one line that a file or folder may not be read."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(
            f"{path}: no permission to read it: change its permissions, or copy it"
        ) from error


class OutOfRange(ValueError):
    """Of pixels that are whole, but outside of the values that they may have."""


@contextmanager
def damage(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a decoder raises into one line that names the file; of warnings there is none.

    Decoders let all kinds of exceptions escape on damaged files, even AttributeError.

    Args:
        path: The file that is decoded.
        kind: What it is, such as "GIF".

    Raises:
        ValueError: The block has raised.
        MemoryError: The block has.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except MemoryError:
        raise
    except OutOfRange as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{path}: the {kind} is damaged ({first_line(error)}): copy or write it anew"
        ) from error


def first_line(error: Exception) -> str:
    """An exception's message without what follows its first line; its name if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
