"""One step of each recurrence, written to be read: what everything faster must equal."""

from convlstm.cells.gru import ConvGRUCell
from convlstm.cells.lstm import ConvLSTMCell, Peephole
from convlstm.cells.rnn import ConvRNNCell

__all__ = ["ConvGRUCell", "ConvLSTMCell", "ConvRNNCell", "Peephole"]
