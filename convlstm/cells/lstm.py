"""One step of the ConvLSTM.

Source: X. Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for Precipitation
Nowcasting", NeurIPS 2015, https://arxiv.org/abs/1506.04214, equation 3:

    i_t = σ(W_xi * x_t + W_hi * h_{t-1} + w_ci ∘ c_{t-1} + b_i)
    f_t = σ(W_xf * x_t + W_hf * h_{t-1} + w_cf ∘ c_{t-1} + b_f)
    c_t = f_t ∘ c_{t-1} + i_t ∘ tanh(W_xg * x_t + W_hg * h_{t-1} + b_g)
    o_t = σ(W_xo * x_t + W_ho * h_{t-1} + w_co ∘ c_t + b_o)
    h_t = o_t ∘ tanh(c_t)

Letters: B batch, H hidden channels, h×w frame. Gates are stacked in the order i, f, g, o.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from convlstm.arguments import are_sizes
from convlstm.cells.base import ConvCell, Device, Kernel, recurrence_parameters
from convlstm.convolution import same_conv2d

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
    kernel_size: Kernel,
    *,
    hidden_kernel_size: Kernel | None = None,
    bias: bool = True,
    peephole: Peephole = "none",
    frame_size: tuple[int, int] | None = None,
) -> dict[str, nn.Parameter]:
    """Fresh parameters of one ConvLSTM recurrence, in the order of `torch.nn.LSTM`.

    Returns:
        Those of `recurrence_parameters` for 4 gates, the forget part of the bias at 1, and
        `peephole` (3, H, 1, 1) or (3, H, h, w) at 0 if wanted.

    Raises:
        ValueError: A size is out of range, or peephole "full" has no frame size.
    """
    if peephole not in ("none", "channel", "full"):
        raise ValueError(f"peephole must be 'none', 'channel' or 'full', got {peephole!r}")
    if peephole == "full" and frame_size is None:
        raise ValueError("peephole 'full' has a weight for each pixel: give frame_size=(h, w)")
    if frame_size is not None and not are_sizes(frame_size, 2):
        raise ValueError(f"frame_size must be (h, w), both >= 1, got {frame_size!r}")
    parameters = recurrence_parameters(
        4, input_size, hidden_size, kernel_size, hidden_kernel_size=hidden_kernel_size, bias=bias
    )
    if bias:
        parameters["bias"].data[hidden_size : 2 * hidden_size] = 1.0
    if peephole == "channel":
        parameters["peephole"] = nn.Parameter(torch.zeros(3, hidden_size, 1, 1))
    elif frame_size is not None and peephole == "full":
        parameters["peephole"] = nn.Parameter(torch.zeros(3, hidden_size, *frame_size))
    return parameters


class ConvLSTMCell(ConvCell):
    """One ConvLSTM step on one frame, the counterpart of `torch.nn.LSTMCell`.

    Args:
        input_size: Channels of the input frame.
        hidden_size: Channels of the hidden and cell state, H.
        kernel_size: Kernel size of the input convolution, int or (height, width), odd or even.
        hidden_kernel_size: Kernel size of the hidden convolution; `kernel_size` if None.
        bias: Whether the gates have a bias; that of the forget gate is initialized to 1.
        peephole: "none", "channel" (one weight per channel) or "full" (one per channel and pixel).
        frame_size: (h, w) of the frames; required by peephole "full" only.
        device: Device of the parameters; PyTorch's default if None.
        dtype: Floating-point type of the parameters; PyTorch's default if None.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.
    """

    peephole: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: Kernel = 3,
        *,
        hidden_kernel_size: Kernel | None = None,
        bias: bool = True,
        peephole: Peephole = "none",
        frame_size: tuple[int, int] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        new_parameters = partial(
            lstm_parameters,
            hidden_size=hidden_size,
            kernel_size=kernel_size,
            hidden_kernel_size=hidden_kernel_size,
            bias=bias,
            peephole=peephole,
            frame_size=frame_size,
        )
        names = "weight_ih", "weight_hh", "bias", "peephole"
        super().__init__(
            input_size, hidden_size, new_parameters, *names, device=device, dtype=dtype
        )

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
            ValueError: The frame has other channels, or not the size of peephole "full", or the
                state is not a pair, or of another shape.
        """
        gates = self.input_gates(x)
        return self.step(
            gates, (self.zero_state(x), self.zero_state(x)) if state is None else state
        )

    def step(self, input_gates: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Advances the state, given the finished input convolution.

        So that any stride, dilation or padding of the input convolution is the caller's.

        Args:
            input_gates: W_x * x + b, (B, 4H, h, w), in the order i, f, g, o.
            state: `(h, c)`, each (B, H, h, w).

        Returns:
            The new `(h, c)`.

        Raises:
            ValueError: Peephole "full" was built for frames of another size, or the state is not a
                pair, or of another shape.
        """
        if isinstance(state, Tensor) or len(state) != 2:
            raise ValueError("expected the state as a pair (h, c)")
        h, c = state
        self.check_state(input_gates, h, c)
        if self.peephole is not None and self.peephole.shape[2:] not in ((1, 1), c.shape[2:]):
            raise ValueError(
                f"peephole 'full' was built for frames of {tuple(self.peephole.shape[2:])}, got "
                f"{tuple(c.shape[2:])}"
            )
        return lstm_gates(input_gates + same_conv2d(h, self.weight_hh), c, self.peephole)
