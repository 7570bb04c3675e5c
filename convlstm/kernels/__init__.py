"""The gate arithmetic of one step, without the convolutions; `convlstm.cells` specifies it.

Maps come as rows: a matrix (N, channels) of N = B·h·w pixels, which is what maps with channels last
are in memory. Products are exact (float32, or float64 for float64 gates) whatever the dtype of the
gates; cell states are exact. What a forward kernel keeps of the gates is for the backward kernel of
the same backend alone.

There are three backends. `plain` is PyTorch alone, for every device and dtype, and the reference.
`triton` makes one kernel of each step, for CUDA; `native` does so in C++ for a CPU, where
`convlstm build` has compiled it. `convlstm.kernels.backend` chooses.
"""

from convlstm.kernels.backend import choose, mark, marked, use_backend

__all__ = ["choose", "mark", "marked", "use_backend"]
