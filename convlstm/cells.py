"""One step of the ConvLSTM, written to be read: the specification that everything faster must meet.

Source: X. Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for Precipitation
Nowcasting", NeurIPS 2015, https://arxiv.org/abs/1506.04214, equation 3:

    i_t = σ(W_xi * x_t + W_hi * h_{t-1} + w_ci ∘ c_{t-1} + b_i)
    f_t = σ(W_xf * x_t + W_hf * h_{t-1} + w_cf ∘ c_{t-1} + b_f)
    c_t = f_t ∘ c_{t-1} + i_t ∘ tanh(W_xg * x_t + W_hg * h_{t-1} + b_g)
    o_t = σ(W_xo * x_t + W_ho * h_{t-1} + w_co ∘ c_t + b_o)
    h_t = o_t ∘ tanh(c_t)

Letters: B batch, H hidden channels, h×w frame. Gates are stacked in the order i, f, g, o.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from convlstm.convolution import fan_in_uniform, kernel_shape, same_conv2d

Peephole = Literal["none", "channel", "full"]


def lstm_gates(gates: Tensor, c: Tensor, peephole: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Turns summed gate inputs and the old cell state into the new state (equation 3).

    Args:
        gates: W_x * x + W_h * h + b before activation, (B, 4H, h, w), in the order i, f, g, o.
        c: Cell state (B, H, h, w).
        peephole: (3, H, 1, 1) or (3, H, h, w) in the order i, f, o; None for none.

    Returns:
        `(h, c)`, each (B, H, h, w).
    """
    i, f, g, o = gates.chunk(4, dim=1)
    if peephole is not None:
        i = i + peephole[0] * c
        f = f + peephole[1] * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if peephole is not None:
        o = o + peephole[2] * c
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_parameters(
    input_size: int,
    hidden_size: int,
    kernel_size: int | tuple[int, int],
    *,
    hidden_kernel_size: int | tuple[int, int] | None = None,
    bias: bool = True,
    peephole: Peephole = "none",
    frame_size: tuple[int, int] | None = None,
) -> dict[str, nn.Parameter]:
    """Fresh parameters of one ConvLSTM recurrence, in the order of `torch.nn.LSTM`.

    Returns:
        `weight_ih` (4H, in, k, k) unless `input_size` is 0, `weight_hh` (4H, H, m, m), `bias` (4H)
        with the forget part at 1, `peephole` (3, H, 1, 1) or (3, H, h, w) at 0.

    Raises:
        ValueError: A size is out of range, or peephole "full" has no frame size.
    """
    if input_size < 0:
        raise ValueError(f"input_size must be >= 0, got {input_size}")
    if hidden_size < 1:
        raise ValueError(f"hidden_size must be >= 1, got {hidden_size}")
    if peephole not in ("none", "channel", "full"):
        raise ValueError(f"peephole must be 'none', 'channel' or 'full', got {peephole!r}")
    if peephole == "full" and frame_size is None:
        raise ValueError("peephole 'full' has a weight for each pixel: give frame_size=(h, w)")
    kernel = kernel_shape(kernel_size, "kernel_size")
    hidden_kernel = kernel_shape(
        kernel if hidden_kernel_size is None else hidden_kernel_size, "hidden_kernel_size"
    )
    parameters = {}
    if input_size > 0:
        parameters["weight_ih"] = fan_in_uniform((4 * hidden_size, input_size, *kernel))
    parameters["weight_hh"] = fan_in_uniform((4 * hidden_size, hidden_size, *hidden_kernel))
    if bias:
        parameters["bias"] = torch.zeros(4 * hidden_size)
        parameters["bias"][hidden_size : 2 * hidden_size] = 1.0
    if peephole == "channel":
        parameters["peephole"] = torch.zeros(3, hidden_size, 1, 1)
    elif frame_size is not None and peephole == "full":
        parameters["peephole"] = torch.zeros(3, hidden_size, *frame_size)
    return {name: nn.Parameter(value) for name, value in parameters.items()}


class ConvLSTMCell(nn.Module):
    """One ConvLSTM step on one frame, the twin of `torch.nn.LSTMCell`.

    Args:
        input_size: Channels of the input frame.
        hidden_size: Channels of the hidden and cell state, H.
        kernel_size: Kernel of the input convolution, int or (height, width), odd or even.
        hidden_kernel_size: Kernel of the hidden convolution; the input's if None.
        bias: Whether the gates have a bias; its forget part starts at 1.
        peephole: "none", "channel" (one weight a channel) or "full" (one a channel and pixel).
        frame_size: (h, w) of the frames; needed by peephole "full" only.

    Raises:
        ValueError: An argument is out of range; the message names value and expectation.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias: nn.Parameter | None
    peephole: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        hidden_kernel_size: int | tuple[int, int] | None = None,
        bias: bool = True,
        peephole: Peephole = "none",
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if input_size < 1:
            raise ValueError(f"input_size must be >= 1, got {input_size}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        parameters = lstm_parameters(
            input_size,
            hidden_size,
            kernel_size,
            hidden_kernel_size=hidden_kernel_size,
            bias=bias,
            peephole=peephole,
            frame_size=frame_size,
        )
        for name in ("weight_ih", "weight_hh", "bias", "peephole"):
            self.register_parameter(name, parameters.get(name))

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advances the state by one frame.

        Args:
            x: Frame (B, input_size, h, w).
            state: `(h, c)`, each (B, H, h, w); zero if None.

        Returns:
            The new `(h, c)`.

        Raises:
            ValueError: The frame has other channels.
        """
        if x.ndim != 4 or x.shape[1] != self.input_size:
            raise ValueError(
                f"expected a frame (B, {self.input_size}, h, w), got shape {tuple(x.shape)}"
            )
        if state is None:
            zero = x.new_zeros(x.shape[0], self.hidden_size, *x.shape[2:])
            state = (zero, zero)
        return self.step(same_conv2d(x, self.weight_ih, self.bias), state)

    def step(self, input_gates: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Advances the state, given the finished input convolution.

        So that any stride, dilation or padding of the input convolution is the caller's.

        Args:
            input_gates: W_x * x + b, (B, 4H, h, w), in the order i, f, g, o.
            state: `(h, c)`, each (B, H, h, w).

        Returns:
            The new `(h, c)`.
        """
        h, c = state
        return lstm_gates(input_gates + same_conv2d(h, self.weight_hh), c, self.peephole)
