"""Measures how many Moving MNIST sequences a second the training loader yields.

    python benchmarks/data.py --root data --digits mnist

One thread renders everything, unless --num_workers starts processes of one thread each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import islice

import torch

from datamodules import MovingMNISTDataModule


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
    loader = data.train_dataloader()
    for _ in islice(loader, 10):  # warm up
        pass
    rates = []
    for _ in range(args.runs):
        start = time.perf_counter()
        sequences = sum(len(batch["index"]) for batch in loader)
        rates.append(sequences / (time.perf_counter() - start))
    print(
        f"{statistics.median(rates):,.0f} sequences/s, median of {args.runs} runs of {sequences} "
        f"({min(rates):,.0f} to {max(rates):,.0f}); batch size {args.batch_size}, "
        f"{args.num_workers} workers, {args.frame_size} x {args.frame_size} pixels, 20 frames, "
        f"{args.num_digits} digits ({args.digits})"
    )


if __name__ == "__main__":
    main()
