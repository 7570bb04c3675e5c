"""What TensorBoard shows of a validation: metrics by lead time, and forecasts that move."""

import struct
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from convlstm.module import VideoPredictor
from convlstm.render import encode_gif

CLIPS = 4

Clip = tuple[Tensor, Tensor, Tensor]  # context, forecast, truth


class ValidationWatch(Callback):
    """Logs, after each validation, MSE and SSIM of each lead time and GIFs of the same few clips.

    The clips are the first four of the validation split that the first process has.
    """

    def __init__(self) -> None:
        self._clips: list[Clip] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last validation's."""
        self._clips.clear()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first clips."""
        if self._writer(trainer) is not None:
            for clip in zip(batch["context"], outputs, batch["target"], strict=True):
                if len(self._clips) < CLIPS:
                    self._clips.append(tuple(part.cpu() for part in clip))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes."""
        assert isinstance(pl_module, VideoPredictor)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = pl_module.val_metrics.summary()  # all processes add up
        writer = self._writer(trainer)
        if writer is None:
            return
        step = trainer.global_step
        for name in ("mse", "ssim"):
            for lead, value in enumerate(values[f"{name}_by_lead_time"].tolist(), start=1):
                writer.add_scalar(f"val_{name}_by_lead_time/{lead:02d}", value, step)
        for number, clip in enumerate(self._clips):
            if _can_be_shown(clip):
                summary = gif_summary(f"forecasts/{number}", encode_gif(*clip))
                writer._get_file_writer().add_summary(summary, step)

    def _writer(self, trainer: pl.Trainer) -> Any:
        """TensorBoard's, on the first process."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                return logger.experiment
        return None


def _can_be_shown(clip: Clip) -> bool:
    """Whether a clip is gray or RGB, and its forecast finite."""
    return clip[0].shape[1] in (1, 3) and all(bool(part.isfinite().all()) for part in clip)


def gif_summary(tag: str, data: bytes) -> Summary:
    """A GIF as TensorBoard's image summary, which plays it.

    (`SummaryWriter.add_video` needs moviepy, and fails with its current release.)
    """
    width, height = struct.unpack("<HH", data[6:10])  # GIF's logical screen
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
