"""One recurrence over a whole sequence, as one differentiable operation.

Each computes what `convlstm.cells` specifies, step by step, with less work: the input convolution
of many steps in one call, no hidden convolution of a state known to be zero, gates kept for a
backward pass alone and overwritten there by their gradients, the gradients of both kernels in one
call each over all steps, and frames with channels last inside. With `checkpoint_every` the backward
pass computes the gates again, a segment at a time. There is no second derivative. `torch.export`
gets the steps one by one.

Under autocast convolutions, gates and hidden states have its dtype; cell states stay float32.
"""

from convlstm.sequence.gru import gru_sequence
from convlstm.sequence.lstm import lstm_sequence
from convlstm.sequence.rnn import rnn_sequence

__all__ = ["gru_sequence", "lstm_sequence", "rnn_sequence"]
