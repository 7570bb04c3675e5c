"""What to run first on a machine with a CUDA GPU: correctness, then speed, then a summary.

    python benchmarks/gpu_check.py

Every path on CUDA (plain PyTorch and Triton, each recurrence, with and without a first state) is
compared with plain PyTorch on the CPU in float32 without TF32, and under float16 and bfloat16
autocast; then `layer.py` measures its cases there, and `recipe.py` what a CUDA graph gives (with
`--compile` also `torch.compile`). The last lines are a table of what held. Without a GPU,
`--rehearse` runs the same on the CPU, through Triton's interpreter, with tiny sizes.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Iterator

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # must be chosen before anything imports Triton

import layer
import recipe
import torch
from torch import Tensor, nn

from convlstm import ConvGRU, ConvLSTM, ConvRNN, EncoderForecaster
from convlstm.kernels import use_backend

SIZE = (7, 9)
KINDS = {
    "lstm": lambda: ConvLSTM(3, 32),
    "lstm, channel peephole": lambda: ConvLSTM(3, 32, 5, peephole="channel"),
    "lstm, full peephole": lambda: ConvLSTM(3, 32, peephole="full", frame_size=SIZE),
    "lstm, even kernel": lambda: ConvLSTM(3, 32, 4),
    "lstm, checkpoint_every": lambda: ConvLSTM(3, 32, checkpoint_every=2),
    "lstm, bidirectional": lambda: ConvLSTM(3, 32, num_layers=2, bidirectional=True),
    "lstm, lengths": lambda: Shortened(ConvLSTM(3, 32)),
    "gru": lambda: ConvGRU(3, 32),
    "gru, checkpoint_every": lambda: ConvGRU(3, 32, checkpoint_every=2),
    "rnn": lambda: ConvRNN(3, 32),
    "rnn, checkpoint_every": lambda: ConvRNN(3, 32, checkpoint_every=2),
}
BOUNDS = {torch.float32: 1e-4, torch.float16: 2**-7, torch.bfloat16: 2**-4}
NETWORKS = {
    "unconditional": {"hidden_sizes": [16, 16]},
    "autoregressive": {"hidden_sizes": [16, 16], "forecaster": "autoregressive"},
    "two resolutions, a head": {"hidden_sizes": [16, 16], "downsample": [1, 2], "head_size": 8},
    "attention": {"hidden_sizes": [16], "attention": 3},
}


class Shortened(nn.Module):
    """A layer whose second sequence ends before the first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: object = None) -> object:
        """Runs the layer."""
        return self.layer(x, state, lengths=[x.shape[1], x.shape[1] - 2])


def results(network: nn.Module, x: Tensor, state: object, dtype: torch.dtype) -> list[Tensor]:
    """Output, last states and all gradients, on the CPU in float32."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        output, last = network(x, state)
    parts = [output, *(last if isinstance(last, tuple) else (last,))]
    loss = sum((part.float().sin() * (n + 1)).sum() for n, part in enumerate(parts))
    gradients = torch.autograd.grad(loss, [x, *network.parameters()])
    return [value.detach().float().cpu() for value in (*parts, *gradients)]


def checks(device: str) -> Iterator[tuple[str, float, float]]:
    """What is compared, its largest error relative to the largest value, and the bound."""
    for name, make in KINDS.items():
        torch.manual_seed(0)
        network = make()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        x = torch.randn(2, 5, 3, *SIZE)
        for with_state in (False, True):
            state: object = None
            if with_state:
                parts = network.cpu()(x)[1]
                state = tuple(p.detach() for p in parts) if isinstance(parts, tuple) else parts
                state = state.detach() if isinstance(state, Tensor) else state
            with use_backend("plain"):
                expected = results(network.cpu(), x, state, torch.float32)
            network.to(device)
            there = state
            if isinstance(state, tuple):
                there = tuple(part.to(device) for part in state)
            elif isinstance(state, Tensor):
                there = state.to(device)
            for backend in ("plain", "triton"):
                for dtype, bound in BOUNDS.items():
                    with use_backend(backend):
                        values = results(network, x.to(device), there, dtype)
                    error = max(
                        ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
                        for a, b in zip(values, expected, strict=True)
                    )
                    first = ", first state" if with_state else ""
                    yield f"{name}{first}, {backend}, {str(dtype)[6:]}", error, bound

    for name, options in NETWORKS.items():
        torch.manual_seed(0)
        network = EncoderForecaster(1, **options)
        frames = torch.rand(2, 4, 1, 16, 16)
        expected = [network(frames, 3).detach()]
        values = [network.to(device)(frames.to(device), 3).detach().cpu()]
        error = (values[0] - expected[0]).abs().max().item()
        yield f"EncoderForecaster, {name}", error, 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    parser.add_argument("--cases", nargs="+", choices=layer.CASES, default=list(layer.CASES))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile, too: some minutes")
    args = parser.parse_args()
    device = "cuda"
    if args.rehearse:
        device = "cpu"
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --rehearse runs the same, tiny, on the CPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    found = []
    for name, error, bound in checks(device):
        found.append((name, error, bound))
        print(f"{'ok    ' if error <= bound else 'WRONG '} {name}: {error:.1e}", flush=True)

    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    torch.backends.cudnn.benchmark = True
    for letter in ["b"] if args.rehearse else args.cases:
        case = layer.TINY if args.rehearse else layer.CASES[letter]
        print(f"\n({letter}) {case}; fp32 with TF32\n")
        layer.table(case, list(layer.PRECISIONS), args.repeats, device, torch.get_num_threads())

    broken = []
    for batch in [1] if args.rehearse else [4, 64]:
        print(f"\nThe network of configs/moving_mnist.yaml, batch {batch}\n")
        try:
            modes = () if args.compile or args.rehearse else (recipe.PLAIN, recipe.GRAPH)
            recipe.compilation(batch, device, 1 if args.rehearse else args.repeats, modes)
        except Exception:  # what holds is still to be said
            traceback.print_exc()
            broken.append(f"compilation, batch {batch}")

    wrong = [name for name, error, bound in found if not error <= bound]
    print(f"\n{len(found) - len(wrong)} of {len(found)} comparisons held")
    for name in wrong:
        print(f"WRONG {name}")
    for name in broken:
        print(f"BROKEN {name}")
    return 1 if wrong or broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
