"""`ConvGRU`, the counterpart of `torch.nn.GRU` for images."""

from torch import Tensor

from convlstm.cells.gru import gru_parameters
from convlstm.layers.base import States
from convlstm.layers.hidden import HiddenStateLayer
from convlstm.sequence import gru_sequence


class ConvGRU(HiddenStateLayer):
    """A multi-layer ConvGRU over sequences of images, used like `torch.nn.GRU`.

    Shapes: B batch, T steps, H `hidden_size`, D directions (2 if bidirectional), L layers.

    Parameters are named and ordered as in `torch.nn.GRU`: `weight_ih_l0` (3H, in, k, k),
    `weight_hh_l0` (3H, H, m, m), `bias_l0` (3H), `bias_hh_l0` (H, the bias inside the reset
    candidate). Further layers have the suffix `_l1`, …, the backward direction `_reverse`. Gates
    are stacked in the order r, z, n.

    In float32 on a CPU, σ and tanh are accurate to 2e-7 (absolute error): scale up signals far
    smaller than 1.

    Args:
        input_size: Channels of the input; 0 for a layer that runs on its state alone (x in
            `forward` then has 0 channels and only gives the number of steps and the frame size).
        hidden_size: Channels of the hidden state.
        kernel_size: Kernel size of the input convolution, int or (height, width), odd or even; also
            used between layers. The frame size is preserved (zero padding).
        num_layers: Number of stacked layers, all with the same hidden size.
        hidden_kernel_size: Kernel size of the hidden convolution; `kernel_size` if None.
        bias: Whether there is a bias.
        batch_first: Whether x and output are (B, T, C, h, w) (the default) or (T, B, C, h, w).
        dropout: Probability, in [0, 1), of zeroing a value between two layers during training.
        recurrent_dropout: Probability, in [0, 1), of zeroing a channel of the hidden state in the
            input of the hidden convolution during training; one mask (B, H, 1, 1) per sequence
            (Gal and Ghahramani 2016, https://arxiv.org/abs/1512.05287).
        bidirectional: Whether a second recurrence reads each sequence backwards.
        checkpoint_every: Length in steps of the segments that are recomputed in the backward pass.
            Only the states that a segment begins with are kept: less memory for a third more
            convolutions. 0 keeps everything.
        device: Device of the parameters; PyTorch's default if None.
        dtype: Floating-point type of the parameters; PyTorch's default if None.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.

    Source: https://arxiv.org/abs/1706.03458, equation 1; see `convlstm.cells.gru`.
    """

    _parameters_of_one = staticmethod(gru_parameters)

    def _sequence(
        self,
        x: Tensor,
        parameters: dict[str, Tensor | None],
        state: States | None,
        mask: Tensor | None,
        every_state: bool,
    ) -> tuple[States, States]:
        weight_hh = parameters["weight_hh"]
        assert weight_hh is not None
        outputs, last = gru_sequence(
            x,
            parameters["weight_ih"],
            weight_hh,
            parameters["bias"],
            parameters["bias_hh"],
            None if state is None else state[0],
            mask=mask,
            checkpoint_every=self.checkpoint_every,
        )
        return (outputs,), (last,)
