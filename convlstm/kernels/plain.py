"""The gates in plain PyTorch: the reference, and what runs wherever no other backend does.

On a CPU the rows are cut into tiles that stay in its caches, and each gate of a tile gets a plane
of its own: passes over contiguous memory that is at hand cost a fraction of others. The gates of a
step are kept for its backward pass as such planes too, block of rows by block. The ConvLSTM's g is
kept as s = σ(-2x), of which g = tanh(x) is 1 - 2s, so that all its gates take one pass of σ.
"""

import functools
import threading

import torch
from torch import Tensor

Planes = tuple[int, ...]  # of each group

aten = torch.ops.aten
ADDS_BIAS = False  # to a convolution it costs nothing
SUMS_BIAS = False  # in tiles it would take calls more than a sum of its own
TILE = 131072  # values of one gate that a thread works on at a time: the fastest of those tried
BLOCK = 16384  # values of one gate that lie together in a plane
SHAPES = 64  # of which tiles are kept


class _Memory(threading.local):
    """What a thread works on, again and again: new pages at every step would cost much."""

    def __init__(self) -> None:
        self.planes: dict[torch.dtype, Tensor] = {}
        self.tiles: dict[object, list[_Tile]] = {}  # of that memory


_memory = _Memory()


class _Tile:
    """Some rows, and planes to work on.

    Rows (N, channels) are cut into (blocks, n, channels), and a plane is (blocks, n, H). In memory
    the planes of a block follow each other, so that threads, each with blocks of its own, leave
    values where they are from pass to pass.

    Attributes:
        planes: Each plane.
        groups: The same memory in groups of planes (k, blocks, n, H); a plane alone where k is 1.
    """

    def __init__(
        self, rows: slice | None, shape: tuple[int, int, int], groups: Planes, memory: Tensor
    ) -> None:
        self._rows = rows  # None for all
        self._shape = shape
        blocks, n, hidden = shape
        memory = memory.view(blocks, -1, n, hidden).transpose(0, 1)
        self.planes = memory.unbind(0)
        self.groups = [part[0] if len(part) == 1 else part for part in memory.split(groups)]

    def rows(self, matrix: Tensor) -> Tensor:
        """(N, C) → (blocks, n, C)."""
        blocks, n, _ = self._shape
        return self._here(matrix).view(blocks, n, -1)

    def beside(self, matrix: Tensor) -> Tensor:
        """Gates side by side in each row (N, k·H), as convolutions see them → (k, blocks, n, H)."""
        blocks, n, hidden = self._shape
        return self._here(matrix).view(blocks, n, -1, hidden).permute(2, 0, 1, 3)

    def planar(self, matrix: Tensor) -> Tensor:
        """The same memory, (N, k·H), as k planes: (k, blocks, n, H)."""
        blocks, n, hidden = self._shape
        return self._here(matrix).view(blocks, -1, n, hidden).transpose(0, 1)

    def _here(self, matrix: Tensor) -> Tensor:
        return matrix if self._rows is None else matrix[self._rows]


