import ctypes
import platform
import subprocess
import sys

import pytest

from convlstm import allocator
from convlstm.allocator import keep_freed_memory

# What glibc's malloc.h calls M_MMAP_MAX and so on is not in Python: pages that are touched for the
# first time are counted instead.
FAULTS = """
import resource, sys
import torch
from convlstm.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        blocks = [torch.ones(size * 2**18) for size in (3, 40, 64)]  # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
before = faults()
kept = keep_freed_memory()
faults()
print(int(kept), before, faults())
"""


@pytest.mark.slow
def test_memory_that_was_freed_is_used_again_without_the_systems_help():
    result = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    kept, before, after = map(int, result.stdout.split())
    assert bool(kept) == (platform.libc_ver()[0] == "glibc")
    assert not kept or after < before / 4  # a block may come to lie elsewhere once more


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise AssertionError("looks for mallopt")

    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_freed_memory() is False
