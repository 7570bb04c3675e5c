"""What a stage of the encoder–forecaster is made of: a recurrence, and maps of another resolution.

Inside of the network time comes first: (T, B, C, h, w).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlstm.cells import Peephole
from convlstm.convolution import convolved
from convlstm.layers import ConvGRU, ConvLSTM, ConvRNN

Cell = Literal["lstm", "gru", "rnn"]
State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c)
Recurrence = ConvLSTM | ConvGRU | ConvRNN

LAYERS: dict[str, type[Recurrence]] = {
    "lstm": ConvLSTM,
    "gru": ConvGRU,
    "rnn": ConvRNN,
}


def recurrence(
    cell: Cell,
    input_size: int,
    hidden_size: int,
    kernel_size: int,
    *,
    hidden_kernel_size: int,
    bidirectional: bool = False,
    checkpoint_every: int = 0,
    peephole: Peephole = "none",
    map_size: tuple[int, int] | None = None,
) -> Recurrence:
    """One layer of the given cell, time first; peephole and map_size count for "lstm" alone."""
    options: dict[str, Any] = {
        "hidden_kernel_size": hidden_kernel_size,
        "batch_first": False,
        "bidirectional": bidirectional,
        "checkpoint_every": checkpoint_every,
    }
    if cell == "lstm":
        options |= {"peephole": peephole, "frame_size": map_size}
    return LAYERS[cell](input_size, hidden_size, kernel_size, **options)


def each(value: int | list[int], hidden_sizes: Sequence[int], name: str) -> list[int]:
    """One int for all stages, or one each, as a list.

    Args:
        value: One int, or as many as there are hidden sizes.
        hidden_sizes: One a stage.
        name: What the value is called in the message.

    Raises:
        ValueError: There are not as many ints as stages, or one is below 1.
    """
    stages = len(hidden_sizes)
    values = [value] * stages if isinstance(value, int) else list(value)
    if len(values) != stages or min(values) < 1:
        raise ValueError(
            f"{name} must be one int >= 1, or one for each of the {stages} stages of hidden_sizes "
            f"{list(hidden_sizes)}, got {value!r}"
        )
    return values


def map_size(
    frame_size: tuple[int, int] | list[int] | None, multiple: int, stride: int
) -> tuple[int, int] | None:
    """Size of a stage's map for a frame padded to a multiple of `multiple` pixels."""
    if frame_size is None:
        return None
    height, width = (-(-size // multiple) * multiple // stride for size in frame_size)
    return height, width


def down(channels: int, factor: int) -> nn.Module:
    """Makes a map `factor` times smaller."""
    if factor == 1:
        return nn.Identity()
    kernel, padding = 2 * factor - 1, factor - 1
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, factor, padding), nn.LeakyReLU(0.2))


def up(channels: int, factor: int) -> nn.Module:
    """Makes a map `factor` times larger: the mirror of `down`."""
    if factor == 1:
        return nn.Identity()
    kernel, padding = 2 * factor - 1, factor - 1
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, kernel, factor, padding, output_padding=padding),
        nn.LeakyReLU(0.2),
    )


def over_time(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a module of single maps to (T, B, C, h, w)."""
    if isinstance(module, nn.Identity):
        return x
    return convolved(module, x.flatten(0, 1)).unflatten(0, x.shape[:2])


def resize(maps: Tensor, size: torch.Size) -> Tensor:
    """(N, C, h, w) at another resolution, bilinear."""
    if maps.shape[2:] == size:
        return maps
    if maps.is_cuda:
        return resize_by_products(maps, size)
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def resize_by_products(maps: Tensor, size: torch.Size) -> Tensor:
    """`resize` as products of matrices.

    On CUDA it takes a fraction of the time of PyTorch's own, which under autocast is float32, and
    whose backward pass adds up pixel by pixel in memory.
    """
    n, c, height, width = maps.shape
    rows = maps.permute(0, 2, 3, 1).reshape(n, height, width * c)
    rows = torch.bmm(_weights(maps, height, size[0]).expand(n, -1, -1), rows)
    pixels = rows.reshape(n * size[0], width, c)
    pixels = torch.bmm(_weights(maps, width, size[1]).expand(pixels.shape[0], -1, -1), pixels)
    return pixels.reshape(n, size[0], size[1], c).permute(0, 3, 1, 2)


def _weights(like: Tensor, old: int, new: int) -> Tensor:
    """How much each of the old points counts for each of the new ones, (1, new, old)."""
    unit = torch.eye(old, dtype=torch.float64, device=like.device)[None]
    weights = F.interpolate(unit, size=new, mode="linear", align_corners=False)
    return weights.transpose(1, 2).to(like.dtype)
