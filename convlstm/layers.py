"""`ConvLSTM`: a stack of ConvLSTM recurrences over time, the twin of `torch.nn.LSTM` for images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlstm.cells import Peephole, lstm_parameters
from convlstm.sequence import lstm_sequence

State = tuple[Tensor, Tensor]


class ConvLSTM(nn.Module):
    """A multi-layer ConvLSTM over sequences of images, used like `torch.nn.LSTM`.

    Shapes: B batch, T steps, H `hidden_size`, D directions (2 if bidirectional), L layers.

    Parameters are named and ordered as in `torch.nn.LSTM`: `weight_ih_l0` (4H, in, k, k),
    `weight_hh_l0` (4H, H, m, m), `bias_l0` (4H, one bias instead of two), `peephole_l0`
    (3, H, 1, 1) or (3, H, h, w); layers `_l1`, …, the backward direction `_reverse`. Gates are
    stacked i, f, g, o; peepholes i, f, o.

    Args:
        input_size: Channels of the input; 0 for a layer that runs on its state alone (the x of
            `forward` then has 0 channels and only says how many steps, and how large).
        hidden_size: Channels of the hidden and of the cell state.
        kernel_size: Kernel of the input convolution, int or (height, width), odd or even; it also
            serves between layers. Frames keep their size (zero padding).
        num_layers: Layers in the stack, all of one hidden size.
        hidden_kernel_size: Kernel of the hidden convolution; `kernel_size` if None.
        bias: Whether the gates have a bias; its forget part starts at 1.
        batch_first: Whether x and output are (B, T, C, h, w) (the default) or (T, B, C, h, w).
        dropout: Probability that a value between two layers is zeroed in training, in [0, 1).
        recurrent_dropout: Probability that a channel of the hidden state is hidden from the hidden
            convolution, one mask (B, H, 1, 1) for a whole sequence, in training, in [0, 1).
        bidirectional: Whether a second recurrence reads each sequence backwards.
        peephole: Whether gates see the cell state: "none", "channel" (one weight a channel, as the
            parameter counts of the paper imply) or "full" (one a channel and pixel: ties the
            layer to one frame size).
        frame_size: (h, w) of the frames; needed by peephole "full" only.

    Raises:
        ValueError: An argument is out of range; the message names value and expectation.

    Source: https://arxiv.org/abs/1506.04214, equation 3.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int | tuple[int, int] = 3,
        num_layers: int = 1,
        *,
        hidden_kernel_size: int | tuple[int, int] | None = None,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        bidirectional: bool = False,
        peephole: Peephole = "none",
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be >= 1, got {num_layers}")
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
        self.frame_size = tuple(frame_size) if frame_size and peephole == "full" else None
        self.num_directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            for direction in range(self.num_directions):
                parameters = lstm_parameters(
                    input_size if layer == 0 else hidden_size * self.num_directions,
                    hidden_size,
                    kernel_size,
                    hidden_kernel_size=hidden_kernel_size,
                    bias=bias,
                    peephole=peephole,
                    frame_size=frame_size,
                )
                for name, parameter in parameters.items():
                    self.register_parameter(name + _suffix(layer, direction), parameter)

    def extra_repr(self) -> str:
        """What `print(layer)` shows between the brackets."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"bidirectional={self.bidirectional}"
        )

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs the stack over a batch of sequences, or over one.

        Args:
            x: (B, T, input_size, h, w), or (T, B, …) without `batch_first`, or one sequence
                (T, input_size, h, w); T >= 1, any h and w.
            state: First `(h, c)`, each (L·D, B, H, h, w), or (L·D, H, h, w) for one sequence; zero
                if None.

        Returns:
            The last layer's hidden states (B, T, D·H, h, w), in x's order of axes, forward
            direction first, and the last `(h, c)` of every layer and direction, shaped as `state`.

        Raises:
            ValueError: x or state has another shape than the layer expects.
        """
        unbatched = x.ndim == 4
        if unbatched:
            x = x.unsqueeze(1)  # (T, 1, C, h, w)
            if state is not None:
                state = (state[0].unsqueeze(1), state[1].unsqueeze(1))
        elif self.batch_first and x.ndim == 5:
            x = x.transpose(0, 1)  # (T, B, C, h, w)
        self._check(x, state)

        last: list[State] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in range(self.num_directions):
                first = None if state is None else (state[0][len(last)], state[1][len(last)])
                output, new = self._run(x, first, layer, direction)
                outputs.append(output)
                last.append(new)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        h, c = (torch.stack(parts) for parts in zip(*last, strict=True))

        if unbatched:
            return x.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return (x.transpose(0, 1) if self.batch_first else x), (h, c)

    def _run(
        self, x: Tensor, state: State | None, layer: int, direction: int
    ) -> tuple[Tensor, State]:
        """One layer in one direction over x (T, B, C, h, w)."""
        suffix = _suffix(layer, direction)
        weight_ih, bias, peephole = (
            getattr(self, name + suffix, None) for name in ("weight_ih", "bias", "peephole")
        )
        weight_hh: Tensor = getattr(self, "weight_hh" + suffix)
        mask = None
        if self.recurrent_dropout > 0 and self.training:
            ones = x.new_ones(x.shape[1], self.hidden_size, 1, 1)
            mask = F.dropout(ones, self.recurrent_dropout)
        if direction == 1:
            x = x.flip(0)
        output, state = lstm_sequence(
            x, weight_ih, weight_hh, bias, state, peephole=peephole, mask=mask
        )
        return (output.flip(0) if direction == 1 else output), state

    def _check(self, x: Tensor, state: State | None) -> None:
        """Compares shapes with what the layer was built for; x is (T, B, C, h, w) by now."""
        if x.ndim != 5 or x.shape[2] != self.input_size or x.shape[0] < 1:
            raise ValueError(
                f"expected a sequence (B, T, {self.input_size}, h, w) or (T, {self.input_size}, "
                f"h, w) with T >= 1; got, time first, shape {tuple(x.shape)}"
            )
        if self.frame_size is not None and tuple(x.shape[3:]) != self.frame_size:
            raise ValueError(
                f"peephole 'full' was built for frames of {self.frame_size}, got "
                f"{tuple(x.shape[3:])}"
            )
        if state is None:
            return
        layers = self.num_layers * self.num_directions
        expected = (layers, x.shape[1], self.hidden_size, *x.shape[3:])
        for name, part in zip("hc", state, strict=True):
            if tuple(part.shape) != expected:
                raise ValueError(
                    f"expected state {name} of shape {expected} (layers and directions, batch, "
                    f"hidden_size, h, w), got {tuple(part.shape)}"
                )


def _suffix(layer: int, direction: int) -> str:
    return f"_l{layer}" + ("_reverse" if direction else "")
