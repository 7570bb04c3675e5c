"""Measures a training step of `ConvLSTM` against a textbook cell and the bare convolutions.

    python benchmarks/layer.py --threads 2

In one run, interleaved, medians. Columns: this project; a textbook cell (concatenate, convolve,
split; autograd, channels first); the floor: the same convolutions alone, the input's in one call
over all steps, channels last. Peak memory is the growth of a process's largest resident size
(`VmHWM`, Linux) over a training step, each in a process of its own. Run it on an idle machine:
threads that wait for each other lose most.
"""

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlstm import ConvLSTM

# name: layers, input channels, hidden channels, kernel, height and width, steps, batch
CASES = {
    "b": (3, 16, 64, 3, 16, 20, 8),
    "c": (2, 1, 64, 3, 64, 20, 4),
}
COLUMNS = ("this project", "textbook", "floor")


class Textbook(nn.Module):
    """What one finds in tutorials."""

    def __init__(self, layers: int, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        sizes = [channels] + [hidden] * (layers - 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(size + hidden, 4 * hidden, kernel, padding=kernel // 2) for size in sizes
        )
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (B, T, H, h, w) of x (B, T, C, h, w)."""
        for convolution in self.convolutions:
            h = c = x.new_zeros(x.shape[0], self.hidden, *x.shape[3:])
            outputs = []
            for t in range(x.shape[1]):
                i, f, g, o = convolution(torch.cat([x[:, t], h], dim=1)).chunk(4, dim=1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                outputs.append(h)
            x = torch.stack(outputs, dim=1)
        return x


def floor_step(case: str) -> Callable[[], None]:
    """All convolutions of a training step, and nothing else."""
    layers, channels, hidden, kernel, size, steps, batch = CASES[case]

    def maps(n: int, c: int) -> Tensor:
        return torch.randn(n, c, size, size).to(memory_format=torch.channels_last)

    def weight(c: int) -> Tensor:
        w = torch.randn(4 * hidden, c, kernel, kernel)
        return w.to(memory_format=torch.channels_last)

    def backward(grad: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> None:
        same = [kernel // 2] * 2
        torch.ops.aten.convolution_backward(
            grad, x, w, None, [1, 1], same, [1, 1], False, [0, 0], 1, mask
        )

    gates, one_gates = maps(steps * batch, 4 * hidden), maps(batch, 4 * hidden)
    states, state, w_hh = maps(steps * batch, hidden), maps(batch, hidden), weight(hidden)
    inputs = [(maps(steps * batch, c), weight(c)) for c in [channels] + [hidden] * (layers - 1)]

    def run() -> None:
        with torch.no_grad():
            for layer, (x, w_ih) in enumerate(inputs):
                F.conv2d(x, w_ih, padding=kernel // 2)
                for _ in range(steps - 1):
                    F.conv2d(state, w_hh, padding=kernel // 2)
                    backward(one_gates, state, w_hh, [True, False, False])
                backward(gates[batch:], states[batch:], w_hh, [False, True, False])
                backward(gates, x, w_ih, [layer > 0, True, False])

    return run


def step(case: str, column: str) -> Callable[[], None]:
    """A training step of a column, ready to run."""
    layers, channels, hidden, kernel, size, steps, batch = CASES[case]
    if column == "floor":
        return floor_step(case)
    network: nn.Module
    if column == "textbook":
        network = Textbook(layers, channels, hidden, kernel)
    else:
        network = ConvLSTM(channels, hidden, kernel, layers)
    x = torch.randn(batch, steps, channels, size, size)

    def run() -> None:
        network.zero_grad()
        output = network(x)
        output = output[0] if isinstance(output, tuple) else output
        output.square().mean().backward()

    return run


def peak_memory(case: str, column: str, threads: int) -> float:
    """MiB that a training step adds to the largest resident size of a fresh process."""
    torch.set_num_threads(threads)
    run = step(case, column)
    before = largest_resident_size()
    run()
    run()
    return largest_resident_size() - before


def largest_resident_size() -> float:
    """VmHWM of this process in MiB; unlike ru_maxrss it is not the parent's to begin with."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    print(f"torch {torch.__version__}, {platform.machine()} CPU, {args.threads} threads, float32")
    for case, (layers, channels, hidden, kernel, size, steps, batch) in CASES.items():
        print(
            f"\n({case}) {layers} x {hidden} channels, {kernel} x {kernel}, input {channels} x "
            f"{size} x {size}, {steps} steps, batch {batch}"
        )
        runs = {column: step(case, column) for column in COLUMNS}
        times: dict[str, list[float]] = {column: [] for column in COLUMNS}
        for repeat in range(args.repeats + 1):
            for column, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat > 0:  # the first is warm-up
                    times[column].append(time.perf_counter() - start)
        medians = {column: statistics.median(values) for column, values in times.items()}
        del runs
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            memory = {c: pool.apply(peak_memory, (case, c, args.threads)) for c in COLUMNS[:2]}
        for column, seconds in medians.items():
            share = medians["floor"] / seconds
            line = f"  {column:13} {batch / seconds:7.2f} sequences/s  {share:4.0%} of the floor"
            if column in memory:
                line += f"  peak {memory[column]:6.0f} MiB"
            print(line)
        ours, theirs = (medians[column] for column in COLUMNS[:2])
        print(
            f"  training step {theirs / ours:.2f} times as fast as the textbook's, with "
            f"{memory[COLUMNS[0]] / memory[COLUMNS[1]]:.2f} of its memory"
        )


if __name__ == "__main__":
    main()
