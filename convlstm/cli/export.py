"""`convlstm export`: a checkpoint's weights and options as one small file, to share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser

from convlstm.cli.parser import OneLineErrors
from convlstm.module import VideoPredictor
from convlstm.pretrained import read_pretrained
from convlstm.weights import write_weights

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ExportParser(OneLineErrors, ArgumentParser):
    """The parser of `convlstm export`."""

    command = "convlstm export"


def run(args: Sequence[str]) -> int:
    """Reads the weights and writes the file."""
    parser = ExportParser(
        prog="convlstm export",
        description="Write the weights and options of a checkpoint, without its optimizer, to a "
        "single safetensors file, which VideoPredictor.from_pretrained and --pretrained read.",
    )
    parser.add_argument(
        "checkpoint",
        type=str,
        help="Checkpoint, such as runs/moving_mnist/checkpoints/best.ckpt; or bundled weights "
        "(moving-mnist) or an exported file, to store in another type.",
    )
    parser.add_argument("out", type=str, help="File to write, NAME.safetensors.")
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "float16", "bfloat16"],
        default="float32",
        help="Type in which the weights are stored; they are converted to float32 when read.",
    )
    options = parser.parse_args(list(args))
    out = Path(options.out)
    if out.suffix != ".safetensors":
        parser.error(f"the file to write must end in .safetensors, got {out}")
    weights, own = read_pretrained(options.checkpoint)
    VideoPredictor.rebuilt(weights, own, options.checkpoint)  # or nobody could load the file
    write_weights(out, weights, own, DTYPES[options.dtype])
    print(f"{out}: {out.stat().st_size / 2**20:,.2f} MiB")
    return 0
