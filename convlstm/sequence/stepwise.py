"""The recurrences in plain operations, step by step: what `torch.export` writes down.

What reads an exported program, such as ONNX, knows convolutions and products, but no operation of
our own. Dtypes are those of the operations: convolutions in that of x, gates and cell states exact.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from convlstm.cells.lstm import lstm_gates
from convlstm.convolution import same_conv2d
from convlstm.kernels.plain import exact


def lstm_steps(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    peephole: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """`lstm_sequence`, with the cell states of all steps."""
    h = _zeros(x, weight_hh) if h is None else h
    c = (_zeros(x, weight_hh) if c is None else c).to(exact(x))
    from_h = _hidden(weight_hh, mask)
    outputs, cells = [], []
    for from_x in _inputs(x, weight_ih, bias, len(weight_hh)):
        h, c = lstm_gates(from_x + from_h(h), c, peephole)
        h = h.to(x.dtype)
        outputs.append(h)
        cells.append(c)
    return torch.stack(outputs), (h, c), torch.stack(cells)


def hidden_state_steps(
    advance: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None,
    h: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`gru_sequence` and `rnn_sequence`: `advance` makes the new h of both convolutions and h."""
    h = _zeros(x, weight_hh) if h is None else h
    from_h = _hidden(weight_hh, mask)
    outputs = []
    for from_x in _inputs(x, weight_ih, bias, len(weight_hh)):
        h = advance(from_x, from_h(h), h).to(x.dtype)
        outputs.append(h)
    return torch.stack(outputs), h


def _zeros(x: Tensor, weight_hh: Tensor) -> Tensor:
    """A state (B, H, h, w) for inputs (T, B, C, h, w)."""
    return x.new_zeros(x.shape[1], weight_hh.shape[1], *x.shape[3:])


def _hidden(weight_hh: Tensor, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The hidden convolution, behind recurrent dropout."""
    return lambda h: same_conv2d(h if mask is None else h * mask, weight_hh).to(exact(h))


def _inputs(
    x: Tensor, weight_ih: Tensor | None, bias: Tensor | None, channels: int
) -> Iterator[Tensor]:
    """W_x * x + b of each step, (B, G·H, h, w)."""
    for frame in x:
        if weight_ih is not None:
            maps = same_conv2d(frame, weight_ih, bias)
        else:
            maps = x.new_zeros(x.shape[1], channels, *x.shape[3:])
            maps = maps if bias is None else maps + bias.view(-1, 1, 1)
        yield maps.to(exact(x))
