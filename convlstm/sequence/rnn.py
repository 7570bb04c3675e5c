"""The ConvRNN over a whole sequence; `convlstm.sequence` says how, `convlstm.cells` what."""

from typing import Any

import torch
from torch import Tensor

from convlstm.cells.rnn import rnn_gates
from convlstm.kernels import choose, mark, marked
from convlstm.sequence.common import (
    HiddenConvolution,
    InputGradients,
    Saved,
    as_it_is,
    autocast_to,
    empty_maps,
    first_derivative_only,
    input_gates,
    laid_out,
    rows,
    segments,
    step_rows,
)
from convlstm.sequence.stepwise import hidden_state_steps


def rnn_sequence(
    x: Tensor,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    h: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    checkpoint_every: int = 0,
) -> tuple[Tensor, Tensor]:
    """Runs the ConvRNN (see `convlstm.cells`) over T steps.

    Args:
        x: Inputs (T, B, C, h, w), T >= 1; of size (T, B, 0, h, w) without input.
        weight_ih: Input kernel (H, C, k, k); None without input.
        weight_hh: Hidden kernel (H, H, m, m).
        bias: (H,) or None.
        h: First hidden state (B, H, h, w); zero if None.
        mask: Recurrent dropout (B, H, 1, 1), multiplied onto h before each hidden convolution.
        checkpoint_every: Length in steps of the segments of which the backward pass holds the
            gradients at a time; 0 for all. (The outputs are all that it needs to be kept.)

    Returns:
        All hidden states (T, B, H, h, w) and the last one.
    """
    x, weight_ih, weight_hh, bias, h, mask = autocast_to(x, weight_ih, weight_hh, bias, h, mask)
    if torch.compiler.is_exporting():
        return hidden_state_steps(rnn_gates, x, weight_ih, weight_hh, bias, h, mask)
    with as_it_is(x):
        outputs, last = _RNN.apply(x, weight_ih, weight_hh, bias, h, mask, checkpoint_every)
    return outputs, last


class _RNN(torch.autograd.Function):
    """All maps are (T, B, H, h, w) with channels last in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        bias: Tensor | None,
        h0: Tensor | None,
        mask: Tensor | None,
        every: int,
    ) -> tuple[Tensor, Tensor]:
        x = laid_out(x)  # once, for the backward pass, too
        steps, batch, _, *size = x.shape
        hidden = weight_hh.shape[1]
        outputs = empty_maps(x, steps, batch, hidden, *size)
        kernels = choose(outputs)
        late = (bias,) if kernels.ADDS_BIAS else ()
        convolution = HiddenConvolution(weight_hh, mask, outputs)
        output_rows, maps = step_rows(outputs), outputs.unbind(0)
        h = h0
        inputs = input_gates(kernels, x, weight_ih, bias, hidden, None)
        for t, (from_x, _) in enumerate(inputs):
            from_h = None if h is None else convolution.rows(h)
            kernels.rnn_forward(from_x, from_h, output_rows[t], *late)
            h = maps[t]
        ctx.every = min(every, steps)
        ctx.save_for_backward(x, weight_ih, weight_hh, h0, mask, outputs, mark(kernels))
        ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone()

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, saved: Saved, d_outputs: Tensor | None, d_h: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, h0, mask, outputs, marker = saved
        kernels = marked(marker)
        steps, *shape = outputs.shape
        d_gates = empty_maps(outputs, ctx.every or steps, *shape)
        output_rows, gate_rows = step_rows(outputs), step_rows(d_gates)
        gate_maps = d_gates.unbind(0)
        convolution = HiddenConvolution(weight_hh, mask, outputs)
        through = None if d_h is None else rows(d_h)
        gradients = InputGradients(ctx, kernels, x, weight_ih, convolution)
        for start, stop in segments(steps, ctx.every):
            for t in reversed(range(start, stop)):
                d_output = None if d_outputs is None else rows(d_outputs[t])
                here = gate_rows[t - start]
                kernels.rnn_backward(output_rows[t], d_output, through, here, *gradients.sums)
                d_h = None
                if t > 0 or ctx.needs_input_grad[4]:
                    d_h = convolution.gradient(gate_maps[t - start])
                    through = rows(d_h)
            part = d_gates[: stop - start]
            before = outputs[max(start - 1, 0) : stop - 1]
            gradients.add(start, part, part, before, h0 if start == 0 else None)
        return *gradients.results(), d_h, None, None
