"""`ConvLSTM`, the counterpart of `torch.nn.LSTM` for images."""

from functools import partial

import torch
from torch import Tensor

from convlstm.cells.base import Device, Kernel
from convlstm.cells.lstm import Peephole, lstm_parameters
from convlstm.layers.base import ConvRecurrence, Lengths, States
from convlstm.sequence import lstm_sequence

State = tuple[Tensor, Tensor]


class ConvLSTM(ConvRecurrence):
    """A multi-layer ConvLSTM over sequences of images, used like `torch.nn.LSTM`.

    Shapes: B batch, T steps, H `hidden_size`, D directions (2 if bidirectional), L layers.

    Parameters are named and ordered as in `torch.nn.LSTM`: `weight_ih_l0` (4H, in, k, k),
    `weight_hh_l0` (4H, H, m, m), `bias_l0` (4H, one bias instead of two), `peephole_l0`
    (3, H, 1, 1) or (3, H, h, w). Further layers have the suffix `_l1`, …, the backward direction
    `_reverse`. Gates are stacked in the order i, f, g, o; peepholes i, f, o.

    In float32 on a CPU, σ and tanh are accurate to 2e-7 (absolute error): scale up signals far
    smaller than 1.

    Args:
        input_size: Channels of the input; 0 for a layer that runs on its state alone (x in
            `forward` then has 0 channels and only gives the number of steps and the frame size).
        hidden_size: Channels of the hidden state and of the cell state.
        kernel_size: Kernel size of the input convolution, int or (height, width), odd or even; also
            used between layers. The frame size is preserved (zero padding).
        num_layers: Number of stacked layers, all with the same hidden size.
        hidden_kernel_size: Kernel size of the hidden convolution; `kernel_size` if None.
        bias: Whether the gates have a bias; that of the forget gate is initialized to 1.
        batch_first: Whether x and output are (B, T, C, h, w) (the default) or (T, B, C, h, w).
        dropout: Probability, in [0, 1), of zeroing a value between two layers during training.
        recurrent_dropout: Probability, in [0, 1), of zeroing a channel of the hidden state in the
            input of the hidden convolution during training; one mask (B, H, 1, 1) per sequence
            (Gal and Ghahramani 2016, https://arxiv.org/abs/1512.05287).
        bidirectional: Whether a second recurrence reads each sequence backwards.
        peephole: Whether gates read the cell state: "none", "channel" (one weight per channel, as
            the paper's parameter counts imply) or "full" (one weight per channel and pixel, which
            ties the layer to one frame size).
        frame_size: (h, w) of the frames; required by peephole "full" only.
        checkpoint_every: Length in steps of the segments that are recomputed in the backward pass.
            Only the states that a segment begins with are kept: less memory for a third more
            convolutions. 0 keeps everything.
        device: Device of the parameters; PyTorch's default if None.
        dtype: Floating-point type of the parameters; PyTorch's default if None.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.

    Source: https://arxiv.org/abs/1506.04214, equation 3.
    """

    state_parts = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: Kernel = 3,
        num_layers: int = 1,
        *,
        hidden_kernel_size: Kernel | None = None,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        bidirectional: bool = False,
        peephole: Peephole = "none",
        frame_size: tuple[int, int] | None = None,
        checkpoint_every: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            batch_first=batch_first,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            bidirectional=bidirectional,
            checkpoint_every=checkpoint_every,
            new_parameters=partial(
                lstm_parameters,
                hidden_size=hidden_size,
                kernel_size=kernel_size,
                hidden_kernel_size=hidden_kernel_size,
                bias=bias,
                peephole=peephole,
                frame_size=frame_size,
            ),
            device=device,
            dtype=dtype,
        )
        self.frame_size = tuple(frame_size) if frame_size and peephole == "full" else None

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, State]:
        """Runs the stack over a batch of sequences, or over one.

        Args:
            x: (B, T, input_size, h, w), or (T, B, …) without `batch_first`, or one sequence
                (T, input_size, h, w); T >= 1, any h and w; in the weights' dtype, or under autocast
                in any floating-point dtype but float64.
            state: Initial `(h, c)`, each (L·D, B, H, h, w), or (L·D, H, h, w) for one sequence;
                zero if None.
            lengths: Length of each sequence of the batch, (B,), from 1 to T; T if None. Outputs
                beyond a sequence's length are zero, the returned states are those of its last step,
                and the backward direction starts there.

        Returns:
            The last layer's hidden states (B, T, D·H, h, w), with axes in the order of x and the
            forward direction first, and the final `(h, c)` of every layer and direction, shaped as
            `state`.

        Raises:
            ValueError: x, state or lengths are not what the layer expects.
        """
        if isinstance(state, Tensor):
            raise ValueError("expected the state as a pair (h, c), got one tensor")
        output, (h, c) = self._stack(x, state, lengths)
        return output, (h, c)

    def _sequence(
        self,
        x: Tensor,
        parameters: dict[str, Tensor | None],
        state: States | None,
        mask: Tensor | None,
        every_state: bool,
    ) -> tuple[States, States]:
        if self.frame_size is not None and tuple(x.shape[3:]) != self.frame_size:
            raise ValueError(
                f"peephole 'full' was built for frames of {self.frame_size}, got "
                f"{tuple(x.shape[3:])}"
            )
        weight_hh = parameters["weight_hh"]
        assert weight_hh is not None
        outputs, last, cells = lstm_sequence(
            x,
            parameters["weight_ih"],
            weight_hh,
            parameters["bias"],
            None if state is None else (state[0], state[1]),
            peephole=parameters["peephole"],
            mask=mask,
            all_cells=every_state,
            checkpoint_every=self.checkpoint_every,
        )
        return (outputs,) if cells is None else (outputs, cells), last
