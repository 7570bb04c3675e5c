"""Measures the layers against textbook cells, Keras' `ConvLSTM2D` and the bare convolutions.

    python benchmarks/layer.py --threads 2

In one run, interleaved, medians (of ratios: of those of each turn); forward without gradients, and
a training step (forward, and backward from a given gradient). Rows: this project, on a CPU with
gates in PyTorch; the same with gates in C++, where `convlstm build` has compiled them; on CUDA the
same passes as one CUDA graph; this project with `checkpoint_every` 5; a textbook cell (concatenate,
convolve, split; autograd, channels first); the same with channels last; Keras on PyTorch, where it
is installed (`pip install keras`); the floor: the same convolutions alone, as this project calls
them, the input's once for all steps, in the same precision. On a CPU peak memory is the growth of
the largest resident size (`VmHWM`, Linux) of a process of its own over a training step; on CUDA it
is the allocator's peak. With one thread times are the processor's, which hardly depend on what else
the machine does; with more, run it on an idle machine: threads that wait for each other lose most.
On a machine that others use, too, `--fastest` compares the fastest turns, which they slow least.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from convlstm import ConvGRU, ConvLSTM, ConvRNN
from convlstm.allocator import keep_freed_memory
from convlstm.convolution import same_conv2d, same_conv2d_grad_weight, same_conv2d_grad_x
from convlstm.kernels import choose, native, use_backend

OURS, NATIVE, GRAPH, SEGMENTS, TEXTBOOK, CHANNELS_LAST, KERAS, FLOOR = COLUMNS = (
    "this project",
    "gates in C++",
    "one CUDA graph",
    "checkpoint_every",
    "textbook",
    "textbook, channels last",
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
    cell: str = "lstm"

    @property
    def gates(self) -> int:
        """Channels that a hidden convolution gives for each of the hidden state's."""
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.cell]

    def __str__(self) -> str:
        return (
            f"{self.cell.upper()}, {self.layers} x {self.hidden} channels, "
            f"{self.kernel} x {self.kernel}, input {self.channels} x {self.size} x {self.size}, "
            f"{self.steps} steps, batch {self.batch}"
        )


CASES = {
    "a16": Case(4, 16, 128, 5, 16, 16),
    "a64": Case(4, 16, 128, 5, 16, 64),
    "b": Case(3, 16, 64, 3, 16, 8),
    "b-gru": Case(3, 16, 64, 3, 16, 8, cell="gru"),
    "b-rnn": Case(3, 16, 64, 3, 16, 8, cell="rnn"),
    "c": Case(2, 1, 64, 3, 64, 4),
    "d": Case(1, 1, 16, 3, 16, 1),
    "e": Case(1, 1, 64, 3, 128, 1),
}
TINY = Case(2, 1, 4, 3, 4, 2, 3)


