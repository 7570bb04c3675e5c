"""A loss or a gradient that is no number: the weights never see it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

NonFinite = Literal["stop", "skip"]
MOST_SKIPPED = 20  # in a row: by then it is not the data


class GradientGuard(Callback):
    """Logs the gradient's norm, and keeps NaN and infinity out of the weights.

    On CUDA with "stop" the norm of a step is looked at during the next one, and before a validation
    and a checkpoint: at once, Python would have to wait for the GPU, which would then wait for
    Python. So the step is done, but no checkpoint is saved after it (a callback that saves weights
    alone, which Lightning does without asking, may save them once).

    Args:
        nonfinite: "stop" ends the training with an error; "skip" leaves the step out with a
            warning, up to 20 times in a row. With float16, whose scaled gradients overflow as a
            matter of course, only the loss counts: the scaler leaves out such steps itself.

    Raises:
        FloatingPointError: The loss or the gradient is not finite; the message names the step, the
            samples and the gradient's norm.
    """

    def __init__(self, nonfinite: NonFinite = "stop") -> None:
        self.nonfinite = nonfinite
        self._samples: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._skipped = 0
        self._unseen: _Pending | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets what an earlier training has left."""
        self._unseen = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the samples, over all batches of an optimizer step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._samples, self._losses = [], []
        self._samples.append(batch["index"])

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Notes the loss."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the gradient before it is clipped; it is the same on all processes."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        pl_module.log("train/grad_norm", norm)
        loss = trainer.strategy.reduce(torch.stack(self._losses).sum())
        scaled = trainer.precision == "16-mixed"  # where gradients may overflow
        finite, known = torch.isfinite(loss if scaled else loss + norm), None
        late = self.nonfinite == "stop" and _runs_ahead(norm)
        if late:
            finite, known = _fetch(finite)
        step = _Pending(trainer.global_step, torch.cat(self._samples), loss, norm, finite, known)
        self._look_back(trainer)
        if late:
            self._unseen = step
        elif step.is_finite():
            self._skipped = 0
        else:
            self._refuse(trainer, step)
            if not scaled or torch.isfinite(norm):  # the scaler leaves out the others itself
                optimizer.zero_grad()  # an optimizer leaves alone what has no gradient

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last step."""
        self._look_back(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last step."""
        self._look_back(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks at the last step, before anything is written."""
        self._look_back(trainer)

    def _look_back(self, trainer: pl.Trainer) -> None:
        """Looks at the step that nobody has looked at, if there is one."""
        if self._unseen is not None:
            if not self._unseen.is_finite():
                self._refuse(trainer, self._unseen)  # and whoever saves after that, too
            self._unseen = None

    def _refuse(self, trainer: pl.Trainer, step: _Pending) -> None:
        """Ends the training, or warns of a step that is left out."""
        self._skipped += 1
        text = _describe(trainer, step)
        if self.nonfinite == "stop":
            raise FloatingPointError(
                f"{text}. The checkpoints before it are kept: go on from there with a lower "
                "--model.learning_rate or --trainer.gradient_clip_val, or with --nonfinite skip"
            )
        if self._skipped > MOST_SKIPPED:
            raise FloatingPointError(f"{text}, as in the {MOST_SKIPPED} steps before")
        warnings.warn(f"{text}: step left out", RuntimeWarning, stacklevel=2)


@dataclass(frozen=True)
class _Pending:
    """What is known of an optimizer step before it is done.

    Attributes:
        number: Its number.
        samples: The samples of its batches, by their indices.
        loss: Summed over its batches, which have each divided theirs by their number.
        norm: Of the gradient, before it is clipped.
        finite: Whether loss or norm is.
        known: When `finite` has come from the GPU; None if it need not be waited for.
    """

    number: int
    samples: Tensor
    loss: Tensor
    norm: Tensor
    finite: Tensor
    known: torch.cuda.Event | None

    def is_finite(self) -> bool:
        if self.known is not None:
            self.known.synchronize()
        return bool(self.finite)


def _runs_ahead(value: Tensor) -> bool:
    """Whether Python goes on before a value is computed."""
    return value.is_cuda


def _fetch(flag: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A flag on its way to the CPU, and the event of its arrival."""
    here = flag.to("cpu", non_blocking=True)
    if not flag.is_cuda:  # but of a test
        return here, None
    arrived = torch.cuda.Event()
    arrived.record()
    return here, arrived


def _describe(trainer: pl.Trainer, step: _Pending) -> str:
    """What happened, from the samples and losses of all processes."""
    index = trainer.strategy.all_gather(step.samples.to(step.loss.device)).flatten().sort().values
    loss = trainer.strategy.reduce(step.loss)
    first, last = int(index[0]), int(index[-1])
    whole = last - first + 1 == len(index)
    names = f"{first} to {last}" if whole else ", ".join(map(str, index.tolist()))
    return (
        f"the loss is {loss:g} and the gradient's norm {step.norm:g} at step {step.number}, "
        f"samples {names}"
    )
