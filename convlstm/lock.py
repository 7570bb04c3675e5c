"""Folders that one process at a time writes to."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convlstm.files import make_directory

LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A block in which no other process claims a folder; a missing one is created.

    The claim is a lock on a file in it, which the system lifts when the process ends in whatever
    way; the file is there until the block ends. Where there are no such locks (Windows, some
    network file systems), nothing is refused.

    Raises:
        ValueError: Another process has claimed it.
        OSError: Files cannot be written to it.
    """
    lock = folder / LOCK
    make_directory(lock)
    with lock.open("w") as file:
        if _is_locked(file.fileno()):
            raise ValueError(f"another process is writing to {folder}: let it end, or stop it")
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def _is_locked(file: int) -> bool:
    """Whether another process has locked a file; locks it if not."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not kept by children
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
