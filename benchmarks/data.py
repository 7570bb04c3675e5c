"""Measures how many Moving MNIST sequences a second the training loader yields.

    python benchmarks/data.py --root data --digits mnist

One thread does everything, unless --num_workers starts processes of one thread each. Beside the
frames: the digits and positions that a Trainer on another device loads, and these drawn on
--device. All are compared with a training step of the network of `configs/moving_mnist.yaml` there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import islice

import layer
import recipe
import torch
from torch.utils.data import DataLoader

from datamodules import MovingMNISTDataModule
from datamodules.base import Batch, collate
from datamodules.moving_mnist import Undrawn


def undrawn(data: MovingMNISTDataModule) -> DataLoader:
    """Training batches as digits and positions, as a Trainer on another device loads them."""
    return DataLoader(
        Undrawn(data.train_set),
        data.batch_size,
        num_workers=data.num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=data.num_workers > 0,
    )


def rates(
    loader: DataLoader, arrive: Callable[[Batch], Batch], runs: int, device: str
) -> list[float]:
    """Sequences a second of each run over an epoch, sorted."""
    # One thread alone is measured by the processor's time, whatever else the machine does.
    alone = device == "cpu" and loader.num_workers == 0
    clock = time.process_time if alone else time.perf_counter
    for batch in islice(loader, 10):  # warm up
        arrive(batch)
    values = []
    for _ in range(runs):
        start = clock()
        sequences = sum(len(arrive(batch)["index"]) for batch in loader)
        layer.wait(device)
        values.append(sequences / (clock() - start))
    return sorted(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", default="builtin", help="mnist, fashion_mnist, kmnist, builtin")
    parser.add_argument("--root", default="data", help="folder of the digit images")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--num_digits", type=int, default=2)
    parser.add_argument("--frame_size", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=10_000, help="sequences in a run")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()

    torch.set_num_threads(1)
    data = MovingMNISTDataModule(
        root=args.root,
        digits=args.digits,
        num_digits=args.num_digits,
        frame_size=args.frame_size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        train_size=args.sequences,
    )
    data.prepare_data()
    data.setup("fit")

    def draw(batch: Batch) -> Batch:
        there = {name: value.to(args.device, non_blocking=True) for name, value in batch.items()}
        return data.on_after_batch_transfer(there, 0)

    with layer.settings(threads=1):
        model = recipe.network(args.device)
        run = recipe.passes(model, args.batch_size, args.device, args.frame_size)["training step"]
        step = layer.measure({"": run}, args.runs, args.device)[""]
    print(
        f"batch size {args.batch_size}, {args.num_workers} workers, {args.frame_size} x "
        f"{args.frame_size} pixels, 20 frames, {args.num_digits} digits ({args.digits}); a "
        f"training step in bfloat16 takes {1e3 * step:.0f} ms ({args.device}, one thread)"
    )
    ways: dict[str, tuple[DataLoader, Callable[[Batch], Batch]]] = {
        "frames": (data.train_dataloader(), lambda batch: batch),
        "digits and positions": (undrawn(data), lambda batch: batch),
        f"these, drawn on {args.device}": (undrawn(data), draw),
    }
    for name, (loader, arrive) in ways.items():
        values = rates(loader, arrive, args.runs, args.device)
        load = args.batch_size / statistics.median(values)
        print(
            f"{name}: {args.batch_size / load:,.0f} sequences/s, median of {args.runs} runs of "
            f"{args.sequences} ({values[0]:,.0f} to {values[-1]:,.0f}); {1e3 * load:.2f} ms a "
            f"batch, {load / step:.2%} of a training step"
        )


if __name__ == "__main__":
    main()
