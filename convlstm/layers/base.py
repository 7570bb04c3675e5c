"""What the layers share: stacking, directions, dropout, states, sequences of their own lengths."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from convlstm.arguments import require_int, require_tensor
from convlstm.cells.base import Device, NewParameters, drawing_on, redraw
from convlstm.sequence.common import autocasts

States = tuple[Tensor, ...]  # (h,) or (h, c)
Lengths = Tensor | Sequence[int]
STATE_NAMES = "hc"


class ConvRecurrence(nn.Module, ABC):
    """Base of the layers: what a layer adds is its parameters and one recurrence over a sequence.

    Shapes: B batch, T steps, C input and H hidden channels, D directions, L layers, h×w frame.
    Inside, time comes first, and a state is a tuple of its parts.

    Attributes:
        state_parts: 1 for h, 2 for h and c.
    """

    state_parts = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        batch_first: bool,
        dropout: float,
        recurrent_dropout: float,
        bidirectional: bool,
        checkpoint_every: int,
        new_parameters: NewParameters,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        require_int(1, num_layers=num_layers)
        require_int(0, checkpoint_every=checkpoint_every)
        for name, value in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.bidirectional = bidirectional
        self.checkpoint_every = checkpoint_every
        self.num_directions = 2 if bidirectional else 1
        self._new_parameters = new_parameters
        with drawing_on(device, dtype):
            parameters = self._all_new_parameters()
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)
        self._kernel = tuple(next(iter(parameters.values())).shape[2:])  # of the first convolution
        if dtype is not None:
            self.to(dtype)

    @abstractmethod
    def _sequence(
        self,
        x: Tensor,
        parameters: dict[str, Tensor | None],
        state: States | None,
        mask: Tensor | None,
        every_state: bool,
    ) -> tuple[States, States]:
        """Runs one recurrence over x (T, B, C, h, w).

        Returns:
            The states of every step, each part (T, B, H, h, w), hidden states first (the other
            parts may be missing unless `every_state`), and the last state.
        """

    def reset_parameters(self) -> None:
        """Draws all weights anew, as when the layer was built."""
        with drawing_on(next(self.parameters()).device):
            redraw(self, self._all_new_parameters())

    def extra_repr(self) -> str:
        """What `print(layer)` shows between the brackets."""
        told = [f"{self.input_size}, {self.hidden_size}", f"kernel_size={self._kernel}"]
        for name, default in (
            ("num_layers", 1),
            ("batch_first", True),
            ("dropout", 0),
            ("recurrent_dropout", 0),
            ("bidirectional", False),
            ("checkpoint_every", 0),
        ):
            if getattr(self, name) != default:
                told.append(f"{name}={getattr(self, name)}")
        return ", ".join(told)

    def _all_new_parameters(self) -> dict[str, nn.Parameter]:
        """Those of every layer and direction, by their names in the module."""
        return {
            name + _suffix(layer, direction): parameter
            for layer in range(self.num_layers)
            for direction in range(self.num_directions)
            for name, parameter in self._new_parameters(self._input_size(layer)).items()
        }

    def _input_size(self, layer: int) -> int:
        return self.input_size if layer == 0 else self.hidden_size * self.num_directions

    def _stack(
        self, x: Tensor, state: States | None, lengths: Lengths | None
    ) -> tuple[Tensor, States]:
        """Runs all layers and directions; shapes as in the layers' `forward`."""
        self._check(x, state)
        unbatched = x.ndim == 4
        if unbatched:
            if lengths is not None:
                raise ValueError("lengths are for a batch; one sequence has its own length")
            x = x.unsqueeze(1)  # (T, 1, C, h, w)
            state = None if state is None else tuple(part.unsqueeze(1) for part in state)
        elif self.batch_first:
            x = x.transpose(0, 1)  # (T, B, C, h, w)
        index = None if lengths is None else _check_lengths(lengths, x)
        if index is not None:
            x = _end(x, index)  # nothing behind an end is read, NaN for one

        last: list[States] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in range(self.num_directions):
                first = None if state is None else tuple(part[len(last)] for part in state)
                output, new = self._run(x, first, layer, direction, index)
                outputs.append(output)
                last.append(new)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        final = tuple(torch.stack(parts) for parts in zip(*last, strict=True))

        if unbatched:
            return x.squeeze(1), tuple(part.squeeze(1) for part in final)
        return (x.transpose(0, 1) if self.batch_first else x), final

    # Opaque to torch.compile (a graph break): the recurrence is one operation, written by hand; a
    # compiler would unroll it into its steps, at the price of minutes.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run(
        self, x: Tensor, state: States | None, layer: int, direction: int, lengths: Tensor | None
    ) -> tuple[Tensor, States]:
        """One layer in one direction over x (T, B, C, h, w)."""
        names = ("weight_ih", "weight_hh", "bias", "bias_hh", "peephole")
        suffix = _suffix(layer, direction)
        parameters = {name: getattr(self, name + suffix, None) for name in names}
        _check_dtype(x, parameters["weight_hh"])
        mask = None
        if self.recurrent_dropout > 0 and self.training:
            ones = x.new_ones(x.shape[1], self.hidden_size, 1, 1)
            mask = F.dropout(ones, self.recurrent_dropout)
        if direction == 1:
            x = _reverse(x, lengths)
        series, last = self._sequence(x, parameters, state, mask, lengths is not None)
        output = series[0]
        if lengths is not None:
            # What comes behind a sequence's end does not reach back: cut it off.
            batch = torch.arange(x.shape[1], device=x.device)
            last = tuple(part[lengths - 1, batch] for part in series)
            output = _end(output, lengths)
        return (_reverse(output, lengths) if direction == 1 else output), last

    def _check(self, x: Tensor, state: States | None) -> None:
        """Compares shapes, as they were given, with what the layer was built for."""
        if isinstance(x, PackedSequence):
            raise TypeError(
                "expected a tensor, got a PackedSequence: pad it (torch.nn.utils.rnn."
                "pad_packed_sequence), and give its lengths as `lengths`"
            )
        require_tensor(x)
        axes = "B, T" if self.batch_first else "T, B"
        time = 1 if x.ndim == 5 and self.batch_first else 0
        empty = x.ndim in (4, 5) and 0 in (x.shape[time], *x.shape[-2:])
        if empty or x.ndim not in (4, 5) or x.shape[-3] != self.input_size:
            raise ValueError(
                f"expected a sequence ({axes}, {self.input_size}, h, w) or (T, {self.input_size}, "
                f"h, w) with T, h and w >= 1, got shape {tuple(x.shape)}"
            )
        if state is None:
            return
        if len(state) != self.state_parts or not all(isinstance(part, Tensor) for part in state):
            kinds = ", ".join(type(part).__name__ for part in state)
            names = ", ".join(STATE_NAMES[: self.state_parts])
            raise ValueError(f"expected a state ({names}) of tensors, got ({kinds})")
        layers = self.num_layers * self.num_directions
        batch = [x.shape[1 - time]] if x.ndim == 5 else []
        expected = (layers, *batch, self.hidden_size, *x.shape[-2:])
        for name, part in zip(STATE_NAMES, state, strict=False):
            if tuple(part.shape) != expected:
                axes = "batch, hidden_size" if batch else "hidden_size"
                raise ValueError(
                    f"expected state {name} of shape {expected} (layers and directions, {axes}, "
                    f"h, w), got {tuple(part.shape)}"
                )


