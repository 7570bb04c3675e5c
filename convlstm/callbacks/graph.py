"""Training steps as CUDA graphs."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from convlstm.module import VideoPredictor

Kind = tuple[tuple[torch.Size, torch.dtype], ...]
LOWERED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # of autocast, by precision


class CUDAGraph(Callback):
    """Records loss and gradients at the first batch, and replays them at each training step.

    A step starts some thousand kernels. For a small network Python needs longer to start one than
    it runs; a graph starts them all in one call. Losses and weights are those of a training without
    it. Batches of another shape or dtype are computed without the graph. A copy of the module that
    is made during the training computes with the original's weights.

    Raises:
        ValueError: The training is not on one CUDA GPU; a step is not the same computation each
            time, as gradients of several batches are added up or sampling is scheduled; anomalies
            are to be detected; or parameters outside of the network are trained.
    """

    def __init__(self) -> None:
        self._recorded: Kind | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses what can't be recorded."""
        self.check(trainer, pl_module)

    @staticmethod
    def check(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises if a training can't be recorded."""
        device = trainer.strategy.root_device
        if device.type != "cuda":
            raise ValueError(
                f"--cuda_graph is for training on a CUDA GPU, not on {device.type}: set "
                "--cuda_graph false"
            )
        if trainer.world_size > 1:
            raise ValueError(
                f"--cuda_graph is for one GPU, not for {trainer.world_size} devices: set "
                "--trainer.devices 1 or --cuda_graph false"
            )
        if trainer.accumulate_grad_batches > 1:
            raise ValueError(
                "--cuda_graph needs --trainer.accumulate_grad_batches 1, got "
                f"{trainer.accumulate_grad_batches}"
            )
        if pl_module.hparams["scheduled_sampling_steps"] > 0:
            raise ValueError(
                "--cuda_graph needs steps that are all alike: set "
                "--model.scheduled_sampling_steps 0"
            )
        if torch.is_anomaly_enabled():
            raise ValueError(
                "--trainer.detect_anomaly looks at each value, which a CUDA graph does not let it "
                "do: set --cuda_graph false"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Records, at the first batch."""
        self.check(trainer, pl_module)  # a schedule may have changed what is accumulated
        if self._recorded is not None:
            return
        assert isinstance(pl_module, VideoPredictor)
        inside = set(pl_module.network.parameters())
        if any(p.requires_grad and p not in inside for p in pl_module.parameters()):
            raise ValueError(
                "--cuda_graph trains the parameters of `network`, and there are others"
            )
        frames = batch["context"], batch["target"]
        self._recorded = _kind(*frames)
        plain = pl_module.training_loss
        # What accumulates gradients belongs to the stream that records; PyTorch warns of that.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        step = _Recordable(pl_module, LOWERED.get(str(trainer.precision)))
        replay: Any = torch.cuda.make_graphed_callables(
            step, tuple(part.clone() for part in frames)
        )

        def training_loss(context: Tensor, target: Tensor) -> Tensor:
            if _kind(context, target) != self._recorded:
                return plain(context, target)
            loss: Tensor = replay(context, target)
            return loss

        pl_module.training_loss = training_loss  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the module its own loss back."""
        if "training_loss" in vars(pl_module):
            del pl_module.training_loss
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(True)
        self._recorded = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The same: of a training that fails there is no `teardown`."""
        self.teardown(trainer, pl_module, "fit")


def _kind(*frames: Tensor) -> Kind:
    """What has to be the same for a graph to be replayed."""
    return tuple((part.shape, part.dtype) for part in frames)


class _Recordable(nn.Module):
    """The loss of a batch, as a module whose parameters are those that get gradients."""

    def __init__(self, predictor: VideoPredictor, lowered: torch.dtype | None) -> None:
        super().__init__()
        self.network = predictor.network
        self.loss = predictor.training_loss
        self.lowered = lowered

    def forward(self, context: Tensor, target: Tensor) -> Tensor:
        # Autocast's cache would keep weights as they were when the graph was recorded.
        with torch.autocast(
            "cuda", self.lowered, enabled=self.lowered is not None, cache_enabled=False
        ):
            return self.loss(context, target)
