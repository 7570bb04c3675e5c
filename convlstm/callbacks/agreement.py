"""Where the processes of a training begin."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class CommonStart(Callback):
    """Makes sure that all processes begin at the same step, before any of them begins.

    They find the run's checkpoints by themselves, and on several nodes each might look at a disk of
    its own.

    Args:
        step: Where this process is to begin.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares, on all processes.

        Raises:
            ValueError: They begin at different steps.
        """
        if trainer.world_size == 1:
            return
        step = torch.tensor(self.step, device=trainer.strategy.root_device)
        first, last = (
            int(trainer.strategy.reduce(step.clone(), reduce_op=kind)) for kind in ("min", "max")
        )
        if first != last:
            raise ValueError(
                f"some processes would begin at step {first}, others at step {last}: run_dir must "
                "be one folder, which all nodes share"
            )
