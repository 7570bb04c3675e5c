"""`convlstm predict`: continues a user's own clips."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from torch import Tensor

from convlstm.callbacks.report import metrics_table
from convlstm.cli.comparison import compare
from convlstm.cli.memory import ADVICE, check_memory, is_out_of_memory
from convlstm.cli.message import one_line
from convlstm.cli.outputs import Format, Outputs
from convlstm.cli.parser import OneLineErrors
from convlstm.console import plain_console
from convlstm.files import real
from convlstm.module import VideoPredictor, load
from datamodules import find_clips, open_clip

Size = tuple[int, int]  # (height, width) in pixels


class PredictParser(OneLineErrors, ArgumentParser):
    """The parser of `convlstm predict`."""

    command = "convlstm predict"


def run(args: Sequence[str]) -> int:
    """Forecasts every clip; one that cannot be forecast does not stop the others."""
    options = _parse(args)
    clips, failed = _find(options.files, real(Path(options.out)))
    outputs = Outputs(Path(options.out), options.format, options.compare)
    outputs.check(clips)
    model = load(options.ckpt_path or options.pretrained)
    if torch.cuda.is_available():
        model.cuda()
    if model.network.channels not in (1, 3):
        raise ValueError(
            f"the model takes frames of {model.network.channels} channels: convlstm predict knows "
            "gray (1) and RGB (3); for others use forecast() in Python"
        )
    size = _trained_size(model) if options.resize == "trained" else options.resize
    for clip in _progress(list(clips)):
        try:
            _forecast(clip, clips[clip], model, options, size, outputs)
        except BrokenPipeError:  # whoever reads what is printed has gone
            raise
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            failed += _report(clip, error)
    return 1 if failed else 0


def _parse(args: Sequence[str]) -> Namespace:
    parser = PredictParser(
        prog="convlstm predict",
        description="Forecast how clips continue, with a trained model. For each clip, the command "
        "writes NAME.gif (animation), NAME.png (film strip) and NAME.npy (the forecast frames, "
        "float32 in [0, 1], of shape (steps, channels, height, width)). Colour clips are converted "
        "to gray for a model trained on gray clips, and vice versa. Frames may have any size.",
    )
    parser.add_argument(
        "files",
        type=str,
        nargs="+",
        help="Clips, and folders of clips: GIF, PNG, WebP; MP4, MOV, AVI, MKV, WebM, MPG, WMV, "
        "MTS, TS, FLV, OGV, 3GP (these require the extra 'video'); .npy, .npz of shape (T, H, W), "
        "(T, C, H, W) or (T, H, W, C) with uint8, uint16 or floats in [0, 1]. A folder of images "
        "is a clip.",
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="Checkpoint of the model, such as runs/moving_mnist/checkpoints/best.ckpt.",
    )
    parser.add_argument(
        "--pretrained",
        type=str | None,
        default=None,
        help="Instead of a checkpoint: bundled weights (moving-mnist), or a file written by "
        "`convlstm export`.",
    )
    parser.add_argument("--steps", type=int, default=10, help="Number of frames to forecast.")
    parser.add_argument(
        "--context",
        type=int | None,
        default=None,
        help="Number of context frames, the last ones of each clip. Default: as in training.",
    )
    parser.add_argument(
        "--frame_step",
        type=int | None,
        default=None,
        help="Use every n-th frame of a clip. Default: as in training.",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="Hold back the last frames of each clip (as many as --steps, or fewer in a short "
        "clip), forecast them from the frames before, and show both side by side. Prints metrics "
        "by lead time, and writes them to NAME.json.",
    )
    parser.add_argument(
        "--resize",
        type=str | None,
        default=None,
        help="Resize frames first: HEIGHTxWIDTH in pixels, or 'trained' for the size of the "
        "training frames. Frames are cropped evenly to the new aspect ratio.",
    )
    parser.add_argument(
        "--format",
        type=Format,
        nargs="+",
        default=["gif", "png", "npy"],
        help="Files to write: gif, mp4 (animations), png (film strip), npy (forecast frames).",
    )
    parser.add_argument(
        "--axes",
        type=str | None,
        default=None,
        help="Axes of .npy and .npz files, such as HWT, if they differ from the shapes above.",
    )
    parser.add_argument(
        "--array",
        type=str | None,
        default=None,
        help="Name of the array in .npz files with several arrays.",
    )
    parser.add_argument("--out", type=str, default="forecasts", help="Output folder.")
    options = parser.parse_args(list(args))
    if (options.ckpt_path is None) == (options.pretrained is None):
        parser.error("give either --ckpt_path or --pretrained")
    if "" in (*options.files, options.out):
        parser.error("a file or folder has an empty name")
    if options.steps < 1:
        parser.error(f"--steps must be >= 1, got {options.steps}")
    if options.context is not None and options.context < 1:
        parser.error(f"--context must be >= 1, got {options.context}")
    if options.frame_step is not None and options.frame_step < 1:
        parser.error(f"--frame_step must be >= 1, got {options.frame_step}")
    if options.resize not in (None, "trained"):
        sides = re.fullmatch(r"0*([1-9]\d*)x0*([1-9]\d*)", options.resize)
        if sides is None:
            parser.error(f"--resize must be like 48x64, or 'trained', got {options.resize!r}")
        options.resize = int(sides[1]), int(sides[2])
    return options


def _find(files: Iterable[str], out: Path) -> tuple[dict[Path, Path], int]:
    """The clips with the names of their forecasts, and how many folders have none.

    What is in subfolders of a folder has its forecasts in subfolders, too. Of a folder that has
    the forecasts in it, these are no clips.
    """
    clips: dict[Path, Path] = {}
    failed = 0
    for file in map(Path, files):
        try:
            asked = real(file).is_relative_to(out)
            for clip in find_clips([file]):
                if asked or not real(clip).is_relative_to(out):
                    clips.setdefault(clip, _name(clip, file))
        except OSError as error:
            failed += _report(file, error)
    return clips, failed


def _name(clip: Path, given: Path) -> Path:
    """What the forecasts of a clip are called that is, or is in, what was given."""
    if clip != given:
        name = clip.relative_to(given)
    else:
        name = Path(real(clip).name if clip.is_dir() else clip.name)
    return name if clip.is_dir() else name.with_suffix("")


def _trained_size(model: VideoPredictor) -> Size:
    size = model.hparams["frame_size"]
    if size is None:
        raise ValueError(
            "the model does not say which frame size it was trained on: give --resize HEIGHTxWIDTH"
        )
    height, width = size
    return height, width


def _progress(clips: list[Path]) -> Iterable[Path]:
    if len(clips) < 2:
        return clips
    return track(clips, "Forecasting", console=Console(stderr=True))


def _forecast(
    path: Path,
    name: Path,
    model: VideoPredictor,
    options: Namespace,
    size: Size | None,
    outputs: Outputs,
) -> None:
    """Forecasts one clip, writes its files and prints what they are called."""
    clip = open_clip(path, axes=options.axes, array=options.array)
    length = options.context or model.hparams["context_length"]
    every = options.frame_step or model.hparams["frame_step"]
    there = (clip.num_frames - 1) // every + 1
    of_them = "" if every == 1 else f" ({there} with a frame_step of {every})"
    if there < length + options.compare:
        more = " and one to compare with" if options.compare else ""
        raise ValueError(
            f"{path}: the clip has {clip.num_frames} frames{of_them}, the forecast needs "
            f"{length}{more}: give a longer clip, or a smaller --context"
        )
    held_back = min(options.steps, there - length) if options.compare else 0
    if model.device.type == "cpu":
        at_once = length if model.network.autoregressive else max(length, options.steps)
        check_memory(model.network, at_once, size or clip.frame_size)
    first = clip.num_frames - 1 - (length + held_back - 1) * every  # the last is the clip's last
    frames = clip.read(first, clip.num_frames, every, channels=model.network.channels, size=size)
    known = torch.from_numpy(frames)
    context, truth = known[:length], known[length:]
    forecast: Tensor = model.forecast(context, options.steps)
    comparison = compare(context, forecast, truth) if options.compare else None
    written = outputs.write(name, context, forecast, comparison)
    console = plain_console()
    console.print(" ".join(map(str, written)))
    if comparison is not None:
        if held_back < options.steps:
            console.print(
                f"{path}: {held_back} of the {options.steps} forecast frames could be compared, as "
                f"the clip has {clip.num_frames} frames{of_them} and {length} of them are the "
                "context"
            )
        console.print(metrics_table(comparison.model, comparison.last_frame))


def _report(path: Path, error: Exception) -> int:
    """Prints what is wrong with a clip, in one line; returns 1, the number of such clips."""
    out_of_memory = is_out_of_memory(error)
    text = f"not enough memory: {ADVICE}" if out_of_memory else one_line(error)
    if not text.startswith(f"{path}:"):
        text = f"{path}: {text}"
    print(f"convlstm predict: error: {text}", file=sys.stderr)
    return 1
