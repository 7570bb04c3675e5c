"""PyTorch Lightning datamodules: videos for training, validation and test."""

from datamodules.base import VideoDataModule
from datamodules.clip_module import ClipDataModule
from datamodules.clips import ClipReader, find_clips, open_clip, read_clip
from datamodules.digits import load_digits
from datamodules.moving_mnist import MovingMNISTDataModule

__all__ = [
    "ClipDataModule",
    "ClipReader",
    "MovingMNISTDataModule",
    "VideoDataModule",
    "find_clips",
    "load_digits",
    "open_clip",
    "read_clip",
]
