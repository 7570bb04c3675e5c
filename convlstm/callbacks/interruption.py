"""Signals end a training between two steps, with a checkpoint of all that was done."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from convlstm.callbacks.checkpoints import LastCheckpoint

SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]


class TrainingStopped(SystemExit):
    """A signal ended the training; its checkpoint is saved. The status is 128 + the signal's."""


class Interruption(Callback):
    """Saves and stops at the next step when the user or the cluster asks for it.

    The first Ctrl-C (SIGINT), SIGTERM or SIGUSR1, which clusters send, waits for the step, and a
    second Ctrl-C does not. During a validation, whose checkpoint is saved when it begins, the
    training stops after the batch. On several processes it is enough that one of them gets the
    signal.

    Args:
        last: Saves the checkpoint.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self.signal: int | None = None
        self._common_batches = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signals; Lightning's own handler may stop processes at different steps.

        Raises:
            ValueError: Validations, when checkpoints are saved, or the end of an epoch would divide
                an optimizer step.
        """
        interval, accumulate = trainer.val_check_batch, trainer.accumulate_grad_batches
        if isinstance(interval, int) and interval % accumulate:
            raise ValueError(
                f"a validation every {interval} batches would fall between the {accumulate} "
                "batches of an optimizer step: make trainer.val_check_interval a multiple of "
                "trainer.accumulate_grad_batches"
            )
        batches = trainer.num_training_batches
        if isinstance(batches, int) and batches % accumulate:
            raise ValueError(
                f"an epoch of {batches} batches would end between the {accumulate} batches of an "
                "optimizer step: make trainer.limit_train_batches a multiple of "
                "trainer.accumulate_grad_batches"
            )
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._receive)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, between two optimizer steps."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the batches that all processes have: shares may differ by one."""
        if self._handlers:
            count = torch.tensor(trainer.num_val_batches[0], device=pl_module.device)
            least = trainer.strategy.reduce(count, reduce_op="min")
            self._common_batches = int(least)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops; the checkpoint was saved when the validation began."""
        if self._handlers and batch_idx < self._common_batches:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back."""
        self._release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the signals back."""
        self._release()
        if trainer.validating and trainer.state.fn == "fit":
            trainer.training = True  # otherwise the loader processes of the training stay

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        text = b"\nSaving after this step, then stopping; Ctrl-C again stops at once\n"
        if number == signal.SIGINT:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        strategy = trainer.strategy
        if strategy.reduce_boolean_decision(self.signal is not None, all=False):
            self.last.save(trainer)
            raise TrainingStopped(128 + (self.signal or signal.SIGTERM))

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
