"""What a run on the CPU needs of the processor."""

import warnings

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from convlstm.allocator import keep_freed_memory
from convlstm.bfloat16 import has_bfloat16


class Processor(Callback):
    """On the CPU: flushes denormals, keeps freed memory, and warns of bfloat16 in software.

    Gradients that fade over many steps end as denormals, on which arithmetic is slow. Memory is
    kept for good: see `keep_freed_memory`. Of bfloat16: see `has_bfloat16`.
    """

    _flushed_before: bool | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sets the processor up, before threads are started that would not know."""
        if trainer.strategy.root_device.type != "cpu":
            return
        self._flushed_before = flushes_denormals()
        torch.set_flush_denormal(True)
        keep_freed_memory()
        if trainer.precision in ("bf16-mixed", "bf16-true") and not has_bfloat16():
            warnings.warn(
                "this processor has no bfloat16 instructions (AVX512_BF16 or AMX): precision "
                f"{trainer.precision} is no faster than --trainer.precision 32-true, but coarser",
                RuntimeWarning,
                stacklevel=2,
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Treats denormals as before."""
        if self._flushed_before is not None:
            torch.set_flush_denormal(self._flushed_before)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Treats denormals as before: of a training that fails there is no `teardown`."""
        self.teardown(trainer, pl_module, "fit")


def flushes_denormals() -> bool:
    """Whether this thread's arithmetic takes denormals for zero."""
    return not (torch.tensor(1e-40) * 1).item()
