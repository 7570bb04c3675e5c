"""The gates in C++, one pass over memory each way a step; the same functions as in `plain`.

`native.cpp` is compiled once for a machine, by `convlstm build`, and then lies in the user's cache.
"""

import functools
import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

SOURCE = Path(__file__).with_name("native.cpp")
DTYPES = (torch.float32, torch.bfloat16)
ADDS_BIAS = False  # to a convolution it costs nothing
SUMS_BIAS = True  # of the gradients at hand; a sum of its own is a pass over memory more


@functools.cache
def library() -> Path:
    """Where the compiled kernels lie, or would: another file for each PyTorch and processor.

    Without a home folder it is a relative path, which nobody should read or write.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 (pathlib raises where there is none)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path(home, ".cache"))
    sources = (path.read_text("utf-8") for path in (SOURCE, SOURCE.with_name("build.py")))
    parts = *sources, torch.__version__, processor()
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache / "convlstm" / f"gates-{key}.so"


def processor() -> str:
    """PyTorch's name for what it uses of the processor, such as AVX512.

    AVX512_BF16 is that with instructions for bfloat16, which PyTorch does not tell apart.
    """
    name = torch.backends.cpu.get_cpu_capability()
    about = Path("/proc/cpuinfo")
    rounds = name == "AVX512" and about.exists() and "avx512_bf16" in about.read_text("utf-8")
    return "AVX512_BF16" if rounds else name


def lstm_forward(
    from_x: Tensor,
    from_h: Tensor | None,
    c: Tensor | None,
    peephole: Tensor | None,
    gates: Tensor | None,
    new: Tensor,
    h: Tensor,
) -> None:
    """One step of the ConvLSTM; see `plain.lstm_forward`."""
    read = _read(from_x), _read(from_h), _read(c), _read(peephole)
    torch.ops.convlstm.lstm_forward(*read, gates, new, h)
    _written(gates, new, h)


def lstm_backward(
    gates: Tensor,
    c: Tensor | None,
    new: Tensor,
    peephole: Tensor | None,
    d_output: Tensor | None,
    d_through: Tensor | None,
    d_c: Tensor,
    d_bias: Tensor | None = None,
) -> None:
    """The gradients of one step of the ConvLSTM; see `plain.lstm_backward`.

    That of the bias (4H,), in float32, is added to `d_bias`.
    """
    read = _read(c), _read(new), _read(peephole), _read(d_output), _read(d_through)
    torch.ops.convlstm.lstm_backward(gates, *read, d_c, d_bias)
    _written(gates, d_c)


def gru_forward(
    from_x: Tensor,
    from_h: Tensor | None,
    bias: Tensor | None,
    h: Tensor | None,
    gates: Tensor | None,
    candidate: Tensor | None,
    new: Tensor,
) -> None:
    """One step of the ConvGRU; see `plain.gru_forward`."""
    read = _read(from_x), _read(from_h), _read(bias), _read(h)
    torch.ops.convlstm.gru_forward(*read, gates, candidate, new)
    _written(gates, candidate, new)


def gru_backward(
    gates: Tensor,
    candidate: Tensor,
    h: Tensor | None,
    d_output: Tensor | None,
    d_through: Tensor | None,
    d_h: Tensor,
    d_hidden: Tensor,
    d_bias: Tensor | None = None,
) -> None:
    """The gradients of one step of the ConvGRU; see `plain.gru_backward`.

    That of the bias (3H,), in float32, is added to `d_bias`.
    """
    read = _read(candidate), _read(h), _read(d_output), _read(d_through)
    torch.ops.convlstm.gru_backward(gates, *read, d_h, d_hidden, d_bias)
    _written(gates, d_h, d_hidden)


def rnn_forward(from_x: Tensor, from_h: Tensor | None, h: Tensor) -> None:
    """One step of the ConvRNN; see `plain.rnn_forward`."""
    torch.ops.convlstm.rnn_forward(_read(from_x), _read(from_h), h)
    _written(h)


def rnn_backward(
    h: Tensor,
    d_output: Tensor | None,
    d_through: Tensor | None,
    d_gates: Tensor,
    d_bias: Tensor | None = None,
) -> None:
    """The gradients of one step of the ConvRNN; see `plain.rnn_backward`.

    That of the bias (H,), in float32, is added to `d_bias`.
    """
    read = _read(h), _read(d_output), _read(d_through)
    torch.ops.convlstm.rnn_backward(*read, d_gates, d_bias)
    _written(d_gates)


def _read(rows: Tensor | None) -> Tensor | None:
    """What is only read may come with any strides."""
    return None if rows is None else rows.contiguous()


def _written(*rows: Tensor | None) -> None:
    """Tells PyTorch, which refuses to go on with what it has kept of them before."""
    increment_version([part for part in rows if part is not None])
