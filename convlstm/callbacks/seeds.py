"""Random numbers of training that do not depend on where a run was resumed."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class StepSeeds(Callback):
    """Seeds dropout and scheduled sampling anew for each batch, from the batch's place in the run.

    So that a resumed run draws what an uninterrupted one would, and each process its own.

    Args:
        seed: The run's seed, >= 0.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def state_dict(self) -> dict[str, int]:
        """The seed, for a checkpoint."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Checks that a resumed training draws on from the same seed.

        Raises:
            ValueError: It is another one.
        """
        if state_dict["seed"] != self.seed:
            raise ValueError(
                f"--seed_everything is {self.seed}, but the checkpoint was trained with "
                f"{state_dict['seed']}: keep it as it was"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds torch, on the CPU and on the device that trains.

        (`torch.manual_seed` would note a stack trace for each kind of device that is not there.)
        """
        place = (trainer.global_step, batch_idx % trainer.accumulate_grad_batches)
        words = np.random.SeedSequence((self.seed, *place, trainer.global_rank))
        seed = int(words.generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)
