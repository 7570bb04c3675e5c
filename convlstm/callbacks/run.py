"""The run's directory: its configuration, the versions it ran with, and its checkpoints."""

import io
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint

from convlstm.files import replacing

PACKAGES = ("convlstm", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy")


def run_checkpoints(run_dir: Path) -> list[Callback]:
    """Keeps `checkpoints/best.ckpt` (lowest val/mse) and `checkpoints/last.ckpt` of a run."""
    folder = run_dir / "checkpoints"
    best = ModelCheckpoint(
        dirpath=folder, filename="best", monitor="val/mse", enable_version_counter=False
    )
    return [best, LastCheckpoint(folder / "last.ckpt")]


class LastCheckpoint(Checkpoint):
    """Saves after each validation and at the end of training.

    Lightning's `ModelCheckpoint(save_last=True)` saves only when it also saves a new best one.

    Args:
        path: The checkpoint's file; each save replaces it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, except in the trial validation before training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end of the run."""
        trainer.save_checkpoint(self.path)


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
            temporary.write_bytes(buffer.getbuffer())


class RunRecord(Callback):
    """Writes `config.yaml` and `environment.json` into the run's directory before training.

    Args:
        run_dir: The run's directory.
        config: The whole configuration as YAML: `convlstm fit -c RUN/config.yaml` repeats the run.
    """

    def __init__(self, run_dir: Path, config: str) -> None:
        self.run_dir = run_dir
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes both files, on the first process."""
        if not trainer.is_global_zero:
            return
        with replacing(self.run_dir / "config.yaml") as temporary:
            temporary.write_text(self.config, encoding="utf-8")
        with replacing(self.run_dir / "environment.json") as temporary:
            temporary.write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Versions of Python and the main packages, the platform, and the state of the git checkout."""
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "changed": None if status is None else status != "",
        },
    }


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this package lies in; None where there is none."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
