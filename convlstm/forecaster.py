"""The encoder–forecaster network: encodes the context frames and unrolls a forecast.

Source: X. Shi et al. 2015, https://arxiv.org/abs/1506.04214, section 3.2 and figure 3. Stages with
their own resolution follow X. Shi et al. 2017, https://arxiv.org/abs/1706.03458, section 3.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlstm.arguments import are_sizes
from convlstm.attention import ContextAttention, Memory
from convlstm.cells import Peephole
from convlstm.convolution import convolved
from convlstm.merge import MergeDirections
from convlstm.patches import from_patches, to_patches
from convlstm.stages import (
    LAYERS,
    Cell,
    Recurrence,
    State,
    down,
    each,
    map_size,
    over_time,
    recurrence,
    resize,
    up,
)

Feedback = Literal["unconditional", "autoregressive"]
Output = Literal["linear", "sigmoid"]
Readout = Literal["all", "last"]


@dataclass(frozen=True)
class Carry:
    """What the network carries from the frames that it has read or forecast to the next ones.

    Attributes:
        states: The recurrences' states, stage by stage; a part is (1, B, hidden, h, w).
        last: The newest frame, in padded patches: (1, B, p·p·C, h, w). What the autoregressive
            forecaster reads next.
        size: (H, W) of the frames in pixels, before they are padded.
        memory: What attention looks back at, stage by stage: it grows with the frames read; empty
            without attention.
        anchor: The last frame read, like `last`: what a residual network adds to; else None.
    """

    states: list[State]
    last: Tensor
    size: tuple[int, int]
    memory: list[Memory]
    anchor: Tensor | None


class EncoderForecaster(nn.Module):
    """An encoder–forecaster network that continues a video by any number of frames.

    Frames are cut into patches (space-to-depth). The encoder is a stack of stages; each is an
    optional strided convolution and one recurrence. Its states after the context are the initial
    states of the forecaster, stage by stage. The forecaster is either

    - `unconditional`, as in the paper: it has no input and runs from the last stage back to the
      first; each stage reads the upsampled hidden states of the one before; or
    - `autoregressive`: it runs from the first stage to the last and reads the previous frame of
      the forecast (at first, the last context frame).

    A 1×1 convolution over the hidden states of all forecaster stages, or of the last one alone
    (`readout`), gives each frame. With `head_size`, a 3×3 convolution to that many channels and a
    LeakyReLU precede it, so that a patch also depends on its neighbours.

    A `bidirectional` encoder reads the context in both directions; the two last states of each
    stage are merged into the forecaster's initial state (`MergeDirections`). With `attention`, each
    forecaster stage attends at every step to the hidden states of its encoder stage in all context
    frames (`ContextAttention`).

    A `residual` network forecasts the difference of each frame from the last context frame, and
    adds it to that frame, so that static parts stay sharp. Untrained, it repeats the last frame.

    The classic LSTM on flattened frames, "FC-LSTM", is the special case of 1×1 kernels and a single
    patch as large as the frame.

    Args:
        channels: Channels of a frame, C.
        patch_size: Side of the patches that frames are cut into, in pixels.
        hidden_sizes: Hidden channels of each stage; its length is the number of stages.
        kernel_size: Kernel size of the input convolutions, one for all stages or one per stage.
        hidden_kernel_size: The same for the hidden convolutions; `kernel_size` if None.
        cell: The recurrence: "lstm" (`ConvLSTM`), "gru" (`ConvGRU`) or "rnn" (`ConvRNN`).
        downsample: Factor by which a stage reduces the resolution of the stage before (the first
            stage: that of the map of patches), one for all stages or one per stage.
        forecaster: "unconditional" or "autoregressive".
        peephole: "none", "channel" or "full", for the cell "lstm"; see `ConvLSTM`.
        frame_size: (H, W) in pixels; required by peephole "full" only, which takes no other size.
        output: "linear", or "sigmoid" for frames that are probabilities in (0, 1).
        readout: Which forecaster stages a frame is read from: "all", or "last", the one that runs
            last (unconditional: the first stage, autoregressive: the last).
        head_size: Channels of a 3×3 convolution between hidden states and frames; 0 for none.
        bidirectional: Whether the encoder reads the context in both directions.
        attention: Side, in map points, of the neighbourhood to which each point of the forecaster's
            maps attends in all context frames: odd; 1 for the same point, 0 for no attention.
        residual: Whether forecasts are added to the last context frame; for output "linear".
        checkpoint_every: Length in steps of the segments that are recomputed in the backward pass,
            for less memory; 0 to keep everything; see `ConvLSTM`. Segments of the autoregressive
            forecaster are single steps.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.
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
        readout: Readout = "all",
        head_size: int = 0,
        bidirectional: bool = False,
        attention: int = 0,
        residual: bool = False,
        checkpoint_every: int = 0,
    ) -> None:
        super().__init__()
        if not are_sizes(hidden_sizes):
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
        if residual and output != "linear":
            raise ValueError(
                "residual forecasts are added to pixels: output must be 'linear' (any loss but "
                f"cross_entropy), got {output!r}"
            )
        if readout not in ("all", "last"):
            raise ValueError(f"readout must be 'all' or 'last', got {readout!r}")
        if head_size < 0:
            raise ValueError(f"head_size must be >= 0, got {head_size}")
        if peephole == "full" and frame_size is None:
            raise ValueError("peephole 'full' has a weight for each pixel: give frame_size")
        if frame_size is not None and not are_sizes(frame_size, 2):
            raise ValueError(f"frame_size must be [height, width] in pixels, got {frame_size}")
        kernels = each(kernel_size, hidden_sizes, "kernel_size")
        hidden_kernels = each(
            kernels if hidden_kernel_size is None else hidden_kernel_size,
            hidden_sizes,
            "hidden_kernel_size",
        )
        factors = each(downsample, hidden_sizes, "downsample")
        stages = len(hidden_sizes)

        self.channels = channels
        self.patch_size = patch_size
        self.autoregressive = forecaster == "autoregressive"
        self.output = output
        self.readout = readout
        self.bidirectional = bidirectional
        self.residual = residual
        self.only_size = tuple(frame_size) if frame_size and peephole == "full" else None
        # Pixels a map point covers, stage by stage; frames are padded to a multiple of the last.
        strides = [patch_size * math.prod(factors[: stage + 1]) for stage in range(stages)]
        self.multiple = strides[-1]

        def layer(stage: int, input_size: int, bidirectional: bool = False) -> Recurrence:
            return recurrence(
                cell,
                input_size,
                hidden_sizes[stage],
                kernels[stage],
                hidden_kernel_size=hidden_kernels[stage],
                bidirectional=bidirectional,
                peephole=peephole,
                checkpoint_every=checkpoint_every,
                map_size=map_size(frame_size, self.multiple, strides[stage]),
            )

        depth = channels * patch_size**2
        # Channels of the encoder's hidden states, both directions together.
        encoded = [(2 if bidirectional else 1) * size for size in hidden_sizes]
        inputs = [depth, *encoded[:-1]]
        self.encoder_down = nn.ModuleList(map(down, inputs, factors))
        self.encoder = nn.ModuleList(layer(s, inputs[s], bidirectional) for s in range(stages))
        parts = LAYERS[cell].state_parts
        self.merge = nn.ModuleList(
            MergeDirections(size, parts) for size in hidden_sizes if bidirectional
        )
        if self.autoregressive:
            inputs = [depth, *hidden_sizes[:-1]]
            self.forecaster_down = nn.ModuleList(map(down, inputs, factors))
            self.forecaster = nn.ModuleList(layer(s, inputs[s]) for s in range(stages))
        else:
            above = [*hidden_sizes[1:], 0]
            self.forecaster_up = nn.ModuleList(map(up, hidden_sizes[1:], factors[1:]))
            self.forecaster = nn.ModuleList(layer(s, above[s]) for s in range(stages))
        self.attention = nn.ModuleList(
            ContextAttention(hidden_sizes[s], encoded[s], attention)
            for s in range(stages)
            if attention != 0
        )
        last = hidden_sizes[-1] if self.autoregressive else hidden_sizes[0]
        read = sum(hidden_sizes) if readout == "all" else last
        self.neck: nn.Module = nn.Identity()
        if head_size:
            self.neck = nn.Sequential(nn.Conv2d(read, head_size, 3, padding=1), nn.LeakyReLU(0.2))
        self.head = nn.Conv2d(head_size or read, depth, 1)
        if residual:
            nn.init.zeros_(self.head.weight)
            assert self.head.bias is not None
            nn.init.zeros_(self.head.bias)

    def forward(
        self,
        frames: Tensor,
        steps: int,
        *,
        truth: Tensor | None = None,
        teacher_forcing: float = 0.0,
        logits: bool = False,
        context_too: bool = False,
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
            context_too: Put before them what the encoder forecasts while it reads: the context's
                frames from the second on, each from those before it.

        Returns:
            Frames (B, steps, C, H, W), or (B, T - 1 + steps, C, H, W) with the context's; not
            clipped.

        Raises:
            ValueError: Another shape, or fewer than one step; `teacher_forcing` outside of [0, 1],
                or without a truth; or `context_too` with a bidirectional encoder, which knows what
                follows.
        """
        if not 0 <= teacher_forcing <= 1:
            raise ValueError(f"teacher_forcing must be in [0, 1], got {teacher_forcing}")
        if teacher_forcing > 0:
            expected = (len(frames), steps, *frames.shape[2:])
            if truth is None or truth.shape != expected or not truth.is_floating_point():
                got = "none" if truth is None else f"{truth.dtype} {tuple(truth.shape)}"
                raise ValueError(f"teacher_forcing needs the truth, floats {expected}, got {got}")
        carry, hidden = self._read(frames, None)
        raw, _ = self._unroll(carry, steps, truth, teacher_forcing)
        if context_too:
            if self.bidirectional:
                raise ValueError(
                    "a bidirectional encoder has seen what follows: it cannot forecast its context"
                )
            before = self._patches(frames) if self.residual else None
            # From all, and without the last one afterwards: to leave it out of the hidden states,
            # which are much larger, would cost passes over their gradients.
            read = self._read_out(hidden, carry.last.shape[3:], before)[:-1]
            raw = torch.cat([self._frames(read, carry.size), raw], dim=1)
        return raw if logits else self._activate(raw)

    def encode(self, frames: Tensor, carry: Carry | None = None) -> Carry:
        """Reads frames into the encoder's states.

        Args:
            frames: (B, T, C, H, W), T >= 1, in [0, 1]; see `forward`.
            carry: Where an earlier call stopped: `frames` are those that follow. None to begin.

        Returns:
            Where the encoder stands now, for `unroll`, or to read on from.

        Raises:
            ValueError: Another shape than (B, T, C, H, W), or than the frames read before; or
                reading on with a bidirectional encoder, which needs all frames at once.
        """
        return self._read(frames, carry)[0]

    def _read(self, frames: Tensor, carry: Carry | None) -> tuple[Carry, list[Tensor]]:
        """`encode`, and the hidden states of each stage, (T, B, D·H, h, w)."""
        if frames.ndim != 5 or frames.shape[2] != self.channels or frames.shape[1] < 1:
            raise ValueError(
                f"expected frames (B, T, {self.channels}, H, W) with T >= 1, got shape "
                f"{tuple(frames.shape)}"
            )
        size = frames.shape[3], frames.shape[4]
        if self.only_size not in (None, size):
            raise ValueError(
                f"peephole 'full' ties the network to frames of {self.only_size}, got {size}: "
                "bring them to that size first (convlstm predict --resize trained)"
            )
        stages = len(self.encoder)
        before: list[State] | list[None] = [None] * stages
        remembered: list[Memory] | list[None] = [None] * stages
        if carry is not None:
            if self.bidirectional:
                raise ValueError(
                    "a bidirectional encoder reads its context from both ends: give all frames in "
                    "one call, got a carry to go on from"
                )
            if (len(frames), size) != (carry.last.shape[1], carry.size):
                raise ValueError(
                    f"expected {carry.last.shape[1]} clips with frames of {carry.size} as "
                    f"before, got {len(frames)} of {size}"
                )
            before, remembered = carry.states, carry.memory or remembered
        x = self._patches(frames)
        last = x[-1:].clone()  # a view would keep all frames
        states: list[State] = []
        memory: list[Memory] = []
        hidden: list[Tensor] = []
        for stage in range(stages):
            x = over_time(self.encoder_down[stage], x)
            x, state = self.encoder[stage](x, before[stage])
            hidden.append(x)
            states.append(self.merge[stage](state) if self.bidirectional else state)
            if len(self.attention) > 0:
                attention = self.attention[stage]
                assert isinstance(attention, ContextAttention)
                memory.append(attention.remember(x, remembered[stage]))
        return Carry(states, last, size, memory, last if self.residual else None), hidden

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
        if not hasattr(steps, "__index__") or steps < 1:
            raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")
        if self.autoregressive:
            hints = self._patches(truth) if truth is not None and teacher_forcing > 0 else None
            raw, states = self._feed_back(carry, steps, hints, teacher_forcing)
        else:
            raw, states = self._run_free(carry, steps)
        after = replace(carry, states=states, last=self._activate(raw[-1:]).clone())
        return self._frames(raw, carry.size), after

    @torch.no_grad()
    def attention_weights(self, frames: Tensor, steps: int) -> list[Tensor]:
        """Where the forecaster looks.

        Args:
            frames: Context (B, T, C, H, W) in [0, 1].
            steps: Frames to forecast, >= 1.

        Returns:
            For each stage the weights (B, steps, T, n, n, h, w) of the n×n neighbours of each point
            of the stage's map in each context frame; they add up to 1 over T, n, n. The list is
            empty without attention.

        Raises:
            ValueError: As in `forward`.
        """
        weights: list[list[Tensor]] = [[] for _ in self.attention]

        def keep(module: nn.Module, args: Any, result: tuple[Tensor, Tensor]) -> None:
            weights[indices[module]].append(result[1])

        indices = {module: stage for stage, module in enumerate(self.attention)}
        handles = [module.register_forward_hook(keep) for module in self.attention]
        try:
            self.forward(frames, steps)
        finally:
            for handle in handles:
                handle.remove()
        return [torch.cat(parts, dim=1) for parts in weights]

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

    def _frames(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """(S, B, p·p·C, H/p, W/p) → (B, S, C, H, W): the way back from `_patches`."""
        height, width = size
        return from_patches(patches.transpose(0, 1), self.patch_size)[..., :height, :width]

    @property
    def _dtype(self) -> torch.dtype:
        """That of the weights; replicas of `nn.DataParallel` have no parameters to ask."""
        bias = self.forecaster[0].bias_l0
        assert isinstance(bias, Tensor)
        return bias.dtype

    def _run_free(self, carry: Carry, steps: int) -> tuple[Tensor, list[State]]:
        """The unconditional forecaster: all steps of a stage before the next stage begins."""
        states = list(carry.states)
        top = states[-1]
        h = top if isinstance(top, Tensor) else top[0]  # (1, B, H, h, w)
        x = h.new_empty(steps, h.shape[1], 0, *h.shape[3:], dtype=self._dtype)
        hidden: list[Tensor] = []
        for stage in reversed(range(len(states))):
            x, states[stage] = self.forecaster[stage](x, states[stage])
            x = self._attend(stage, x, carry)
            hidden.insert(0, x)
            if stage > 0:
                x = over_time(self.forecaster_up[stage - 1], x)
        return self._read_out(hidden, carry.last.shape[3:], carry.anchor), states

    def _feed_back(
        self, carry: Carry, steps: int, truth: Tensor | None, teacher_forcing: float
    ) -> tuple[Tensor, list[State]]:
        """The autoregressive forecaster; truth is (steps, B, p·p·C, h, w)."""
        states, x = list(carry.states), carry.last.to(self._dtype)
        size = x.shape[3:]
        raw: list[Tensor] = []
        for step in range(steps):
            if step > 0:
                x = self._activate(raw[-1])
                if truth is not None:
                    forced = torch.rand(x.shape[1], device=x.device) < teacher_forcing
                    x = torch.where(forced.view(-1, 1, 1, 1), truth[step - 1 : step], x)
            hidden = []
            for stage, (smaller, layer) in enumerate(
                zip(self.forecaster_down, self.forecaster, strict=True)
            ):
                x, states[stage] = layer(over_time(smaller, x), states[stage])
                x = self._attend(stage, x, carry)
                hidden.append(x)
            raw.append(self._read_out(hidden, size, carry.anchor))
        return torch.cat(raw), states

    def _attend(self, stage: int, hidden: Tensor, carry: Carry) -> Tensor:
        if len(self.attention) == 0:
            return hidden
        attended, _ = self.attention[stage](hidden, carry.memory[stage])
        return attended

    def _read_out(self, hidden: list[Tensor], size: torch.Size, anchor: Tensor | None) -> Tensor:
        """Convolutions over hidden states (S, B, H, h, w), at the patches' resolution.

        Of a residual network it is added to the anchor (1 or S, B, p·p·C, h, w).
        """
        if self.readout == "last":
            hidden = [hidden[-1 if self.autoregressive else 0]]
        maps = [resize(h.flatten(0, 1), size) for h in hidden]
        features = convolved(self.neck, torch.cat(maps, dim=1))
        patches = convolved(self.head, features).unflatten(0, hidden[0].shape[:2])
        return patches if anchor is None else anchor + patches

    def _activate(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw) if self.output == "sigmoid" else raw
