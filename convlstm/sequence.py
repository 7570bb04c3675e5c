"""One recurrence over a whole sequence.

What is above this floor hands in the finished input convolution of all steps and gets back all
hidden states. Letters: T steps, B batch, H hidden channels, h×w frame.
"""

import torch
from torch import Tensor

from convlstm.cells import lstm_gates
from convlstm.convolution import same_conv2d


def lstm_sequence(
    input_gates: Tensor,
    weight_hh: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    *,
    peephole: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Runs the ConvLSTM of equation 3 (see `convlstm.cells`) over T steps.

    Args:
        input_gates: W_x * x + b of every step, (T, B, 4H, h, w), in the order i, f, g, o.
        weight_hh: Hidden kernel (4H, H, m, m).
        state: First `(h, c)`, each (B, H, h, w); zero if None, and then the first step costs no
            hidden convolution.
        peephole: (3, H, 1, 1) or (3, H, h, w) in the order i, f, o; None for none.
        mask: Recurrent dropout (B, H, 1, 1), multiplied onto h before each hidden convolution.

    Returns:
        All hidden states (T, B, H, h, w) and the last `(h, c)`.
    """
    outputs = []
    for gates in input_gates.unbind(0):
        if state is None:
            b, h4, height, width = gates.shape
            c = gates.new_zeros(b, h4 // 4, height, width)
        else:
            h, c = state
            gates = gates + same_conv2d(h if mask is None else h * mask, weight_hh)
        state = lstm_gates(gates, c, peephole)
        outputs.append(state[0])
    if state is None:
        raise ValueError("a sequence needs at least one step, got T = 0")
    return torch.stack(outputs), state
