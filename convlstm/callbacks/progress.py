"""What a run shows while it goes on."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console


class ProgressBar(RichProgressBar):
    """Lightning's bar, without "Epoch 0/-2" where a run's length is given in steps.

    Where the output is no terminal, but a file say, each validation writes a line instead.
    """

    @property
    def total_train_batches(self) -> int | float:
        """The batches of this epoch, as far as `trainer.max_steps` lets it go.

        Lightning's own counts a resumed epoch from where it was resumed.
        """
        trainer = self.trainer
        batches = trainer.num_training_batches
        if trainer.max_steps < 1 or not isinstance(batches, int):
            return batches
        whole = trainer.max_steps * trainer.accumulate_grad_batches
        return min(batches, whole - trainer.current_epoch * batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the bar of the validation, or writes the line."""
        super().on_validation_end(trainer, pl_module)
        console = Console(soft_wrap=True, highlight=False)
        score = trainer.callback_metrics.get("val/mse")
        if console.is_terminal or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if trainer.state.fn == "fit" and score is not None:
            console.print(f"step {trainer.global_step} of {trainer.max_steps}: val/mse {score:.2f}")

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs == -1:
            return f"Epoch {current_epoch}".ljust(len(self.validation_description))
        return super()._get_train_description(current_epoch)
