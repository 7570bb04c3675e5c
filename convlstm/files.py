"""Files that are whole or not there."""

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PREFIX = ".tmp-"  # of temporary names


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name and give it its own name when it is whole.

    The block writes to the yielded name. When it ends, the file is flushed to the disk and
    renamed to `path`, replacing what stood there. When it raises, the temporary file is removed
    and `path` stays as it was, so that no reader ever meets half a file.

    Args:
        path: The file to write. Missing parent directories are created.

    Yields:
        A name that is free, in the directory of `path` and with its suffix.

    Raises:
        OSError: When the file cannot be written; the message names `path`, not the temporary
            name. Also when the block has written nothing.
    """
    target = Path(path)
    temporary = target.with_name(f"{PREFIX}{secrets.token_hex(8)}{target.suffix}")
    make_directory(target)
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        # A full disk names no file. Errors about other files that the block uses stay themselves.
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON, which has no NaN and no infinity: null stands for them.

    Raises:
        OSError: As `replacing`.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def real(path: Path) -> Path:
    """The absolute path behind links; one that leads back to itself stays as it is."""
    return Path(os.path.realpath(path))


def check_folder(folder: Path) -> None:
    """Makes sure, before long work, that files can be written to a folder; it may be missing yet.

    Raises:
        OSError: It is a file, or may not be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    allowed = os.access(there, os.W_OK | os.X_OK)
    if not there.is_dir() or not allowed:
        code = errno.EACCES if there.is_dir() else errno.ENOTDIR
        raise OSError(code, os.strerror(code), str(there))


def remove_leftovers(folder: Path) -> None:
    """Removes what `replacing` left in a folder when the process was killed while it wrote."""
    for path in folder.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def make_directory(target: Path) -> None:
    """Creates the folder of a file to be written.

    Raises:
        OSError: It cannot be created; the message names the file.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # mkdir's word for a parent that is a file
        code = errno.ENOTDIR
        raise OSError(code, os.strerror(code), str(target)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
