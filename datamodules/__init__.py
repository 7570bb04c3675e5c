"""Datamodules: videos for training, validation and test, as PyTorch Lightning loads them."""

from datamodules.base import VideoDataModule
from datamodules.clips import read_clip
from datamodules.digits import load_digits
from datamodules.moving_mnist import MovingMNISTDataModule

__all__ = ["MovingMNISTDataModule", "VideoDataModule", "load_digits", "read_clip"]
