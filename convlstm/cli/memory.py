"""Whether a forecast fits in memory."""

import os

import torch
from torch import Tensor

from convlstm.forecaster import EncoderForecaster

ADVICE = "give --resize HEIGHTxWIDTH, fewer --steps or a smaller --context"


def check_memory(network: EncoderForecaster, frames: int, size: tuple[int, int]) -> None:
    """Refuses a forecast for which this machine certainly has not enough memory.

    A system may promise more memory than it has, and then end a program that uses it without a
    word.

    Args:
        network: What forecasts, on the CPU.
        frames: How many it reads, or forecasts, at once.
        size: (height, width) of the frames in pixels.

    Raises:
        ValueError: The hidden states of one layer alone are larger than the memory.
    """
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return  # Windows makes no such promises
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    height, width = (-(-side // network.multiple) for side in size)  # of the smallest map
    weight = network.encoder[-1].weight_hh_l0  # (gates, H, m, m)
    assert isinstance(weight, Tensor)
    needed = frames * height * width * weight.shape[1] * weight.element_size()
    if needed > memory:
        raise ValueError(
            f"{frames} frames of {size[0]} x {size[1]} pixels need more than "
            f"{needed / 2**30:.0f} GiB of memory, this machine has {memory / 2**30:.0f}: {ADVICE}"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no memory left; it may be called by many names."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator raises nothing more particular than RuntimeError; on Windows the latter.
    told = "can't allocate memory", "DefaultCPUAllocator: not enough memory"
    return isinstance(error, RuntimeError) and any(text in str(error) for text in told)
