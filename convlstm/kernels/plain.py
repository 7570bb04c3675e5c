"""The gates in plain PyTorch: the reference, and what runs wherever Triton does not.

On a CPU the rows are cut into tiles that stay in its caches, and each gate of a tile is copied into
a plane of its own: passes over contiguous memory that is at hand cost a fraction of others.
"""

import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

aten = torch.ops.aten
TILE = 131072  # values of one gate that a thread works on at a time: the fastest of those tried

Rows = Callable[[Tensor], Tensor]  # cuts the rows of a tile out of a matrix
_threads = threading.local()


def lstm_forward(
    gates: Tensor,
    from_h: Tensor | None,
    c: Tensor | None,
    peephole: Tensor | None,
    new: Tensor,
    h: Tensor,
) -> None:
    """One step of the ConvLSTM.

    Args:
        gates: What goes into the gates i, f, g, o (N, 4H); overwritten by the gates.
        from_h: What the hidden convolution adds to it (N, 4H), or None.
        c: Cell state before (N, H), exact; None for zero.
        peephole: (3, 1, H) or (3, N, H) in the order i, f, o, exact, or None.
        new: The new cell state (N, H) is written here, exact; may be the memory of c.
        h: The new hidden state (N, H) is written here.
    """
    for rows, planes in _tiles(new, 5):
        i, f, g, o, out = planes
        gates_here, new_here = _planes(rows(gates), 4), rows(new)
        if from_h is None:
            planes[:4].copy_(gates_here)
        else:
            _add(gates_here, _planes(rows(from_h), 4), out=planes[:4])
        peepholes = _peepholes(peephole, rows)
        if c is not None and peepholes is not None:
            i.addcmul_(peepholes[0], rows(c))
            f.addcmul_(peepholes[1], rows(c))
        planes[:2].sigmoid_()
        tanh(g, out=g)
        if c is None:
            torch.mul(i, g, out=new_here)
        else:
            torch.mul(f, rows(c), out=new_here).addcmul_(i, g)
        if peepholes is not None:
            o.addcmul_(peepholes[2], new_here)
        o.sigmoid_()
        tanh(new_here, out=out)
        rows(h).copy_(out.mul_(o))
        gates_here.copy_(planes[:4])


def lstm_backward(
    gates: Tensor,
    c: Tensor | None,
    new: Tensor,
    peephole: Tensor | None,
    d_output: Tensor | None,
    d_through: Tensor | None,
    d_c: Tensor,
) -> None:
    """The gradients of one step of the ConvLSTM.

    Args:
        gates: The gates (N, 4H); overwritten by the gradients of what went into them.
        c: Cell state before (N, H), or None for zero.
        new: The new cell state (N, H).
        peephole: As in `lstm_forward`.
        d_output: Gradient of the new hidden state as an output (N, H), or None for zero.
        d_through: Its gradient through the next step (N, H), or None for zero.
        d_c: Gradient of the new cell state (N, H), exact; overwritten by that of c.
    """
    for rows, planes in _tiles(new, 8):
        i, f, g, o, out, d_h, d_new, product = planes
        gates_here, d_c_here = _planes(rows(gates), 4), rows(d_c)
        planes[:4].copy_(gates_here)
        _sum(d_output, d_through, rows, out=d_h)
        tanh(rows(new), out=out)
        torch.mul(d_h, o, out=d_new)
        aten.tanh_backward.grad_input(d_new, out, grad_input=d_new).add_(d_c_here)
        aten.sigmoid_backward.grad_input(out.mul_(d_h), o, grad_input=o)
        peepholes = _peepholes(peephole, rows)
        if peepholes is not None:
            d_new.addcmul_(o, peepholes[2])
        torch.mul(d_new, f, out=d_c_here)
        torch.mul(d_new, g, out=product)
        torch.mul(d_new, i, out=out)
        aten.sigmoid_backward.grad_input(product, i, grad_input=i)
        aten.tanh_backward.grad_input(out, g, grad_input=g)
        if c is None:
            f.zero_()
        else:
            torch.mul(d_new, rows(c), out=product)
            aten.sigmoid_backward.grad_input(product, f, grad_input=f)
        if c is not None and peepholes is not None:
            d_c_here.addcmul_(i, peepholes[0]).addcmul_(f, peepholes[1])
        gates_here.copy_(planes[:4])


