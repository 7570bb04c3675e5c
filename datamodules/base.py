"""What every datamodule of videos shares: batches, sampling order and loaders."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

Batch = dict[str, torch.Tensor]


class VideoDataModule(pl.LightningDataModule):
    """Base class of all datamodules: builds data loaders from datasets of clips.

    A subclass creates ``train_set``, ``val_set`` and ``test_set`` in ``setup(stage)``. A batch is a
    dict with ``context`` (B, context_length, C, H, W) and ``target`` (B, target_length, C, H, W),
    both uint8 if the source has 8 bits, and ``index`` (B,) int64, the sample indices. A dataset
    returns one sample, without the B axis, in ``__getitem__``, or a whole batch in
    ``__getitems__(indices)``, which is faster.

    The length N of the training dataset is a nominal epoch. The dataset must accept any index >= 0,
    because position p of epoch e requests sample e * N + p; see `EndlessSampler`.

    Args:
        context_length: Number of context frames, which the model sees.
        target_length: Number of target frames, which it forecasts.
        batch_size: Samples per batch and device.
        num_workers: Loader processes per device; 0 loads in the training process.
        seed: Seed of all randomness in the data.

    Raises:
        ValueError: If a length or the batch size is below 1, or another number is negative.
    """

    def __init__(
        self,
        context_length: int = 10,
        target_length: int = 10,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_at_least(
            1, context_length=context_length, target_length=target_length, batch_size=batch_size
        )
        require_at_least(0, num_workers=num_workers, seed=seed)
        self.context_length = context_length
        self.target_length = target_length
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_set: Dataset[Any] | None = None
        self.val_set: Dataset[Any] | None = None
        self.test_set: Dataset[Any] | None = None

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless training data in the order of `EndlessSampler`; resumes where training stopped.

        Raises:
            RuntimeError: If ``setup("fit")`` has not made the dataset.
            ValueError: If the dataset is smaller than one global batch, or the Trainer has a
                GradientAccumulationScheduler.
        """
        dataset = _require(self.train_set, "fit")
        trainer = self.trainer
        if trainer is None:
            return self._loader(dataset, EndlessSampler(dataset, self.batch_size))
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            raise ValueError(
                "GradientAccumulationScheduler changes how many batches a step has, by which the "
                "position in the data is known: give one number, accumulate_grad_batches"
            )
        sampler = EndlessSampler(
            dataset,
            self.batch_size,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            batches_done=lambda: trainer.global_step * trainer.accumulate_grad_batches,
        )
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Each validation sample once, shared out over the processes.

        Raises:
            RuntimeError: If ``setup("fit")`` or ``setup("validate")`` has not made the dataset.
            ValueError: If there are fewer samples than devices.
        """
        return self._shard_loader(_require(self.val_set, "validate"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Each test sample once, shared out over the processes.

        Raises:
            RuntimeError: If ``setup("test")`` has not made the dataset.
            ValueError: If there are fewer samples than devices.
        """
        return self._shard_loader(_require(self.test_set, "test"))

    def describe(self) -> str:
        """What the training set and the validation set are, for those who start a training."""
        return ""

    def _shard_loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        trainer = self.trainer
        world_size, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        return self._loader(dataset, ShardSampler(dataset, num_replicas=world_size, rank=rank))

    def _loader(self, dataset: Dataset[Any], sampler: DistributedSampler[int]) -> DataLoader[Any]:
        loader = _VideoLoader if isinstance(sampler, EndlessSampler) else DataLoader
        return loader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals,
        )

    def state_dict(self) -> dict[str, int]:
        """What the position in the training data depends on, for a checkpoint."""
        trainer = self.trainer
        if trainer is None or self.train_set is None:
            return {}
        step = self.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        epoch = len(self.train_set)  # type: ignore[arg-type]  # map-style datasets have a length
        return {
            "samples_per_step": step,
            "samples_per_epoch": epoch,
            "seed": self.seed,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Checks that a resumed training goes on at the very next sample.

        Raises:
            ValueError: Batch size, devices, epoch or seed differ from the checkpoint's.
        """
        now = self.state_dict()
        for name, hint in (
            ("samples_per_step", "keep batch_size x devices x accumulate_grad_batches"),
            ("samples_per_epoch", "keep the training data"),
            ("seed", "keep the data's seed"),
            ("accumulate_grad_batches", "keep trainer.accumulate_grad_batches"),
        ):
            if name in now and state_dict.get(name, now[name]) != now[name]:
                raise ValueError(
                    f"the checkpoint was trained with {name} {state_dict[name]}, this run has "
                    f"{now[name]}, and some samples would be repeated: {hint} as it was"
                )


class EndlessSampler(DistributedSampler[int]):
    """Training order: epoch e, position p is sample e * N + p, so that no sample ever repeats.

    N is the dataset's length. An epoch is cut into whole global batches of
    batch_size * num_replicas * accumulate_grad_batches samples; what is left of the N is skipped.
    Process r takes the r-th contiguous share of each global batch, so that the processes together
    see what one process with the global batch size would see at that step.

    Iteration starts behind the batches already done, which is asked for only when the first
    sample is drawn. So a training resumed in the middle of an epoch goes on at the very next
    sample. It then runs on into the next epoch; whoever counts the batches of the interrupted
    epoch, as Lightning does, stops in time. Subclasses `DistributedSampler` because Lightning
    replaces any other sampler on several devices.

    Args:
        dataset: Its length N is the nominal epoch.
        batch_size: Samples in a batch of one process.
        num_replicas: Number of processes.
        rank: This process, from 0.
        accumulate_grad_batches: Batches of one process in an optimizer step.
        batches_done: Gives the number of batches that this process has trained on. Without it, an
            iteration starts at the epoch given by `set_epoch`.

    Raises:
        ValueError: If N is smaller than one global batch.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        accumulate_grad_batches: int = 1,
        batches_done: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self.batch_size = batch_size
        self.epoch_size = len(dataset)  # type: ignore[arg-type]  # map-style datasets have a length
        global_batch = batch_size * num_replicas * accumulate_grad_batches
        self.batches_per_epoch = self.epoch_size // global_batch * accumulate_grad_batches
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"the training set has {self.epoch_size} samples an epoch, fewer than one step's "
                f"{global_batch} (batch size {batch_size} x {num_replicas} devices x "
                f"{accumulate_grad_batches} accumulated batches): enlarge it or lower batch_size"
            )
        self.num_samples = self.batches_per_epoch * batch_size
        self.total_size = self.num_samples * num_replicas
        self._batches_done = batches_done

    def __iter__(self) -> Iterator[int]:
        if self._batches_done is not None:
            first = self._batches_done()
        else:
            first = self.epoch * self.batches_per_epoch
        for batch in range(first, first + self.batches_per_epoch):
            epoch, step = divmod(batch, self.batches_per_epoch)
            start = epoch * self.epoch_size
            start += (step * self.num_replicas + self.rank) * self.batch_size
            yield from range(start, start + self.batch_size)


