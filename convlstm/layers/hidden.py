"""The layers whose state is the hidden state alone: `ConvRNN` and `ConvGRU`."""

from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor, nn

from convlstm.cells.base import Device, Kernel
from convlstm.layers.base import ConvRecurrence, Lengths


class HiddenStateLayer(ConvRecurrence):
    """Base of `ConvRNN` and `ConvGRU`, which document the arguments."""

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
                self._parameters_of_one,
                hidden_size=hidden_size,
                kernel_size=kernel_size,
                hidden_kernel_size=hidden_kernel_size,
                bias=bias,
            ),
            device=device,
            dtype=dtype,
        )

    def forward(
        self, x: Tensor, state: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the stack over a batch of sequences, or over one.

        Args:
            x: (B, T, input_size, h, w), or (T, B, …) without `batch_first`, or one sequence
                (T, input_size, h, w); T >= 1, any h and w; in the weights' dtype, or under autocast
                in any floating-point dtype but float64.
            state: Initial h (L·D, B, H, h, w), or (L·D, H, h, w) for one sequence; zero if None.
            lengths: Length of each sequence of the batch, (B,), from 1 to T; T if None. Outputs
                beyond a sequence's length are zero, the returned states are those of its last step,
                and the backward direction starts there.

        Returns:
            The last layer's hidden states (B, T, D·H, h, w), with axes in the order of x and the
            forward direction first, and the final h of every layer and direction, shaped as
            `state`.

        Raises:
            ValueError: x, state or lengths are not what the layer expects.
        """
        if not isinstance(state, Tensor | None):
            raise ValueError(f"expected the state as one tensor h, got a {type(state).__name__}")
        output, (h,) = self._stack(x, None if state is None else (state,), lengths)
        return output, h

    @staticmethod
    @abstractmethod
    def _parameters_of_one(
        input_size: int,
        hidden_size: int,
        kernel_size: Kernel,
        *,
        hidden_kernel_size: Kernel | None,
        bias: bool,
    ) -> dict[str, nn.Parameter]:
        """Fresh parameters of one layer in one direction."""
