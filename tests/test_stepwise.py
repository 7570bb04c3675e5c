"""Exported layers and networks against themselves: `torch.export` writes them down step by step."""

import pytest
import torch
from torch.export import Dim

from convlstm import ConvGRU, ConvLSTM, ConvRNN, EncoderForecaster
from convlstm.sequence import lstm_sequence
from convlstm.sequence.stepwise import lstm_steps

LAYERS = {
    "lstm": lambda: ConvLSTM(2, 3, num_layers=2, peephole="channel"),
    "lstm full": lambda: ConvLSTM(2, 3, 2, peephole="full", frame_size=(5, 6)),
    "lstm without bias": lambda: ConvLSTM(2, 3, bias=False, bidirectional=True),
    "lstm without input": lambda: ConvLSTM(0, 3),
    "gru": lambda: ConvGRU(2, 3, num_layers=2, bidirectional=True),
    "gru without bias": lambda: ConvGRU(2, 3, (1, 4), bias=False),
    "gru without input": lambda: ConvGRU(0, 3, checkpoint_every=2),
    "rnn": lambda: ConvRNN(2, 3, num_layers=2, batch_first=False),
    "rnn without input": lambda: ConvRNN(0, 3, bias=False),
}


def drawn(module):
    """In float64, with weights that leave no term out."""
    torch.manual_seed(0)
    module = module.double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def parts(result):
    output, state = result
    return [output, *([state] if isinstance(state, torch.Tensor) else state)]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("with_state", [False, True])
def test_an_exported_layer_equals_the_layer(name, with_state):
    layer = drawn(LAYERS[name]())
    x = torch.rand(4, 4, layer.input_size, 5, 6, dtype=torch.float64)
    count = layer.num_layers * layer.num_directions
    state = torch.randn(count, 4, 3, 5, 6, dtype=torch.float64) if with_state else None
    if with_state and layer.state_parts == 2:
        state = state, torch.randn_like(state)
    exported = torch.export.export(layer, (x, state)).module()
    for mine, theirs in zip(parts(exported(x, state)), parts(layer(x, state)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_an_exported_layer_takes_other_lengths_than_it_was_exported_with():
    layer = drawn(ConvLSTM(2, 3, bidirectional=True))
    x = torch.rand(3, 4, 2, 5, 6, dtype=torch.float64)
    exported = torch.export.export(layer, (x, None, torch.tensor([4, 1, 2]))).module()
    lengths = torch.tensor([2, 4, 3])
    mine, theirs = exported(x, None, lengths), layer(x, None, lengths)
    for a, b in zip(parts(mine), parts(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"forecaster": "autoregressive", "cell": "gru"},
        {"bidirectional": True, "cell": "rnn"},
        {"attention": 3, "residual": True},
    ],
    ids=str,
)
def test_an_exported_network_takes_batches_of_any_size_and_has_no_operation_of_our_own(options):
    network = drawn(
        EncoderForecaster(
            patch_size=2, hidden_sizes=[4, 3], downsample=[1, 2], head_size=4, **options
        )
    )
    context = torch.rand(2, 3, 1, 10, 9, dtype=torch.float64)
    sizes = {"frames": {0: Dim("batch")}, "steps": None}
    program = torch.export.export(network, (context, 4), dynamic_shapes=sizes)
    for node in program.graph.nodes:
        if node.op == "call_function":  # of tensors PyTorch's own, of sizes Python's
            assert getattr(node.target, "namespace", "python") in ("aten", "python"), node.target
    context = torch.rand(5, 3, 1, 10, 9, dtype=torch.float64)
    with torch.no_grad():
        mine, theirs = program.module()(context, 4), network(context, 4)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_an_exported_network_takes_frames_of_any_size_that_its_strides_divide():
    options = {"patch_size": 2, "hidden_sizes": [4, 3], "downsample": [1, 2]}
    network = drawn(EncoderForecaster(**options))
    sizes = {"frames": dict.fromkeys((0, 3, 4), Dim.DYNAMIC), "steps": None}
    example = torch.rand(2, 3, 1, 16, 12, dtype=torch.float64)
    exported = torch.export.export(network, (example, 4), dynamic_shapes=sizes).module()
    for height, width in ((8, 20), (24, 24)):
        context = torch.rand(3, 3, 1, height, width, dtype=torch.float64)
        with torch.no_grad():
            mine, theirs = exported(context, 4), network(context, 4)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_an_exported_layer_takes_frames_smaller_than_its_kernel():
    layer = ConvLSTM(2, 3, kernel_size=3).eval()
    height, width = Dim("height", min=2), Dim("width", min=2)
    program = torch.export.export(
        layer, (torch.rand(2, 4, 2, 8, 9),), dynamic_shapes=({3: height, 4: width},)
    )
    for size in ((2, 2), (3, 3), (5, 3)):
        x = torch.rand(2, 4, 2, *size)
        # float32: the same sums in another order
        torch.testing.assert_close(program.module()(x)[0], layer(x)[0], rtol=0, atol=1e-5)


def test_a_layer_exported_under_autocast_keeps_cell_states_in_float32():
    layer = ConvLSTM(2, 3).eval()
    x = torch.rand(2, 4, 2, 5, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output, (h, c) = torch.export.export(layer, (x,)).module()(x)
        expected, (_, expected_c) = layer(x)
    assert (output.dtype, h.dtype, c.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    # bfloat16 has 8 bits: a rounding or two of values below 1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(c, expected_c, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", [ConvLSTM, ConvGRU, ConvRNN])
def test_a_layer_exported_under_autocast_has_its_type(kind):
    layer, x = kind(2, 3).eval(), torch.rand(2, 4, 2, 5, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output, _ = torch.export.export(layer, (x,)).module()(x)
    assert output.dtype == torch.bfloat16


def test_steps_drop_the_same_parts_of_states():
    x, w, w_hidden = torch.rand(4, 1, 2, 5, 5), torch.rand(12, 2, 3, 3), torch.rand(12, 3, 3, 3)
    mask = torch.tensor([0.0, 2.0, 1.0]).view(1, 3, 1, 1)
    steps, _, _ = lstm_steps(x, w, w_hidden, None, None, None, None, mask)
    whole, _, _ = lstm_sequence(x, w, w_hidden, mask=mask)
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-5)
