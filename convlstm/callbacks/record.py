"""What ran: the configuration and the versions, in the run's directory."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from convlstm.files import replacing, write_json

PACKAGES = (
    "convlstm",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "pytorch-optimizer",
    "jsonargparse",
    "numpy",
)


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
        write_json(self.run_dir / "environment.json", environment())


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
            errors="replace",  # of file names
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
