"""Compiles the kernels in C++ for this machine."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from convlstm.files import replacing
from convlstm.kernels import native

# Instructions in an order that keeps a processor busy while a value waits for the one before.
SCHEDULED = ["-fschedule-insns", "-fsched-pressure"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
# What the kernels may use of a processor; no more, so that another one with as much runs them, too.
FLAGS = {
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": AVX512,
    "AVX512_BF16": [*AVX512, "-mavx512bf16"],
}


def build() -> Path:
    """Compiles `native.cpp` and puts it where `native.library` looks.

    It takes GCC 11 or newer, called `c++` unless the environment variable `CXX` names another,
    which may have options or a wrapper, as in `ccache g++`.

    Returns:
        The library.

    Raises:
        OSError: Not on this system, there is no compiler, it fails, or the cache cannot be written.
    """
    processor = native.processor()
    if sys.platform != "linux" or processor not in FLAGS:
        raise OSError(
            "the kernels are for Linux on processors with AVX2 or AVX-512; here it is "
            f"{sys.platform}, {processor}"
        )
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    except ValueError as error:
        raise OSError(f"CXX names no compiler: {error}") from error
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no C++ compiler {compiler[0]}: install g++, or name one by CXX")
    target = native.library()
    if not target.is_absolute():
        raise OSError("there is no home folder: set XDG_CACHE_HOME to one for the kernels")
    torch_folder = Path(torch.__file__).parent
    headers = torch_folder / "include"
    includes = [f"-I{headers}", f"-I{headers / 'torch' / 'csrc' / 'api' / 'include'}"]
    options = ["-std=c++20", "-O3", "-fPIC", "-fopenmp", "-w", *SCHEDULED, *FLAGS[processor]]
    with tempfile.TemporaryDirectory() as folder, replacing(target) as whole:
        compiled = Path(folder, "native.o")
        source = ["-c", str(native.SOURCE), "-o", str(compiled)]
        _run(*compiler, *options, *includes, *source)
        # Linked without OpenMP: it is PyTorch's own, with the threads that PyTorch has.
        linked = ["-shared", str(compiled), "-o", str(whole)]
        _run(*compiler, *linked, f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10")
        _run(sys.executable, "-c", f"import torch; torch.ops.load_library({str(whole)!r})")
    return target


def _run(*command: str) -> None:
    run = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if run.returncode != 0:
        said = [line for line in run.stderr.splitlines() if "rror" in line] or ["no message"]
        raise OSError(f"{command[0]} failed: {said[0].strip()}")