def lstm_forward(
    from_x: Tensor,
    from_h: Tensor | None,
    c: Tensor | None,
    peephole: Tensor | None,
    gates: Tensor | None,
    new: Tensor,
    h: Tensor,
) -> None:
    """One step of the ConvLSTM.

    Args:
        from_x: What the input convolution gives for the gates i, f, g, o (N, 4H).
        from_h: What the hidden convolution adds to it (N, 4H), or None.
        c: Cell state before (N, H), exact; None for zero.
        peephole: (3, 1, H) or (3, N, H) in the order i, f, o, exact, or None.
        gates: The gates are written here (N, 4H), as `lstm_backward` takes them; None if there will
            be no backward pass. May be the memory of from_x.
        new: The new cell state (N, H) is written here, exact; may be the memory of c.
        h: The new hidden state (N, H) is written here.
    """
    for tile in _tiles(new, (4, 1)):
        sums, out = tile.groups
        sum_i, sum_f, sum_g, sum_o, _ = tile.planes
        _sum(tile.beside(from_x), None if from_h is None else tile.beside(from_h), out=sums)
        sum_g.mul_(-2)
        before, new_here = _rows(tile, c), tile.rows(new)
        peepholes = _peepholes(peephole, tile)
        if before is not None and peepholes is not None:
            sum_i.addcmul_(peepholes[0], before)
            sum_f.addcmul_(peepholes[1], before)
        kept = None if gates is None else tile.planar(gates)
        values = _exactly(kept, sums)
        if peepholes is None:
            torch.sigmoid(sums, out=values)
        else:  # through which o sees the new cell state
            torch.sigmoid(sums[:3], out=values[:3])
        i, f, s, o = values.unbind(0)  # g = 1 - 2s
        if before is None:
            torch.addcmul(i, i, s, value=-2, out=new_here)
        else:
            torch.addcmul(i, f, before, out=new_here).addcmul_(i, s, value=-2)
        if peepholes is not None:
            torch.sigmoid(sum_o.addcmul_(peepholes[2], new_here), out=o)
        _store(values, kept)
        h_here = tile.rows(h)
        torch.mul(new_here, -2, out=out).sigmoid_()  # tanh(c) = 1 - 2σ(-2c)
        _store(torch.addcmul(o, o, out, value=-2, out=_exactly(h_here, out)), h_here)


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
        gates: What `lstm_forward` has kept (N, 4H); overwritten by the gradients of from_x.
        c: Cell state before (N, H), or None for zero.
        new: The new cell state (N, H).
        peephole: As in `lstm_forward`.
        d_output: Gradient of the new hidden state as an output (N, H), or None for zero.
        d_through: Its gradient through the next step (N, H), or None for zero.
        d_c: Gradient of the new cell state (N, H), exact; overwritten by that of c.
    """
    zero = new.new_zeros(())
    for tile in _tiles(new, (4, 1, 1, 1) if gates.dtype == new.dtype else (4, 1, 1, 1, 4)):
        d_gates, t, d_h, d_new, *loaded = tile.groups
        d_i, d_f, d_g, d_o, *_ = tile.planes
        values = tile.planar(gates)
        if loaded:
            values = loaded[0].copy_(values)
        i, f, s, o = values.unbind(0)
        d_c_here = tile.rows(d_c)
        _sum(_rows(tile, d_output), _rows(tile, d_through), out=d_h)
        torch.mul(tile.rows(new), -2, out=t).sigmoid_()
        # tanh(c) = 1 - 2t, and its derivative 4t(1 - t); g = 1 - 2s likewise.
        torch.mul(d_h, o, out=d_new)
        aten.sigmoid_backward.grad_input(d_new, t, grad_input=d_new)
        torch.add(d_c_here, d_new, alpha=4, out=d_new)
        torch.addcmul(d_h, d_h, t, value=-2, out=d_o)
        peepholes = _peepholes(peephole, tile)
        to_do, of = d_gates, values
        if peepholes is not None:
            aten.sigmoid_backward.grad_input(d_o, o, grad_input=d_o)
            d_new.addcmul_(d_o, peepholes[2])
            to_do, of = d_gates[:3], values[:3]
        torch.mul(d_new, f, out=d_c_here)
        torch.addcmul(d_new, d_new, s, value=-2, out=d_i)
        torch.addcmul(zero, d_new, i, value=4, out=d_g)
        if c is None:
            d_f.zero_()
        else:
            torch.mul(d_new, tile.rows(c), out=d_f)
        aten.sigmoid_backward.grad_input(to_do, of, grad_input=to_do)
        if c is not None and peepholes is not None:
            d_c_here.addcmul_(d_i, peepholes[0]).addcmul_(d_f, peepholes[1])
        tile.beside(gates).copy_(d_gates)


def gru_forward(
    from_x: Tensor,
    from_h: Tensor | None,
    bias: Tensor | None,
    h: Tensor | None,
    gates: Tensor | None,
    candidate: Tensor | None,
    new: Tensor,
) -> None:
    """One step of the ConvGRU.

    Args:
        from_x: What the input convolution gives for the gates r, z, n (N, 3H).
        from_h: What the hidden convolution adds to r and z, and what r multiplies (N, 3H), or None.
        bias: (H,), added to what r multiplies, or None.
        h: Hidden state before (N, H); None for zero.
        gates: The gates are written here (N, 3H), as `gru_backward` takes them; None if there will
            be no backward pass. May be the memory of from_x.
        candidate: What r multiplies (N, H) is written here; None likewise.
        new: The new hidden state (N, H) is written here.
    """
    for tile in _tiles(new, (3, 1, 1), exact(new)):
        sums, plane, out = tile.groups
        candidate_here, new_here = _rows(tile, candidate), tile.rows(new)
        q = _exactly(candidate_here, plane)
        from_x_here = tile.beside(from_x)
        if from_h is None:
            sums.copy_(from_x_here)
            q.zero_()
        else:
            from_h_here = tile.beside(from_h)
            _sum(from_x_here[:2], from_h_here[:2], out=sums[:2])
            sums[2].copy_(from_x_here[2])
            q.copy_(from_h_here[2])
        if bias is not None:
            q.add_(bias)
        _store(q, candidate_here)
        kept = None if gates is None else tile.planar(gates)
        values = _exactly(kept, sums)
        r, z, n = values.unbind(0)
        torch.sigmoid(sums[:2], out=values[:2])
        tanh(sums[2].addcmul_(r, q), out=n)
        _store(values, kept)
        result = _exactly(new_here, out)
        if h is None:
            torch.sub(n, torch.mul(z, n, out=out), out=result)
        else:
            torch.lerp(n, _load(tile.rows(h), out), z, out=result)  # (1 - z) ∘ n + z ∘ h
        _store(result, new_here)


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
        gates: What `gru_forward` has kept (N, 3H); overwritten by the gradients of from_x.
        candidate: What r multiplied (N, H).
        h: Hidden state before (N, H), or None for zero.
        d_output: Gradient of the new hidden state as an output (N, H), or None for zero.
        d_through: Its gradient through the next step's convolution (N, H), or None for zero.
        d_h: Its gradient past the next step's convolution (N, H), exact; overwritten by that of h
            past this step's.
        d_hidden: The gradient of what came from the hidden convolution (N, 3H) is written here.
    """
    for tile in _tiles(d_h, (3, 1, 1, 1)):
        d_gates, plane, d_new, product = tile.groups
        d_r, d_z, d_n, *_ = tile.planes
        r, z, n = _load(tile.planar(gates), d_gates).unbind(0)
        d_h_here = tile.rows(d_h)
        _sum(_rows(tile, d_output), _rows(tile, d_through), out=d_new)
        d_new.add_(d_h_here)
        torch.mul(d_new, z, out=d_h_here)
        torch.neg(n, out=product) if h is None else torch.sub(tile.rows(h), n, out=product)
        aten.sigmoid_backward.grad_input(product.mul_(d_new), z, grad_input=d_z)
        aten.tanh_backward.grad_input(d_new.sub_(d_h_here), n, grad_input=d_n)
        torch.mul(d_n, r, out=d_new)
        torch.mul(d_n, _load(tile.rows(candidate), plane), out=product)
        aten.sigmoid_backward.grad_input(product, r, grad_input=d_r)
        tile.beside(gates).copy_(d_gates)
        d_hidden_here = tile.beside(d_hidden)
        d_hidden_here[:2].copy_(d_gates[:2])
        d_hidden_here[2].copy_(d_new)


