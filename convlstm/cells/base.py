"""What the cells share: the parameters of a recurrence, and the input convolution."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from convlstm.arguments import require_int, require_tensor
from convlstm.convolution import fan_in_uniform, kernel_shape, same_conv2d

Kernel = int | tuple[int, int]
Device = torch.device | str | int | None
NewParameters = Callable[[int], dict[str, nn.Parameter]]  # of one recurrence, from its input's size


def recurrence_parameters(
    gates: int,
    input_size: int,
    hidden_size: int,
    kernel_size: Kernel,
    *,
    hidden_kernel_size: Kernel | None = None,
    bias: bool = True,
) -> dict[str, nn.Parameter]:
    """Fresh parameters of one recurrence, in the order of `torch.nn.LSTM`.

    Args:
        gates: How many gates the recurrence has, G.
        input_size: Channels of the input; 0 for none.
        hidden_size: Channels of the hidden state, H.
        kernel_size: Kernel of the input convolution.
        hidden_kernel_size: Kernel of the hidden convolution; the input's if None.
        bias: Whether there is a bias.

    Returns:
        `weight_ih` (G·H, in, k, k) unless `input_size` is 0, `weight_hh` (G·H, H, m, m), and `bias`
        (G·H) at 0 if wanted.

    Raises:
        ValueError: A size is out of range.
    """
    require_int(0, input_size=input_size)
    require_int(1, hidden_size=hidden_size)
    kernel = kernel_shape(kernel_size, "kernel_size")
    hidden_kernel = kernel_shape(
        kernel if hidden_kernel_size is None else hidden_kernel_size, "hidden_kernel_size"
    )
    parameters = {}
    if input_size > 0:
        parameters["weight_ih"] = fan_in_uniform((gates * hidden_size, input_size, *kernel))
    parameters["weight_hh"] = fan_in_uniform((gates * hidden_size, hidden_size, *hidden_kernel))
    if bias:
        parameters["bias"] = torch.zeros(gates * hidden_size)
    return {name: nn.Parameter(value) for name, value in parameters.items()}


@contextmanager
def drawing_on(device: Device, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Parameters are made on a device, or PyTorch's default if None.

    Raises:
        ValueError: They are to have a type that is not floating-point.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    with nullcontext() if device is None else torch.device(device):
        yield


@torch.no_grad()
def redraw(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Gives parameters of a module, by name, new values; also those parametrized or pruned."""
    for name, value in parameters.items():
        if is_parametrized(module, name):
            setattr(module, name, value.detach().to(getattr(module, name)))
        else:
            pruned = isinstance(getattr(module, f"{name}_orig", None), nn.Parameter)
            module.get_parameter(f"{name}_orig" if pruned else name).copy_(value)


class ConvCell(nn.Module):
    """Base of the cells: holds the parameters and convolves the input.

    Args:
        input_size: Channels of the input frame.
        hidden_size: Channels of the hidden state.
        new_parameters: Draws the parameters.
        names: Names of all that there may be; the cell has None for those that are not there.
        device: Of the parameters; PyTorch's default if None.
        dtype: Of the parameters; PyTorch's default if None.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        new_parameters: NewParameters,
        *names: str,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        require_int(1, input_size=input_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self._new_parameters = new_parameters
        with drawing_on(device, dtype):
            parameters = new_parameters(input_size)
        for name in names:
            self.register_parameter(name, parameters.get(name))
        self._kernel = tuple(parameters["weight_ih"].shape[2:])
        if dtype is not None:
            self.to(dtype)

    def reset_parameters(self) -> None:
        """Draws all weights anew, as when the cell was built."""
        with drawing_on(next(self.parameters()).device):
            redraw(self, self._new_parameters(self.input_size))

    def extra_repr(self) -> str:
        """What `print(cell)` shows between the brackets."""
        return f"{self.input_size}, {self.hidden_size}, kernel_size={self._kernel}"

    def input_gates(self, x: Tensor) -> Tensor:
        """W_x * x + b of a frame (B, input_size, h, w): (B, G·H, h, w).

        Raises:
            TypeError: It is no tensor.
            ValueError: The frame has other channels.
        """
        require_tensor(x)
        if x.ndim != 4 or x.shape[1] != self.input_size:
            raise ValueError(
                f"expected a frame (B, {self.input_size}, h, w), got shape {tuple(x.shape)}"
            )
        return same_conv2d(x, self.weight_ih, self.bias)

    def check_state(self, input_gates: Tensor, *parts: Tensor) -> None:
        """Raises ValueError unless each part, h first, is (B, H, h, w) as the input gates are."""
        batch, _, *frame = input_gates.shape
        expected = (batch, self.hidden_size, *frame)
        for name, part in zip("hc", parts, strict=False):
            if tuple(part.shape) != expected:
                raise ValueError(
                    f"expected state {name} of shape {expected} (batch, hidden_size, h, w), got "
                    f"{tuple(part.shape)}"
                )

    def zero_state(self, x: Tensor) -> Tensor:
        """A zero state (B, H, h, w) for a frame."""
        return x.new_zeros(x.shape[0], self.hidden_size, *x.shape[2:])


class HiddenStateCell(ConvCell):
    """Base of `ConvRNNCell` and `ConvGRUCell`, whose state is the hidden state alone."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: Kernel = 3,
        *,
        hidden_kernel_size: Kernel | None = None,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        new_parameters = partial(
            self._parameters_of_one,
            hidden_size=hidden_size,
            kernel_size=kernel_size,
            hidden_kernel_size=hidden_kernel_size,
            bias=bias,
        )
        names = "weight_ih", "weight_hh", "bias", "bias_hh"
        super().__init__(
            input_size, hidden_size, new_parameters, *names, device=device, dtype=dtype
        )

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
        """Fresh parameters."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """Advances the state by one frame.

        Args:
            x: Frame (B, input_size, h, w).
            state: h (B, H, h, w); zero if None.

        Returns:
            The new h.

        Raises:
            ValueError: The frame has other channels, or the state another shape.
        """
        if not isinstance(state, Tensor | None):
            raise ValueError(f"expected the state as one tensor h, got a {type(state).__name__}")
        return self.step(self.input_gates(x), self.zero_state(x) if state is None else state)

    @abstractmethod
    def step(self, input_gates: Tensor, state: Tensor) -> Tensor:
        """Advances the state, given the finished input convolution.

        Args:
            input_gates: W_x * x + b, (B, G·H, h, w) for G gates.
            state: h, (B, H, h, w).

        Returns:
            The new h.
        """
