"""The ConvLSTM over a whole sequence; `convlstm.sequence` says how, `convlstm.cells` what."""

from typing import Any

import torch
from torch import Tensor

from convlstm.convolution import same_conv2d, same_conv2d_grad_x
from convlstm.kernels import choose, mark, marked
from convlstm.kernels.plain import exact
from convlstm.sequence.common import (
    Saved,
    apply_mask,
    as_it_is,
    autocast_to,
    channels_last,
    empty_maps,
    first_derivative_only,
    hidden_weight_gradient,
    input_gates,
    input_gradients,
    rows,
    step_rows,
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
) -> tuple[Tensor, State, Tensor]:
    """Runs the ConvLSTM of equation 3 (see `convlstm.cells`) over T steps.

    Args:
        x: Inputs (T, B, C, h, w), T >= 1; of size (T, B, 0, h, w) without input.
        weight_ih: Input kernel (4H, C, k, k); None without input.
        weight_hh: Hidden kernel (4H, H, m, m).
        bias: (4H,) or None.
        state: First `(h, c)`, each (B, H, h, w); zero if None.
        peephole: (3, H, 1, 1) or (3, H, h, w) in the order i, f, o; None for none.
        mask: Recurrent dropout (B, H, 1, 1), multiplied onto h before each hidden convolution.
        all_cells: Whether the cell states of all steps are wanted even without gradients.

    Returns:
        All hidden states (T, B, H, h, w), the last `(h, c)`, and the cell states of all steps (the
        last one's alone, (1, B, H, h, w), where nobody needs the others).
    """
    h, c = state if state is not None else (None, None)
    x, weight_ih, weight_hh, bias, h, mask = autocast_to(x, weight_ih, weight_hh, bias, h, mask)
    if torch.compiler.is_exporting():
        return lstm_steps(x, weight_ih, weight_hh, bias, h, c, peephole, mask)
    keep = wants_gradient(x, weight_ih, weight_hh, bias, h, c, peephole)
    with as_it_is(x):
        outputs, cells, h, c = _LSTM.apply(
            x, weight_ih, weight_hh, bias, h, c, peephole, mask, keep, all_cells
        )
    return outputs, (h, c), cells


class _LSTM(torch.autograd.Function):
    """All maps are (T, B, channels, h, w) with channels last in memory.

    What the kernels keep of the gates for the backward pass takes the memory of maps of 4H
    channels, in an order of their own; their gradients are such maps, in the order i, f, g, o.
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps, batch, _, *size = x.shape
        hidden = weight_hh.shape[1]
        weight_hh = channels_last(weight_hh)
        outputs = empty_maps(x, steps, batch, hidden, *size)
        gates = empty_maps(x, steps if keep else 0, batch, 4 * hidden, *size)
        kept = steps if keep or all_cells else 1
        cells = empty_maps(x, kept, batch, hidden, *size, dtype=exact(x))
        kernels = choose(outputs)
        late = (bias,) if kernels.ADDS_BIAS else ()
        peepholes = peephole_rows(peephole, batch)

        gate_rows, output_rows, cell_rows = map(step_rows, (gates, outputs, cells))
        maps = outputs.unbind(0)

        h, c = h0, None if c0 is None else rows(c0.to(cells.dtype))
        for t, from_x in enumerate(input_gates(kernels, x, weight_ih, bias, 4 * hidden)):
            from_h = None
            if h is not None:
                from_h = rows(same_conv2d(apply_mask(h, mask), weight_hh))
            h, new = maps[t], cell_rows[min(t, kept - 1)]
            step = gate_rows[t] if keep else None
            kernels.lstm_forward(from_x, from_h, c, peepholes, step, new, output_rows[t], *late)
            c = new
        if keep:
            # As they lie in memory: hooks may keep values and shape, but not strides.
            gates = gates.movedim(2, -1)
            ctx.save_for_backward(
                x,
                weight_ih,
                weight_hh,
                h0,
                c0,
                peephole,
                mask,
                gates,
                cells,
                outputs,
                mark(kernels),
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
        x, weight_ih, weight_hh, h0, c0, peephole, mask, gates, cells, outputs, marker = saved
        kernels = marked(marker)
        gates = gates.contiguous()
        if torch._C._autograd._get_current_graph_task_keep_graph():
            gates = gates.clone()  # a kept graph may be walked again
        gates = gates.movedim(-1, 2)
        gate_rows, cell_rows, gate_maps = step_rows(gates), step_rows(cells), gates.unbind(0)
        peepholes = peephole_rows(peephole, x.shape[1])
        first = None if c0 is None else rows(c0.to(cells.dtype))
        through = None if d_h is None else rows(d_h)
        d_c = channels_last(torch.zeros_like(cells[0]) if d_c is None else d_c.clone())
        d_c_rows = rows(d_c)

        for t in reversed(range(len(outputs))):
            if d_cells is not None:
                d_c += d_cells[t]
            c = cell_rows[t - 1] if t > 0 else first
            d_output = None if d_outputs is None else rows(d_outputs[t])
            kernels.lstm_backward(
                gate_rows[t], c, cell_rows[t], peepholes, d_output, through, d_c_rows
            )
            d_h = None
            if t > 0 or ctx.needs_input_grad[4]:
                d_h = apply_mask(same_conv2d_grad_x(gate_maps[t], outputs[0], weight_hh), mask)
                through = rows(d_h)

        d_x, d_weight_ih, d_bias = input_gradients(ctx, gates, x, weight_ih)
        d_weight_hh = hidden_weight_gradient(ctx, gates, outputs, h0, mask, weight_hh)
        d_peephole = None
        if ctx.needs_input_grad[6]:
            d_peephole = _peephole_gradient(gates, cells, c0, peephole)
        d_c = None if c0 is None else d_c.to(c0.dtype)
        return d_x, d_weight_ih, d_weight_hh, d_bias, d_h, d_c, d_peephole, None, None, None


def peephole_rows(peephole: Tensor | None, batch: int) -> Tensor | None:
    """Peepholes (3, H, 1, 1) or (3, H, h, w) as rows (3, 1, H) or (3, B·h·w, H), exact."""
    if peephole is None:
        return None
    maps = peephole.permute(0, 2, 3, 1).to(exact(peephole)).contiguous()  # (3, h, w, H)
    if maps.shape[1:3] != (1, 1):
        maps = maps.unsqueeze(1).expand(-1, batch, -1, -1, -1)
    return maps.reshape(3, -1, maps.shape[-1])


def _peephole_gradient(
    d_gates: Tensor, cells: Tensor, c0: Tensor | None, peephole: Tensor
) -> Tensor:
    """Gradient of the peepholes: those of the gates i and f against the c before, of o the new."""
    gradient = torch.zeros_like(peephole, dtype=cells.dtype)
    shape = peephole.shape[1:]
    for t in range(len(cells)):  # one step at a time: the product of all would be large
        i, f, _, o = d_gates[t].chunk(4, dim=1)
        gradient[2] += (o * cells[t]).sum_to_size(shape)
        c = cells[t - 1] if t > 0 else c0
        if c is not None:
            gradient[0] += (i * c).sum_to_size(shape)
            gradient[1] += (f * c).sum_to_size(shape)
    return gradient.to(peephole.dtype)
