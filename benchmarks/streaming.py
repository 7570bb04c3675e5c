"""Measures a stream of Moving MNIST: error after more frames than in training, and time a frame.

    python benchmarks/streaming.py runs/moving_mnist/checkpoints/best.ckpt --root data

The error is the MSE (a frame's sum) of forecasts of the same 10 frames, made from the
last 5, 10, ... frames before them. Times are the best of several runs, for one clip.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import convlstm
from datamodules import MovingMNISTDataModule

STEPS = 10
OBSERVED = (5, 10, 20, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint, or the name of weights of the package")
    parser.add_argument("--digits", default="mnist", help="mnist, fashion_mnist, kmnist, builtin")
    parser.add_argument("--root", default="data", help="folder of the digit images")
    parser.add_argument("--clips", type=int, default=20)
    args = parser.parse_args()

    model = convlstm.load(args.model)
    data = MovingMNISTDataModule(
        root=args.root,
        digits=args.digits,
        context_length=max(OBSERVED),
        target_length=STEPS,
        test_size=args.clips,
        batch_size=args.clips,
    )
    data.setup("test")
    (batch,) = data.test_dataloader()
    context, truth = batch["context"], batch["target"] / 255
    print(
        f"frames observed  MSE  at +1  at +{STEPS}   (context in training: "
        f"{model.hparams['context_length']})"
    )
    for count in OBSERVED:
        forecast = model.forecast(context[:, -count:], STEPS)
        error = (forecast - truth).square().sum((2, 3, 4)).mean(0)
        print(f"{count:15} {error.mean():6.2f} {error[0]:6.2f} {error[-1]:6.2f}")

    clip = context[0, :10]
    state = model.begin(clip)
    for name, call in (
        ("observe a frame", lambda: model.observe(state, clip[0])),
        ("forecast a frame (step)", lambda: model.step(state)),
        (f"forecast {STEPS} frames of a stream", lambda: model.forecast(state, STEPS)),
        (f"forecast {STEPS} frames from 10", lambda: model.forecast(clip, STEPS)),
    ):
        print(f"{name}: {1000 * seconds(call):.1f} ms")


def seconds(call: Callable[[], object], runs: int = 20) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
