"""Averages the weights of one network after several trainings, the later begun from the earlier.

    python benchmarks/average.py moving-mnist=3 runs/back/checkpoints/last.ckpt=1 --out FILE

Each MODEL=SHARE is what `--pretrained` takes, and how much of the average it is; shares are scaled
to a sum of 1. FILE, NAME.safetensors, has the options of the first model, and float16 weights.

Fine-tuning for other clips costs accuracy on the first ones; between the weights before and after,
there may be some that have most of the gain and none of the loss (Wortsman et al., "Robust
fine-tuning of zero-shot models", CVPR 2022, https://arxiv.org/abs/2109.01903).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import convlstm
from convlstm import VideoPredictor
from convlstm.cli.start import NETWORK
from convlstm.weights import write_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=model_and_share, metavar="MODEL=SHARE")
    parser.add_argument("--out", type=Path, required=True, help="file to write, NAME.safetensors")
    args = parser.parse_args()
    if args.out.suffix != ".safetensors":
        parser.error(f"the file to write must end in .safetensors, got {args.out}")
    try:
        names, shares = zip(*args.models, strict=True)
        models = [convlstm.load(name) for name in names]
        weights = average(models, shares)
        write_weights(args.out, weights, dict(models[0].hparams), torch.float16)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def model_and_share(words: str) -> tuple[str, float]:
    """The parts of MODEL=SHARE.

    Raises:
        ArgumentTypeError: The share is no positive number.
    """
    name, _, number = words.rpartition("=")
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if not name or not 0 < share < math.inf:
        raise argparse.ArgumentTypeError(f"{words!r} is not MODEL=SHARE, with a share above 0")
    return name, share


def average(models: Sequence[VideoPredictor], shares: Sequence[float]) -> dict[str, Tensor]:
    """State dict of the mean, in float64 until rounded to the weights' own type.

    Args:
        models: Models of the same network.
        shares: How much of the mean each is, positive; they are scaled to a sum of 1.

    Raises:
        ValueError: The networks differ.
    """
    first, *others = (network_options(model) for model in models)
    for other in others:
        if differing := sorted(name for name in first if first[name] != other[name]):
            raise ValueError(f"these are different networks: they differ in {', '.join(differing)}")
    states = [model.state_dict() for model in models]
    return {
        name: sum(
            state[name].double() * (share / sum(shares))
            for state, share in zip(states, shares, strict=True)
        ).to(weight.dtype)
        for name, weight in states[0].items()
    }


def network_options(model: VideoPredictor) -> dict[str, Any]:
    """What determines the network: options, and the weights' shapes, which may be of a frame."""
    options = {name: model.hparams[name] for name in NETWORK}
    options["output"] = model.network.output  # through a sigmoid, or as it is
    return options | {"shapes": [weight.shape for weight in model.state_dict().values()]}


if __name__ == "__main__":
    main()
