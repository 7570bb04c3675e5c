"""Compares the recurrent family on Moving MNIST: trains every variant on the same clips.

    python benchmarks/compare.py speed    # training sequences/s and peak memory, on an idle machine
    python benchmarks/compare.py train    # hours; goes on where it was interrupted
    python benchmarks/compare.py report   # table and plots of what is there so far

Each run trains on the same sequences, in the same order, with the same recipe. In a run with a gap
the last frames of the context are blank, in training as in the test: what a forecast is made from
lies that much further back. The order of the runs makes a partial result useful: every variant
first without a gap, then with the longest, then the further seeds of LSTM, GRU and RNN.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from compare_report import report
from contestants import NAMES, hidden_sizes, macs, network, options, parameters
from layer import largest_resident_size
from rich.console import Console
from torch import Tensor

from convlstm import VideoPredictor
from convlstm.bfloat16 import has_bfloat16
from convlstm.checkpoint import read_checkpoint
from convlstm.cli import main as convlstm
from convlstm.files import write_json
from convlstm.pixels import to_unit
from datamodules import MovingMNISTDataModule

CONTEXT = TARGET = 10
# What all runs of a folder must have in common.
SETTINGS = (
    "digits",
    "sequences",
    "test_size",
    "hidden",
    "learning_rate",
    "batch_size",
    "precision",
)
SEEDED = ("lstm", "gru", "rnn")  # those that are trained with several seeds
SLOW = "fc_lstm"  # whose turn comes after the others'


class Run(NamedTuple):
    """One training."""

    variant: str
    gap: int  # blank frames at the end of the context
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.variant}-gap{self.gap}-seed{self.seed}"


def plan(gaps: list[int], seeds: int) -> list[Run]:
    """All runs, the most telling first: all variants, then more seeds, then more gaps."""
    gaps = sorted(gaps)
    first = list(dict.fromkeys([gaps[0], gaps[-1]]))
    runs = []
    for part in (first, [gap for gap in gaps if gap not in first]):
        runs += [Run(name, gap, 0) for gap in part for name in NAMES if name != SLOW]
        runs += [Run(SLOW, gap, 0) for gap in part]
        runs += [
            Run(name, gap, seed) for seed in range(1, seeds) for gap in part for name in SEEDED
        ]
    return runs


def train(args: argparse.Namespace) -> None:
    """Trains and evaluates every run that is not finished yet."""
    console = Console(soft_wrap=True, highlight=False)
    check_settings(args)
    runs = plan(args.gaps, args.seeds)
    for number, run in enumerate(runs, start=1):
        folder = args.out / run.name
        result = folder / "result.json"
        if result.exists():
            continue
        console.rule(f"Run {number} of {len(runs)}: {run.name}")
        status = convlstm(["fit", *recipe(run, args), "--run_dir", str(folder), "--resume"])
        if status:
            raise SystemExit(status)
        write_json(result, {**run._asdict(), **evaluate(folder, run, args)})
        report(args.out)
    console.print(f"All {len(runs)} runs are finished: see {args.out / 'table.md'}")


def check_settings(args: argparse.Namespace) -> None:
    """Keeps runs apart that cannot stand in one table.

    Raises:
        ValueError: The folder's runs were begun with other settings.
    """
    path = args.out / "settings.json"
    settings = {name: getattr(args, name) for name in SETTINGS}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in SETTINGS:
            if settings[name] != before[name]:
                raise ValueError(
                    f"the runs in {args.out} have --{name} {before[name]}, not {settings[name]}: "
                    "give the same, or another --out"
                )
    write_json(path, settings)


def recipe(run: Run, args: argparse.Namespace) -> list[str]:
    """The options of a training."""
    sizes = hidden_sizes(run.variant, args.hidden)
    steps = args.sequences // args.batch_size
    rate = args.learning_rate / (10 if run.variant == "fc_lstm" else 1)
    values: dict[str, Any] = {
        "data": "MovingMNISTDataModule",
        "data.root": args.root,
        "data.digits": args.digits,
        "data.occlude": occlude(run.gap),
        "data.batch_size": args.batch_size,
        "data.val_size": min(100, args.test_size),
        **{f"model.{key}": value for key, value in options(run.variant).items()},
        "model.hidden_sizes": list(sizes),
        "model.learning_rate": rate,
        "model.warmup": 0.2,
        "seed_everything": run.seed,
        "trainer.accelerator": args.accelerator,
        "trainer.precision": args.precision,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": max(1, steps // 10),  # so often there is a checkpoint
        "trainer.check_val_every_n_epoch": None,
        "trainer.gradient_clip_val": 1.0,
    }
    return [
        word
        for key, value in values.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def occlude(gap: int) -> list[int] | None:
    """The datamodule's option for blank frames at the end of the context."""
    return [CONTEXT - gap, gap] if gap else None