def gru_forward(
    gates: Tensor,
    from_h: Tensor | None,
    bias: Tensor | None,
    h: Tensor | None,
    candidate: Tensor,
    new: Tensor,
) -> None:
    """One step of the ConvGRU.

    Args:
        gates: What goes into the gates r, z, n (N, 3H); overwritten by the gates.
        from_h: What the hidden convolution adds to r and z, and what r multiplies (N, 3H), or None.
        bias: (H,), added to what r multiplies, or None.
        h: Hidden state before (N, H); None for zero.
        candidate: What r multiplies (N, H) is written here.
        new: The new hidden state (N, H) is written here.
    """
    for rows, planes in _tiles(new, 4, exact(gates)):
        r, z, n, q = planes
        gates_here = _planes(rows(gates), 3)
        planes[:3].copy_(gates_here)
        q.zero_()
        if from_h is not None:
            from_h_here = _planes(rows(from_h), 3)
            planes[:2].add_(from_h_here[:2])
            q.copy_(from_h_here[2])
        if bias is not None:
            q.add_(bias)
        rows(candidate).copy_(q)
        planes[:2].sigmoid_()
        tanh(n.addcmul_(r, q), out=n)
        gates_here.copy_(planes[:3])
        if h is None:
            rows(new).copy_(n.sub_(z.mul_(n)))
        else:
            rows(new).copy_(torch.lerp(n, q.copy_(rows(h)), z, out=q))  # (1 - z) ∘ n + z ∘ h


def gru_backward(
    gates: Tensor,
    candidate: Tensor,
    h: Tensor | None,
    d_output: Tensor | None,
    d_through: Tensor | None,
    d_h: Tensor,
    d_hidden: Tensor,
) -> None:
    """The gradients of one step of the ConvGRU.

    Args:
        gates: The gates (N, 3H); overwritten by the gradients of what went into them.
        candidate: What r multiplied (N, H).
        h: Hidden state before (N, H), or None for zero.
        d_output: Gradient of the new hidden state as an output (N, H), or None for zero.
        d_through: Its gradient through the next step's convolution (N, H), or None for zero.
        d_h: Its gradient past the next step's convolution (N, H), exact; overwritten by that of h
            past this step's.
        d_hidden: The gradient of what came from the hidden convolution (N, 3H) is written here.
    """
    for rows, planes in _tiles(d_h, 6):
        r, z, n, q, d_new, product = planes
        gates_here, d_h_here = _planes(rows(gates), 3), rows(d_h)
        planes[:3].copy_(gates_here)
        q.copy_(rows(candidate))
        _sum(d_output, d_through, rows, out=d_new)
        d_new.add_(d_h_here)
        torch.mul(d_new, z, out=d_h_here)
        torch.neg(n, out=product) if h is None else torch.sub(rows(h), n, out=product)
        product.mul_(d_new)
        aten.sigmoid_backward.grad_input(product, z, grad_input=z)
        aten.tanh_backward.grad_input(d_new.sub_(d_h_here), n, grad_input=n)
        torch.mul(n, r, out=d_new)
        aten.sigmoid_backward.grad_input(q.mul_(n), r, grad_input=r)
        gates_here.copy_(planes[:3])
        d_hidden_here = _planes(rows(d_hidden), 3)
        d_hidden_here[:2].copy_(planes[:2])
        d_hidden_here[2].copy_(d_new)


def rnn_forward(gates: Tensor, from_h: Tensor | None) -> None:
    """One step of the ConvRNN.

    Args:
        gates: What goes into the activation (N, H); overwritten by the new hidden state.
        from_h: What the hidden convolution adds to it (N, H), or None.
    """
    for rows, (out,) in _tiles(gates, 1, exact(gates)):
        out.copy_(rows(gates))
        if from_h is not None:
            out.add_(rows(from_h))
        rows(gates).copy_(tanh(out, out=out))


