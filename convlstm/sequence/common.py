"""What the recurrences share over a whole sequence: the convolutions outside of the loop.

Letters: T steps, B batch, C input and H hidden channels, G gates, h×w frame.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convlstm.convolution import (
    Convolution,
    repeated_conv2d,
    repeated_conv2d_grad_x,
    same_conv2d,
    same_conv2d_grad_weight,
    same_conv2d_grad_x,
)
from convlstm.kernels.plain import exact

# Bytes of input gates that are computed ahead; twice that are there while the next are computed. On
# a CPU so many that they stay in its cache.
AHEAD = {"cpu": 2**23, "other": 2**28}


Saved = tuple[Any, ...]  # tensors, and None
Gradients = tuple[Tensor | None, ...]


def first_derivative_only(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Makes a backward pass raise where somebody differentiates its gradients once more.

    It is called with the saved tensors, which may be read but once, before the gradients, and
    without autocast, whatever the block that it is called in.

    PyTorch's `once_differentiable` does so only if the gradients that come in require gradients
    themselves; of a sum they do not, and its second derivative would silently be zero.
    """

    @functools.wraps(backward)
    def first(ctx: Any, *gradients: Tensor | None) -> Gradients:
        saved = ctx.saved_tensors
        with torch.no_grad(), as_it_is(saved[0]):
            results = backward(ctx, saved, *gradients)
        if not torch.is_grad_enabled():  # no create_graph=True
            return results
        # Among what was saved are outputs, through which all inputs are reached, or copies alone.
        graph = [t for t in (*saved, *gradients) if t is not None and t.requires_grad]
        graph = graph or [torch.zeros((), requires_grad=True)]
        return tuple(None if g is None else _End.apply(g, *graph) for g in results)

    return first