def _suffix(layer: int, direction: int) -> str:
    return f"_l{layer}" + ("_reverse" if direction else "")


def _check_dtype(x: Tensor, weight: Tensor | None) -> None:
    """Autocast brings floats of one kind to another, but leaves float64 alone."""
    assert weight is not None
    if x.dtype == weight.dtype:
        return
    lowered = (
        autocasts(x) and x.is_floating_point() and torch.float64 not in (x.dtype, weight.dtype)
    )
    if not lowered:
        raise ValueError(
            f"expected a sequence of {weight.dtype}, as the weights are, got {x.dtype}"
        )


def _check_lengths(lengths: Lengths, x: Tensor) -> Tensor:
    """Lengths as an int64 tensor (B,) on the device of x (T, B, …)."""
    try:
        # Checked where they are: a GPU would have to be waited for.
        values = lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        values = None
    whole = values is not None and not values.is_floating_point() and values.dtype != torch.bool
    whole |= x.shape[1] == 0  # an empty list has no type
    if values is None or values.shape != x.shape[1:2] or not whole:
        raise ValueError(f"expected {x.shape[1]} whole lengths, one a sequence, got {lengths!r}")
    exporting = torch.compiler.is_exporting()  # the values are those of another day
    if not exporting and ((values < 1) | (values > len(x))).any():
        raise ValueError(f"lengths must be from 1 to T = {len(x)}, got {values.tolist()}")
    return values.to(x.device, torch.int64)


def _end(x: Tensor, lengths: Tensor) -> Tensor:
    """Zero behind the length of each sequence of (T, B, C, h, w)."""
    behind = torch.arange(len(x), device=x.device)[:, None] >= lengths  # (T, B)
    return x.masked_fill(behind[:, :, None, None, None], 0)


def _reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Turns each sequence of (T, B, …) around within its length; what is behind stays."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]  # (T, 1)
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)  # (T, B)
    return x[index, torch.arange(x.shape[1], device=x.device)]
