"""The checkpoints of a run: which are kept, when they are saved, how they are written."""

import io
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from convlstm.checkpoint import read_checkpoint
from convlstm.files import remove_leftovers, replacing


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`: the weights with the lowest val/mse so far.

    A training goes on to beat that score wherever the run's directory was moved to meanwhile; one
    whose `best.ckpt` was left behind makes a new one.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder, filename="best", monitor="val/mse", enable_version_counter=False
        )

    @property
    def state_key(self) -> str:
        """The name of this callback's state in a checkpoint: Lightning's own."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state of a checkpoint, whose paths may be those of another place."""
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        if not Path(here(state_dict["best_model_path"])).is_file():
            return
        paths = ("best_model_path", "last_model_path", "kth_best_model_path")
        moved = {name: here(state_dict[name]) for name in paths if name in state_dict}
        best = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict(
            {**state_dict, **moved, "dirpath": self.dirpath, "best_k_models": best}
        )


Place = Literal["step", "validation", "epoch end"]


class LastCheckpoint(Checkpoint):
    """Keeps the newest state of a training, `last.ckpt`, and the one before, `previous.ckpt`.

    Saves when a validation begins and at the end of each epoch: always between two optimizer
    steps, and never while averaged weights stand in for the current ones. A training that dies
    during a validation goes on with that validation, from its first batch.

    Args:
        folder: Where the two files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._step = -1  # of the newest checkpoint
        self._place: Place | None = None  # where this is saving right now

    def save(self, trainer: pl.Trainer, place: Place = "step") -> None:
        """Saves, unless this step is saved already. For all processes to call at the same step.

        Args:
            trainer: The training.
            place: Before a batch ("step"), before a validation, or at an epoch's end.

        Raises:
            OSError: The file cannot be written; the checkpoints before it stay.
        """
        if trainer.global_step == self._step:
            return
        last, new = self.folder / "last.ckpt", self.folder / "new.ckpt"
        self._place = place
        trainer.save_checkpoint(new)
        self._place = None
        # Where this is cut off, what is missing under its name is there under another.
        if trainer.is_global_zero:
            if last.exists():
                last.replace(self.folder / "previous.ckpt")
            new.replace(last)
        self._step = trainer.global_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes what a killed training left half-written."""
        if trainer.is_global_zero:
            remove_leftovers(self.folder)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, except in the trial validation before training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves."""
        self.save(trainer, "epoch end")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes in the newest checkpoint, as `finished_epochs`, that the training came to its end.

        That checkpoint is as old as the beginning of the last validation.
        """
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero and self._step == trainer.global_step:
            checkpoint = read_checkpoint(last)
            checkpoint["finished_epochs"] = trainer.current_epoch
            AtomicCheckpointIO().save_checkpoint(checkpoint, last)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Sets Lightning's counters to those of the place that the training goes on from."""
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        if self._place == "step":
            # A batch that was fetched and not begun is fetched again.
            for counter in (batches["total"], batches["current"]):
                counter["ready"] = counter["started"]
        elif self._place == "validation":
            # The mark of a validation cut off before the end of its first batch: it runs anew.
            # Without it Lightning takes a validation whose turn it is for done.
            cut = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = loops["epoch_loop.val_loop.batch_progress"]
            progress.update(total=dict(cut), current=dict(cut), is_last_batch=False)
        elif self._place == "epoch end":
            # Between two epochs. Lightning would train one more batch of the old one.
            for counter in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
                counter["completed"] = counter["processed"]
            batches.update(current=dict.fromkeys(batches["current"], 0), is_last_batch=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, flushes it to disk and renames it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes the checkpoint; the one of that name stays until the new one is whole.

        Raises:
            OSError: The file cannot be written, for example because the disk is full.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