class _End(torch.autograd.Function):
    """Passes a value on as if it were computed from a graph, into which no gradient goes."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *graph: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Tensor:
        raise RuntimeError(
            "the layers have no second derivative: where one is needed, such as for a gradient "
            "penalty, step through time with a cell, such as ConvLSTMCell"
        )


def autocast_to(x: Tensor, *others: Tensor | None) -> list[Any]:
    """All tensors in one dtype: autocast's where it is on for the device of x, else that of x.

    Autocast leaves float64 alone. Copies of kernels and maps have channels last, so that there need
    be no others.
    """
    lowered = autocasts(x) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(x.device.type) if lowered else x.dtype
    return [None if value is None else _as_dtype(value, dtype) for value in (x, *others)]


def _as_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.dtype == dtype or value.dim() != 4:
        return value.to(dtype)
    return value.to(dtype, memory_format=torch.channels_last)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of x."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def as_it_is(x: Tensor) -> AbstractContextManager[Any]:
    """A block in which no autocast changes what is computed on the device of x."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if autocasts(x) else nullcontext()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether there will be a backward pass to one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def input_gates(
    kernels: ModuleType,
    x: Tensor,
    weight_ih: Tensor | None,
    bias: Tensor | None,
    channels: int,
    kept: list[Tensor] | None,
) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Of each step the rows (N, G·H) of W_x * x + b, and those for the gates to be kept in.

    They are the same rows: gates overwrite them. Without b if the kernels add it; None where there
    is nothing else, and for gates that are not kept.

    Args:
        kernels: What computes the gates.
        x: Inputs (T, B, C, h, w).
        weight_ih: Input kernel, or None.
        bias: (G·H,) or None.
        channels: G·H.
        kept: The maps that the gates are kept in (T, B, G·H, h, w) are appended to it, and all
            steps are convolved in one call. If None, as many as fit into AHEAD bytes, ahead of the
            loop: few calls, and what they give is still in the cache when it is read.
    """
    steps, batch, _, *size = x.shape
    step = max(1, batch * channels * math.prod(size) * x.element_size())  # bytes
    ahead = max(1, AHEAD["cpu" if x.device.type == "cpu" else "other"] // step)
    late = kernels.ADDS_BIAS
    kernel = None if weight_ih is None else channels_last(weight_ih)
    for part in x.split(ahead if kept is None else steps):
        maps = None
        if kernel is not None:
            flat = channels_last(part.flatten(0, 1))
            maps = channels_last(same_conv2d(flat, kernel, None if late else bias))
            maps = maps.unflatten(0, part.shape[:2])
        elif not late:
            maps = empty_maps(x, len(part), batch, channels, *size)
            maps.copy_(x.new_zeros(()) if bias is None else bias.view(-1, 1, 1))
        none = [None] * len(part)
        from_x: Sequence[Tensor | None] = none if maps is None else step_rows(maps)
        gates: Sequence[Tensor | None] = none
        if kept is not None:
            kept.append(empty_maps(x, steps, batch, channels, *size) if maps is None else maps)
            gates = step_rows(kept[0])
        yield from zip(from_x, gates, strict=True)


class HiddenConvolution:
    """That of a hidden state at each step, after recurrent dropout, and its gradient.

    Args:
        weight_hh: Hidden kernel.
        mask: Recurrent dropout, or None.
        outputs: Maps (T, B, H, h, w) for hidden states, of which the shape counts.

    Attributes:
        weight: The kernel, with channels last.
        mask: As given.
    """

    def __init__(self, weight_hh: Tensor, mask: Tensor | None, outputs: Tensor) -> None:
        self.weight, self.mask, self._like = channels_last(weight_hh), mask, outputs

    @functools.cached_property
    def _convolve(self) -> Convolution:
        return repeated_conv2d(self.weight, self._like[0], len(self._like))

    @functools.cached_property
    def _convolve_back(self) -> Convolution:
        return repeated_conv2d_grad_x(self.weight, self._like[0], len(self._like))

    def rows(self, h: Tensor) -> Tensor:
        """Rows (N, G·H) of maps h (B, H, h, w)."""
        return rows(self._convolve(apply_mask(h, self.mask)))

    def gradient(self, from_h: Tensor) -> Tensor:
        """The gradient of h (B, H, h, w) from that of the maps that came of it (B, G·H, h, w)."""
        return apply_mask(self._convolve_back(from_h), self.mask)


def as_saved(gates: Tensor) -> Tensor:
    """Maps (t, B, G·H, h, w) as they lie in memory: hooks may change strides."""
    return gates.movedim(2, -1)


def to_overwrite(saved: Tensor) -> Tensor:
    """Maps that `as_saved` was given, for gradients to be written over them."""
    saved = saved.contiguous()
    if torch._C._autograd._get_current_graph_task_keep_graph():
        saved = saved.clone()  # a kept graph may be walked again
    return saved.movedim(-1, 2)


def segments(steps: int, every: int) -> Iterator[tuple[int, int]]:
    """Where segments of `every` steps (0: of all) start and stop, from the last to the first."""
    every = every or steps
    for start in reversed(range(0, steps, every)):
        yield start, min(start + every, steps)


def segment_ends(series: Tensor, every: int) -> Tensor:
    """Of maps (T, B, C, h, w) a copy of those that segments of `every` steps begin with."""
    return series.movedim(2, -1)[every - 1 : -1 : every].clone().movedim(-1, 2)


class InputGradients:
    """The gradients of x, both kernels and the bias, added up over segments of the sequence.

    None where not wanted. A gradient takes one call for all steps of a segment.

    Attributes:
        sums: What the kernels add that of the bias to, as a last argument where they do.

    Args:
        ctx: That of a function whose inputs begin with x, weight_ih, weight_hh, bias.
        kernels: What computes the gates' gradients.
        x: Inputs (T, B, C, h, w).
        weight_ih: Input kernel, or None without input.
        convolution: That of the hidden states.
    """

    def __init__(
        self,
        ctx: Any,
        kernels: ModuleType,
        x: Tensor,
        weight_ih: Tensor | None,
        convolution: HiddenConvolution,
    ) -> None:
        self._wants_x, self._wants_ih, self._wants_hh, self._wants_bias = ctx.needs_input_grad[:4]
        self._x, self._convolution = x, convolution
        self._weight_ih = None if weight_ih is None else channels_last(weight_ih)
        self._d_x: Tensor | None = None
        self._d_weight_ih: Tensor | None = None
        self._d_weight_hh: Tensor | None = None
        self._d_bias: Tensor | None = None
        self.sums: tuple[Tensor, ...] = ()
        if self._wants_bias and kernels.SUMS_BIAS:
            self._d_bias = x.new_zeros(len(convolution.weight), dtype=exact(x))
            self.sums = (self._d_bias,)

    def add(
        self, start: int, from_x: Tensor, from_h: Tensor, before: Tensor, first: Tensor | None
    ) -> None:
        """Those of t steps from `start` on.

        Args:
            start: The first step.
            from_x: Gradients of what the input convolution gave (t, B, G·H, h, w).
            from_h: Gradients of what the hidden convolution gave, of the same shape.
            before: Hidden states before each step (t, B, H, h, w), or before each but the first.
            first: In that case that before the first (B, H, h, w), or None for zero.
        """
        stop = start + len(from_x)
        flat = from_x.flatten(0, 1)
        if self._weight_ih is not None:
            maps = channels_last(self._x[start:stop].flatten(0, 1))
            if self._wants_x:
                d_x = same_conv2d_grad_x(flat, maps, self._weight_ih)
                self._put(start, stop, d_x.unflatten(0, from_x.shape[:2]))
            if self._wants_ih:
                part = same_conv2d_grad_weight(flat, maps, self._weight_ih)
                self._d_weight_ih = plus(self._d_weight_ih, part)
        if self._wants_bias and not self.sums:
            part = flat.sum((2, 3)).sum(0)  # in two sums, which is faster than in one
            self._d_bias = plus(self._d_bias, part)
        if self._wants_hh:
            if len(before) > 0:
                self._add_hidden(from_h[len(from_h) - len(before) :], before)
            if first is not None:
                self._add_hidden(from_h[:1], first[None])

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, weight_ih, weight_hh and bias."""
        if self._wants_hh and self._d_weight_hh is None:  # a single step, from zero
            self._d_weight_hh = torch.zeros_like(self._convolution.weight)
        d_weight_ih, d_weight_hh, d_bias = (
            None if total is None else total.to(self._x.dtype)
            for total in (self._d_weight_ih, self._d_weight_hh, self._d_bias)
        )
        return self._d_x, d_weight_ih, d_weight_hh, d_bias

    def _put(self, start: int, stop: int, d_x: Tensor) -> None:
        if len(d_x) == len(self._x):
            self._d_x = d_x
            return
        if self._d_x is None:
            self._d_x = empty_maps(self._x, *self._x.shape)
        self._d_x[start:stop] = d_x

    def _add_hidden(self, from_h: Tensor, before: Tensor) -> None:
        maps = channels_last(apply_mask(before, self._convolution.mask).flatten(0, 1))
        part = same_conv2d_grad_weight(from_h.flatten(0, 1), maps, self._convolution.weight)
        self._d_weight_hh = plus(self._d_weight_hh, part)


