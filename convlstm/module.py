"""`VideoPredictor`: the network with its loss, metrics and optimizer."""

import math
from inspect import signature
from pathlib import Path
from typing import IO, Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric

from convlstm.cells import Peephole
from convlstm.checkpoint import read_checkpoint
from convlstm.forecaster import EncoderForecaster, Feedback, Readout
from convlstm.inference import Inference
from convlstm.losses import LOSSES, Loss
from convlstm.metrics import METRICS, ForecastMetrics, cross_entropy
from convlstm.optimizers import OPTIMIZERS, OptimizerName, build_optimizer
from convlstm.pixels import check_unit, to_unit
from convlstm.pretrained import read_pretrained
from convlstm.stages import Cell

Batch = dict[str, Tensor]
ENDLESS = (
    "schedule 'onecycle' needs to know its end: set trainer.max_steps, or choose "
    "--model.schedule constant"
)


class VideoPredictor(Inference, pl.LightningModule):
    """An encoder-forecaster as a LightningModule: trains on clips and forecasts videos.

    Batches are dicts: `context` (B, T, C, H, W) and `target` (B, steps, C, H, W), uint8, uint16 or
    floats in [0, 1], and `index` (B,).

    Args:
        channels: Channels of a frame, C: 1 for gray, 3 for RGB.
        context_length: Number of context frames in training; the default of `convlstm predict`.
        frame_step: Step between the frames of a clip in training (n: every n-th frame); likewise.
        patch_size: Side of the patches that frames are cut into, in pixels.
        hidden_sizes: Hidden channels of each stage; its length is the number of stages.
        kernel_size: Kernel size of the input convolutions, one for all stages or one per stage.
        hidden_kernel_size: The same for the hidden convolutions; `kernel_size` if None.
        cell: The recurrence: "lstm", "gru" or "rnn".
        downsample: Factor by which each stage reduces the resolution of the stage before, one for
            all stages or one per stage.
        forecaster: "unconditional" (has no input but the encoder's states) or "autoregressive"
            (reads the previous frame of the forecast).
        peephole: "none", "channel" or "full" (requires frame_size), for the cell "lstm".
        frame_size: [H, W] in pixels of the training frames. It is recorded when training starts;
            only peephole "full" requires it, and then takes no other size.
        readout: Which hidden states a frame is read from: those of "all" forecaster stages, or
            only of the "last" one.
        head_size: Channels of a 3×3 convolution with LeakyReLU between the hidden states and the
            frame; 0 for none.
        bidirectional: Whether the encoder reads the context in both directions.
        attention: Side, in map points, of the neighbourhood to which the forecaster attends in all
            context frames: odd; 1 for the same point, 0 for no attention.
        residual: Whether forecasts are added to the last context frame, so that static parts stay
            sharp; not for the loss "cross_entropy".
        loss: "mse", "mae", "mse+mae" or "cross_entropy" (output through a sigmoid).
        optimizer: "adam", "adamw" or "muon"; see `convlstm.optimizers`.
        learning_rate: Peak of the schedule, > 0; with "constant" that of all steps.
        weight_decay: For "adamw" and "muon" only.
        schedule: "onecycle" (Smith and Topin 2017, https://arxiv.org/abs/1708.07120; requires
            trainer.max_steps) or "constant".
        warmup: Fraction of "onecycle" in which the learning rate rises, in (0, 1).
        scheduled_sampling_steps: Training steps over which the probability that the autoregressive
            forecaster reads the true frame falls from 1 to 0; 0 for no scheduled sampling.
        context_loss: Weight of the loss on the context frames, each forecast by the encoder from
            those before it, relative to the loss on the target frames; 0 to leave it out, as a
            bidirectional encoder and a context of one frame need.
        checkpoint_every: Length in steps of the segments that are recomputed in the backward pass,
            for less memory; 0 to keep everything.

    Raises:
        ValueError: An argument is out of range; the message gives the value and the valid range.
    """

    def __init__(
        self,
        channels: int = 1,
        context_length: int = 10,
        frame_step: int = 1,
        patch_size: int = 4,
        hidden_sizes: list[int] = [64, 64],  # noqa: B006 (never changed; None would hide the default)
        kernel_size: int | list[int] = 3,
        hidden_kernel_size: int | list[int] | None = None,
        cell: Cell = "lstm",
        downsample: int | list[int] = 1,
        forecaster: Feedback = "unconditional",
        peephole: Peephole = "none",
        frame_size: list[int] | None = None,
        readout: Readout = "all",
        head_size: int = 0,
        bidirectional: bool = False,
        attention: int = 0,
        residual: bool = False,
        loss: Loss = "mse",
        optimizer: OptimizerName = "adam",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["onecycle", "constant"] = "onecycle",
        warmup: float = 0.3,
        scheduled_sampling_steps: int = 0,
        context_loss: float = 0.0,
        checkpoint_every: int = 0,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
        if schedule not in ("onecycle", "constant"):
            raise ValueError(f"schedule must be 'onecycle' or 'constant', got {schedule!r}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {learning_rate}")
        if weight_decay < 0 or (weight_decay and optimizer == "adam"):
            raise ValueError(
                f"weight_decay must be >= 0, and 0 with the optimizer 'adam', got {weight_decay}"
            )
        if not 0 < warmup < 1:
            raise ValueError(f"warmup must be between 0 and 1, got {warmup}")
        if context_length < 1:
            raise ValueError(f"context_length must be >= 1, got {context_length}")
        if frame_step < 1:
            raise ValueError(f"frame_step must be >= 1, got {frame_step}")
        if scheduled_sampling_steps < 0 or (
            scheduled_sampling_steps and forecaster != "autoregressive"
        ):
            raise ValueError(
                "scheduled_sampling_steps must be >= 0, and 0 unless forecaster is "
                f"'autoregressive', got {scheduled_sampling_steps}"
            )
        if context_loss < 0 or (context_loss and (bidirectional or context_length < 2)):
            raise ValueError(
                "context_loss must be >= 0, and 0 with a bidirectional encoder or a context of one "
                f"frame, got {context_loss}"
            )
        self.save_hyperparameters()
        self.network = EncoderForecaster(
            channels,
            patch_size=patch_size,
            hidden_sizes=hidden_sizes,
            kernel_size=kernel_size,
            hidden_kernel_size=hidden_kernel_size,
            cell=cell,
            downsample=downsample,
            forecaster=forecaster,
            peephole=peephole,
            frame_size=frame_size,
            output="sigmoid" if loss == "cross_entropy" else "linear",
            readout=readout,
            head_size=head_size,
            bidirectional=bidirectional,
            attention=attention,
            residual=residual,
            checkpoint_every=checkpoint_every,
        )
        self.loss = LOSSES[loss]
        self.val_metrics = ForecastMetrics()
        self.test_metrics = ForecastMetrics()
        self.baseline_metrics = ForecastMetrics()
        self.test_cross_entropy = MeanMetric() if loss == "cross_entropy" else None

    def forward(self, frames: Tensor, steps: int) -> Tensor:
        """Frames (B, steps, C, H, W) after a context (B, T, C, H, W) in [0, 1]; not clipped."""
        return self.network(frames, steps)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> "VideoPredictor":
        """Builds the predictor that a checkpoint was saved from, with its weights.

        Args:
            checkpoint_path: A file that `convlstm fit` wrote.
            map_location: As in `torch.load`; without it, what was trained on a GPU that is not
                here is put on the CPU.
            hparams_file: As in Lightning; not needed.
            strict: As in Lightning.
            weights_only: As in `torch.load`: no code in the file is run.
            **kwargs: Hyperparameters that replace the checkpoint's.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is truncated, no checkpoint, or one of another model; or there is
                no such hyperparameter.
        """
        if isinstance(checkpoint_path, str | Path):
            read_checkpoint(checkpoint_path)
        try:
            model = super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
            )
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            text = " ".join(str(error).split())
            raise ValueError(f"{checkpoint_path}: weights and options differ: {text}") from error
        if unknown := kwargs.keys() - model.hparams.keys():  # which Lightning leaves out
            raise ValueError(f"there is no hyperparameter {', '.join(sorted(unknown))}")
        return model

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "VideoPredictor":
        """Builds a trained predictor on the CPU, in eval mode.

        To continue training, call `train()` on it and pass it to a `Trainer`.

        Args:
            name_or_path: Bundled weights ("moving-mnist"), a `.safetensors` file written by
                `convlstm export`, or a checkpoint written by `convlstm fit`.
            **options: Hyperparameters that replace those stored with the weights, such as
                learning_rate.

        Raises:
            FileNotFoundError: There are no weights and no file of that name.
            ValueError: The file is damaged or not that of a predictor; or an option is out of
                range, or describes another network than that of the weights.
        """
        weights, own = read_pretrained(name_or_path)
        whole = {n: p.default for n, p in signature(cls).parameters.items()} | own
        before, after = map(_what_weights_do_not_show, (whole, whole | options))
        if differing := [name for name in before if before[name] != after[name]]:
            told = ", ".join(f"{name} {whole[name]!r}" for name in differing)
            raise ValueError(f"{name_or_path}: these weights are of a network with {told}")
        return cls.rebuilt(weights, {**own, **options}, name_or_path)

    @classmethod
    def rebuilt(
        cls, weights: dict[str, Tensor], options: dict[str, Any], source: str | Path
    ) -> "VideoPredictor":
        """Builds the predictor that weights and options describe, in eval mode.

        Args:
            weights: Its state dict.
            options: Its hyperparameters.
            source: What they are from, for the message.

        Raises:
            ValueError: An option is unknown or out of range, or the weights are not those of the
                network that the options describe.
        """
        try:
            with torch.device("cpu"):
                model = cls(**options)
            model.load_state_dict(weights)
        except (TypeError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{source}: weights and options differ: {text}") from error
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        return model.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Notes the frame size, for forecasts of clips of another one.

        Raises:
            ValueError: The first batch has floats outside of [0, 1].
        """
        self.hparams["frame_size"] = list(batch["context"].shape[3:])
        if batch_idx == 0:
            check_unit(batch["context"])
            check_unit(batch["target"])

    def on_train_start(self) -> None:
        """Warns where epochs end the training before OneCycle's learning rate has fallen."""
        trainer = self.trainer
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches  # per epoch
        if self.hparams["schedule"] == "constant" or math.isinf(steps):
            return
        end = math.ceil(steps) * (trainer.max_epochs or -1)
        if 0 < end < trainer.max_steps:
            rank_zero_warn(
                f"trainer.max_epochs {trainer.max_epochs} ends the training at step {end}, before "
                f"its learning rate has fallen: set trainer.max_steps {end}, not "
                f"{trainer.max_steps}"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = self.training_loss(batch["context"], batch["target"])
        size = len(batch["target"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def training_loss(self, context: Tensor, target: Tensor) -> Tensor:
        """The loss on the target frames, and that on the context frames with its weight.

        Args:
            context: (B, T, C, H, W), uint8, uint16 or floats in [0, 1].
            target: (B, steps, C, H, W), likewise.
        """
        context, target = self._floats(context), self._floats(target)
        weight = self.hparams["context_loss"]
        steps = target.shape[1]
        raw = self.network(
            context,
            steps,
            truth=target,
            teacher_forcing=self.teacher_forcing,
            logits=True,
            context_too=weight > 0,
        )
        loss = self.loss(raw[:, -steps:], target)
        if weight > 0:
            loss = loss + weight * self.loss(raw[:, :-steps], context[:, 1:])
        return loss

    @property
    def teacher_forcing(self) -> float:
        """Probability of reading the true frame at this training step (scheduled sampling)."""
        steps = self.hparams["scheduled_sampling_steps"]
        return max(0.0, 1 - self.global_step / steps) if steps else 0.0

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Adds a batch to the validation metrics, and returns its forecasts (B, steps, C, H, W)."""
        context, target = self._frames(batch)
        forecast: Tensor = self(context, target.shape[1])
        self.val_metrics.update(forecast, target)
        return forecast

    def on_validation_epoch_start(self) -> None:
        """Forgets what an earlier validation has added up."""
        self.val_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Logs the means: `val/mse` and its kin."""
        self._log_means("val", self.val_metrics)

    def on_test_epoch_start(self) -> None:
        """Forgets what an earlier test has added up."""
        self.test_metrics.reset()
        self.baseline_metrics.reset()
        if self.test_cross_entropy is not None:
            self.test_cross_entropy.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Adds a batch to the test metrics, and returns its forecasts (B, steps, C, H, W)."""
        context, target = self._frames(batch)
        forecast: Tensor = self(context, target.shape[1])
        if self.test_cross_entropy is not None:
            self.test_cross_entropy.update(cross_entropy(forecast, target))
        self.test_metrics.update(forecast, target)
        self.baseline_metrics.update(context[:, -1:].expand_as(target), target)
        return forecast

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The forecasts of a batch (B, steps, C, H, W), of as many frames as its target has."""
        context, target = self._frames(batch)
        forecast: Tensor = self(context, target.shape[1])
        return forecast

    def on_test_epoch_end(self) -> None:
        """Logs `test/mse`, …, and `test/last_frame_mse`, … of repeating the last frame.

        With the loss "cross_entropy" also `test/cross_entropy`, summed over a sequence.
        """
        self._log_means("test", self.test_metrics)
        self._log_means("test/last_frame", self.baseline_metrics)
        if self.test_cross_entropy is not None:
            self.log("test/cross_entropy", self.test_cross_entropy)

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Context and target as floats in [0, 1]; to the device they travel as integers."""
        return self._floats(batch["context"]), self._floats(batch["target"])

    def _floats(self, frames: Tensor) -> Tensor:
        return to_unit(frames).to(next(self.network.parameters()).dtype)

    def _log_means(self, prefix: str, metrics: ForecastMetrics) -> None:
        values = metrics.summary()
        joint = "_" if "/" in prefix else "/"
        for name in METRICS:
            self.log(
                f"{prefix}{joint}{name}",
                values[name].float(),
                prog_bar=prefix == "val" and name == "mse",
                sync_dist=True,  # they are the same on all processes
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with OneCycle stepped at every batch.

        Raises:
            ValueError: OneCycle without the Trainer's `max_steps`.
        """
        options = self.hparams
        optimizer = build_optimizer(
            self.network, options["optimizer"], options["learning_rate"], options["weight_decay"]
        )
        if options["schedule"] == "constant":
            return optimizer
        # From max_steps: asking the Trainer for its estimate would open the data too early for an
        # exact resume.
        if self.trainer.max_steps < 1:
            raise ValueError(ENDLESS)
        warmup = options["warmup"]
        if warmup * self.trainer.max_steps == 1:  # of which PyTorch's would divide by zero
            warmup *= 1 - 1e-9
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            options["learning_rate"],
            total_steps=self.trainer.max_steps,
            pct_start=warmup,
            cycle_momentum=options["optimizer"] != "muon",  # whose momentum stays
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _what_weights_do_not_show(options: dict[str, Any]) -> dict[str, Any]:
    """The options that make another network of the same weights."""
    shown = {name: options.get(name) for name in ("forecaster", "readout", "residual")}
    return shown | {"loss": options.get("loss") == "cross_entropy"}  # with or without a sigmoid


def load(name_or_path: str | Path) -> VideoPredictor:
    """Loads a trained model onto the CPU, ready to forecast; see `VideoPredictor.from_pretrained`.

    Args:
        name_or_path: Bundled weights ("moving-mnist"), a checkpoint written by `convlstm fit`, such
            as runs/moving_mnist/checkpoints/best.ckpt, or a `.safetensors` file written by
            `convlstm export`.

    Raises:
        FileNotFoundError: There are no weights and no file of that name.
        ValueError: The file is damaged or not that of a predictor.
    """
    return VideoPredictor.from_pretrained(name_or_path)