def rnn_forward(from_x: Tensor, from_h: Tensor | None, h: Tensor) -> None:
    """One step of the ConvRNN.

    Args:
        from_x: What the input convolution gives (N, H).
        from_h: What the hidden convolution adds to it (N, H), or None.
        h: The new hidden state (N, H) is written here.
    """
    for tile in _tiles(h, (1,), exact(h)):
        h_here = tile.rows(h)
        out = _exactly(h_here, tile.planes[0])
        _sum(tile.rows(from_x), _rows(tile, from_h), out=out)
        _store(tanh(out, out=out), h_here)


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
    for tile in _tiles(h, (1, 1), exact(h)):
        d_h, plane = tile.planes
        d_here = tile.rows(d_gates)
        _sum(_rows(tile, d_output), _rows(tile, d_through), out=d_h)
        out = _exactly(d_here, d_h)
        aten.tanh_backward.grad_input(d_h, _load(tile.rows(h), plane), grad_input=out)
        _store(out, d_here)


def exact(like: Tensor) -> torch.dtype:
    """The dtype of products and cell states: float32, or float64 for float64."""
    return torch.promote_types(like.dtype, torch.float32)


def tanh(x: Tensor, out: Tensor) -> Tensor:
    """The hyperbolic tangent; `out` may be x.

    In float32 on a CPU it is 2σ(2x) - 1, right to 2e-7 as absolute error: there σ takes a fifth of
    the time of `torch.tanh`.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.add(x, x, out=out).sigmoid_().mul_(2).sub_(1)
    return torch.tanh(x, out=out)


def _tiles(like: Tensor, groups: Planes, dtype: torch.dtype | None = None) -> list[_Tile]:
    """All rows of `like` (N, H) in tiles with such groups of planes, of its dtype or another.

    On a CPU they are made once for all steps of a sequence. Where blocks begin hangs on N and H
    alone: the backward pass finds the planes that the forward pass has left even with other
    threads.
    """
    count, hidden = like.shape
    if count == 0:
        return []
    dtype = dtype or like.dtype
    if like.device.type != "cpu" or type(like) is not torch.Tensor:
        memory = like.new_empty(sum(groups) * count * hidden, dtype=dtype)
        return [_Tile(None, (1, count, hidden), groups, memory)]
    threads = torch.get_num_threads()
    key = count, hidden, groups, dtype, threads
    tiles = _memory.tiles.get(key)
    if tiles is None:
        with torch.inference_mode(False):  # or training could not write to them later
            tiles = _cut(count, hidden, groups, dtype, threads)
        _memory.tiles[key] = tiles
    return tiles


def _cut(count: int, hidden: int, groups: Planes, dtype: torch.dtype, threads: int) -> list[_Tile]:
    """Tiles in the caches of so many threads, all on the same memory."""
    block = _block(count, hidden, BLOCK)
    whole = count - count % block
    size = min(whole, max(1, TILE // hidden // block) * block * threads)
    starts = [*range(0, whole, size), *range(whole, count, block)]
    memory = _scratch(sum(groups) * size * hidden, dtype)
    tiles = []
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        rows = None if stop - start == count else slice(start, stop)
        n = min(block, stop - start)
        used = memory[: sum(groups) * (stop - start) * hidden]
        tiles.append(_Tile(rows, ((stop - start) // n, n, hidden), groups, used))
    return tiles


@functools.cache
def _block(count: int, hidden: int, values: int) -> int:
    """Rows of a block of so many values or fewer, and a number that leaves none over if it can."""
    fewest = -(-count * hidden // values)
    for blocks in range(fewest, 2 * fewest):
        if count % blocks == 0:
            return count // blocks
    return min(count, max(1, values // hidden))


def _scratch(values: int, dtype: torch.dtype) -> Tensor:
    """Memory for so many intermediate values.

    Where it must grow, or enough shapes have tiles, all tiles made so far are forgotten.
    """
    memory = _memory.planes.get(dtype)
    if memory is None or len(memory) < values or len(_memory.tiles) >= SHAPES:
        _memory.tiles.clear()
        memory = torch.empty(values, dtype=dtype, device="cpu")
        _memory.planes[dtype] = memory
    return memory


def _peepholes(peephole: Tensor | None, tile: _Tile) -> list[Tensor] | None:
    """Those of gates i, f, o; each (1, H) or (blocks, n, H)."""
    if peephole is None:
        return None
    return [gate if len(gate) == 1 else tile.rows(gate) for gate in peephole]


def _rows(tile: _Tile, matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else tile.rows(matrix)


def _sum(a: Tensor | None, b: Tensor | None, out: Tensor) -> None:
    """Writes a + b into `out`, without rounding the sum to the dtype of a and b; None is zero."""
    if a is None or b is None:
        one = b if a is None else a
        out.zero_() if one is None else out.copy_(one)
    elif a.dtype == out.dtype:
        torch.add(a, b, out=out)
    else:
        out.copy_(a).add_(b)


def _load(rows: Tensor, plane: Tensor) -> Tensor:
    """Values to compute with: the rows themselves where they are exact, else copied to a plane."""
    return rows if rows.dtype == plane.dtype else plane.copy_(rows)


def _exactly(rows: Tensor | None, plane: Tensor) -> Tensor:
    """Where to compute what belongs into rows: there where they are exact, else on the plane."""
    return plane if rows is None or rows.dtype != plane.dtype else rows


def _store(values: Tensor, rows: Tensor | None) -> None:
    """Puts what was computed on a plane into its rows."""
    if rows is not None and values is not rows:
        rows.copy_(values)
