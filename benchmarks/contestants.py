"""Who takes part in the comparison: each variant, at a size that makes it comparable.

The convolutional variants get the hidden sizes whose parameter count is nearest to the LSTM's. The
FC-LSTM, whose hidden state would have three numbers then, gets the size that does as many
multiplications instead.
"""

import functools
import math
from bisect import bisect_left
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from convlstm import EncoderForecaster

CONFIGS = Path(__file__).parent.parent / "configs" / "variants"
NAMES = (
    "lstm",
    "gru",
    "rnn",
    "attention",
    "bidirectional",
    "peephole_channel",
    "peephole_full",
    "fc_lstm",
)
TOLERANCE = 0.05  # of parameter counts


def options(name: str) -> dict[str, Any]:
    """The options of a variant's network, but for its hidden sizes."""
    if name == "lstm":
        return {}
    model = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["model"]
    of_training = ("hidden_sizes", "optimizer", "learning_rate", "context_loss")
    return {key: value for key, value in model.items() if key not in of_training}


def network(name: str, hidden_sizes: tuple[int, ...]) -> EncoderForecaster:
    """A variant's network for 64×64 frames."""
    return EncoderForecaster(hidden_sizes=hidden_sizes, **options(name))


@functools.cache
def parameters(name: str, hidden_sizes: tuple[int, ...]) -> int:
    """How many parameters a variant has at these sizes."""
    with torch.device("meta"):
        return sum(p.numel() for p in network(name, hidden_sizes).parameters())


@functools.cache
def macs(name: str, hidden_sizes: tuple[int, ...]) -> int:
    """Multiplications of convolutions and attention in one forecast, ten frames to ten."""
    model, frames = network(name, hidden_sizes), torch.zeros(1, 10, 1, 64, 64)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(frames, 10)
    return counter.get_total_flops() // 2


@functools.cache
def hidden_sizes(name: str, base: int) -> tuple[int, int]:
    """The sizes of a variant's two stages.

    Args:
        name: The variant.
        base: Hidden channels of each of the LSTM's two stages, which the others are measured by.

    Raises:
        ValueError: No sizes come within 5 % of the LSTM's parameters.
    """
    if name == "lstm":
        return base, base
    if name == "fc_lstm":
        sizes = range(16, 4096, 16)
        best = min(sizes, key=lambda size: abs(_fc_macs(size) / macs("lstm", (base, base)) - 1))
        return best, best
    target = parameters("lstm", (base, base))
    pairs = []
    for more in (-2, -1, 0, 1, 2):  # a pair of sizes comes closer than one size for both
        sizes = range(max(1, 1 - more), 4 * base)
        place = bisect_left(sizes, target, key=lambda size: parameters(name, (size, size + more)))
        pairs += [(size, size + more) for size in sizes[max(0, place - 1) : place + 1]]
    best = min(pairs, key=lambda pair: (abs(math.log(parameters(name, pair) / target)), pair))
    if abs(parameters(name, best) / target - 1) > TOLERANCE:
        raise ValueError(f"no sizes of {name} come within {TOLERANCE:.0%} of {target} parameters")
    return best


def _fc_macs(size: int) -> int:
    """Multiplications of a forecast by an FC-LSTM, which uses each weight once a step.

    Ten steps each of encoder and forecaster; the first steps of the encoder have no state yet.
    """
    encoder = 4 * size * (4096 + size) + 4 * size * 2 * size
    forecaster = 4 * size * size + 4 * size * 2 * size + 4096 * size
    return 10 * (encoder + forecaster) - 2 * 4 * size * size
