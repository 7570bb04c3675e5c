"""The ConvLSTM over a whole sequence; `convlstm.sequence` says how, `convlstm.cells` what."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convlstm.convolution import same_conv2d, same_conv2d_grad_x
from convlstm.sequence.common import (
    apply_mask,
    autocast_to,
    channels_last,
    empty_maps,
    hidden_weight_gradient,
    input_gates,
    input_gradients,
)

aten = torch.ops.aten
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
    keep = torch.is_grad_enabled()
    with torch.autocast(x.device.type, enabled=False):
        outputs, cells, h, c = _LSTM.apply(
            x, weight_ih, weight_hh, bias, h, c, peephole, mask, keep, all_cells
        )
    return outputs, (h, c), cells


class _LSTM(torch.autograd.Function):
    """Gates are (T, B, 4H, h, w) in the order i, f, g, o; all maps have channels last in memory."""

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
        gates = input_gates(x, weight_ih, bias, 4 * hidden)
        outputs = empty_maps(x, steps, batch, hidden, *size)
        exact = torch.promote_types(x.dtype, torch.float32)
        rows = steps if keep or all_cells else 1
        cells = empty_maps(x, rows, batch, hidden, *size, dtype=exact)

        h, c = h0, c0
        for t in range(steps):
            if h is not None:
                gates[t] += same_conv2d(apply_mask(h, mask), weight_hh)
            a = gates[t].to(exact)  # the same memory, unless the gates are of low precision
            h, old, c = outputs[t], c, cells[min(t, rows - 1)]
            _activate(a, old, c, peephole)
            o = a[:, 3 * hidden :]
            if exact == x.dtype:
                torch.tanh(c, out=h).mul_(o)
            else:
                torch.mul(o, torch.tanh(c), out=h)
            if keep and a.dtype != gates.dtype:
                gates[t] = a
        assert c is not None
        if keep:
            ctx.save_for_backward(
                x, weight_ih, weight_hh, h0, c0, peephole, mask, gates, cells, outputs
            )
            ctx.set_materialize_grads(False)
        return outputs, cells, outputs[-1].clone(), c.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        d_outputs: Tensor | None,
        d_cells: Tensor | None,
        d_h: Tensor | None,
        d_c: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, h0, c0, peephole, mask, gates, cells, outputs = ctx.saved_tensors
        if torch._C._autograd._get_current_graph_task_keep_graph():
            gates = gates.clone()  # a kept graph may be walked again
        d_peephole = None if peephole is None else torch.zeros_like(peephole)
        # Memory that every step reuses: fresh pages for each product would cost more than it.
        scratch = [torch.empty_like(cells[0]) for _ in range(3)]
        d_c = torch.empty_like(cells[0]).copy_(x.new_zeros(()) if d_c is None else d_c)

        for t in reversed(range(len(outputs))):
            if d_outputs is not None:
                d_h = d_outputs[t] if d_h is None else d_h + d_outputs[t]
            d_h = torch.zeros_like(cells[t]) if d_h is None else d_h.to(cells.dtype)
            if d_cells is not None:
                d_c += d_cells[t]
            a = gates[t].to(cells.dtype)
            c = cells[t - 1] if t > 0 else c0
            _gate_gradients(a, c, cells[t], d_h, d_c, peephole, d_peephole, scratch)
            if a.dtype != gates.dtype:
                gates[t] = a
            d_h = None
            if t > 0 or h0 is not None:
                d_h = apply_mask(same_conv2d_grad_x(gates[t], outputs[t], weight_hh), mask)

        d_x, d_weight_ih, d_bias = input_gradients(ctx, gates, x, weight_ih)
        d_weight_hh = hidden_weight_gradient(gates, outputs, h0, mask, weight_hh)
        d_c = None if c0 is None else d_c.to(c0.dtype)
        return d_x, d_weight_ih, d_weight_hh, d_bias, d_h, d_c, d_peephole, None, None, None


def _activate(gates: Tensor, c: Tensor | None, new: Tensor, peephole: Tensor | None) -> None:
    """Overwrites gate inputs by gates, and `new` by the new cell state; c is None for zero."""
    i, f, g, o = gates.chunk(4, dim=1)
    if peephole is not None and c is not None:
        i.addcmul_(peephole[0], c)
        f.addcmul_(peephole[1], c)
    gates[:, : 2 * i.shape[1]].sigmoid_()
    g.tanh_()
    if c is None:
        torch.mul(i, g, out=new)
    else:
        torch.mul(f, c, out=new).addcmul_(i, g)  # in this order c may be the memory of new
    if peephole is not None:
        o.addcmul_(peephole[2], new)
    o.sigmoid_()


def _gate_gradients(
    gates: Tensor,
    c: Tensor | None,
    new: Tensor,
    d_h: Tensor,
    d_c: Tensor,
    peephole: Tensor | None,
    d_peephole: Tensor | None,
    scratch: list[Tensor],
) -> None:
    """Overwrites gates by the gradients of their inputs, and d_c, that of `new`, by that of c."""
    i, f, g, o = gates.chunk(4, dim=1)
    one, two, d_new = scratch
    torch.tanh(new, out=one)
    torch.mul(d_h, o, out=d_new)
    aten.tanh_backward.grad_input(d_new, one, grad_input=d_new).add_(d_c)
    one.mul_(d_h)
    aten.sigmoid_backward.grad_input(one, o, grad_input=o)
    if peephole is not None:
        d_new.addcmul_(o, peephole[2])
    torch.mul(d_new, f, out=d_c)
    torch.mul(d_new, g, out=one)
    torch.mul(d_new, i, out=two)
    aten.sigmoid_backward.grad_input(one, i, grad_input=i)
    aten.tanh_backward.grad_input(two, g, grad_input=g)
    if c is None:
        f.zero_()
    else:
        torch.mul(d_new, c, out=one)
        aten.sigmoid_backward.grad_input(one, f, grad_input=f)
    if peephole is not None and d_peephole is not None:
        if c is not None:
            d_c.addcmul_(i, peephole[0]).addcmul_(f, peephole[1])
            d_peephole[0] += (i * c).sum_to_size(peephole.shape[1:])
            d_peephole[1] += (f * c).sum_to_size(peephole.shape[1:])
        d_peephole[2] += (o * new).sum_to_size(peephole.shape[1:])
