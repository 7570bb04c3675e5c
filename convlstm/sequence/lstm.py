"""The ConvLSTM over a whole sequence; `convlstm.sequence` says how, `convlstm.cells` what."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convlstm.kernels import choose, mark, marked
from convlstm.kernels.plain import exact
from convlstm.sequence.common import (
    HiddenConvolution,
    InputGradients,
    Saved,
    as_it_is,
    as_saved,
    autocast_to,
    channels_last,
    empty_maps,
    first_derivative_only,
    input_gates,
    laid_out,
    plus,
    rows,
    segment_ends,
    segments,
    step_rows,
    to_overwrite,
    wants_gradient,
)
from convlstm.sequence.stepwise import lstm_steps

State = tuple[Tensor, Tensor]


def lstm_sequence(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    state: State | None = None,
    *,
    peephole: Tensor | None = None,
    mask: Tensor | None = None,
    all_cells: bool = False,
    checkpoint_every: int = 0,
) -> tuple[Tensor, State, Tensor | None]:
    """Runs the ConvLSTM of equation 3 (see `convlstm.cells`) over T steps.

    Args:
        x: Inputs (T, B, C, h, w), T >= 1; of size (T, B, 0, h, w) without input.
        weight_ih: Input kernel (4H, C, k, k); None without input.
        weight_hh: Hidden kernel (4H, H, m, m).
        bias: (4H,) or None.
        state: First `(h, c)`, each (B, H, h, w); zero if None.
        peephole: (3, H, 1, 1) or (3, H, h, w) in the order i, f, o; None for none.
        mask: Recurrent dropout (B, H, 1, 1), multiplied onto h before each hidden convolution.
        all_cells: Whether the cell states of all steps are wanted.
        checkpoint_every: Length in steps of the segments that the backward pass computes again; 0
            keeps everything.

    Returns:
        All hidden states (T, B, H, h, w), the last `(h, c)`, and the cell states of all steps, or
        None without `all_cells`.
    """
    h, c = state if state is not None else (None, None)
    x, weight_ih, weight_hh, bias, h, mask = autocast_to(x, weight_ih, weight_hh, bias, h, mask)
    if torch.compiler.is_exporting():
        return lstm_steps(x, weight_ih, weight_hh, bias, h, c, peephole, mask)
    keep = wants_gradient(x, weight_ih, weight_hh, bias, h, c, peephole)
    with as_it_is(x):
        outputs, cells, h, c = _LSTM.apply(
            x,
            weight_ih,
            weight_hh,
            bias,
            h,
            c,
            peephole,
            mask,
            keep,
            all_cells,
            checkpoint_every,
        )
    return outputs, (h, c), cells if all_cells else None


class _LSTM(torch.autograd.Function):
    """All maps are (T, B, channels, h, w) with channels last in memory.

    What the input convolution gives, maps of 4H channels, is overwritten by what the kernels keep
    of the gates, in an order of their own, and that by the gates' gradients, in the order i, f, g,
    o.

    With segments of `every` steps no gates are kept, and of the states those that a segment begins
    with: the backward pass computes the others again, a segment at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        bias: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        peephole: Tensor | None,
        mask: Tensor | None,
        keep: bool,
        all_cells: bool,
        every: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = laid_out(x)  # once, for the backward pass, too
        steps, batch, _, *size = x.shape
        hidden = weight_hh.shape[1]
        outputs = empty_maps(x, steps, batch, hidden, *size)
        every = min(every, steps)
        span = (every or 1) if keep else steps  # of so many steps one cell state, the last, is kept
        if all_cells:
            span = 1
        cells = empty_maps(x, -(-steps // span), batch, hidden, *size, dtype=exact(x))
        kernels = choose(outputs)
        first = None if c0 is None else rows(c0.to(cells.dtype))
        cell_rows = step_rows(cells)
        gates = _advance(
            kernels,
            (x, weight_ih, bias),
            HiddenConvolution(weight_hh, mask, outputs),
            (h0, first),
            peephole_rows(peephole, batch),
            [cell_rows[t // span] for t in range(steps)],
            outputs,
            keep and not every,
        )
        if keep:
            ctx.every = every
            kept_h, kept_c = outputs, cells
            if every:  # of each segment what it begins with
                kept_h = segment_ends(outputs, every)
                kept_c = segment_ends(cells, every) if span == 1 else cells
            ctx.save_for_backward(
                x,
                weight_ih,
                weight_hh,
                bias if every else None,
                h0,
                c0,
                peephole,
                mask,
                kept_c,
                kept_h,
                mark(kernels),
                None if gates is None else as_saved(gates),
            )
            ctx.set_materialize_grads(False)
        return outputs, cells, outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any,
        saved: Saved,
        d_outputs: Tensor | None,
        d_cells: Tensor | None,
        d_h: Tensor | None,
        d_c: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, bias, h0, c0, peephole, mask, kept_c, kept_h, *rest = saved
        marker, gates = rest
        kernels = marked(marker)
        steps, batch, _, *size = x.shape
        hidden, every = weight_hh.shape[1], ctx.every
        cells, outputs = kept_c, kept_h  # of the segment at hand
        if every:
            cells = empty_maps(kept_c, every, batch, hidden, *size)
            outputs = empty_maps(kept_h, every, batch, hidden, *size)
        else:
            gates = to_overwrite(gates)
        cell_rows = step_rows(cells)
        convolution = HiddenConvolution(weight_hh, mask, outputs)
        peepholes = peephole_rows(peephole, batch)
        through = None if d_h is None else rows(d_h)
        d_c = channels_last(torch.zeros_like(cells[0]) if d_c is None else d_c.clone())
        d_c_rows = rows(d_c)
        gradients = InputGradients(ctx, kernels, x, weight_ih, convolution)
        d_peephole = None

        for start, stop in segments(steps, every):
            first_h, first_c = h0, None if c0 is None else rows(c0.to(cells.dtype))
            if start > 0:
                first_h, first_c = kept_h[start // every - 1], rows(kept_c[start // every - 1])
            if every:
                inputs = x[start:stop], weight_ih, bias
                states = first_h, first_c
                gates = None  # those of the last segment make room
                gates = _advance(
                    kernels, inputs, convolution, states, peepholes, cell_rows, outputs, keep=True
                )
            gate_rows, gate_maps = step_rows(gates), gates.unbind(0)
            for t in reversed(range(start, stop)):
                if d_cells is not None:
                    d_c += d_cells[t]
                here = t - start
                c = cell_rows[here - 1] if here > 0 else first_c
                d_output = None if d_outputs is None else rows(d_outputs[t])
                kernels.lstm_backward(
                    gate_rows[here],
                    c,
                    cell_rows[here],
                    peepholes,
                    d_output,
                    through,
                    d_c_rows,
                    *gradients.sums,
                )
                d_h = None
                if t > 0 or ctx.needs_input_grad[4]:
                    d_h = convolution.gradient(gate_maps[here])
                    through = rows(d_h)
            gradients.add(start, gates, gates, outputs[: stop - start - 1], first_h)
            if ctx.needs_input_grad[6]:
                part = _peephole_gradient(gates, first_c, cells, peephole)
                d_peephole = plus(d_peephole, part)
            del gate_rows, gate_maps  # they hold the gates

        d_x, d_weight_ih, d_weight_hh, d_bias = gradients.results()
        d_c = None if c0 is None else d_c.to(c0.dtype)
        d_peephole = None if d_peephole is None else d_peephole.to(peephole.dtype)
        return d_x, d_weight_ih, d_weight_hh, d_bias, d_h, d_c, d_peephole, *[None] * 4


def _advance(
    kernels: ModuleType,
    inputs: tuple[Tensor, Tensor | None, Tensor | None],
    convolution: HiddenConvolution,
    state: tuple[Tensor | None, Tensor | None],
    peepholes: Tensor | None,
    cells: Sequence[Tensor],
    outputs: Tensor,
    keep: bool,
) -> Tensor | None:
    """The steps forward.

    Args:
        kernels: What computes the gates.
        inputs: x (t, B, C, h, w), weight_ih, bias.
        convolution: That of the hidden states.
        state: The first h, as maps, and c, as rows.
        peepholes: As rows.
        cells: Rows (N, H) for the cell state of each step; those of several may be the same.
        outputs: Maps (at least t, B, H, h, w) for the hidden states.
        keep: Whether there will be a backward pass.

    Returns:
        The gates of all steps (t, B, 4H, h, w), as the kernels keep them, or None.
    """
    x, weight_ih, bias = inputs
    h, c = state
    late = (bias,) if kernels.ADDS_BIAS else ()
    output_rows, maps = step_rows(outputs), outputs.unbind(0)
    kept: list[Tensor] | None = [] if keep else None
    steps = input_gates(kernels, x, weight_ih, bias, 4 * outputs.shape[2], kept)
    for t, (from_x, gates) in enumerate(steps):
        from_h = None if h is None else convolution.rows(h)
        kernels.lstm_forward(from_x, from_h, c, peepholes, gates, cells[t], output_rows[t], *late)
        h, c = maps[t], cells[t]
    return kept[0] if kept else None


def peephole_rows(peephole: Tensor | None, batch: int) -> Tensor | None:
    """Peepholes (3, H, 1, 1) or (3, H, h, w) as rows (3, 1, H) or (3, B·h·w, H), exact."""
    if peephole is None:
        return None
    maps = peephole.permute(0, 2, 3, 1).to(exact(peephole)).contiguous()  # (3, h, w, H)
    if maps.shape[1:3] != (1, 1):
        maps = maps.unsqueeze(1).expand(-1, batch, -1, -1, -1)
    return maps.reshape(3, -1, maps.shape[-1])


def _peephole_gradient(
    d_gates: Tensor, before: Tensor | None, cells: Tensor, peephole: Tensor
) -> Tensor:
    """Gradient of the peepholes: those of the gates i and f against the c before, of o the new.

    Args:
        d_gates: (t, B, 4H, h, w).
        before: The cell state before the first step, as rows; None for zero.
        cells: Those of each step (at least t, B, H, h, w).
        peephole: The peepholes.
    """
    gradient = torch.zeros_like(peephole, dtype=cells.dtype)
    shape = peephole.shape[1:]
    c = None if before is None else before.view(cells[0].movedim(1, -1).shape).movedim(-1, 1)
    for t in range(len(d_gates)):  # one step at a time: the product of all would be large
        i, f, _, o = d_gates[t].chunk(4, dim=1)
        if c is not None:
            gradient[0] += (i * c).sum_to_size(shape)
            gradient[1] += (f * c).sum_to_size(shape)
        c = cells[t]
        gradient[2] += (o * c).sum_to_size(shape)
    return gradient