class Textbook(nn.Module):
    """What one finds in tutorials."""

    def __init__(self, case: Case, layout: torch.memory_format) -> None:
        super().__init__()
        sizes = [case.channels] + [case.hidden] * (case.layers - 1)
        self.layers = nn.ModuleList(TEXTBOOK_CELLS[case.cell](size, case) for size in sizes)
        self.layout = layout
        self.to(memory_format=layout)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (B, T, H, h, w) of x (B, T, C, h, w)."""
        frames = [frame.contiguous(memory_format=self.layout) for frame in x.unbind(1)]
        for layer in self.layers:
            state = None
            outputs = []
            for frame in frames:
                h, state = layer(frame, state)
                outputs.append(h)
            frames = outputs
        return torch.stack(frames, dim=1)


class _TextbookCell(nn.Module):
    """One convolution of input and hidden state together."""

    def __init__(self, channels: int, case: Case) -> None:
        super().__init__()
        self.hidden = case.hidden
        self.convolution = nn.Conv2d(
            channels + case.hidden, case.gates * case.hidden, case.kernel, padding=case.kernel // 2
        )

    def zero(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.hidden, *x.shape[2:])


class TextbookLSTM(_TextbookCell):
    """Gates i, f, g, o; the state is (h, c)."""

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """New hidden state, and the state."""
        h, c = state or (self.zero(x), self.zero(x))
        i, f, g, o = self.convolution(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class TextbookGRU(nn.Module):
    """Two convolutions, because the reset gate multiplies only what comes from the hidden state."""

    def __init__(self, channels: int, case: Case) -> None:
        super().__init__()
        size, padding = case.gates * case.hidden, case.kernel // 2
        self.hidden = case.hidden
        self.from_x = nn.Conv2d(channels, size, case.kernel, padding=padding)
        self.from_h = nn.Conv2d(case.hidden, size, case.kernel, padding=padding)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """New hidden state, which is also the state."""
        if h is None:
            h = x.new_zeros(x.shape[0], self.hidden, *x.shape[2:])
        r, z, n = self.from_x(x).chunk(3, dim=1)
        r_h, z_h, n_h = self.from_h(h).chunk(3, dim=1)
        z = torch.sigmoid(z + z_h)
        n = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
        h = (1 - z) * n + z * h
        return h, h


class TextbookRNN(_TextbookCell):
    """Only the hidden state."""

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """New hidden state, which is also the state."""
        h = self.zero(x) if h is None else h
        h = torch.tanh(self.convolution(torch.cat([x, h], dim=1)))
        return h, h


TEXTBOOK_CELLS = {"lstm": TextbookLSTM, "gru": TextbookGRU, "rnn": TextbookRNN}
LAYERS = {"lstm": ConvLSTM, "gru": ConvGRU, "rnn": ConvRNN}


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

    def maps(n: int, c: int, size: int = case.size) -> Tensor:
        x = torch.randn(n, c, size, size, device=device, dtype=dtype)
        return x.to(memory_format=torch.channels_last)

    all_gates, gates = maps(steps * batch, case.gates * hidden), maps(batch, case.gates * hidden)
    states, state = maps(steps * batch, hidden), maps(batch, hidden)
    w_hh = maps(case.gates * hidden, hidden, kernel)
    sizes = [case.channels] + [hidden] * (case.layers - 1)
    inputs = [(maps(steps * batch, c), maps(case.gates * hidden, c, kernel)) for c in sizes]

    def forward() -> None:
        with torch.no_grad():
            for x, w_ih in inputs:
                same_conv2d(x, w_ih)
                for _ in range(steps - 1):
                    same_conv2d(state, w_hh)

    def train() -> None:
        forward()
        with torch.no_grad():
            for layer, (x, w_ih) in enumerate(inputs):
                for _ in range(steps - 1):
                    same_conv2d_grad_x(gates, state, w_hh)
                same_conv2d_grad_weight(all_gates[batch:], states[batch:], w_hh)
                if layer > 0:
                    same_conv2d_grad_x(all_gates, x, w_ih)
                same_conv2d_grad_weight(all_gates, x, w_ih)

    return forward, train


def build(case: Case, column: str) -> nn.Module:
    """The network of a column."""
    if column == TEXTBOOK:
        return Textbook(case, torch.contiguous_format)
    if column == CHANNELS_LAST:
        return Textbook(case, torch.channels_last)
    if column == KERAS:
        return Keras(case)
    every = EVERY if column == SEGMENTS else 0
    layer = LAYERS[case.cell]
    return layer(case.channels, case.hidden, case.kernel, case.layers, checkpoint_every=every)


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
        gates = nullcontext()
        if device == "cpu":
            gates = use_backend("native" if column == NATIVE else "plain")
        with gates, torch.autocast(device, dtype, enabled=dtype != torch.float32):
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
    return (captured(forward), captured(train)) if column == GRAPH else (forward, train)


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """A pass recorded once as a CUDA graph, which then starts all its kernels in one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made on first use must not be recorded
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure(runs: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each, all taking turns."""
    times = take_turns(runs, repeats, device)
    return {name: statistics.median(values) for name, values in times.items()}


def take_turns(
    runs: dict[str, Callable[[], None]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each in every turn."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            wait(device)
            start = clock()
            run()
            wait(device)
            if repeat > 0:  # the first is warm-up
                times[name].append(clock() - start)
    return times


def times_as_fast(times: dict[str, list[float]], name: str, other: str) -> float:
    """How many times as fast as another one is; median over turns."""
    pairs = zip(times[name], times[other], strict=True)
    return statistics.median(theirs / mine for mine, theirs in pairs)


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


def columns(case: Case, device: str) -> list[str]:
    """Those that can be measured here."""
    missing = set()
    if case.cell != "lstm" or not importlib.util.find_spec("keras"):
        missing.add(KERAS)
    missing.add(NATIVE if device == "cuda" else GRAPH)
    if choose(torch.zeros(1)) is not native:
        missing.add(NATIVE)
    return [name for name in COLUMNS if name not in missing]


def table(
    case: Case,
    precisions: list[str],
    repeats: int,
    device: str,
    threads: int,
    fastest: bool = False,
) -> None:
    """Measures a case and prints it, ratios first; of medians, or of the fastest turns."""
    head = [
        *("", "precision", "training, × textbook", "training, of the floor"),
        *("forward, × textbook", "forward, of the floor"),
        *("training, sequences/s", "forward, sequences/s", "peak, × textbook fp32", "peak, MiB"),
    ]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    exact_peak = None
    for precision in precisions:
        names = columns(case, device)
        pairs = {name: passes(case, name, precision, device) for name in names}
        forward = take_turns({name: pair[0] for name, pair in pairs.items()}, repeats, device)
        train = take_turns({name: pair[1] for name, pair in pairs.items()}, repeats, device)
        if fastest:
            forward, train = ({n: [min(v)] for n, v in t.items()} for t in (forward, train))
        del pairs
        peaks = {
            name: peak_memory(case, name, precision, device, threads)
            for name in names
            if name not in (GRAPH, FLOOR)  # of a graph: what it was recorded from
        }
        if precision == "fp32":
            exact_peak = peaks[TEXTBOOK]
        for name in names:
            cells = [
                f"{times_as_fast(train, name, TEXTBOOK):.2f}",
                f"{times_as_fast(train, name, FLOOR):.0%}",
                f"{times_as_fast(forward, name, TEXTBOOK):.2f}",
                f"{times_as_fast(forward, name, FLOOR):.0%}",
                f"{case.batch / statistics.median(train[name]):.3g}",
                f"{case.batch / statistics.median(forward[name]):.3g}",
                f"{peaks[name] / exact_peak:.2f}" if name in peaks and exact_peak else "",
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
    parser.add_argument(
        "--fastest", action="store_true", help="of each its fastest turn, instead of medians"
    )
    parser.add_argument("--steps", type=int, help="instead of 20")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal of a second")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    print(f"torch {torch.__version__}, {name}, {args.threads} threads")
    with settings(args.threads):
        for letter in args.cases:
            case = CASES[letter]
            case = replace(TINY, cell=case.cell) if args.tiny else case
            case = replace(case, steps=args.steps or case.steps)
            print(f"\n({letter}) {case}\n")
            of = args.precisions, args.repeats, args.device, args.threads, args.fastest
            table(case, *of)


if __name__ == "__main__":
    main()
