"""The ConvGRU over a whole sequence; `convlstm.sequence` says how, `convlstm.cells` what."""

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convlstm.cells.gru import gru_gates
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

    What the input convolution gives, maps of 3H channels, is overwritten by what the kernels keep
    of the gates, in an order of their own, and that by the gates' gradients, in the order r, z, n.

    With segments of `every` steps no gates are kept, and of the hidden states those that a segment
    begins with: the backward pass computes the others again, a segment at a time.
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
        x = laid_out(x)  # once, for the backward pass, too
        steps, batch, _, *size = x.shape
        hidden = weight_hh.shape[1]
        outputs = empty_maps(x, steps, batch, hidden, *size)
        every = min(every, steps)
        # What the reset gate multiplies, W_hn * h + b_hn, of every step.
        candidates = empty_maps(x, steps, batch, hidden, *size) if keep and not every else None
        kernels = choose(outputs)
        inputs = x, weight_ih, bias, bias_hh
        convolution = HiddenConvolution(weight_hh, mask, outputs)
        gates = _advance(kernels, inputs, convolution, h0, candidates, outputs)
        if keep:
            ctx.every = every
            kept = segment_ends(outputs, every) if every else outputs
            ctx.save_for_backward(
                x,
                weight_ih,
                weight_hh,
                *((bias, bias_hh) if every else (None, None)),
                h0,
                mask,
                candidates,
                kept,
                mark(kernels),
                None if gates is None else as_saved(gates),
            )
            ctx.set_materialize_grads(False)
        return outputs, outputs[-1].clone()

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, saved: Saved, d_outputs: Tensor | None, d_last: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, bias, bias_hh, h0, mask, candidates, kept, *rest = saved
        marker, gates = rest
        kernels = marked(marker)
        steps, batch, _, *size = x.shape
        hidden, every = weight_hh.shape[1], ctx.every
        outputs = kept  # of the segment at hand
        if every:
            outputs = empty_maps(kept, every, batch, hidden, *size)
            candidates = empty_maps(kept, every, batch, hidden, *size)
        else:
            gates = to_overwrite(gates)
        output_rows, candidate_rows = step_rows(outputs), step_rows(candidates)
        convolution = HiddenConvolution(weight_hh, mask, outputs)
        # Gradients of the hidden convolution's output; those of the input's overwrite the gates.
        d_hidden = empty_maps(outputs, every or steps, batch, 3 * hidden, *size)
        hidden_rows, hidden_maps = step_rows(d_hidden), d_hidden.unbind(0)
        d_h = channels_last(torch.zeros_like(outputs[0], dtype=exact(outputs)))
        if d_last is not None:
            d_h += d_last
        d_h_rows = rows(d_h)
        gradients = InputGradients(ctx, kernels, x, weight_ih, convolution)
        d_bias_hh = through = None

        for start, stop in segments(steps, every):
            first = h0 if start == 0 else kept[start // every - 1]
            first_rows = None if first is None else rows(first)
            if every:
                inputs = x[start:stop], weight_ih, bias, bias_hh
                gates = None  # those of the last segment make room
                gates = _advance(kernels, inputs, convolution, first, candidates, outputs)
            gate_rows = step_rows(gates)
            for t in reversed(range(start, stop)):
                here = t - start
                kernels.gru_backward(
                    gate_rows[here],
                    candidate_rows[here],
                    output_rows[here - 1] if here > 0 else first_rows,
                    None if d_outputs is None else rows(d_outputs[t]),
                    through,
                    d_h_rows,
                    hidden_rows[here],
                    *gradients.sums,
                )
                if t > 0 or ctx.needs_input_grad[5]:
                    d_through = convolution.gradient(hidden_maps[here])
                    through = rows(d_through)
            from_h = d_hidden[: stop - start]
            gradients.add(start, gates, from_h, outputs[: stop - start - 1], first)
            if ctx.needs_input_grad[4]:
                d_bias_hh = plus(d_bias_hh, from_h[:, :, 2 * hidden :].sum((0, 1, 3, 4)))
            del gate_rows  # they hold the gates

        d_h0 = None
        if ctx.needs_input_grad[5]:
            d_h0 = d_h.add_(d_through).to(h0.dtype)
        if d_bias_hh is not None:
            d_bias_hh = d_bias_hh.to(d_hidden.dtype)
        return *gradients.results(), d_bias_hh, d_h0, None, None, None


def _advance(
    kernels: ModuleType,
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    convolution: HiddenConvolution,
    h: Tensor | None,
    candidates: Tensor | None,
    outputs: Tensor,
) -> Tensor | None:
    """The steps forward.

    Args:
        kernels: What computes the gates.
        inputs: x (t, B, C, h, w), weight_ih, bias, bias_hh.
        convolution: That of the hidden states.
        h: The first hidden state, as maps.
        candidates: Maps (at least t, B, H, h, w) for the candidates, or None where there will be
            no backward pass.
        outputs: Maps (at least t, B, H, h, w) for the hidden states.

    Returns:
        The gates of all steps (t, B, 3H, h, w), as the kernels keep them, or None.
    """
    x, weight_ih, bias, bias_hh = inputs
    late = (bias,) if kernels.ADDS_BIAS else ()
    candidate_rows = [None] * len(x) if candidates is None else step_rows(candidates)
    output_rows, maps = step_rows(outputs), outputs.unbind(0)
    kept: list[Tensor] | None = None if candidates is None else []
    steps = input_gates(kernels, x, weight_ih, bias, 3 * outputs.shape[2], kept)
    for t, (from_x, gates) in enumerate(steps):
        before = from_h = None
        if h is not None:
            before = rows(h)
            from_h = convolution.rows(h)
        states = before, gates, candidate_rows[t], output_rows[t]
        kernels.gru_forward(from_x, from_h, bias_hh, *states, *late)
        h = maps[t]
    return kept[0] if kept else None
