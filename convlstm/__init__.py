"""Video prediction: ConvLSTM layers, an encoder-forecaster, training and forecasts.

Public names are imported on first use, so that using only the layers does not import Lightning.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlstm.cells import ConvGRUCell, ConvLSTMCell, ConvRNNCell
    from convlstm.forecaster import EncoderForecaster
    from convlstm.layers import ConvGRU, ConvLSTM, ConvRNN
    from convlstm.module import VideoPredictor, load
    from convlstm.render import save_gif, save_mp4, save_strip

_HOMES = {
    "ConvGRU": "layers",
    "ConvGRUCell": "cells",
    "ConvLSTM": "layers",
    "ConvLSTMCell": "cells",
    "ConvRNN": "layers",
    "ConvRNNCell": "cells",
    "EncoderForecaster": "forecaster",
    "VideoPredictor": "module",
    "load": "module",
    "save_gif": "render",
    "save_mp4": "render",
    "save_strip": "render",
}

__version__ = version("convlstm")
__all__ = [
    "ConvGRU",
    "ConvGRUCell",
    "ConvLSTM",
    "ConvLSTMCell",
    "ConvRNN",
    "ConvRNNCell",
    "EncoderForecaster",
    "VideoPredictor",
    "load",
    "save_gif",
    "save_mp4",
    "save_strip",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convlstm' has no attribute {name!r}")
    return getattr(import_module(f"convlstm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
