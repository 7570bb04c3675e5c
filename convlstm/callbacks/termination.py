"""SIGTERM while there is nothing to save."""

import signal
import threading
from types import FrameType

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Termination(Callback):
    """Ends a validation, a test, or the trial validation before a training at SIGTERM.

    Lightning's own handler waits for all processes to get the signal, which they may not. A
    training is the `Interruption`'s.
    """

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signal."""
        self._take_over()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signal, unless the validation is part of a training."""
        if trainer.state.fn == "validate":
            self._take_over()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signal."""
        self._take_over()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Lets the program end undisturbed: it may get the signal twice."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until Lightning gives it back

    def _take_over(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)
