"""The ConvGRU over a whole sequence; `convlstm.sequence` says how, `convlstm.cells` what."""

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convlstm.cells.gru import gru_gates
from convlstm.convolution import same_conv2d, same_conv2d_grad_x
from convlstm.kernels import choose, mark, marked
from convlstm.kernels.plain import exact
from convlstm.sequence.common import (
    InputGradients,
    Saved,
    apply_mask,
    as_it_is,
    autocast_to,
    channels_last,
    empty_maps,
    first_derivative_only,
    input_gates,
    plus,
    rows,
    step_rows,
    wants_gradient,
)
from convlstm.sequence.stepwise import hidden_state_steps


def gru_sequence(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    bias_hh: Tensor | None = None,
    h: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    checkpoint_every: int = 0,
) -> tuple[Tensor, Tensor]:
    """Runs the ConvGRU (see `convlstm.cells`) over T steps.

    Args:
        x: Inputs (T, B, C, h, w), T >= 1; of size (T, B, 0, h, w) without input.
        weight_ih: Input kernel (3H, C, k, k) in the order r, z, n; None without input.
        weight_hh: Hidden kernel (3H, H, m, m).
        bias: (3H,) or None.
        bias_hh: (H,), the bias inside of the reset candidate, or None.
        h: First hidden state (B, H, h, w); zero if None.
        mask: Recurrent dropout (B, H, 1, 1), multiplied onto h before each hidden convolution.
        checkpoint_every: Length in steps of the segments that the backward pass computes again; 0
            keeps everything.

    Returns:
        All hidden states (T, B, H, h, w) and the last one.
    """
    x, weight_ih, weight_hh, bias, bias_hh, h, mask = autocast_to(
        x, weight_ih, weight_hh, bias, bias_hh, h, mask
    )
    if torch.compiler.is_exporting():
        advance = partial(gru_gates, bias_hh=bias_hh)
        return hidden_state_steps(advance, x, weight_ih, weight_hh, bias, h, mask)
    keep = wants_gradient(x, weight_ih, weight_hh, bias, bias_hh, h)
    with as_it_is(x):
        outputs, last = _GRU.apply(
            x, weight_ih, weight_hh, bias, bias_hh, h, mask, keep, checkpoint_every
        )
    return outputs, last


