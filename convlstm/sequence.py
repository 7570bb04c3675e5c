"""One recurrence over a whole sequence, as one differentiable operation.

It computes what `convlstm.cells` specifies, step by step, with less work: the input convolution of
all steps in one call, no hidden convolution of a state known to be zero, gates overwritten by their
activations and then by their gradients, the gradients of both kernels in one call each over all
steps, and frames with channels last inside.

Letters: T steps, B batch, C input and H hidden channels, h×w frame.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convlstm.convolution import same_conv2d, same_conv2d_grad_weight, same_conv2d_grad_x

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
) -> tuple[Tensor, State]:
    """Runs the ConvLSTM of equation 3 (see `convlstm.cells`) over T steps.

    Under autocast the convolutions, gates and hidden states have its dtype, the cell state stays
    float32. There is no second derivative.

    Args:
        x: Inputs (T, B, C, h, w), T >= 1; of size (T, B, 0, h, w) without input.
        weight_ih: Input kernel (4H, C, k, k); None without input.
        weight_hh: Hidden kernel (4H, H, m, m).
        bias: (4H,) or None.
        state: First `(h, c)`, each (B, H, h, w); zero if None.
        peephole: (3, H, 1, 1) or (3, H, h, w) in the order i, f, o; None for none.
        mask: Recurrent dropout (B, H, 1, 1), multiplied onto h before each hidden convolution.

    Returns:
        All hidden states (T, B, H, h, w) and the last `(h, c)`.
    """
    device = x.device.type
    h, c = state if state is not None else (None, None)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight_hh = x.to(dtype), weight_hh.to(dtype)
        weight_ih, bias, h, mask = (
            None if value is None else value.to(dtype) for value in (weight_ih, bias, h, mask)
        )
        c = None if c is None else c.float()
    with torch.autocast(device, enabled=False):
        outputs, h, c = _LSTM.apply(x, weight_ih, weight_hh, bias, h, c, peephole, mask)
    return outputs, (h, c)


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, _, *size = x.shape
        hidden = weight_hh.shape[1]
        x = _channels_last(x.flatten(0, 1))
        weight_hh = _channels_last(weight_hh)
        if weight_ih is None:
            gates = _empty(x, steps * batch, 4 * hidden, *size)
            gates.copy_(x.new_zeros(()) if bias is None else bias.view(-1, 1, 1))
        else:
            weight_ih = _channels_last(weight_ih)
            gates = _channels_last(same_conv2d(x, weight_ih, bias))
        gates = gates.unflatten(0, (steps, batch))
        outputs = _empty(x, steps * batch, hidden, *size).unflatten(0, (steps, batch))
        exact = torch.promote_types(x.dtype, torch.float32)
        keep = any(ctx.needs_input_grad)
        cells = _empty(x, (steps if keep else 1) * batch, hidden, *size, dtype=exact)
        cells = cells.unflatten(0, (-1, batch))

        h, c = h0, c0
        for t in range(steps):
            if h is not None:
                gates[t] += same_conv2d(_masked(h, mask), weight_hh)
            a = gates[t].to(exact)  # the same memory, unless the gates are of low precision
            h, old, c = outputs[t], c, cells[t if keep else 0]
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
            ctx.has_bias = bias is not None
            ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone(), c.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_outputs: Tensor | None, d_h: Tensor | None, d_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, h0, c0, peephole, mask, gates, cells, outputs = ctx.saved_tensors
        steps, batch = outputs.shape[:2]
        if torch._C._autograd._get_current_graph_task_keep_graph():
            gates = gates.clone()  # a kept graph may be walked again
        d_peephole = None if peephole is None else torch.zeros_like(peephole)
        # Memory that every step reuses: fresh pages for each product would cost more than it.
        scratch = [torch.empty_like(cells[0]) for _ in range(3)]
        d_c = torch.empty_like(cells[0]).copy_(x.new_zeros(()) if d_c is None else d_c)

        for t in reversed(range(steps)):
            if d_outputs is not None:
                d_h = d_outputs[t] if d_h is None else d_h + d_outputs[t]
            d_h = torch.zeros_like(cells[t]) if d_h is None else d_h.to(cells.dtype)
            a = gates[t].to(cells.dtype)
            c = cells[t - 1] if t > 0 else c0
            _gate_gradients(a, c, cells[t], d_h, d_c, peephole, d_peephole, scratch)
            if a.dtype != gates.dtype:
                gates[t] = a
            d_h = None
            if t > 0 or h0 is not None:
                d_h = _masked(same_conv2d_grad_x(gates[t], outputs[t], weight_hh), mask)

        d_gates = gates.flatten(0, 1)
        d_weight_hh = torch.zeros_like(weight_hh)
        if steps > 1:
            before = _masked(outputs[:-1], mask).flatten(0, 1)
            d_weight_hh += same_conv2d_grad_weight(d_gates[batch:], before, weight_hh)
        if h0 is not None:
            first = _channels_last(_masked(h0, mask))
            d_weight_hh += same_conv2d_grad_weight(d_gates[:batch], first, weight_hh)
        d_x = d_weight_ih = d_bias = None
        if weight_ih is not None:
            d_weight_ih = same_conv2d_grad_weight(d_gates, x, weight_ih)
            if ctx.needs_input_grad[0]:
                d_x = same_conv2d_grad_x(d_gates, x, weight_ih).unflatten(0, (steps, batch))
        if ctx.has_bias:
            d_bias = d_gates.sum((0, 2, 3))
        d_c = None if c0 is None else d_c.to(c0.dtype)
        return d_x, d_weight_ih, d_weight_hh, d_bias, d_h, d_c, d_peephole, None


def _activate(gates: Tensor, c: Tensor | None, new: Tensor, peephole: Tensor | None) -> None:
    """Overwrites gate inputs by gates, and `new` by the new cell state; c is None for zero."""
    i, f, g, o = gates.chunk(4, dim=1)
    if peephole is not None and c is not None:
        i.addcmul_(peephole[0], c)
        f.addcmul_(peephole[1], c)
    gates[:, : 2 * i.shape[1]].sigmoid_()
    g.tanh_()
    torch.mul(i, g, out=new)
    if c is not None:
        new.addcmul_(f, c)
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


def _masked(h: Tensor, mask: Tensor | None) -> Tensor:
    return h if mask is None else h * mask


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(
        shape,
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
