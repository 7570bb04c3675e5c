"""How the cost of a training step grows, and what several processes give.

    python benchmarks/scaling.py --threads 2

One layer of case (b) of `layer.py`, in bfloat16 autocast: milliseconds of a training step against
the number of steps, the side of the frame and the batch; peak memory against the number of steps;
then two processes of one thread each, at once, against one process of two threads; then what eight
GPUs should give on paper, from the bytes of the gradients and a given step time. Times need an idle
machine, unless --threads is 1 (see `layer.py`); memory does not.
"""

import argparse
import multiprocessing
import statistics
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier

import layer
import torch
from layer import CASES, OURS, SEGMENTS

CASE = replace(CASES["b"], layers=1)
GROWTH = {
    "steps": (5, 10, 20, 40, 80, 160),
    "size": (8, 16, 32, 64),
    "batch": (1, 2, 4, 8, 16, 32),
}


def growth(case: layer.Case, name: str, repeats: int) -> None:
    print(f"\n| {name} | ms a training step | ns a pixel and frame |")
    print("|---|---|---|")
    for value in GROWTH[name]:
        grown = replace(case, **{name: value})
        _, train = layer.passes(grown, OURS, "bf16")
        seconds = layer.measure({OURS: train}, repeats, "cpu")[OURS]
        pixels = grown.steps * grown.batch * grown.size**2
        print(f"| {value} | {seconds * 1e3:.1f} | {seconds / pixels * 1e9:.0f} |", flush=True)


def memory(case: layer.Case, threads: int) -> None:
    print("\n| steps | peak, MiB | with checkpoint_every |")
    print("|---|---|---|")
    for steps in GROWTH["steps"]:
        grown = replace(case, steps=steps)
        peaks = [layer.peak_memory(grown, c, "bf16", "cpu", threads) for c in (OURS, SEGMENTS)]
        print(f"| {steps} | {peaks[0]:.0f} | {peaks[1]:.0f} |", flush=True)


def _rate(case: layer.Case, threads: int, repeats: int, barrier: Barrier) -> float:
    """Sequences/s of one process that starts together with others."""
    layer.set_up(threads)
    _, train = layer.passes(case, OURS, "bf16")
    train()
    barrier.wait()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        train()
        times.append(time.perf_counter() - start)
    return case.batch / statistics.median(times)


def processes(case: layer.Case, repeats: int) -> None:
    context = multiprocessing.get_context("spawn")
    print("\n| processes x threads | sequences/s together |")
    print("|---|---|")
    for count, threads in ((1, 1), (1, 2), (2, 1)):
        with context.Manager() as manager, context.Pool(count) as pool:
            barrier = manager.Barrier(count)
            work = [(case, threads, repeats, barrier)] * count
            print(f"| {count} x {threads} | {sum(pool.starmap(_rate, work)):.2f} |", flush=True)


def on_paper(step_ms: float, bandwidth: float, devices: int = 8) -> None:
    """Ring all-reduce: each device sends and receives 2 (n - 1) / n of the gradients' bytes."""
    case = CASES["a64"]
    network = layer.build(case, OURS)
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    exchange = 2 * (devices - 1) / devices * size / bandwidth / 1e9 * 1e3  # ms
    print(
        f"\n(a), batch 64 a device: {size / 2**20:.0f} MiB of gradients; at {bandwidth:g} GB/s "
        f"(assumed) their exchange takes {exchange:.2f} ms. With a step (assumed) "
        f"of {step_ms:g} ms that is {devices * step_ms / (step_ms + exchange):.2f} times one "
        f"if nothing overlaps, and {devices * step_ms / max(step_ms, exchange):.2f} times if all "
        "of it does."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step_ms", type=float, default=64.0, help="assumed, of (a) at B 64")
    parser.add_argument("--bandwidth", type=float, default=300.0, help="assumed, GB/s")
    parts = [*GROWTH, "memory", "processes", "paper"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    args = parser.parse_args()
    case = layer.TINY if args.tiny else CASE
    print(f"torch {torch.__version__}, {args.threads} threads, bf16; {case}")
    with layer.settings(args.threads):
        for name in GROWTH:
            if name in args.parts:
                growth(case, name, args.repeats)
    if "memory" in args.parts:
        memory(case, args.threads)
    if "processes" in args.parts:
        processes(case, args.repeats)
    if "paper" in args.parts:
        on_paper(args.step_ms, args.bandwidth)


if __name__ == "__main__":
    main()