class _GRU(torch.autograd.Function):
    """All maps are (T, B, channels, h, w) with channels last in memory.

    What the kernels keep of the gates for the backward pass takes the memory of maps of 3H
    channels, in an order of their own; their gradients are such maps, in the order r, z, n.

    With segments of `every` steps nothing of them is kept: the backward pass computes the gates
    again, a segment at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        bias: Tensor | None,
        bias_hh: Tensor | None,
        h0: Tensor | None,
        mask: Tensor | None,
        keep: bool,
        every: int,
    ) -> tuple[Tensor, Tensor]:
        steps, batch, _, *size = x.shape
        hidden = weight_hh.shape[1]
        weight_hh = channels_last(weight_hh)
        outputs = empty_maps(x, steps, batch, hidden, *size)
        kept = steps if keep and not every else 0
        gates = empty_maps(x, kept, batch, 3 * hidden, *size)
        # What the reset gate multiplies, W_hn * h + b_hn, of every step.
        candidates = empty_maps(x, kept, batch, hidden, *size)
        kernels = choose(outputs)
        _advance(
            kernels,
            (x, weight_ih, weight_hh, bias, bias_hh),
            h0,
            mask,
            step_rows(gates) or [None] * steps,
            step_rows(candidates) or [None] * steps,
            outputs,
        )
        if keep:
            ctx.every = every
            # As they lie in memory: hooks may keep values and shape, but not strides.
            gates = gates.movedim(2, -1)
            ctx.save_for_backward(
                x,
                weight_ih,
                weight_hh,
                bias,
                bias_hh,
                h0,
                mask,
                gates,
                candidates,
                outputs,
                mark(kernels),
            )
            ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone()

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, saved: Saved, d_outputs: Tensor | None, d_last: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, bias, bias_hh, h0, mask, gates, candidates, outputs, marker = saved
        kernels = marked(marker)
        steps, batch, hidden, *size = outputs.shape
        every = min(ctx.every or steps, steps)
        if ctx.every:
            gates = empty_maps(x, every, batch, 3 * hidden, *size)
            candidates = empty_maps(x, every, batch, hidden, *size)
            again = empty_maps(outputs, every, batch, hidden, *size)
        else:
            gates = gates.contiguous()
            if torch._C._autograd._get_current_graph_task_keep_graph():
                gates = gates.clone()  # a kept graph may be walked again
            gates = gates.movedim(-1, 2)
        gate_rows, output_rows, candidate_rows = map(step_rows, (gates, outputs, candidates))
        # Gradients of the hidden convolution's output; those of the input's overwrite the gates.
        d_hidden = empty_maps(gates, *gates.shape)
        hidden_rows, hidden_maps = step_rows(d_hidden), d_hidden.unbind(0)
        d_h = channels_last(torch.zeros_like(outputs[0], dtype=exact(outputs)))
        if d_last is not None:
            d_h += d_last
        d_h_rows = rows(d_h)
        first = None if h0 is None else rows(h0)
        gradients = InputGradients(ctx, x, weight_ih, weight_hh, h0, mask, outputs)
        d_bias_hh = through = None

        for start in reversed(range(0, steps, every)):
            stop = min(start + every, steps)
            if ctx.every:
                _advance(
                    kernels,
                    (x[start:stop], weight_ih, weight_hh, bias, bias_hh),
                    outputs[start - 1] if start > 0 else h0,
                    mask,
                    gate_rows,
                    candidate_rows,
                    again,
                )
            for t in reversed(range(start, stop)):
                here = t - start
                h = output_rows[t - 1] if t > 0 else first
                d_output = None if d_outputs is None else rows(d_outputs[t])
                kernels.gru_backward(
                    gate_rows[here],
                    candidate_rows[here],
                    h,
                    d_output,
                    through,
                    d_h_rows,
                    hidden_rows[here],
                )
                if t > 0 or ctx.needs_input_grad[5]:
                    maps = same_conv2d_grad_x(hidden_maps[here], outputs[0], weight_hh)
                    maps = apply_mask(maps, mask)
                    through = rows(maps)
            from_h = d_hidden[: stop - start]
            gradients.add(start, gates[: stop - start], from_h)
            if ctx.needs_input_grad[4]:
                d_bias_hh = plus(d_bias_hh, from_h[:, :, 2 * hidden :].sum((0, 1, 3, 4)))

        d_h0 = None
        if ctx.needs_input_grad[5]:
            d_h0 = d_h.add_(maps).to(h0.dtype)
        if d_bias_hh is not None:
            d_bias_hh = d_bias_hh.to(bias_hh.dtype)
        return *gradients.results(), d_bias_hh, d_h0, None, None, None


def _advance(
    kernels: ModuleType,
    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None],
    h: Tensor | None,
    mask: Tensor | None,
    gates: Sequence[Tensor | None],
    candidates: Sequence[Tensor | None],
    outputs: Tensor,
) -> None:
    """The steps forward: writes rows of gates and candidates, where wanted, and outputs.

    Args:
        kernels: What computes the gates.
        inputs: x (t, B, C, h, w), weight_ih, weight_hh, bias, bias_hh.
        h: The first hidden state, as maps.
        mask: Recurrent dropout.
        gates: Of each step (N, 3H), or None.
        candidates: Of each step (N, H), or None.
        outputs: Maps (at least t, B, H, h, w).
    """
    x, weight_ih, weight_hh, bias, bias_hh = inputs
    late = (bias,) if kernels.ADDS_BIAS else ()
    output_rows, maps = step_rows(outputs), outputs.unbind(0)
    for t, from_x in enumerate(input_gates(kernels, x, weight_ih, bias, len(weight_hh))):
        before = from_h = None
        if h is not None:
            before = rows(h)
            from_h = rows(same_conv2d(apply_mask(h, mask), weight_hh))
        kernels.gru_forward(
            from_x, from_h, bias_hh, before, gates[t], candidates[t], output_rows[t], *late
        )
        h = maps[t]
