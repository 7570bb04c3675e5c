"""Whether a model takes the frames that a datamodule has."""

from inspect import signature
from typing import Any

from convlstm.module import VideoPredictor
from datamodules import VideoDataModule


def check_frames(model: VideoPredictor, data: VideoDataModule, trained: bool) -> None:
    """Makes sure of it, before anything is read or written.

    Args:
        model: The model.
        data: What it is to read; a class that does not say its `channels` or `frame_size` is taken
            to have the right ones.
        trained: Whether the model's network is given, by weights or a checkpoint.

    Raises:
        ValueError: Channels differ; or the model is tied to one frame size, and it is another.
    """
    network = model.network
    channels = getattr(data, "channels", network.channels)
    if channels != network.channels:
        ways = []
        if "channels" in signature(type(data)).parameters:
            ways.append(f"--data.channels {network.channels}")
        if not trained:
            ways.append(f"--model.channels {channels}")
        raise ValueError(
            f"the model takes frames of {network.channels} channels, the data has {channels}: "
            + (f"give {' or '.join(ways)}" if ways else "choose other data, or another model")
        )
    only = network.only_size
    size: Any = getattr(data, "frame_size", only)
    if only is not None and size != only:
        height, width = only
        raise ValueError(
            f"peephole 'full' ties the model to frames of {height} x {width} pixels, the data has "
            f"{size[0]} x {size[1]}: give --data.frame_size [{height},{width}]"
        )
