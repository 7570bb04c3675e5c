"""The gates as Triton kernels, one each way a step; the same functions as in `plain`, for CUDA.

A program takes BLOCK values of one gate, in the order in which they lie in memory, from reading
what goes into the gates to writing the new states. Sums and products are float32. tanh is
2σ(2x) - 1, right to 2e-7 as absolute error.

Triton's interpreter runs them on CPU tensors, with `TRITON_INTERPRET=1` set before anything imports
Triton.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

BLOCK = 1024
ADDS_BIAS = True  # that of the gates; to a convolution on CUDA it costs a pass over memory more
SUMS_BIAS = False  # atomic sums would not be reproducible


def lstm_forward(
    from_x: Tensor | None,
    from_h: Tensor | None,
    c: Tensor | None,
    peephole: Tensor | None,
    gates: Tensor | None,
    new: Tensor,
    h: Tensor,
    bias: Tensor | None = None,
) -> None:
    """One step of the ConvLSTM; see `plain.lstm_forward`, and `bias` (4H,) added to the gates."""
    whole = peephole is not None and peephole.shape[1] > 1
    read = _read(from_x), _read(from_h), _read(bias), _read(c), _read(peephole)
    written = _write(gates), _write(new), _write(h)
    _run(_lstm_forward, new, *read, *written, WHOLE=whole)


def lstm_backward(
    gates: Tensor,
    c: Tensor | None,
    new: Tensor,
    peephole: Tensor | None,
    d_output: Tensor | None,
    d_through: Tensor | None,
    d_c: Tensor,
) -> None:
    """The gradients of one step of the ConvLSTM; see `plain.lstm_backward`."""
    whole = peephole is not None and peephole.shape[1] > 1
    states = _read(c), _read(new), _read(peephole)
    gradients = *_read_rows(d_output), _read(d_through)
    _run(_lstm_backward, d_c, _write(gates), *states, *gradients, _write(d_c), WHOLE=whole)


def gru_forward(
    from_x: Tensor | None,
    from_h: Tensor | None,
    bias_hh: Tensor | None,
    h: Tensor | None,
    gates: Tensor | None,
    candidate: Tensor | None,
    new: Tensor,
    bias: Tensor | None = None,
) -> None:
    """One step of the ConvGRU; see `plain.gru_forward`, and `bias` (3H,) added to the gates."""
    read = _read(from_x), _read(from_h), _read(bias), _read(bias_hh), _read(h)
    _run(_gru_forward, new, *read, _write(gates), _write(candidate), _write(new))


def gru_backward(
    gates: Tensor,
    candidate: Tensor,
    h: Tensor | None,
    d_output: Tensor | None,
    d_through: Tensor | None,
    d_h: Tensor,
    d_hidden: Tensor,
) -> None:
    """The gradients of one step of the ConvGRU; see `plain.gru_backward`."""
    gradients = *_read_rows(d_output), _read(d_through), _write(d_h), _write(d_hidden)
    _run(_gru_backward, d_h, _write(gates), _read(candidate), _read(h), *gradients)


def rnn_forward(
    from_x: Tensor | None, from_h: Tensor | None, h: Tensor, bias: Tensor | None = None
) -> None:
    """One step of the ConvRNN; see `plain.rnn_forward`, and `bias` (H,) added to the sum."""
    _run(_rnn_forward, h, _read(from_x), _read(from_h), _read(bias), _write(h))


def rnn_backward(
    h: Tensor, d_output: Tensor | None, d_through: Tensor | None, d_gates: Tensor
) -> None:
    """The gradients of one step of the ConvRNN; see `plain.rnn_backward`."""
    gradients = *_read_rows(d_output), _read(d_through)
    _run(_rnn_backward, d_gates, _read(h), *gradients, _write(d_gates))


def _read(rows: Tensor | None) -> Tensor | None:
    """What is only read may come with any strides."""
    return None if rows is None else rows.contiguous()


def _write(rows: Tensor | None) -> Tensor | None:
    """What is written is written where it is; PyTorch refuses what it has kept of it before."""
    if rows is not None:
        if not rows.is_contiguous():
            raise RuntimeError("rows that are written must be contiguous")
        increment_version(rows)
    return rows


def _read_rows(rows: Tensor | None) -> tuple[Tensor | None, int]:
    """Rows that lie in wider ones, and how far apart: a gradient may be a part of a larger one."""
    if rows is None:
        return None, 0
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    return rows, rows.stride(0)


def _run(kernel: Any, like: Tensor, *arguments: Tensor | int | None, **constants: bool) -> None:
    """Starts a kernel over all values of `like` (N, H)."""
    count, hidden = like.shape
    grid = (triton.cdiv(count * hidden, BLOCK),)
    with torch.cuda.device_of(like):
        kernel[grid](*arguments, count * hidden, hidden, BLOCK=BLOCK, **constants)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _values(size, BLOCK: tl.constexpr):
    """Where the values of this program lie in (N, H), and which of them there are."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < size