def plus(total: Tensor | None, part: Tensor) -> Tensor:
    """A sum of at least float32, once there are two parts; a part alone stays as it is."""
    return part if total is None else total.to(exact(total)) + part


def rows(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) as rows (B·h·w, C); the same memory if they have channels last."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def step_rows(series: Tensor) -> tuple[Tensor, ...]:
    """The rows of each step of maps (T, B, C, h, w); the same memory if they have channels last."""
    return series.movedim(2, -1).flatten(1, 3).unbind(0)


def apply_mask(h: Tensor, mask: Tensor | None) -> Tensor:
    """Recurrent dropout."""
    return h if mask is None else h * mask


def channels_last(maps: Tensor) -> Tensor:
    """The same maps (N, C, h, w) with channels last in memory."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    # Maps of one channel, or of one pixel, lie right as they are, but their strides may not say so,
    # and a convolution then returns channels first.
    _, c, h, w = maps.shape
    return maps.as_strided(maps.shape, (c * h * w, 1, w * c, c))


def laid_out(series: Tensor) -> Tensor:
    """The same maps (T, B, C, h, w), a step after the other in memory, with channels last."""
    return series.movedim(2, -1).contiguous().movedim(-1, 2)


def empty_maps(
    like: Tensor, steps: int, batch: int, *shape: int, dtype: torch.dtype | None = None
) -> Tensor:
    """New memory for maps (T, B, C, h, w), channels last."""
    maps = torch.empty(
        (steps * batch, *shape),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
    return maps.unflatten(0, (steps, batch))
