"""Pictures of the test split's forecasts."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from convlstm.console import plain_console
from convlstm.render import save_gif, save_strip


class ForecastWriter(Callback):
    """Writes a GIF and a film strip of context, truth and forecast for the first test clips.

    Args:
        directory: Where `00000.gif`, `00000.png`, … go, named by the clip's number.
        count: How many clips, from number 0; the same ones on any number of processes.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.count = count

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes those of the batch that are among the first."""
        for i, number in enumerate(batch["index"].tolist()):
            if number < self.count:
                clips = batch["context"][i], outputs[i], batch["target"][i]
                save_gif(self.directory / f"{number:05d}.gif", *clips)
                save_strip(self.directory / f"{number:05d}.png", *clips)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says where they are."""
        console = plain_console(quiet=not trainer.is_global_zero)
        console.print(f"Forecasts as GIF and film strip: {self.directory}")