@triton.jit
def _load(pointer, at, there):
    """float32 values; zeros for None."""
    if pointer is None:
        return tl.zeros(at.shape, tl.float32)
    else:
        return tl.load(pointer + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _sum(from_x, from_h, at, bias, channel, there):
    """What both convolutions and the bias give for a gate."""
    return _load(from_x, at, there) + _load(from_h, at, there) + _load(bias, channel, there)


@triton.jit
def _load_rows(pointer, stride, at, hidden, there):
    """The same of rows that are `stride` values apart."""
    return _load(pointer, at // hidden * stride + at % hidden, there)


@triton.jit
def _store(pointer, at, there, values):
    """Nowhere for None."""
    if pointer is not None:
        tl.store(pointer + at, values, mask=there)


@triton.jit
def _lstm_forward(
    from_x,
    from_h,
    bias,
    c,
    peephole,
    gates,
    new,
    h,
    size,
    hidden,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    at, there = _values(size, BLOCK)
    channel = at % hidden
    first = at // hidden * 4 * hidden + channel  # where gate i lies
    i = _sum(from_x, from_h, first, bias, channel, there)
    f = _sum(from_x, from_h, first + hidden, bias, channel + hidden, there)
    g = _sum(from_x, from_h, first + 2 * hidden, bias, channel + 2 * hidden, there)
    o = _sum(from_x, from_h, first + 3 * hidden, bias, channel + 3 * hidden, there)
    before = _load(c, at, there)
    weight, stride = at, size
    if not WHOLE:
        weight, stride = channel, hidden
    i = tl.sigmoid(i + _load(peephole, weight, there) * before)
    f = tl.sigmoid(f + _load(peephole, weight + stride, there) * before)
    g = _tanh(g)
    cell = f * before + i * g
    o = tl.sigmoid(o + _load(peephole, weight + 2 * stride, there) * cell)
    _store(gates, first, there, i)
    _store(gates, first + hidden, there, f)
    _store(gates, first + 2 * hidden, there, g)
    _store(gates, first + 3 * hidden, there, o)
    tl.store(new + at, cell, mask=there)
    tl.store(h + at, o * _tanh(cell), mask=there)


@triton.jit
def _lstm_backward(
    gates,
    c,
    new,
    peephole,
    d_output,
    apart,
    d_through,
    d_c,
    size,
    hidden,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    at, there = _values(size, BLOCK)
    first = at // hidden * 4 * hidden + at % hidden  # where gate i lies
    i = _load(gates, first, there)
    f = _load(gates, first + hidden, there)
    g = _load(gates, first + 2 * hidden, there)
    o = _load(gates, first + 3 * hidden, there)
    weight, stride = at, size
    if not WHOLE:
        weight, stride = at % hidden, hidden
    before = _load(c, at, there)
    out = _tanh(_load(new, at, there))
    d_h = _load_rows(d_output, apart, at, hidden, there) + _load(d_through, at, there)
    d_o = d_h * out * o * (1 - o)
    d_new = d_h * o * (1 - out * out) + _load(d_c, at, there)
    d_new += d_o * _load(peephole, weight + 2 * stride, there)
    d_i = d_new * g * i * (1 - i)
    d_f = d_new * before * f * (1 - f)
    d_g = d_new * i * (1 - g * g)
    past = d_new * f
    if c is not None:
        past += d_i * _load(peephole, weight, there) + d_f * _load(peephole, weight + stride, there)
    tl.store(gates + first, d_i, mask=there)
    tl.store(gates + first + hidden, d_f, mask=there)
    tl.store(gates + first + 2 * hidden, d_g, mask=there)
    tl.store(gates + first + 3 * hidden, d_o, mask=there)
    tl.store(d_c + at, past, mask=there)


@triton.jit
def _gru_forward(
    from_x, from_h, bias, bias_hh, h, gates, candidate, new, size, hidden, BLOCK: tl.constexpr
):
    at, there = _values(size, BLOCK)
    channel = at % hidden
    first = at // hidden * 3 * hidden + channel  # where gate r lies
    r = tl.sigmoid(_sum(from_x, from_h, first, bias, channel, there))
    z = tl.sigmoid(_sum(from_x, from_h, first + hidden, bias, channel + hidden, there))
    q = _load(from_h, first + 2 * hidden, there) + _load(bias_hh, channel, there)
    n = _load(from_x, first + 2 * hidden, there) + _load(bias, channel + 2 * hidden, there)
    n = _tanh(n + r * q)
    out = n + z * (_load(h, at, there) - n)
    _store(gates, first, there, r)
    _store(gates, first + hidden, there, z)
    _store(gates, first + 2 * hidden, there, n)
    _store(candidate, at, there, q)
    tl.store(new + at, out, mask=there)


@triton.jit
def _gru_backward(
    gates,
    candidate,
    h,
    d_output,
    apart,
    d_through,
    d_h,
    d_hidden,
    size,
    hidden,
    BLOCK: tl.constexpr,
):
    at, there = _values(size, BLOCK)
    first = at // hidden * 3 * hidden + at % hidden  # where gate r lies
    r = _load(gates, first, there)
    z = _load(gates, first + hidden, there)
    n = _load(gates, first + 2 * hidden, there)
    d_new = _load_rows(d_output, apart, at, hidden, there)
    d_new += _load(d_through, at, there) + _load(d_h, at, there)
    d_z = d_new * (_load(h, at, there) - n) * z * (1 - z)
    d_n = d_new * (1 - z) * (1 - n * n)
    d_r = d_n * _load(candidate, at, there) * r * (1 - r)
    tl.store(gates + first, d_r, mask=there)
    tl.store(gates + first + hidden, d_z, mask=there)
    tl.store(gates + first + 2 * hidden, d_n, mask=there)
    tl.store(d_hidden + first, d_r, mask=there)
    tl.store(d_hidden + first + hidden, d_z, mask=there)
    tl.store(d_hidden + first + 2 * hidden, d_n * r, mask=there)
    tl.store(d_h + at, d_new * z, mask=there)


@triton.jit
def _rnn_forward(from_x, from_h, bias, h, size, hidden, BLOCK: tl.constexpr):
    at, there = _values(size, BLOCK)
    tl.store(h + at, _tanh(_sum(from_x, from_h, at, bias, at % hidden, there)), mask=there)


@triton.jit
def _rnn_backward(h, d_output, apart, d_through, d_gates, size, hidden, BLOCK: tl.constexpr):
    at, there = _values(size, BLOCK)
    out = _load(h, at, there)
    d_h = _load_rows(d_output, apart, at, hidden, there) + _load(d_through, at, there)
    tl.store(d_gates + at, d_h * (1 - out * out), mask=there)
