"""`convlstm build`: compiles the gates for the processor of this machine."""

import time
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from convlstm.cli.parser import OneLineErrors
from convlstm.kernels.build import build


class BuildParser(OneLineErrors, ArgumentParser):
    """The parser of `convlstm build`."""

    command = "convlstm build"


def run(args: Sequence[str]) -> int:
    """Compiles, and says where the result lies."""
    parser = BuildParser(
        prog="convlstm build",
        description="Compile the gate arithmetic of the layers for the processor of this machine "
        "(Linux, AVX2 or AVX-512; needs GCC 11 or newer, called c++ or named by the environment "
        "variable CXX; takes about 20 seconds). From then on the layers use it on the CPU in "
        "float32 and bfloat16; without it they compute the same in plain PyTorch. Repeat it after "
        "an update of this package or of PyTorch.",
    )
    parser.parse_args(list(args))
    start = time.perf_counter()
    library = build()
    print(f"compiled {library} in {time.perf_counter() - start:.0f} s")
    return 0
