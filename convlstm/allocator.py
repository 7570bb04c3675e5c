"""How freed memory is treated by the C library's allocator."""

import ctypes
import platform

_MALLOC_PARAMETERS = (  # of glibc's malloc.h
    (-4, 0),  # M_MMAP_MAX: no block is mapped on its own, which is unmapped when it is freed
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: nothing of the heap goes back
    (-2, 2**26),  # M_TOP_PAD: the heap grows by 64 MiB at least
)


def keep_freed_memory() -> bool:
    """Keeps freed memory in this process, for the next steps of a training to use again.

    Large blocks otherwise go back to the system when they are freed. Each step then gets them anew,
    and the system clears them page by page as they are touched. The price: a process stays as large
    as it ever was, and may grow a little larger, because free memory is in pieces. This can't be
    taken back while the process lasts.

    Returns:
        Whether it did: only with glibc, on Linux. Elsewhere nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in _MALLOC_PARAMETERS)