def rnn_backward(
    h: Tensor, d_output: Tensor | None, d_through: Tensor | None, d_gates: Tensor
) -> None:
    """The gradients of one step of the ConvRNN.

    Args:
        h: The new hidden state (N, H).
        d_output: Its gradient as an output (N, H), or None for zero.
        d_through: Its gradient through the next step (N, H), or None for zero.
        d_gates: The gradient of what went into the activation (N, H) is written here.
    """
    for rows, (d_h, out) in _tiles(h, 2, exact(h)):
        _sum(d_output, d_through, rows, out=d_h)
        out.copy_(rows(h))
        rows(d_gates).copy_(aten.tanh_backward.grad_input(d_h, out, grad_input=d_h))


def exact(like: Tensor) -> torch.dtype:
    """The dtype of products and cell states: float32, or float64 for float64."""
    return torch.promote_types(like.dtype, torch.float32)


def tanh(x: Tensor, out: Tensor) -> Tensor:
    """The hyperbolic tangent; `out` may be x.

    In float32 on a CPU it is 2σ(2x) - 1, right to 1e-7 as absolute error: there σ takes a fifth of
    the time of `torch.tanh`.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.add(x, x, out=out).sigmoid_().mul_(2).sub_(1)
    return torch.tanh(x, out=out)


def _tiles(
    like: Tensor, planes: int, dtype: torch.dtype | None = None
) -> Iterator[tuple[Rows, Tensor]]:
    """Tiles of rows to work on together: for each, what cuts its rows out, and memory for planes.

    Rows (N, channels) are cut into (parts, n, channels), and a plane is (parts, n, H), one part a
    thread: values would else wander between the processor's cores from pass to pass.
    """
    count, hidden = like.shape
    size = count
    threads = torch.get_num_threads() if like.device.type == "cpu" else 1
    if like.device.type == "cpu":
        size = min(count, max(1, TILE // hidden) * threads)
    memory = _scratch(like, planes * size * hidden, dtype or like.dtype)
    for start in range(0, count, size):
        stop = min(start + size, count)
        parts = threads if (stop - start) % threads == 0 else 1
        shape = (parts, planes, (stop - start) // parts, hidden)
        used = memory[: planes * (stop - start) * hidden].view(shape)
        yield _cutter(start, stop, parts), used.transpose(0, 1)


def _cutter(start: int, stop: int, parts: int) -> Rows:
    return lambda matrix: matrix[start:stop].unflatten(0, (parts, -1))


def _scratch(like: Tensor, values: int, dtype: torch.dtype) -> Tensor:
    """Memory for intermediate values.

    On a CPU each thread uses its own again and again: fresh pages at every step would cost as much
    as the arithmetic.
    """
    if like.device.type != "cpu" or type(like) is not torch.Tensor:
        return like.new_empty(values, dtype=dtype)
    memory: Tensor | None = getattr(_threads, str(dtype), None)
    if memory is None or len(memory) < values:
        with torch.inference_mode(False):  # or training could not write to it later
            memory = torch.empty(values, dtype=dtype)
        setattr(_threads, str(dtype), memory)
    return memory[:values]


def _planes(rows: Tensor, count: int) -> Tensor:
    """Gates side by side (parts, n, count·H) as (count, parts, n, H)."""
    return rows.unflatten(2, (count, -1)).movedim(2, 0)


def _peepholes(peephole: Tensor | None, rows: Rows) -> list[Tensor] | None:
    """Those of gates i, f, o; each (1, H) or (parts, n, H)."""
    if peephole is None:
        return None
    return [gate if len(gate) == 1 else rows(gate) for gate in peephole]


def _sum(a: Tensor | None, b: Tensor | None, rows: Rows, out: Tensor) -> None:
    """Writes the sum of two gradients into `out`; None is zero."""
    if a is None and b is None:
        out.zero_()
        return
    if a is not None and b is not None:
        _add(rows(a), rows(b), out=out)
    else:
        one = b if a is None else a
        assert one is not None
        out.copy_(rows(one))


def _add(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Writes a + b into `out`, without rounding the sum to the dtype of a and b."""
    if a.dtype == out.dtype:
        torch.add(a, b, out=out)
    else:
        out.copy_(a).add_(b)
