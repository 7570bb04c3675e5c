"""A forecast beside what really followed."""

from dataclasses import dataclass

from torch import Tensor

from convlstm.metrics import ForecastMetrics
from convlstm.pixels import to_unit


@dataclass(frozen=True)
class Comparison:
    """The truth, and the metrics of the forecast and of repeating the last frame.

    Attributes:
        truth: (T, C, H, W).
        model: `ForecastMetrics.summary()` over the T lead times whose truth is known.
        last_frame: The same of the last context frame, repeated.
    """

    truth: Tensor
    model: dict[str, Tensor]
    last_frame: dict[str, Tensor]


def compare(context: Tensor, forecast: Tensor, truth: Tensor) -> Comparison:
    """Compares.

    Args:
        context: (T, C, H, W), as are the others; uint8, uint16 or floats in [0, 1].
        forecast: As it is written, in [0, 1].
        truth: At least one frame, and no more than the forecast has.
    """
    frames = to_unit(truth)[None]
    model, last_frame = ForecastMetrics(), ForecastMetrics()
    model.update(forecast[None, : len(truth)], frames)
    last_frame.update(to_unit(context)[None, -1:].expand_as(frames), frames)
    return Comparison(truth, model.summary(), last_frame.summary())
