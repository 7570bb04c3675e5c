"""One step of the ConvGRU.

Source: X. Shi et al., "Deep Learning for Precipitation Nowcasting: A Benchmark and a New Model",
NeurIPS 2017, https://arxiv.org/abs/1706.03458, equation 1, with tanh; as in `torch.nn.GRU`, the
reset gate acts behind the hidden convolution:

    r_t = σ(W_xr * x_t + W_hr * h_{t-1} + b_r)
    z_t = σ(W_xz * x_t + W_hz * h_{t-1} + b_z)
    n_t = tanh(W_xn * x_t + b_n + r_t ∘ (W_hn * h_{t-1} + b_hn))
    h_t = (1 - z_t) ∘ n_t + z_t ∘ h_{t-1}

Letters: B batch, H hidden channels, h×w frame. Gates are stacked in the order r, z, n.
"""

import torch
from torch import Tensor, nn

from convlstm.cells.base import HiddenStateCell, Kernel, recurrence_parameters
from convlstm.convolution import same_conv2d


def gru_gates(
    input_gates: Tensor, hidden_gates: Tensor, h: Tensor, bias_hh: Tensor | None = None
) -> Tensor:
    """Turns the finished convolutions and the old hidden state into the new one.

    Args:
        input_gates: W_x * x + b, (B, 3H, h, w), in the order r, z, n.
        hidden_gates: W_h * h, likewise.
        h: Hidden state (B, H, h, w).
        bias_hh: (H,), the bias inside of the reset candidate, or None.

    Returns:
        The new h (B, H, h, w).
    """
    x_r, x_z, x_n = input_gates.chunk(3, dim=1)
    h_r, h_z, h_n = hidden_gates.chunk(3, dim=1)
    if bias_hh is not None:
        h_n = h_n + bias_hh.view(-1, 1, 1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def gru_parameters(
    input_size: int,
    hidden_size: int,
    kernel_size: Kernel,
    *,
    hidden_kernel_size: Kernel | None = None,
    bias: bool = True,
) -> dict[str, nn.Parameter]:
    """Fresh parameters of one ConvGRU recurrence.

    Returns:
        Those of `recurrence_parameters` for 3 gates, and `bias_hh` (H) at 0, the bias inside of the
        reset candidate, if a bias is wanted.

    Raises:
        ValueError: A size is out of range.
    """
    parameters = recurrence_parameters(
        3, input_size, hidden_size, kernel_size, hidden_kernel_size=hidden_kernel_size, bias=bias
    )
    if bias:
        parameters["bias_hh"] = nn.Parameter(torch.zeros(hidden_size))
    return parameters


class ConvGRUCell(HiddenStateCell):
    """One ConvGRU step on one frame, the counterpart of `torch.nn.GRUCell`.

    Args:
        input_size: Channels of the input frame.
        hidden_size: Channels of the hidden state, H.
        kernel_size: Kernel size of the input convolution, int or (height, width), odd or even.
        hidden_kernel_size: Kernel size of the hidden convolution; `kernel_size` if None.
        bias: Whether the gates have a bias.
        device: Device of the parameters; PyTorch's default if None.
        dtype: Floating-point type of the parameters; PyTorch's default if None.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.
    """

    bias_hh: nn.Parameter | None
    _parameters_of_one = staticmethod(gru_parameters)

    def step(self, input_gates: Tensor, state: Tensor) -> Tensor:
        """Advances the state, given the finished input convolution.

        Args:
            input_gates: W_x * x + b, (B, 3H, h, w), in the order r, z, n.
            state: h (B, H, h, w).

        Returns:
            The new h.

        Raises:
            ValueError: The state has another shape.
        """
        self.check_state(input_gates, state)
        return gru_gates(input_gates, same_conv2d(state, self.weight_hh), state, self.bias_hh)