def evaluate(folder: Path, run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """What a run's model does on test sequences, in float32, and what it was trained with."""
    path = folder / "checkpoints" / "last.ckpt"
    model = VideoPredictor.load_from_checkpoint(path).eval()
    model.requires_grad_(False)
    data = MovingMNISTDataModule(
        root=args.root,
        digits=args.digits,
        occlude=occlude(run.gap),
        test_size=args.test_size,
        batch_size=args.batch_size,
    )
    data.setup("test")
    return {
        "sequences": read_checkpoint(path)["global_step"] * args.batch_size,
        "hidden_sizes": list(model.hparams["hidden_sizes"]),
        "learning_rate": model.hparams["learning_rate"],
        "precision": args.precision,
        "test_sequences": args.test_size,
        **measure(model, data.test_dataloader(), run.gap),
    }


def measure(
    model: Callable[[Tensor, int], Tensor], batches: Iterable[dict[str, Tensor]], gap: int
) -> dict[str, Any]:
    """Errors and gradients of forecasts.

    Args:
        model: Makes frames (B, T, C, H, W) of a context and a number of steps.
        batches: Of a datamodule.
        gap: How many frames are blank at the end of the context.

    Returns:
        mse: Summed over a frame's pixels, mean over all frames, as in the published tables.
        mse_by_lead_time: The same for each forecast frame.
        gradient: Norm of the gradient of a clip's summed squared error at each frame of its
            context, mean over clips.
        last_frame_mse: That of the last frame that is not blank, repeated.
    """
    errors, gradients, still = [], [], []
    for batch in batches:
        context, target = to_unit(batch["context"]), to_unit(batch["target"])
        context.requires_grad_()
        error = (model(context, target.shape[1]) - target).square().sum((2, 3, 4))  # (B, T)
        (gradient,) = torch.autograd.grad(error.sum(), context)
        errors.append(error.detach())
        gradients.append(gradient.flatten(2).norm(dim=2))
        last = context.detach()[:, context.shape[1] - gap - 1, None]
        still.append((last - target).square().sum((2, 3, 4)))
    by_lead_time = torch.cat(errors).double().mean(0)
    return {
        "mse": by_lead_time.mean().item(),
        "mse_by_lead_time": by_lead_time.tolist(),
        "gradient": torch.cat(gradients).double().mean(0).tolist(),
        "last_frame_mse": torch.cat(still).double().mean().item(),
    }


def speed(args: argparse.Namespace) -> None:
    """Measures what a training step of each variant takes, interleaved."""
    torch.set_flush_denormal(True)
    steps = {name: training_step(name, args) for name in NAMES}
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for repeat in range(args.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat > 0:  # the first is warm-up
                times[name].append(time.perf_counter() - start)
    del steps
    values = {}
    for name in NAMES:
        sizes = hidden_sizes(name, args.hidden)
        values[name] = {
            "hidden_sizes": list(sizes),
            "parameters": parameters(name, sizes),
            "macs": macs(name, sizes),
            "sequences_per_second": args.batch_size / statistics.median(times[name]),
            "peak_mib": peak_memory(name, args),
            "batch_size": args.batch_size,
            "precision": args.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        print(name, values[name])
    write_json(args.out / "speed.json", values)


def training_step(name: str, args: argparse.Namespace) -> Callable[[], None]:
    """A training step of a variant on the CPU, ready to run."""
    model = network(name, hidden_sizes(name, args.hidden))
    optimizer = torch.optim.Adam(model.parameters())
    context, target = torch.rand(2, args.batch_size, CONTEXT, 1, 64, 64)
    low = args.precision == "bf16-mixed"

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = F.mse_loss(model(context, TARGET).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """MiB that training adds to the largest resident size of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (name, args))


def _growth(name: str, args: argparse.Namespace) -> float:
    before = largest_resident_size()
    step = training_step(name, args)
    step()
    step()
    return largest_resident_size() - before


def best_precision() -> str:
    """bf16-mixed where the processor computes in bfloat16, else 32-true."""
    return "bf16-mixed" if torch.cuda.is_available() or has_bfloat16() else "32-true"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "train", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the runs")
    parser.add_argument("--root", default="data", help="folder of the digit images")
    parser.add_argument("--digits", default="mnist", help="mnist, fashion_mnist, kmnist, builtin")
    parser.add_argument("--sequences", type=int, default=20_000, help="sequences of a training")
    parser.add_argument("--test_size", type=int, default=1_000, help="test sequences")
    parser.add_argument("--gaps", type=int, nargs="+", default=[0, 3, 6], help="blank frames")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of LSTM, GRU and RNN")
    parser.add_argument("--hidden", type=int, default=16, help="channels of the LSTM's stages")
    parser.add_argument(
        "--learning_rate", type=float, default=0.003, help="peak (FC-LSTM: a tenth)"
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--precision", default=best_precision(), help="as Lightning's Trainer's")
    parser.add_argument("--accelerator", default="auto", help="of the trainings")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each variant")
    args = parser.parse_args(words)
    if min(args.gaps) < 0 or max(args.gaps) >= CONTEXT:
        parser.error(f"--gaps must be from 0 to {CONTEXT - 1}, got {args.gaps}")
    return args


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    try:
        if args.what == "report":
            report(args.out)
        else:
            {"speed": speed, "train": train}[args.what](args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"compare.py: error: {error}") from None


if __name__ == "__main__":
    main()
