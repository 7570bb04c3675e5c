"""One step of the ConvRNN, the convolutional form of the plain (Elman) recurrence.

    h_t = tanh(W_x * x_t + W_h * h_{t-1} + b)

Elman 1990, https://doi.org/10.1207/s15516709cog1402_1

Letters: B batch, H hidden channels, h×w frame.
"""

import torch
from torch import Tensor, nn

from convlstm.cells.base import HiddenStateCell, Kernel, recurrence_parameters
from convlstm.convolution import same_conv2d


def rnn_gates(input_gates: Tensor, hidden_gates: Tensor, h: Tensor) -> Tensor:
    """Turns the finished convolutions W_x * x + b and W_h * h into the new h, as `gru_gates` does.

    All are (B, H, h, w); of the old h itself nothing is needed.
    """
    return torch.tanh(input_gates + hidden_gates)


def rnn_parameters(
    input_size: int,
    hidden_size: int,
    kernel_size: Kernel,
    *,
    hidden_kernel_size: Kernel | None = None,
    bias: bool = True,
) -> dict[str, nn.Parameter]:
    """Fresh parameters of one ConvRNN recurrence: `recurrence_parameters` for one gate.

    Raises:
        ValueError: As `recurrence_parameters`.
    """
    return recurrence_parameters(
        1, input_size, hidden_size, kernel_size, hidden_kernel_size=hidden_kernel_size, bias=bias
    )


class ConvRNNCell(HiddenStateCell):
    """One ConvRNN step on one frame, the counterpart of `torch.nn.RNNCell`.

    Args:
        input_size: Channels of the input frame.
        hidden_size: Channels of the hidden state, H.
        kernel_size: Kernel size of the input convolution, int or (height, width), odd or even.
        hidden_kernel_size: Kernel size of the hidden convolution; `kernel_size` if None.
        bias: Whether there is a bias.
        device: Device of the parameters; PyTorch's default if None.
        dtype: Floating-point type of the parameters; PyTorch's default if None.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.
    """

    _parameters_of_one = staticmethod(rnn_parameters)

    def step(self, input_gates: Tensor, state: Tensor) -> Tensor:
        """Advances the state, given the finished input convolution W_x * x + b, (B, H, h, w).

        Raises:
            ValueError: The state has another shape.
        """
        self.check_state(input_gates, state)
        return rnn_gates(input_gates, same_conv2d(state, self.weight_hh), state)