class ShardSampler(DistributedSampler[int]):
    """Validation and test order: process r takes samples r, r + W, r + 2W, ... of W processes.

    Unlike `DistributedSampler` it repeats and drops nothing, so shares may differ by one sample.

    Args:
        dataset: The samples to share out.
        num_replicas: Number of processes, W.
        rank: This process, r.

    Raises:
        ValueError: If some process would get no sample.
    """

    def __init__(self, dataset: Dataset[Any], num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self.total_size = len(dataset)  # type: ignore[arg-type]  # map-style datasets have a length
        if self.total_size < num_replicas:
            # A process without a batch logs nothing, and the others would wait for it for ever.
            raise ValueError(
                f"the validation or test set has {self.total_size} samples, fewer than the "
                f"{num_replicas} devices: enlarge it or take fewer devices"
            )
        self.num_samples = len(range(rank, self.total_size, num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


class _VideoLoader(DataLoader[Any]):
    """A loader for `EndlessSampler` that a resumed training can trust.

    It opens its workers at the first batch and not before. Lightning opens the training loader
    before it restores the step number when, say, an optimizer asks for
    ``estimated_stepping_batches``; workers would then already hold batches of the wrong place.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()

    # Lightning warns that a loader without these two cannot resume in the middle of an epoch.
    # The position follows from the step number, so there is nothing to keep.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def collate(samples: Batch | list[Batch]) -> Batch:
    """Passes a batch from ``__getitems__`` through; stacks single samples along a new axis."""
    if isinstance(samples, dict):
        return samples
    batch: Batch = default_collate(samples)
    return batch


def _leave_signals(worker: int) -> None:
    """Signals, which a whole job gets, are for the training process to answer.

    SIGTERM is also how that process ends a worker, so that it counts half a minute later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


def require_at_least(minimum: int, **options: int) -> None:
    """Raises ValueError for the first of the named options that is below ``minimum``."""
    for name, value in options.items():
        if value < minimum:
            raise ValueError(f"{name} is {value}: must be {minimum} or more")


def _require(dataset: Dataset[Any] | None, stage: str) -> Dataset[Any]:
    if dataset is None:
        raise RuntimeError(f'no data for this stage yet: call setup("{stage}") first')
    return dataset
