"""The kernels in Triton and C++ against plain PyTorch.

Triton runs on CUDA where there is some, else interpreted.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from convlstm import ConvGRU, ConvLSTM, ConvRNN
from convlstm.cli import main
from convlstm.kernels import backend, choose, native, plain, use_backend
from convlstm.kernels.build import FLAGS, build

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = {"lstm": ConvLSTM, "gru": ConvGRU, "rnn": ConvRNN}
# Triton has no wheels for macOS and Windows.
TRITON = ["triton"] if importlib.util.find_spec("triton") else []
# What `convlstm build` takes.
CAN_BUILD = (
    sys.platform == "linux"
    and shutil.which("c++") is not None
    and torch.backends.cpu.get_cpu_capability() in FLAGS
)
FAST = [*TRITON, *(["native"] if CAN_BUILD and DEVICE == "cpu" else [])]


@pytest.fixture(autouse=True)
def _no_wish(monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The kernels in C++, compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: tmp_path_factory.mktemp("native") / "gates.so")
        return build()


@pytest.fixture
def fast(request, monkeypatch):
    """The name of a backend that can be used now."""
    if request.param == "native":
        path = request.getfixturevalue("library")
        monkeypatch.setattr(native, "library", lambda: path)
    return request.param


def run(layer, x, state, dtype):
    """Outputs, last states and all gradients."""
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
        output, last = layer(x, state)
    parts = last if isinstance(last, tuple) else (last,)
    weight = torch.linspace(-1, 1, output.numel(), device=DEVICE).view(output.shape)
    loss = (output.float() * weight).sum() + sum(part.float().sin().sum() for part in parts)
    states = state if isinstance(state, tuple) else (state,)
    wanted = [x, *layer.parameters(), *(part for part in states if part is not None)]
    return [output, *parts, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_kernels_forecast_without_keeping_gates(fast, kind):
    layer, x = LAYERS[kind](2, 3).to(DEVICE), torch.randn(2, 3, 2, 3, 5, device=DEVICE)
    with use_backend("plain"):
        expected, _ = layer(x)
    with use_backend(fast):
        output, _ = layer(x)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_computed_again_has_the_backend_of_the_forward_pass(fast, kind, swapped):
    layer = LAYERS[kind](2, 3, checkpoint_every=2).to(DEVICE)
    x = torch.randn(2, 5, 2, 3, 5, device=DEVICE, requires_grad=True)
    first, second = (fast, "plain") if swapped else ("plain", fast)
    results = []
    for name in (first, second):
        with use_backend(first):
            output, _ = layer(x)
        with use_backend(name):
            results.append(torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_a_checkpoint_computes_again_may_have_another_backend(fast, kind, swapped):
    layer = LAYERS[kind](2, 3).to(DEVICE)
    x = torch.randn(2, 5, 2, 3, 5, device=DEVICE, requires_grad=True)
    first, second = (fast, "plain") if swapped else ("plain", fast)
    results = []
    for name in (first, second):
        with use_backend(first):
            output, _ = checkpoint(layer, x, use_reentrant=False)
        with use_backend(name):
            results.append(torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("fast", [*FAST, "plain"], indirect=True)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_checkpoint_that_keeps_what_gates_overwrite_is_refused(fast, kind):
    """PyTorch sees it by the version of the memory, which kernels have to count up."""
    keep = partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])
    layer, x = LAYERS[kind](2, 8).to(DEVICE), torch.randn(2, 4, 2, 6, 6, device=DEVICE)
    with use_backend(fast):
        output, _ = checkpoint(layer, x, use_reentrant=False, context_fn=keep)
        with pytest.raises(RuntimeError, match="has been mutated"):
            output.sum().backward()


@pytest.mark.parametrize("triton", TRITON)
def test_where_triton_cannot_start_kernels_gates_are_plain_with_a_warning(triton, monkeypatch):
    class Gates:
        is_cuda, dtype, device = True, torch.float32, torch.device("cuda")

    class Driver:
        @property
        def active(self):
            raise RuntimeError("Failed to find\n C compiler")

    monkeypatch.setattr("triton.runtime.driver", Driver())
    backend._driver_failure.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"\(Failed to find C compiler\), so that gates are"):
        assert choose(Gates()) is plain
    assert choose(Gates()) is plain  # and says so once
    with use_backend(triton), pytest.raises(RuntimeError, match="but Triton can't start"):
        choose(Gates())
    backend._driver_failure.cache_clear()


# NumPy's, in Triton's interpreter: infinity is right
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize(
    "value", [1e4, -1e4, 90.0, -90.0, float("inf"), -float("inf"), float("nan")]
)
def test_gates_saturate_as_those_of_plain_pytorch(fast, value):
    gates = torch.full((3, 4 * 19), value, device=DEVICE)
    results = []
    for name in ("plain", fast):
        with use_backend(name):
            kernels = choose(gates)
        new, h = (torch.empty(3, 19, device=DEVICE) for _ in "ch")
        kernels.lstm_forward(gates, None, torch.ones_like(new), None, None, new, h)
        results.append((new, h))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6, equal_nan=True)
    if value == -1e4:  # not merely small: products with what is would be denormal
        assert (results[1][1] == 0).all()


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
def test_kernels_take_what_hooks_made_contiguous(fast, kind):
    layer = LAYERS[kind](2, 3).to(DEVICE)
    x = torch.randn(1, 4, 2, 5, 6, device=DEVICE, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x)[0].sin().sum(), wanted)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda kept: kept.detach().clone(memory_format=torch.contiguous_format), lambda kept: kept
    )
    with use_backend(fast), hooks:
        output, _ = layer(x)
    for a, b in zip(torch.autograd.grad(output.sin().sum(), wanted), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("inputs", [0, 2])
def test_kernels_take_gradients_that_are_parts_of_larger_ones(fast, kind, inputs):
    layer = LAYERS[kind](inputs, 3, batch_first=False).to(DEVICE)
    torch.nn.init.normal_(layer.bias_l0)
    x = torch.randn(4, 2, inputs, 3, 5, device=DEVICE)
    weight = torch.randn(8, 7, 3, 5, device=DEVICE).to(memory_format=torch.channels_last)
    results = []
    for name in ("plain", fast):
        with use_backend(name):
            output, _ = layer(x)
            seen = []
            output.register_hook(seen.append)
            maps = output.flatten(0, 1)
            wide = torch.cat([maps.new_zeros(8, 4, 3, 5), maps], dim=1) * weight
            used = [p for p in layer.parameters() if p.numel()]
            results.append([output, *torch.autograd.grad(wide.sum(), used)])
        assert seen[0].stride()[-3:] == (1, 7 * 5, 7)  # seven channels apart
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("wanted", ["weights", "input", "neither", "no_grad"])
def test_gates_are_kept_for_a_backward_pass_alone(kind, wanted):
    name = f"{kind}_forward"
    layer, x = LAYERS[kind](2, 3), torch.randn(2, 3, 2, 3, 5)
    layer.requires_grad_(wanted in ("weights", "no_grad"))
    x.requires_grad_(wanted == "input")
    grad = wanted in ("weights", "input")
    with (
        torch.set_grad_enabled(wanted != "no_grad"),
        mock.patch.object(plain, name, wraps=getattr(plain, name)) as forward,
    ):
        layer(x)
    assert forward.call_count == 3  # steps
    for call in forward.call_args_list:
        assert (call.args[4] is not None) == grad


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("lengths", [None, [], torch.zeros(0, dtype=torch.int64)])
def test_an_empty_batch_gives_an_empty_result(kind, lengths):
    layer = LAYERS[kind](2, 3)
    output, _ = layer(torch.zeros(0, 3, 2, 3, 5), lengths=lengths)
    assert output.shape == (0, 3, 3, 3, 5)
    output.sum().backward()
    assert all(not parameter.grad.any() for parameter in layer.parameters())


def test_another_default_device_is_not_the_gates(monkeypatch):
    monkeypatch.setattr(plain, "_memory", plain._Memory())
    layer, x = ConvLSTM(2, 3), torch.randn(2, 3, 2, 3, 5)
    with torch.device("meta"), torch.no_grad():
        output, _ = layer(x)
    assert torch.equal(output, layer(x)[0])


def test_any_number_of_shapes_in_turn_takes_bounded_memory(monkeypatch):
    monkeypatch.setattr(plain, "_memory", plain._Memory())
    monkeypatch.setattr(plain, "SHAPES", 3)
    layer = ConvLSTM(2, 3)
    sizes = [2, 9, 4, 3, 9, 5, 2, 8, 7, 6]
    clips = [torch.randn(1, 3, 2, size, size) for size in sizes]
    outputs = [layer(clip)[0] for clip in clips]  # each with a graph that outlives the next
    assert len(plain._memory.tiles) <= 3
    for clip, output in zip(clips, outputs, strict=True):
        monkeypatch.setattr(plain, "_memory", plain._Memory())
        alone = layer(clip)[0]
        assert torch.equal(output, alone)
        for one, other in zip(
            torch.autograd.grad(output.sum(), layer.parameters()),
            torch.autograd.grad(alone.sum(), layer.parameters()),
            strict=True,
        ):
            assert torch.equal(one, other)


def compare(fast, kind, options, with_state, dtype, tolerance):
    hidden = 19 if fast == "native" else 3  # a vector and an end
    layer = LAYERS[kind](2, hidden, **options).to(DEVICE)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, 2, 3, 5, device=DEVICE, requires_grad=True)
    state = None
    if with_state:
        parts = [torch.randn(1, 2, hidden, 3, 5, device=DEVICE, requires_grad=True) for _ in "hc"]
        state = tuple(parts) if kind == "lstm" else parts[0]
    with use_backend("plain"):
        expected = run(layer, x, state, dtype)
    with use_backend(fast):
        kernels = choose(x)
    names = [f"{kind}_forward", f"{kind}_backward"]
    with (
        use_backend(fast),
        mock.patch.object(kernels, names[0], wraps=getattr(kernels, names[0])) as forward,
        mock.patch.object(kernels, names[1], wraps=getattr(kernels, names[1])) as backward,
        mock.patch.object(plain, names[0], side_effect=AssertionError),
        mock.patch.object(plain, names[1], side_effect=AssertionError),
    ):
        values = run(layer, x, state, dtype)
    assert forward.call_count == backward.call_count == 3  # steps
    for a, b in zip(values, expected, strict=True):
        bound = tolerance * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("peephole", ["none", "channel", "full"])
@pytest.mark.parametrize("with_state", [False, True])
def test_lstm_kernels_equal_plain_pytorch(fast, peephole, with_state):
    options = {"peephole": peephole, "frame_size": (3, 5)}
    compare(fast, "lstm", options, with_state, torch.float32, 1e-5)


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("kind", ["gru", "rnn"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gru_and_rnn_kernels_equal_plain_pytorch(fast, kind, with_state, bias):
    compare(fast, kind, {"bias": bias}, with_state, torch.float32, 1e-5)


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
def test_kernels_take_bfloat16(fast, kind):
    # Both round to 8 bits sums whose last bits differ; three steps and their sums lose three more.
    compare(fast, kind, {}, True, torch.bfloat16, 2**-5)


@pytest.mark.parametrize("triton", TRITON)
def test_kernels_compile_without_spills_and_reach_memory_16_bytes_at_a_time(triton, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # nothing that was compiled before
    script = Path(__file__).parent / "compile_kernels.py"
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 10 * 3 * 2  # kernels with their options, dtypes, GPUs
    for result in results:
        assert result["accesses"], result
        assert all(access.endswith(".v4.b32") for access in result["accesses"]), result
        used = result["resources"]
        assert used["REG"] <= 128, result
        assert used["STACK"] == used["LOCAL"] == 0, result  # nothing is spilled


@pytest.mark.parametrize("triton", TRITON)
def test_kernels_reach_beyond_one_block(triton):
    from convlstm.kernels import fused

    count = 2 * fused.BLOCK + 3
    h, gates = torch.randn(count, 1, device=DEVICE), torch.empty(count, 1, device=DEVICE)
    fused.rnn_backward(h, h, None, gates)
    torch.testing.assert_close(gates, h * (1 - h * h))


def test_a_cpu_computes_in_plain_pytorch_interpreter_or_not(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(torch.zeros(1, 4)) is plain
    monkeypatch.delenv("TRITON_INTERPRET")
    assert choose(torch.zeros(1, 4)) is plain


def test_without_triton_everything_is_plain_pytorch(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose(torch.zeros(1, 4, device=DEVICE)) is plain
    with use_backend("triton"), pytest.raises(RuntimeError, match="not installed"):
        choose(torch.zeros(1, 4))


@pytest.mark.parametrize("triton", TRITON)
def test_a_backend_that_cannot_run_is_refused(triton, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match="CUDA, not on cpu"):
            choose(torch.zeros(1, 4))
        with pytest.raises(RuntimeError, match="float64"):
            choose(torch.zeros(1, 4, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cuda", "Triton"])
def test_an_unknown_backend_is_refused(name, monkeypatch):
    with (
        pytest.raises(ValueError, match=f"'plain', 'native' or 'triton', got '{name}'"),
        use_backend(name),
    ):
        pass
    monkeypatch.setenv(backend.VARIABLE, name)
    with pytest.raises(ValueError, match=f"got '{name}'"):
        choose(torch.zeros(1, 4))


@pytest.mark.parametrize("triton", TRITON)
def test_the_environment_chooses_and_the_context_overrules_it(triton, monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "triton")
    gates = torch.zeros(1, 4, device=DEVICE)
    assert choose(gates).__name__ == "convlstm.kernels.fused"
    with use_backend("plain"):
        assert choose(gates) is plain
    assert choose(gates).__name__ == "convlstm.kernels.fused"


@pytest.mark.parametrize("kind", LAYERS)
def test_training_goes_on_after_inference_in_the_same_memory(kind, monkeypatch):
    monkeypatch.setattr(plain, "_memory", plain._Memory())
    layer = LAYERS[kind](2, 3)
    x = torch.randn(2, 3, 2, 3, 5)
    with torch.inference_mode():
        expected, _ = layer(x)
    output, _ = layer(x)
    output.sum().backward()
    assert torch.equal(output, expected)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("frame", [(3, 5), (1, 29)])
def test_rows_cut_into_tiles_and_blocks_give_the_same_results(kind, frame, monkeypatch):
    options = {"peephole": "full", "frame_size": frame} if kind == "lstm" else {}
    layer = LAYERS[kind](2, 3, **options)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 3, 2, *frame, requires_grad=True)
    results = []
    # 15 rows of 3 values in blocks of 5; 29 are cut by no number, and one is left over in the end.
    for tile, block in ((plain.TILE, plain.BLOCK), (2 * 15 // torch.get_num_threads(), 15)):
        monkeypatch.setattr(plain, "TILE", tile)
        monkeypatch.setattr(plain, "BLOCK", block)
        monkeypatch.setattr(plain, "_memory", plain._Memory())  # no tiles cut before
        output, _ = layer(x)
        gradients = torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])
        results.append([output, *gradients])
    for a, b in zip(*results, strict=True):
        # At a tile's end some values are computed one by one, with other last bits.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize(
    ("count", "hidden", "rows"),
    [(2048, 64, 256), (2048, 34, 256), (8, 496, 8), (3, 40000, 1), (997, 64, 256)],
)
def test_blocks_are_alike_where_the_rows_can_be_cut_so(count, hidden, rows):
    assert plain._block(count, hidden, 16384) == rows


NATIVE = ["native"] if "native" in FAST else []


@pytest.mark.parametrize("fast", NATIVE, indirect=True)
def test_a_cpu_uses_the_compiled_kernels_where_they_are(fast):
    assert choose(torch.zeros(1, 4)) is native
    assert choose(torch.zeros(1, 4, dtype=torch.bfloat16)) is native
    assert choose(torch.zeros(1, 4, dtype=torch.float64)) is plain
    with use_backend("native"), pytest.raises(RuntimeError, match="float64"):
        choose(torch.zeros(1, 4, dtype=torch.float64))


def test_the_compiler_may_have_options_and_a_wrapper(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: tmp_path / "gates.so")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(sys, "platform", "linux")
    commands = []
    monkeypatch.setattr("convlstm.kernels.build._run", lambda *command: commands.append(command))
    monkeypatch.setenv("CXX", f"env '{sys.executable}' -O1")
    with pytest.raises(FileNotFoundError):  # nothing was compiled
        build()
    assert commands[0][:3] == ("env", sys.executable, "-O1")


@pytest.mark.parametrize("fast", NATIVE, indirect=True)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-7), (torch.bfloat16, 7e-5)], ids=["fp32", "bf16"]
)
def test_compiled_gates_are_right_for_every_value_of_bfloat16(fast, dtype, bound):
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    # NaN among them; in rows of 19, which whole vectors do not fill
    x = torch.nn.functional.pad(values, (0, -len(values) % 19)).view(-1, 19).to(dtype)
    zeros, infinite = torch.zeros_like(x), torch.full_like(x, float("inf"))
    kernels = choose(x)

    def cells(i, f, g, c):  # the cell state is float32: not rounded
        new, h = torch.empty(x.shape), torch.empty_like(x)
        kernels.lstm_forward(torch.cat([i, f, g, zeros], 1), None, c, None, None, new, h)
        return new.double()

    sigmoid = cells(zeros, x, zeros, torch.ones(x.shape))
    tanh = cells(infinite, zeros, x, None)
    exact = {"rtol": 0, "atol": bound, "equal_nan": True}
    torch.testing.assert_close(sigmoid, x.double().sigmoid(), **exact)
    torch.testing.assert_close(tanh, x.double().tanh(), **exact)
    assert (tanh[x == 0] == 0).all()


@pytest.mark.parametrize("fast", NATIVE, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
def test_compiled_kernels_keep_what_is_no_number(fast, kind):
    layer, x = LAYERS[kind](1, 3), torch.zeros(1, 2, 1, 3, 3)
    x[0, 0, 0, 0, 0] = float("nan")
    x[0, 0, 0, 2, 2] = float("inf")
    with torch.no_grad():
        output, _ = layer(x)
        with use_backend("plain"):
            expected, _ = layer(x)
    assert torch.equal(output.isnan(), expected.isnan())
    assert output.isnan().any()
    assert not output.isnan().all()


@pytest.mark.parametrize("fast", NATIVE, indirect=True)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("every", [0, 2])
def test_compiled_kernels_add_up_the_gradient_of_the_bias_over_threads(fast, kind, every):
    torch.manual_seed(0)
    layer = LAYERS[kind](1, 19, checkpoint_every=every)
    x = torch.randn(3, 3, 1, 20, 20)  # of a step 22,800 values of a gate: parts for several threads
    threads = torch.get_num_threads()
    gradients = []
    try:
        for backend_name, count in (("plain", 1), ("native", 1), ("native", 3), ("native", 3)):
            torch.set_num_threads(count)
            with use_backend(backend_name):
                output, _ = layer(x)
            gradients.append(torch.autograd.grad(output.square().sum(), layer.bias_l0)[0])
    finally:
        torch.set_num_threads(threads)
    expected, *others, again = gradients
    for gradient in others:
        assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(others[-1], again)


@pytest.mark.parametrize("fast", NATIVE, indirect=True)
def test_under_torch_compile_gates_are_plain_pytorch(fast):
    @torch.compile(backend="eager")
    def is_plain(x):
        return x + (choose(x) is plain)

    assert is_plain(torch.zeros(1, 4)).all()
    assert choose(torch.zeros(1, 4)) is native


def test_what_was_not_built_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: tmp_path / "none.so")
    assert choose(torch.zeros(1, 4)) is plain
    with use_backend("native"), pytest.raises(RuntimeError, match="`convlstm build` has not"):
        choose(torch.zeros(1, 4))


def test_a_damaged_library_is_passed_over_with_a_warning(tmp_path, monkeypatch):
    path = tmp_path / "gates.so"
    path.write_bytes(b"no library")
    monkeypatch.setattr(native, "library", lambda: path)
    with pytest.warns(RuntimeWarning, match="compile them anew"):
        assert choose(torch.zeros(1, 4)) is plain


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        ("false", "false failed"),
        ("false -O1", "false failed"),
        ("no-such-compiler", "no C++ compiler no-such-compiler"),
        ("no-such-wrapper g++", "no C++ compiler no-such-wrapper"),
        ("'g++", "CXX"),
    ],
)
def test_a_build_that_fails_leaves_nothing_and_says_why(
    compiler, why, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(native, "library", lambda: tmp_path / "cache" / "gates.so")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("CXX", compiler)
    assert main(["build"]) != 0
    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    assert not list((tmp_path / "cache").glob("*"))


def test_without_a_home_folder_nothing_is_loaded_or_built(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: Path("~", ".cache", "gates.so"))
    assert choose(torch.zeros(1, 4)) is plain
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("CXX", sys.executable)  # any program that is there
    with pytest.raises(OSError, match="no home folder"):
        build()


@pytest.mark.parametrize("kind", LAYERS.values())
@torch.no_grad()
def test_a_thread_works_on_memory_of_its_own(kind, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: Path("none"))
    layer, x, other = kind(2, 3), torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3, 2, 4, 4)
    expected, _ = layer(x)
    original, threads = plain._sum, []

    def interrupted(*args, **options):
        original(*args, **options)
        if not threads:  # in the middle of a step, another thread runs the layer
            threads.append(threading.Thread(target=layer, args=(other,)))
            threads[0].start()
            threads[0].join()

    monkeypatch.setattr(plain, "_sum", interrupted)
    assert torch.equal(layer(x)[0], expected)
    assert threads


@pytest.mark.parametrize("fast", FAST, indirect=True)
@pytest.mark.parametrize("peephole", ["channel", "full"])
def test_kernels_take_peepholes_of_a_layer_in_bfloat16(fast, peephole):
    layer = ConvLSTM(2, 19, peephole=peephole, frame_size=(3, 5)).to(DEVICE, torch.bfloat16)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, 2, 3, 5, device=DEVICE, dtype=torch.bfloat16)
    with use_backend("plain"):
        expected = run(layer, x.requires_grad_(), None, torch.float32)
    with use_backend(fast):
        values = run(layer, x, None, torch.float32)
    for a, b in zip(values, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2**-4 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("kind", LAYERS.values())
def test_fake_tensors_are_traced_and_leave_no_memory_behind(kind, monkeypatch):
    monkeypatch.setattr(plain, "_memory", plain._Memory())
    layer, mode = kind(2, 3), FakeTensorMode()
    fake = {name: mode.from_tensor(value) for name, value in layer.named_parameters()}
    with mode:
        clip = torch.zeros(2, 3, 2, 4, 4)
        output, _ = torch.func.functional_call(layer, fake, (clip,))
    assert output.shape == (2, 3, 3, 4, 4)
    assert layer(torch.zeros(2, 3, 2, 4, 4))[0].isfinite().all()


def test_a_library_is_for_one_processor_and_one_pytorch(monkeypatch, tmp_path):
    place = native.library.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = place()
    assert first.parent == tmp_path / "convlstm"
    monkeypatch.setattr(native, "processor", lambda: "other")
    second = place()
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert len({first, second, place()}) == 3


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("AVX512", "flags: avx512_bf16", "AVX512_BF16"),
        ("AVX512", "flags: avx2", "AVX512"),
        ("AVX2", "flags: avx512_bf16", "AVX2"),
    ],
)
def test_a_processor_with_bfloat16_is_told_apart(monkeypatch, name, flags, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self, *_: flags)
    assert native.processor() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_takes_the_types_of_mixed_precision(monkeypatch, dtype):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend._triton_cannot(torch.zeros(1, 4, dtype=dtype)) is None
