"""The encoder–forecaster network: reads a context, hands its states over, unrolls what comes next.

Source: X. Shi et al. 2015, https://arxiv.org/abs/1506.04214, section 3.2 and figure 3. Stages with
their own resolution follow X. Shi et al. 2017, https://arxiv.org/abs/1706.03458, section 3.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlstm.cells import Peephole
from convlstm.layers import ConvGRU, ConvLSTM, ConvRNN
from convlstm.patches import from_patches, to_patches

Cell = Literal["lstm", "gru", "rnn"]
Feedback = Literal["unconditional", "autoregressive"]
Output = Literal["linear", "sigmoid"]
State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c)


class Carry(NamedTuple):
    """What the network carries from the frames that it has read or forecast to the next ones.

    Attributes:
        states: The recurrences' states, stage by stage; a part is (1, B, hidden, h, w).
        last: The newest frame, in padded patches: (1, B, p·p·C, h, w). What the autoregressive
            forecaster reads next.
        size: (H, W) of the frames in pixels, before they are padded.
    """

    states: list[State]
    last: Tensor
    size: tuple[int, int]


LAYERS: dict[str, type[ConvLSTM | ConvGRU | ConvRNN]] = {
    "lstm": ConvLSTM,
    "gru": ConvGRU,
    "rnn": ConvRNN,
}


class EncoderForecaster(nn.Module):
    """Continues a video by any number of frames.

    Frames are cut into patches (space-to-depth). The encoder is a stack of stages, each an optional
    strided convolution and one recurrence; its states after the context are the first states of the
    forecaster, stage by stage. The forecaster runs either

    - `unconditional` (the paper's): without input, from the last stage back to the first, each
      stage reading the hidden states of the one before, upsampled; or
    - `autoregressive`: from the first stage to the last, reading the frame it forecast last (at
      first the last frame of the context).

    Each frame is a 1×1 convolution over the hidden states of all forecaster stages together.

    Args:
        channels: Channels of a frame, C.
        patch_size: Side of the patches that frames are cut into, in pixels.
        hidden_sizes: Hidden channels of each stage; its length is the number of stages.
        kernel_size: Input kernel, one for all stages or one a stage.
        hidden_kernel_size: Hidden kernel, likewise; the input's if None.
        cell: The recurrence: "lstm" (`ConvLSTM`), "gru" (`ConvGRU`) or "rnn" (`ConvRNN`).
        downsample: Factor by which a stage's map is smaller than that of the stage before (for the
            first stage: than the map of patches), one for all stages or one a stage.
        forecaster: "unconditional" or "autoregressive".
        peephole: "none", "channel" or "full", for the cell "lstm"; see `ConvLSTM`.
        frame_size: (H, W) in pixels; needed by peephole "full" only, and then the only size.
        output: "linear", or "sigmoid" for frames that are probabilities in (0, 1).

    Raises:
        ValueError: An argument is out of range; the message names value and expectation.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        patch_size: int = 4,
        hidden_sizes: list[int] | tuple[int, ...] = (64, 64),
        kernel_size: int | list[int] = 3,
        hidden_kernel_size: int | list[int] | None = None,
        cell: Cell = "lstm",
        downsample: int | list[int] = 1,
        forecaster: Feedback = "unconditional",
        peephole: Peephole = "none",
        frame_size: tuple[int, int] | list[int] | None = None,
        output: Output = "linear",
    ) -> None:
        super().__init__()
        stages = len(hidden_sizes)
        if stages < 1 or min(hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes must be one int >= 1 a stage, got {hidden_sizes!r}")
        if channels < 1:
            raise ValueError(f"channels must be >= 1, got {channels}")
        if patch_size < 1:
            raise ValueError(f"patch_size must be >= 1, got {patch_size}")
        if cell not in LAYERS:
            raise ValueError(f"cell must be 'lstm', 'gru' or 'rnn', got {cell!r}")
        if cell != "lstm" and peephole != "none":
            raise ValueError(f"peephole is for the cell 'lstm', got {peephole!r} with {cell!r}")
        if forecaster not in ("unconditional", "autoregressive"):
            raise ValueError(
                f"forecaster must be 'unconditional' or 'autoregressive', got {forecaster!r}"
            )
        if output not in ("linear", "sigmoid"):
            raise ValueError(f"output must be 'linear' or 'sigmoid', got {output!r}")
        if peephole == "full" and frame_size is None:
            raise ValueError("peephole 'full' has a weight for each pixel: give frame_size")
        kernels = _each(kernel_size, stages, "kernel_size")
        hidden_kernels = _each(
            kernels if hidden_kernel_size is None else hidden_kernel_size,
            stages,
            "hidden_kernel_size",
        )
        factors = _each(downsample, stages, "downsample")

        self.channels = channels
        self.patch_size = patch_size
        self.autoregressive = forecaster == "autoregressive"
        self.output = output
        # Pixels a map point covers, stage by stage; frames are padded to a multiple of the last.
        strides = [patch_size * math.prod(factors[: stage + 1]) for stage in range(stages)]
        self.multiple = strides[-1]

        def recurrence(stage: int, input_size: int) -> nn.Module:
            options: dict[str, Any] = {
                "hidden_kernel_size": hidden_kernels[stage],
                "batch_first": False,
            }
            if cell == "lstm":
                size = _map_size(frame_size, self.multiple, strides[stage])
                options |= {"peephole": peephole, "frame_size": size}
            return LAYERS[cell](input_size, hidden_sizes[stage], kernels[stage], **options)

        depth = channels * patch_size**2
        inputs = [depth, *hidden_sizes[:-1]]
        self.encoder_down = nn.ModuleList(map(_down, inputs, factors))
        self.encoder = nn.ModuleList(recurrence(s, inputs[s]) for s in range(stages))
        if self.autoregressive:
            self.forecaster_down = nn.ModuleList(map(_down, inputs, factors))
            self.forecaster = nn.ModuleList(recurrence(s, inputs[s]) for s in range(stages))
        else:
            above = [*hidden_sizes[1:], 0]
            self.forecaster_up = nn.ModuleList(map(_up, hidden_sizes[1:], factors[1:]))
            self.forecaster = nn.ModuleList(recurrence(s, above[s]) for s in range(stages))
        self.head = nn.Conv2d(sum(hidden_sizes), depth, 1)

    def forward(
        self,
        frames: Tensor,
        steps: int,
        *,
        truth: Tensor | None = None,
        teacher_forcing: float = 0.0,
        logits: bool = False,
    ) -> Tensor:
        """Forecasts the frames that follow.

        Args:
            frames: Context (B, T, C, H, W), T >= 1, in [0, 1]; any H and W: what patches and
                strides do not divide is padded with the edge's pixels and cropped off again.
            steps: Frames to forecast, >= 1; free at each call.
            truth: The frames that really follow (B, steps, C, H, W), for scheduled sampling of the
                autoregressive forecaster.
            teacher_forcing: Probability, for each clip and step, that the autoregressive
                forecaster reads the true frame instead of its own, in [0, 1]
                (S. Bengio et al. 2015, https://arxiv.org/abs/1506.03099).
            logits: With output "sigmoid": return what goes into the sigmoid.

        Returns:
            Frames (B, steps, C, H, W), not clipped.

        Raises:
            ValueError: Another shape, or fewer than one step.
        """
        raw, _ = self._unroll(self.encode(frames), steps, truth, teacher_forcing)
        return raw if logits else self._activate(raw)

    def encode(self, frames: Tensor, carry: Carry | None = None) -> Carry:
        """Reads frames into the encoder's states.

        Args:
            frames: (B, T, C, H, W), T >= 1, in [0, 1]; see `forward`.
            carry: Where an earlier call stopped: `frames` are those that follow. None to begin.

        Returns:
            Where the encoder stands now, for `unroll`, or to read on from.

        Raises:
            ValueError: Another shape than (B, T, C, H, W), or than the frames read before.
        """
        if frames.ndim != 5 or frames.shape[2] != self.channels or frames.shape[1] < 1:
            raise ValueError(
                f"expected frames (B, T, {self.channels}, H, W) with T >= 1, got shape "
                f"{tuple(frames.shape)}"
            )
        size = frames.shape[3], frames.shape[4]
        before: list[State] | list[None] = [None] * len(self.encoder)
        if carry is not None:
            if (len(frames), size) != (carry.last.shape[1], carry.size):
                raise ValueError(
                    f"expected {carry.last.shape[1]} clips with frames of {carry.size} as "
                    f"before, got {len(frames)} of {size}"
                )
            before = carry.states
        x = self._patches(frames)
        last = x[-1:].clone()  # a view would keep all frames
        states = []
        for down, recurrence, state in zip(self.encoder_down, self.encoder, before, strict=True):
            x, state = recurrence(_over_time(down, x), state)
            states.append(state)
        return Carry(states, last, size)

    def unroll(self, carry: Carry, steps: int) -> tuple[Tensor, Carry]:
        """Forecasts the frames that follow those that were read, or forecast before.

        Args:
            carry: From `encode` to begin with; from `unroll` to go on with the forecast.
            steps: Frames to forecast, >= 1.

        Returns:
            Frames (B, steps, C, H, W), not clipped, and where the forecaster stands after them.

        Raises:
            ValueError: Fewer than one step.
        """
        raw, carry = self._unroll(carry, steps)
        return self._activate(raw), carry

    def _unroll(
        self,
        carry: Carry,
        steps: int,
        truth: Tensor | None = None,
        teacher_forcing: float = 0.0,
    ) -> tuple[Tensor, Carry]:
        """`unroll` without the sigmoid, and with scheduled sampling; see `forward`."""
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        if self.autoregressive:
            hints = self._patches(truth) if truth is not None and teacher_forcing > 0 else None
            raw, states = self._feed_back(carry, steps, hints, teacher_forcing)
        else:
            raw, states = self._run_free(carry, steps)
        after = Carry(states, self._activate(raw[-1:]).clone(), carry.size)
        height, width = carry.size
        raw = from_patches(raw.transpose(0, 1), self.patch_size)[..., :height, :width]
        return raw, after

    def _patches(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) → (T, B, p·p·C, H/p, W/p), padded to what the stages divide.

        From here on to the head, time comes first.
        """
        bottom, right = (-size % self.multiple for size in frames.shape[3:])
        if bottom or right:
            b, t = frames.shape[:2]
            padded = F.pad(frames.flatten(0, 1), (0, right, 0, bottom), mode="replicate")
            frames = padded.unflatten(0, (b, t))
        return to_patches(frames, self.patch_size).transpose(0, 1)

    def _run_free(self, carry: Carry, steps: int) -> tuple[Tensor, list[State]]:
        """The unconditional forecaster: all steps of a stage before the next stage begins."""
        states = list(carry.states)
        top = states[-1]
        h = top if isinstance(top, Tensor) else top[0]  # (1, B, H, h, w)
        x = h.new_empty(steps, h.shape[1], 0, *h.shape[3:])
        hidden: list[Tensor] = []
        for stage in reversed(range(len(states))):
            x, states[stage] = self.forecaster[stage](x, states[stage])
            hidden.insert(0, x)
            if stage > 0:
                x = _over_time(self.forecaster_up[stage - 1], x)
        return self._read_out(hidden, carry.last.shape[3:]), states

    def _feed_back(
        self, carry: Carry, steps: int, truth: Tensor | None, teacher_forcing: float
    ) -> tuple[Tensor, list[State]]:
        """The autoregressive forecaster; truth is (steps, B, p·p·C, h, w)."""
        states, x = list(carry.states), carry.last
        size = x.shape[3:]
        raw: list[Tensor] = []
        for step in range(steps):
            if step > 0:
                x = self._activate(raw[-1])
                if truth is not None:
                    forced = torch.rand(x.shape[1], device=x.device) < teacher_forcing
                    x = torch.where(forced.view(-1, 1, 1, 1), truth[step - 1 : step], x)
            hidden = []
            for stage, (down, recurrence) in enumerate(
                zip(self.forecaster_down, self.forecaster, strict=True)
            ):
                x, states[stage] = recurrence(_over_time(down, x), states[stage])
                hidden.append(x)
            raw.append(self._read_out(hidden, size))
        return torch.cat(raw), states

    def _read_out(self, hidden: list[Tensor], size: torch.Size) -> Tensor:
        """1×1 convolution over the hidden states of all stages, at the patches' resolution."""
        maps = [_resize(h.flatten(0, 1), size) for h in hidden]
        return self.head(torch.cat(maps, dim=1)).unflatten(0, hidden[0].shape[:2])

    def _activate(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw) if self.output == "sigmoid" else raw


def _each(value: int | list[int], stages: int, name: str) -> list[int]:
    """One int for all stages, or one each, as a list."""
    values = [value] * stages if isinstance(value, int) else list(value)
    if len(values) != stages or min(values) < 1:
        raise ValueError(
            f"{name} must be one int >= 1, or one for each of the {stages} stages, got {value!r}"
        )
    return values


def _map_size(
    frame_size: tuple[int, int] | list[int] | None, multiple: int, stride: int
) -> tuple[int, int] | None:
    """Size of a stage's map for a frame padded to a multiple of `multiple` pixels."""
    if frame_size is None:
        return None
    height, width = (-(-size // multiple) * multiple // stride for size in frame_size)
    return height, width


def _down(channels: int, factor: int) -> nn.Module:
    """A map `factor` times smaller."""
    if factor == 1:
        return nn.Identity()
    kernel, padding = 2 * factor - 1, factor - 1
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, factor, padding), nn.LeakyReLU(0.2))


def _up(channels: int, factor: int) -> nn.Module:
    """A map `factor` times larger: the mirror of `_down`."""
    if factor == 1:
        return nn.Identity()
    kernel, padding = 2 * factor - 1, factor - 1
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, kernel, factor, padding, output_padding=padding),
        nn.LeakyReLU(0.2),
    )


def _over_time(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a module of single maps to (T, B, C, h, w)."""
    if isinstance(module, nn.Identity):
        return x
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _resize(maps: Tensor, size: torch.Size) -> Tensor:
    """(N, C, h, w) at another resolution, bilinear."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
