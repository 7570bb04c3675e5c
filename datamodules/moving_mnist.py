"""Moving MNIST: digits that move in straight lines and bounce off the walls, drawn on the fly.

Srivastava et al. 2015, https://arxiv.org/abs/1502.04681.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerStatus
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.base import Batch, VideoDataModule, require_at_least
from datamodules.cutting import NO_GAP, cut
from datamodules.digits import DIGIT_SIZE, load_digits
from datamodules.moving_mnist_file import MovingMNISTFile
from datamodules.random_streams import stream_key
from datamodules.rendering import render, render_on_device
from datamodules.trajectories import Trajectories, draw_trajectories

HOST = "cpu"  # the device that loaders draw for


class MovingMNISTDataModule(VideoDataModule):
    """Moving MNIST: grayscale clips of digits that bounce off the walls.

    Frames are uint8, (B, T, 1, H, W). Each sequence is a function of the seed, the split and its
    index; training has an unlimited number of sequences. The splits share neither random numbers
    nor digit images: training and validation use separate parts of the digits' training split, the
    test uses their test split.

    If a Trainer runs on another device than the CPU, its loaders yield digits and positions (see
    `MovingMNIST.undrawn`), which need a fraction of the bytes, and `on_after_batch_transfer` draws
    bit-identical frames on the device. Otherwise, the loaders yield the frames.

    Args:
        root: Folder of the digit images; they are downloaded if missing.
        digits: Which images: MNIST or a dataset like it, or "builtin", which draws digits with a
            font and needs no download.
        num_digits: Digits in a sequence.
        frame_size: Height and width in pixels, at least 28: one number, or a list of two.
        speed: Pixels per frame: one number, or a list of two between which each digit's speed is
            drawn uniformly.
        occlude: [start, length] of context frames that are blanked (0), while target frames are
            not: a longer gap needs a longer memory. None for no gap.
        context_length: Number of context frames, which the model sees.
        target_length: Number of target frames, which it forecasts.
        train_size: Sequences in a nominal epoch.
        val_size: Number of validation sequences.
        test_size: Number of test sequences; with test_file, the first test_size are used.
        batch_size: Sequences per batch and device.
        num_workers: Processes that draw sequences, per device; 0 draws in the training process.
        seed: Seed of all randomness in the data.
        test_file: Path of the published test set, mnist_test_seq.npy: uint8 (T, N, H, W), time
            first. None draws the test sequences.

    Raises:
        ValueError: If an option is out of its range.
    """

    channels: int = 1
    frame_size: tuple[int, int]  # (height, width) in pixels, however it was given

    def __init__(
        self,
        root: str = "data",
        digits: Literal["mnist", "fashion_mnist", "kmnist", "builtin"] = "mnist",
        num_digits: int = 2,
        frame_size: int | list[int] = 64,
        speed: float | list[float] = 3.6,
        occlude: list[int] | None = None,
        context_length: int = 10,
        target_length: int = 10,
        train_size: int = 10_000,
        val_size: int = 1_000,
        test_size: int = 10_000,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        test_file: str | None = None,
    ) -> None:
        super().__init__(
            context_length=context_length,
            target_length=target_length,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        require_at_least(
            1, num_digits=num_digits, train_size=train_size, val_size=val_size, test_size=test_size
        )
        self.root = root
        self.digits = digits
        self.num_digits = num_digits
        self.frame_size = _frame_size(frame_size)
        self.speed = _speed_range(speed)
        self.occlude = _occluded(occlude, context_length)
        self.train_size = train_size
        self.val_size = val_size
        self.test_size = test_size
        self.test_file = test_file

    def prepare_data(self) -> None:
        """Downloads the digits if they are missing; Lightning calls it in one process only.

        Raises:
            OSError: If they are missing and cannot be downloaded, or test_file is missing.
            ValueError: If test_file is not what it should be.
        """
        verb = None if self.trainer is None else self.trainer.state.fn
        if not (verb == "test" and self.test_file):
            load_digits(self.digits, self.root, "train")
        if self.test_file is not None and verb not in ("validate", "test"):
            self._published()  # a training's test should not fail for it

    def setup(self, stage: str | None = None) -> None:
        """Makes the datasets of a stage: "fit", "validate", "test", or None for all.

        Raises:
            OSError: If the digits or test_file are missing.
            ValueError: If test_file is not what it should be.
        """
        if stage in ("fit", None) and self.train_set is None:
            self.train_set = self._drawn("train", self.train_size)
        if stage in ("fit", "validate", None) and self.val_set is None:
            self.val_set = self._drawn("val", self.val_size)
        if stage in ("test", None) and self.test_set is None:
            if self.test_file is None:
                self.test_set = self._drawn("test", self.test_size)
            else:
                self.test_set = self._published()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Draws the frames of a batch that came to its device undrawn."""
        if "positions" not in batch:
            return batch
        frames = render_on_device(batch["digits"], batch["positions"], self.frame_size)
        return cut(frames, batch["index"], self.context_length, self.occlude)

    def state_dict(self) -> dict[str, Any]:
        """What the training data depends on, for a checkpoint."""
        state: dict[str, Any] = super().state_dict()
        if state:
            start, stop = self.occlude.start, self.occlude.stop
            state["sequences"] = {
                "digits": self.digits,
                "num_digits": self.num_digits,
                "frame_size": list(self.frame_size),
                "speed": list(self.speed),
                "occlude": None if self.occlude == NO_GAP else [start, stop - start],
                "target_length": self.target_length,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that a resumed training goes on at the very next of the same sequences.

        Raises:
            ValueError: Sequences, batch size, devices or seed differ from the checkpoint's.
        """
        super().load_state_dict(state_dict)
        trained = state_dict.get("sequences", {})
        for name, value in self.state_dict().get("sequences", {}).items():
            if trained.get(name, value) != value:
                raise ValueError(
                    f"data.{name} is {value}, but the checkpoint was trained with "
                    f"{trained[name]}: keep it as it was"
                )

    def _loader(self, dataset: Dataset[Any], sampler: DistributedSampler[int]) -> DataLoader[Any]:
        if isinstance(dataset, MovingMNIST) and _runs_elsewhere(self.trainer):
            dataset = Undrawn(dataset)
        return super()._loader(dataset, sampler)

    def _published(self) -> MovingMNISTFile:
        assert self.test_file is not None
        return MovingMNISTFile(
            self.test_file,
            self.context_length,
            self.target_length,
            frame_size=self.frame_size,
            max_size=self.test_size,
            occlude=self.occlude,
        )

    def _drawn(self, split: Literal["train", "val", "test"], size: int) -> MovingMNIST:
        return MovingMNIST(
            load_digits(self.digits, self.root, split),
            self.context_length,
            self.target_length,
            split=split,
            size=size,
            num_digits=self.num_digits,
            frame_size=self.frame_size,
            speed=self.speed,
            seed=self.seed,
            occlude=self.occlude,
        )


class MovingMNIST(Dataset[Batch]):
    """Sequences drawn on the fly: number i is a function of the seed, the split and i.

    Any number >= 0 is a valid index; the length is only that of a nominal epoch.

    Args:
        images: (n, 28, 28) uint8, the digits.
        context_length: Number of context frames.
        target_length: Number of target frames.
        split: "train", "val" or "test"; they have different random numbers.
        size: Length of an epoch.
        num_digits: Digits in a sequence.
        frame_size: (height, width) in pixels.
        speed: Range of the speed in pixels a frame.
        seed: Seed, >= 0.
        occlude: The context frames that are blank.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        context_length: int,
        target_length: int,
        *,
        split: str,
        size: int,
        num_digits: int,
        frame_size: tuple[int, int],
        speed: tuple[float, float],
        seed: int,
        occlude: slice = NO_GAP,
    ) -> None:
        self.images = images
        self.context_length = context_length
        self.target_length = target_length
        self.size = size
        self.num_digits = num_digits
        self.frame_size = frame_size
        self.speed = speed
        self.occlude = occlude
        self.key = stream_key(seed, split)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        undrawn = self.undrawn(indices)
        digits, positions = undrawn["digits"].numpy(), undrawn["positions"].numpy()
        frames = torch.from_numpy(render(digits, positions, self.frame_size))
        return cut(frames, undrawn["index"], self.context_length, self.occlude)

    def undrawn(self, indices: Sequence[int]) -> Batch:
        """What the frames of a batch are drawn from.

        Returns:
            `digits` (B, D, 28, 28) uint8, the images; `positions` (B, T, D, 2) int64, pixel (row,
            column) of their upper left corners; and `index` (B,) int64.

        Raises:
            IndexError: If an index is negative.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        if (numbers < 0).any():
            raise IndexError(f"index is {numbers.min()}: must be 0 or more")
        images, positions = self.trajectories(numbers)
        return {
            "digits": torch.from_numpy(self.images[images]),
            "positions": torch.from_numpy(positions),
            "index": torch.from_numpy(numbers),
        }

    def trajectories(self, indices: NDArray[np.int64]) -> Trajectories:
        """Digit numbers (B, D) and positions (B, T, D, 2) of the sequences with these numbers."""
        height, width = self.frame_size
        return draw_trajectories(
            self.key,
            indices,
            num_images=len(self.images),
            num_digits=self.num_digits,
            num_frames=self.context_length + self.target_length,
            free=(height - DIGIT_SIZE, width - DIGIT_SIZE),
            speed=self.speed,
        )


class Undrawn(Dataset[Batch]):
    """The batches of a `MovingMNIST` as digits and positions, to be drawn on another device.

    Args:
        drawn: The sequences.
    """

    def __init__(self, drawn: MovingMNIST) -> None:
        self.drawn = drawn

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.drawn.undrawn(indices)


def _runs_elsewhere(trainer: Trainer | None) -> bool:
    """Whether batches go to another device than the CPU, by a Trainer that will draw them."""
    return (
        trainer is not None
        and trainer.state.status == TrainerStatus.RUNNING
        and trainer.strategy.root_device.type != HOST
    )


def _frame_size(frame_size: int | Sequence[int]) -> tuple[int, int]:
    sizes = [frame_size] * 2 if isinstance(frame_size, int) else list(frame_size)
    if len(sizes) != 2 or min(sizes) < DIGIT_SIZE:
        raise ValueError(
            f"frame_size is {frame_size}: must be one number or [height, width], each at least "
            f"{DIGIT_SIZE}, the size of a digit"
        )
    return sizes[0], sizes[1]


def _occluded(occlude: Sequence[int] | None, context_length: int) -> slice:
    """The blank frames of the context."""
    if occlude is None:
        return NO_GAP
    start, length = occlude if len(occlude) == 2 else (-1, 0)
    if start < 0 or length < 1 or start + length > context_length:
        raise ValueError(
            f"occlude is {occlude}: must be [start, length] within the {context_length} context "
            "frames, start from 0, length from 1"
        )
    return slice(start, start + length)


def _speed_range(speed: float | Sequence[float]) -> tuple[float, float]:
    speeds = [speed] * 2 if isinstance(speed, int | float) else list(speed)
    if len(speeds) != 2 or not 0 <= speeds[0] <= speeds[1] < math.inf:
        raise ValueError(
            f"speed is {speed}: must be one number or [slowest, fastest], in pixels a frame, "
            "0 or more"
        )
    return float(speeds[0]), float(speeds[1])
