"""What a run shows while it goes on."""

import time
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from convlstm.console import plain_console

BETWEEN_READINGS = 0.5  # seconds


class ProgressBar(RichProgressBar):
    """Lightning's bar, without "Epoch 0/-2" where a run's length is given in steps.

    Where the output is no terminal, but a file say, each validation of a training writes a line
    instead, and a test ten.
    """

    def __init__(self) -> None:
        super().__init__()
        self._metrics: dict[str, Any] = {}
        self._read_next = 0.0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss and its kin, twice a second.

        To read them Python has to wait for the GPU, which then waits for Python.
        """
        now = time.monotonic()
        if now >= self._read_next:
            self._metrics = dict(super().get_metrics(trainer, pl_module))
            self._read_next = now + BETWEEN_READINGS
        return self._metrics

    @property
    def total_train_batches(self) -> int | float:
        """The batches of this epoch, as far as `trainer.max_steps` lets it go.

        Lightning's own counts a resumed epoch from where it was resumed.
        """
        trainer = self.trainer
        batches = trainer.num_training_batches
        if trainer.max_steps < 1 or not isinstance(batches, int):
            return batches
        accumulated = trainer.accumulate_grad_batches
        whole = trainer.max_steps * accumulated
        # A run that was ended within an epoch, and goes on to more steps, begins the next one.
        left = whole - trainer.global_step * accumulated
        return min(batches, max(left, whole - trainer.current_epoch * batches))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the bar of the validation, or writes the line."""
        self._read_next = 0.0
        super().on_validation_end(trainer, pl_module)
        score = trainer.callback_metrics.get("val/mse")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and score is not None:
            of_all = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
            _print(trainer, f"step {trainer.global_step}{of_all}: val/mse {score:.2f}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the newest values."""
        self._read_next = 0.0
        super().on_train_epoch_end(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Moves the bar of the test, or writes a line at each tenth."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        done, total = batch_idx + 1, trainer.num_test_batches[dataloader_idx]
        if 10 * done // total > 10 * (done - 1) // total:
            _print(trainer, f"batch {done} of {total}")

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs == -1:
            return f"Epoch {current_epoch}".ljust(len(self.validation_description))
        return super()._get_train_description(current_epoch)


def _print(trainer: pl.Trainer, line: str) -> None:
    """Writes a line where there is no terminal to draw a bar on."""
    console = plain_console()
    if trainer.is_global_zero and not console.is_terminal:
        # A reader that has gone does not end a training; rich would end the program.
        with suppress(OSError, SystemExit):
            console.print(line)
