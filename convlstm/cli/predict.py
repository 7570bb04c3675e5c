"""`convlstm predict`: continues a user's own clips."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track

from convlstm.cli.parser import OneLineErrors
from convlstm.files import replacing
from convlstm.module import VideoPredictor
from convlstm.render import save_gif, save_strip
from datamodules import read_clip

KINDS = (".gif", ".png", ".npy")  # what is written for each clip


class PredictParser(OneLineErrors, ArgumentParser):
    """The parser of `convlstm predict`."""

    command = "convlstm predict"


def run(args: Sequence[str]) -> int:
    """Forecasts every file; one that cannot be forecast does not stop the others."""
    options = _parse(args)
    paths = [Path(file) for file in options.files]
    out = Path(options.out)
    twice = {p.stem for p in paths if sum(p.stem == other.stem for other in paths) > 1}
    if twice:
        raise ValueError(
            f"two files would both be written as {out / sorted(twice)[0]}.gif: forecast them one "
            "after the other with different --out"
        )
    for path in paths:
        if path.resolve() in {(out / f"{path.stem}{kind}").resolve() for kind in KINDS}:
            raise ValueError(f"{path} would be overwritten by its forecast: choose another --out")
    model = VideoPredictor.load_from_checkpoint(options.ckpt_path)
    context = options.context or model.hparams["context_length"]

    failed = 0
    for path in track(paths, "Forecasting", console=Console(stderr=True), disable=len(paths) < 2):
        try:
            clip = _context(path, context, model.network.channels)
        except (OSError, ValueError) as error:
            from convlstm.cli import one_line

            print(f"convlstm predict: error: {one_line(error)}", file=sys.stderr)
            failed += 1
            continue
        forecast = model.forecast(clip, options.steps)
        print(_write(out / path.stem, clip, forecast))
    return 1 if failed else 0


def _parse(args: Sequence[str]) -> Namespace:
    parser = PredictParser(
        prog="convlstm predict",
        description="Continue clips with a trained model. For each clip this writes NAME.gif "
        "(animation), NAME.png (film strip) and NAME.npy (the forecast frames, float32 in [0, 1], "
        "of shape (steps, channels, height, width)).",
    )
    parser.add_argument(
        "files",
        type=str,
        nargs="+",
        help="Clips: GIF, or .npy of shape (T, H, W) or "
        "(T, C, H, W) with uint8, uint16 or floats in [0, 1].",
    )
    parser.add_argument(
        "--ckpt_path",
        type=str,
        required=True,
        help="The checkpoint, such as runs/moving_mnist/checkpoints/best.ckpt.",
    )
    parser.add_argument("--steps", type=int, default=10, help="How many frames to forecast.")
    parser.add_argument(
        "--context",
        type=int | None,
        default=None,
        help="How many of a clip's last frames to forecast from. Default: as in training.",
    )
    parser.add_argument("--out", type=str, default="forecasts", help="The folder to write to.")
    options = parser.parse_args(list(args))
    if options.steps < 1:
        parser.error(f"--steps must be >= 1, got {options.steps}")
    if options.context is not None and options.context < 1:
        parser.error(f"--context must be >= 1, got {options.context}")
    return options


def _context(path: Path, length: int, channels: int) -> torch.Tensor:
    """The last frames of a clip, (length, C, H, W)."""
    clip = read_clip(path)
    if clip.shape[1] != channels:
        kinds = {1: "gray", 3: "RGB"}
        raise ValueError(
            f"{path}: the clip has {clip.shape[1]} channels "
            f"({kinds.get(clip.shape[1], 'neither gray nor RGB')}), the model was trained on "
            f"{channels} ({kinds.get(channels, 'neither gray nor RGB')}): convert the clip first"
        )
    if len(clip) < length:
        raise ValueError(
            f"{path}: the clip has {len(clip)} frames, the forecast needs {length}: give a longer "
            f"clip, or --context {len(clip)}"
        )
    return torch.from_numpy(np.ascontiguousarray(clip[-length:]))


def _write(stem: Path, clip: torch.Tensor, forecast: torch.Tensor) -> Path:
    """Writes the three files of a forecast; returns the GIF's path."""
    gif, strip, frames = (stem.with_name(stem.name + kind) for kind in KINDS)
    with replacing(frames) as temporary:
        np.save(temporary, forecast.numpy())
    save_strip(strip, clip, forecast)
    save_gif(gif, clip, forecast)
    return gif
