"""Layers over time: the counterparts of `torch.nn.RNN`, `nn.GRU` and `nn.LSTM` for images."""

from convlstm.layers.gru import ConvGRU
from convlstm.layers.lstm import ConvLSTM
from convlstm.layers.rnn import ConvRNN

__all__ = ["ConvGRU", "ConvLSTM", "ConvRNN"]
