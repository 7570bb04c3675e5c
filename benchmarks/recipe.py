"""Measures whether `torch.compile` pays for the network of `configs/moving_mnist.yaml`.

    python benchmarks/recipe.py

Milliseconds of a training step (forward and backward, bfloat16 autocast) and of a forecast of 20
frames, with the unconditional and the autoregressive forecaster, each as it is, compiled, and on
CUDA also as one CUDA graph; interleaved, medians. On a CPU it is the processor's time of one
thread, which hardly depends on what else the machine does.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import layer
import torch
import yaml
from torch import Tensor

from convlstm import EncoderForecaster, VideoPredictor

CONFIG = Path(__file__).parent.parent / "configs" / "moving_mnist.yaml"
PLAIN, GRAPH = "as it is", "one CUDA graph"
MODES = {"cpu": (PLAIN, "default"), "cuda": (PLAIN, "default", "reduce-overhead", GRAPH)}
FORECAST = 20  # frames


def network(device: str, forecaster: str = "unconditional") -> EncoderForecaster:
    """The recipe's network, with the same weights each time."""
    torch.manual_seed(0)
    options = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]
    return VideoPredictor(**options | {"forecaster": forecaster}).network.to(device)


def passes(
    model: EncoderForecaster, batch: int, device: str, size: int = 64
) -> dict[str, Callable[[], None]]:
    """Training step of ten frames in and ten out, and forecast of `FORECAST`, ready to run."""
    frames = torch.rand(batch, 20, 1, size, size, device=device)
    context, target = frames[:, :10], frames[:, 10:]

    def train() -> None:
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16):
            raw = model(context, 10, logits=True, context_too=True).float()
        (raw - torch.cat([context[:, 1:], target], dim=1)).square().mean().backward()

    def forecast() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            model(context, FORECAST)

    return {"training step": train, "forecast": forecast}


def backward(model: EncoderForecaster, frames: Tensor) -> None:
    """Gradients in float32."""
    model.zero_grad()
    (model(frames[:, :10], 10) - frames[:, 10:]).square().mean().backward()


def as_it_is(run: Callable[[], None]) -> Callable[[], None]:
    """A pass whose kernels Python starts one by one."""
    return run


def compilation(batch: int, device: str, repeats: int, modes: Sequence[str] = ()) -> None:
    """Measures and prints a table, and how far the gradients of compiled networks are off."""
    torch._dynamo.config.recompile_limit = 64  # of a layer's code, which many layers share
    print("| forecaster | network | training step, ms | forecast, ms | gradients off by |")
    print("|---|---|---|---|---|")
    for forecaster in ("unconditional", "autoregressive"):
        torch.compiler.reset()
        models = {mode: network(device, forecaster) for mode in modes or MODES[device]}
        for mode, model in models.items():
            if mode not in (PLAIN, GRAPH):
                model.compile(mode=mode)
        torch.manual_seed(0)
        frames = torch.rand(batch, 20, 1, 64, 64, device=device)
        gradients, runs = {}, {}
        for mode, model in models.items():
            ready = layer.captured if mode == GRAPH else as_it_is
            ready(partial(backward, model, frames))()
            gradients[mode] = torch.cat([p.grad.flatten() for p in model.parameters()])
            steps = passes(model, batch, device)
            runs[mode] = {name: ready(run) for name, run in steps.items()}
        times = [
            layer.measure({mode: run[name] for mode, run in runs.items()}, repeats, device)
            for name in ("training step", "forecast")
        ]
        for mode, gradient in gradients.items():
            error = (gradient - gradients[PLAIN]).abs().max() / gradients[PLAIN].abs().max()
            cells = " | ".join(f"{1e3 * seconds[mode]:.1f}" for seconds in times)
            print(f"| {forecaster} | {mode} | {cells} | {error:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=MODES, default="cpu")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    with layer.settings(threads=1):
        compilation(args.batch_size, args.device, args.repeats)


if __name__ == "__main__":
    main()
