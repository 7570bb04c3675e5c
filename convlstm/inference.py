"""Forecasts of arrays and tensors: whole clips at once, or a stream, frame by frame."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convlstm.forecaster import Carry, EncoderForecaster
from convlstm.pixels import check_unit, to_unit

Pixels = TypeVar("Pixels", Tensor, NDArray[Any])

_modes_lock = threading.Lock()
# Networks that forecast right now: in how many threads, and the modes that their modules had.
_forecasting: dict[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = {}


@dataclass(frozen=True)
class StreamState(Generic[Pixels]):
    """Where a stream stands. Its size does not depend on how many frames went by.

    (With attention it does: the forecaster looks back at all frames observed.)

    It is never changed: each call makes a new one, so that one can go on twice from the same.

    Attributes:
        seen: What the encoder carries on from the frames observed.
        ahead: What the forecaster carries on from the frames forecast since then.
        batched: Whether these are several streams that go side by side.
        device: Where forecasts are put; None for NumPy arrays.
    """

    seen: Carry
    ahead: Carry
    batched: bool
    device: torch.device | None


class Inference:
    """Gives a module with a `network` the methods that forecast.

    Frames are arrays or tensors, (T, C, H, W), or (B, T, C, H, W) for a batch: uint8, uint16 or
    floats in [0, 1]. Forecasts are float32 in [0, 1], arrays for arrays, and for tensors tensors on
    the same device. Nothing has a gradient, no truth and no Trainer is needed, and the module's
    mode (train or eval) is left as it was.
    """

    network: EncoderForecaster

    @torch.no_grad()
    def forecast(self, frames: Pixels | StreamState[Pixels], steps: int = 10) -> Pixels:
        """Continues a clip, a batch of clips, or a stream from where it stands.

        Args:
            frames: The context, (T, C, H, W) or (B, T, C, H, W), T >= 1; or what `begin`,
                `observe` or `step` returned, which stays as it is.
            steps: Frames to forecast, >= 1.

        Returns:
            The frames that follow, (steps, C, H, W) or (B, steps, C, H, W), float32 in [0, 1].

        Raises:
            TypeError: The frames are neither an array nor a tensor.
            ValueError: Another shape or type of pixels, values outside [0, 1], or NaN; fewer
                than one step.
        """
        with self._evaluating():
            if isinstance(frames, StreamState):
                future, _ = self.network.unroll(frames.ahead, steps)
                return _give_back(future, frames)
            pixels = _tensor(frames)
            future = self.network(self._take(pixels), steps)
            return cast(Pixels, _give(future, pixels.ndim == 5, _device(frames)))

    @torch.no_grad()
    def begin(self, frames: Pixels) -> StreamState[Pixels]:
        """Begins a stream with its first frames.

        Args:
            frames: The first frames, (T, C, H, W), or (B, T, C, H, W) for B streams side by side.

        Returns:
            The state, for `observe`, `step` and `forecast`.

        Raises:
            TypeError: The frames are neither an array nor a tensor.
            ValueError: Another shape or type of pixels, values outside [0, 1], or NaN.
        """
        pixels = _tensor(frames)
        with self._evaluating():
            seen = self.network.encode(self._take(pixels))
        return StreamState(seen, seen, pixels.ndim == 5, _device(frames))

    @torch.no_grad()
    def observe(self, state: StreamState[Pixels], frames: Pixels) -> StreamState[Pixels]:
        """Takes in what the camera saw next, at the same cost for each frame.

        The frames follow those observed before, however many were forecast meanwhile: forecasts
        go on from the last frame observed. Where the camera missed a frame, one forecast by `step`
        may be given in its place.

        Args:
            state: Where the stream stands.
            frames: One frame (C, H, W) or several (T, C, H, W); with a B axis in front as in
                `begin`.

        Returns:
            The new state, equal to that of `begin` with all frames observed so far.

        Raises:
            TypeError: The frames are neither an array nor a tensor, or the state is none.
            ValueError: As `begin`; the frames have another size than before; or the encoder cannot
                read on, as it needs the whole context at once.
        """
        _require_state(state)
        pixels = _tensor(frames)
        axes, channels = (4 if state.batched else 3), self.network.channels
        if pixels.ndim not in (axes, axes + 1) or pixels.shape[-3] != channels:
            frame = f"{'B, ' if state.batched else ''}{channels}, H, W"
            raise ValueError(
                f"expected a frame ({frame}), or several with a T axis before the channels, as the "
                f"stream began, got shape {tuple(pixels.shape)}"
            )
        if pixels.ndim == axes:
            pixels = pixels.unsqueeze(-4)
        with self._evaluating():
            seen = self.network.encode(self._take(pixels), state.seen)
        return replace(state, seen=seen, ahead=seen)

    @torch.no_grad()
    def step(self, state: StreamState[Pixels]) -> tuple[Pixels, StreamState[Pixels]]:
        """Forecasts the next frame, and the one after it when called with the new state, and so on.

        Args:
            state: Where the stream stands.

        Returns:
            The frame, (C, H, W) or (B, C, H, W), float32 in [0, 1], and the state after it.

        Raises:
            TypeError: It is no state.
        """
        _require_state(state)
        with self._evaluating():
            future, ahead = self.network.unroll(state.ahead, 1)
        clip = _give_back(future, state)
        return clip[:, 0] if state.batched else clip[0], replace(state, ahead=ahead)

    def _take(self, pixels: Tensor) -> Tensor:
        """A clip or a batch as the network reads it, (B, T, C, H, W)."""
        batch = pixels.unsqueeze(0) if pixels.ndim == 4 else pixels
        channels = self.network.channels
        if batch.ndim != 5 or batch.shape[2] != channels or 0 in batch.shape[1:]:
            raise ValueError(
                f"expected a clip (T, {channels}, H, W), all sides and T >= 1, or a batch of "
                f"them, got shape {tuple(pixels.shape)}"
            )
        check_unit(batch)
        weight = next(self.network.parameters())
        return to_unit(batch.to(weight.device)).to(weight.dtype)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        network = self.network
        with _modes_lock:
            threads, modes = _forecasting.get(network, (0, []))
            if threads == 0:
                modes = [(module, module.training) for module in network.modules()]
                network.eval()
            _forecasting[network] = threads + 1, modes
        try:
            yield
        finally:
            with _modes_lock:
                threads, modes = _forecasting.pop(network)
                if threads > 1:
                    _forecasting[network] = threads - 1, modes
                else:
                    for module, training in modes:
                        module.training = training


def _require_state(state: Any) -> None:
    if not isinstance(state, StreamState):
        raise TypeError(
            f"expected the state of a stream, which begin() returns, got a {type(state).__name__}"
        )


def _tensor(frames: Any) -> Tensor:
    if isinstance(frames, Tensor):
        return frames
    if not isinstance(frames, np.ndarray):
        raise TypeError(f"frames must be an array or a tensor, got {type(frames).__name__}")
    if np.ma.is_masked(frames):
        raise ValueError("some pixels are masked: give them values first, such as frames.filled(0)")
    try:  # a copy in this machine's byte order, which may be written to
        return torch.from_numpy(np.array(frames, frames.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise ValueError(
            f"pixels must be uint8, uint16 or floats in [0, 1], got {frames.dtype}"
        ) from error


def _device(frames: Any) -> torch.device | None:
    return frames.device if isinstance(frames, Tensor) else None


def _give_back(future: Tensor, state: StreamState[Pixels]) -> Pixels:
    return cast(Pixels, _give(future, state.batched, state.device))


def _give(future: Tensor, batched: bool, device: torch.device | None) -> Tensor | NDArray[Any]:
    """Forecasts (B, T, C, H, W) in the shape and kind of what was taken."""
    future = future.float().clamp(0, 1)
    clip = future if batched else future.squeeze(0)
    return clip.cpu().numpy() if device is None else clip.to(device)
