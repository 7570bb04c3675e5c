"""Measures how long training waits for the windows of your own clips, on the CPU.

    python benchmarks/clips.py videos

One thread decodes (and those of the video decoder): the first epoch, which fills the cache of
decoded frames; the next one, which is drawn from it; and windows without a cache. Beside them, a
training step of the network of `configs/clips.yaml` in float32, on all threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import layer
import torch
import yaml

from convlstm import VideoPredictor
from datamodules import ClipDataModule
from datamodules.clip_windows import ClipWindows

CONFIG = Path(__file__).parent.parent / "configs" / "clips.yaml"


def training_step(data: ClipDataModule, repeats: int) -> float:
    """Seconds of a forward and a backward pass on a batch."""
    torch.manual_seed(0)
    options = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]
    network = VideoPredictor(**options | {"channels": data.channels}).network
    frames = torch.rand(data.batch_size, data.context_length, data.channels, *data.frame_size)

    def run() -> None:
        network.zero_grad()
        network(frames, data.target_length).square().mean().backward()

    return layer.measure({"": run}, repeats, "cpu")[""]


def seconds(windows: ClipWindows, samples: range) -> float:
    """How long it takes to get at them."""
    start = time.perf_counter()
    for index in samples:
        windows[index]
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder of the clips, all of which are read")
    parser.add_argument("--frame_size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=3, help="3 (RGB) or 1 (gray)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--windows", type=int, default=20, help="windows without a cache")
    parser.add_argument("--repeats", type=int, default=5, help="training steps")
    args = parser.parse_args()

    def opened(cache_mib: int) -> tuple[ClipDataModule, ClipWindows]:
        data = ClipDataModule(
            args.root,
            frame_size=args.frame_size,
            channels=args.channels,
            split_by="time",
            batch_size=args.batch_size,
            cache_mib=cache_mib,
        )
        data.setup("fit")
        assert data.train_set is not None
        return data, data.train_set

    start = time.perf_counter()
    try:
        data, windows = opened(1024)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    opening = time.perf_counter() - start
    step = training_step(data, args.repeats)
    with layer.settings(threads=1):
        count, frames = len(windows), sum(len(part.frames) for part in windows.parts)
        first = seconds(windows, range(count))
        later = seconds(windows, range(count, 2 * count))
        uncached = seconds(opened(0)[1], range(args.windows)) / args.windows
    cold, batch = (first - later) / frames, args.batch_size * later / count
    print(
        f"{frames} frames for training, {count} windows of {windows.span}, to {args.frame_size} x "
        f"{args.frame_size} pixels with {args.channels} channels; opened in {opening:.2f} s\n"
        f"first epoch: {1e3 * cold:.1f} ms to decode a frame, {frames * cold:.1f} s for all\n"
        f"from the cache: {1e3 * batch:.2f} ms for a batch of {args.batch_size}, "
        f"{batch / step:.2%} of a training step, which takes {1e3 * step:.0f} ms\n"
        f"without a cache: {1e3 * uncached:.0f} ms for a window"
    )


if __name__ == "__main__":
    main()
