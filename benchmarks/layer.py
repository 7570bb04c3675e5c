"""Measures `ConvLSTM` against a textbook cell, Keras' `ConvLSTM2D` and the bare convolutions.

    python benchmarks/layer.py --threads 2

In one run, interleaved, medians; forward without gradients, and a training step (forward, and
backward from a given gradient). Columns: this project; this project with `checkpoint_every` 5; a
textbook cell (concatenate, convolve, split; autograd, channels first); Keras on PyTorch, where it
is installed; the floor: the same convolutions alone, the input's in one call over all steps,
channels last, in the same precision. On a CPU peak memory is the growth of the largest resident
size (`VmHWM`, Linux) of a process of its own over a training step; on CUDA it is the allocator's
peak. Run it on an idle machine: threads that wait for each other lose most.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlstm import ConvLSTM
from convlstm.allocator import keep_freed_memory

OURS, SEGMENTS, TEXTBOOK, KERAS, FLOOR = COLUMNS = (
    "this project",
    "checkpoint_every",
    "textbook",
    "Keras",
    "floor",
)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
EVERY = 5  # steps of a segment of checkpoint_every


@dataclass(frozen=True)
class Case:
    """Shapes of a measurement."""

    layers: int
    channels: int
    hidden: int
    kernel: int
    size: int
    batch: int
    steps: int = 20

    def __str__(self) -> str:
        return (
            f"{self.layers} x {self.hidden} channels, {self.kernel} x {self.kernel}, input "
            f"{self.channels} x {self.size} x {self.size}, {self.steps} steps, batch {self.batch}"
        )


CASES = {
    "a16": Case(4, 16, 128, 5, 16, 16),
    "a64": Case(4, 16, 128, 5, 16, 64),
    "b": Case(3, 16, 64, 3, 16, 8),
    "c": Case(2, 1, 64, 3, 64, 4),
}
TINY = Case(2, 1, 4, 3, 4, 2, 3)


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


class Keras(nn.Module):
    """`keras.layers.ConvLSTM2D` on PyTorch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        options = {"padding": "same", "return_sequences": True, "data_format": "channels_first"}
        self.stack = nn.ModuleList(
            keras.layers.ConvLSTM2D(case.hidden, case.kernel, **options) for _ in range(case.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (B, T, H, h, w) of x (B, T, C, h, w)."""
        for layer in self.stack:
            x = layer(x)
        return x


def floor_steps(
    case: Case, device: str, dtype: torch.dtype
) -> tuple[Callable[[], None], Callable[[], None]]:
    """All convolutions of a forward pass and of a training step, and nothing else."""
    steps, batch, kernel, hidden = case.steps, case.batch, case.kernel, case.hidden
    same = [kernel // 2] * 2

    def maps(n: int, c: int, size: int = case.size) -> Tensor:
        x = torch.randn(n, c, size, size, device=device, dtype=dtype)
        return x.to(memory_format=torch.channels_last)

    def backward(grad: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> None:
        torch.ops.aten.convolution_backward(
            grad, x, w, None, [1, 1], same, [1, 1], False, [0, 0], 1, mask
        )

    gates, one_gates = maps(steps * batch, 4 * hidden), maps(batch, 4 * hidden)
    states, state = maps(steps * batch, hidden), maps(batch, hidden)
    w_hh = maps(4 * hidden, hidden, kernel)
    sizes = [case.channels] + [hidden] * (case.layers - 1)
    inputs = [(maps(steps * batch, c), maps(4 * hidden, c, kernel)) for c in sizes]

    def forward() -> None:
        with torch.no_grad():
            for x, w_ih in inputs:
                F.conv2d(x, w_ih, padding=kernel // 2)
                for _ in range(steps - 1):
                    F.conv2d(state, w_hh, padding=kernel // 2)

    def train() -> None:
        forward()
        with torch.no_grad():
            for layer, (x, w_ih) in enumerate(inputs):
                for _ in range(steps - 1):
                    backward(one_gates, state, w_hh, [True, False, False])
                backward(gates[batch:], states[batch:], w_hh, [False, True, False])
                backward(gates, x, w_ih, [layer > 0, True, False])

    return forward, train


def build(case: Case, column: str) -> nn.Module:
    """The network of a column."""
    if column == TEXTBOOK:
        return Textbook(case.layers, case.channels, case.hidden, case.kernel)
    if column == KERAS:
        return Keras(case)
    every = EVERY if column == SEGMENTS else 0
    return ConvLSTM(case.channels, case.hidden, case.kernel, case.layers, checkpoint_every=every)


def passes(
    case: Case, column: str, precision: str, device: str = "cpu"
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward pass and training step of a column, ready to run."""
    dtype = PRECISIONS[precision]
    if column == FLOOR:
        return floor_steps(case, device, dtype)
    network = build(case, column).to(device)
    shape = case.batch, case.steps, case.channels, case.size, case.size
    x = torch.randn(shape, device=device)

    def run() -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            output = network(x)
        return output[0] if isinstance(output, tuple) else output

    def forward() -> None:
        with torch.no_grad():
            run()

    def train() -> None:
        network.zero_grad()
        output = run()
        if not gradient:  # of the output's layout
            gradient.append(torch.randn_like(output))
        output.backward(gradient[0])

    gradient: list[Tensor] = []
    return forward, train


def measure(runs: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if repeat > 0:  # the first is warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(case: Case, column: str, precision: str, device: str, threads: int) -> float:
    """MiB that a training step adds to what network and data take."""
    if device == "cuda":
        _, train = passes(case, column, precision, device)
        train()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_resident, (case, column, precision, threads))


def _peak_resident(case: Case, column: str, precision: str, threads: int) -> float:
    set_up(threads)
    passes(TINY, column, precision)[1]()  # what is loaded on first use does not count
    _, train = passes(case, column, precision)
    before = largest_resident_size()
    train()
    train()
    return largest_resident_size() - before


def largest_resident_size() -> float:
    """VmHWM of this process in MiB; unlike ru_maxrss it is not the parent's to begin with."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def columns() -> list[str]:
    """Those that can be measured here."""
    return [name for name in COLUMNS if name != KERAS or importlib.util.find_spec("keras")]


def table(case: Case, precisions: list[str], repeats: int, device: str, threads: int) -> None:
    """Measures a case and prints it, ratios first."""
    print(
        "| | precision | training, × textbook | training, of the floor | forward, of the floor |",
        end="",
    )
    print(" training, sequences/s | forward, sequences/s | peak, × textbook fp32 | peak, MiB |")
    print("|" + "---|" * 9)
    first_peak = None
    for precision in precisions:
        names = columns()
        pairs = {name: passes(case, name, precision, device) for name in names}
        forward = measure({name: pair[0] for name, pair in pairs.items()}, repeats, device)
        train = measure({name: pair[1] for name, pair in pairs.items()}, repeats, device)
        del pairs
        peaks = {
            name: peak_memory(case, name, precision, device, threads)
            for name in names
            if name != FLOOR
        }
        first_peak = first_peak or peaks[TEXTBOOK]
        for name in names:
            cells = [
                f"{train[TEXTBOOK] / train[name]:.2f}",
                f"{train[FLOOR] / train[name]:.0%}",
                f"{forward[FLOOR] / forward[name]:.0%}",
                f"{case.batch / train[name]:.3g}",
                f"{case.batch / forward[name]:.3g}",
                f"{peaks[name] / first_peak:.2f}" if name in peaks else "",
                f"{peaks[name]:.0f}" if name in peaks else "",
            ]
            print(f"| {name} | {precision} | " + " | ".join(cells) + " |", flush=True)


def set_up(threads: int) -> None:
    """Threads, no denormals, and freed memory kept."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()


@contextmanager
def settings(threads: int) -> Iterator[None]:
    """Threads, and the processor as the project trains on it: for all columns alike."""
    before = torch.get_num_threads()
    set_up(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["b", "c"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, help="instead of 20")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal of a second")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    print(f"torch {torch.__version__}, {name}, {args.threads} threads")
    with settings(args.threads):
        for letter in args.cases:
            case = TINY if args.tiny else CASES[letter]
            case = replace(case, steps=args.steps or case.steps)
            print(f"\n({letter}) {case}\n")
            table(case, args.precisions, args.repeats, args.device, args.threads)


if __name__ == "__main__":
    main()
