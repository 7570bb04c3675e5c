"""`ConvRNN`, the counterpart of `torch.nn.RNN` for images."""

from torch import Tensor

from convlstm.cells.rnn import rnn_parameters
from convlstm.layers.base import States
from convlstm.layers.hidden import HiddenStateLayer
from convlstm.sequence import rnn_sequence


class ConvRNN(HiddenStateLayer):
    """A multi-layer ConvRNN over sequences of images, used like `torch.nn.RNN`.

    Shapes: B batch, T steps, H `hidden_size`, D directions (2 if bidirectional), L layers.

    Parameters are named and ordered as in `torch.nn.RNN`: `weight_ih_l0` (H, in, k, k),
    `weight_hh_l0` (H, H, m, m), `bias_l0` (H). Further layers have the suffix `_l1`, …, the
    backward direction `_reverse`.

    In float32 on a CPU, tanh is accurate to 2e-7 (absolute error): scale up signals far smaller
    than 1.

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
        checkpoint_every: Length in steps of the segments of which the backward pass holds the
            gradients at a time; 0 for all steps. It saves little and nothing is recomputed, as the
            outputs are all that is kept in any case.
        device: Device of the parameters; PyTorch's default if None.
        dtype: Floating-point type of the parameters; PyTorch's default if None.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.

    Source: J. Elman 1990, https://doi.org/10.1207/s15516709cog1402_1; see `convlstm.cells.rnn`.
    """

    _parameters_of_one = staticmethod(rnn_parameters)

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
        outputs, last = rnn_sequence(
            x,
            parameters["weight_ih"],
            weight_hh,
            parameters["bias"],
            None if state is None else state[0],
            mask=mask,
            checkpoint_every=self.checkpoint_every,
        )
        return (outputs,), (last,)
