"""Files that are whole or not there."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    _make_directory(target)
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


def _make_directory(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # mkdir's word for a parent that is a file
        code = errno.ENOTDIR
        raise OSError(code, os.strerror(code), str(target)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
