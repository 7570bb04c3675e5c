"""A loss or a gradient that is no number: the weights never see it."""

import warnings
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
        loss = torch.stack(self._losses).sum()  # each is divided by the number of batches
        scaled = trainer.precision == "16-mixed"
        if scaled:
            loss = trainer.strategy.reduce(loss)
        if bool(torch.isfinite(loss if scaled else norm)):
            self._skipped = 0
            return
        self._skipped += 1
        text = _describe(trainer, torch.cat(self._samples), loss, norm)
        if self.nonfinite == "stop":
            raise FloatingPointError(
                f"{text}. The checkpoints before it are kept: go on from there with a lower "
                "--model.learning_rate or --trainer.gradient_clip_val, or with --nonfinite skip"
            )
        if self._skipped > MOST_SKIPPED:
            raise FloatingPointError(f"{text}, as in the {MOST_SKIPPED} steps before")
        warnings.warn(f"{text}: step left out", RuntimeWarning, stacklevel=2)
        if not scaled:
            optimizer.zero_grad()  # an optimizer leaves alone what has no gradient


def _describe(trainer: pl.Trainer, samples: Tensor, loss: Tensor, norm: Tensor) -> str:
    """What happened, from the samples and losses of all processes."""
    index = trainer.strategy.all_gather(samples.to(loss.device)).flatten().sort().values
    loss = trainer.strategy.reduce(loss)
    first, last = int(index[0]), int(index[-1])
    whole = last - first + 1 == len(index)
    names = f"{first} to {last}" if whole else ", ".join(map(str, index.tolist()))
    return (
        f"the loss is {loss:g} and the gradient's norm {norm:g} at step {trainer.global_step}, "
        f"samples {names}"
    )
