"""Clips from whatever holds them: animations, videos, folders of images and NumPy arrays."""

from datamodules.clips.arrays import open_npy
from datamodules.clips.find import find_clips
from datamodules.clips.opening import open_clip, read_clip
from datamodules.clips.reader import Clip, ClipReader

__all__ = ["Clip", "ClipReader", "find_clips", "open_clip", "open_npy", "read_clip"]
