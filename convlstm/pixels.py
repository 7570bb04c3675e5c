"""Pixels of any kind as floats in [0, 1], and what is compared with what."""

import torch
from torch import Tensor

ROUNDING = 1e-5  # by which floats of other programs may leave [0, 1]
_LARGEST = {torch.uint8: 255.0, torch.uint16: 65535.0}


def to_unit(frames: Tensor) -> Tensor:
    """Turns uint8 (0–255) and uint16 (0–65535) into float32 in [0, 1]; floats pass unchanged.

    Raises:
        ValueError: Another integer type, or bool.
    """
    if frames.is_floating_point():
        return frames
    if frames.dtype not in _LARGEST:
        raise ValueError(f"pixels must be uint8, uint16 or floats in [0, 1], got {frames.dtype}")
    return frames.to(torch.float32) / _LARGEST[frames.dtype]


def check_unit(frames: Tensor) -> None:
    """Raises ValueError unless all values are finite and in [0, 1], but for rounding."""
    if not frames.is_floating_point() or frames.numel() == 0:
        return
    low, high = frames.min().item(), frames.max().item()
    if low != low or high != high:
        raise ValueError("frames hold NaN: every pixel must be a number in [0, 1]")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"pixels must be floats in [0, 1], got values from {low:.6g} to {high:.6g}: scale them "
            "first, or pass uint8 or uint16"
        )


def check_pair(forecast: Tensor, truth: Tensor) -> None:
    """Raises ValueError unless both are floats of one shape (B, T, C, H, W)."""
    if not (forecast.is_floating_point() and truth.is_floating_point()):
        raise ValueError(f"expected floats, got {forecast.dtype} and {truth.dtype}")
    if forecast.shape != truth.shape or forecast.ndim != 5:
        raise ValueError(
            f"forecast and truth must both be (B, T, C, H, W), got {tuple(forecast.shape)} and "
            f"{tuple(truth.shape)}"
        )
