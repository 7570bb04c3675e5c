import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import prune

from convlstm import ConvGRU, ConvGRUCell, ConvLSTM, ConvLSTMCell, ConvRNN, ConvRNNCell
from convlstm.kernels import plain
from convlstm.sequence import common

PEEPHOLES = ["none", "channel", "full"]
EXACT = {"rtol": 0, "atol": 1e-10}


def sequence(b=2, t=5, c=2, h=3, w=5):
    return torch.randn(b, t, c, h, w, dtype=torch.float64)


def build(*args, **options):
    layer = ConvLSTM(*args, frame_size=(3, 5), **options).double()
    for parameter in layer.parameters():  # peepholes start at zero: give them something to do
        nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


TWINS = {ConvLSTM: nn.LSTM, ConvGRU: nn.GRU, ConvRNN: nn.RNN}


def twins(kind, layers, bidirectional):
    """One of our layers with 1×1 kernels, and torch's twin with the same weights."""
    theirs = TWINS[kind](4, 6, layers, batch_first=True, bidirectional=bidirectional).double()
    mine = kind(4, 6, 1, layers, bidirectional=bidirectional).double()
    with torch.no_grad():
        for name, parameter in mine.named_parameters():
            kept, suffix = name.split("_l", 1)
            ih, hh = (getattr(theirs, f"bias_{side}_l{suffix}") for side in ("ih", "hh"))
            if kept == "bias":
                value = ih + hh
                if kind is ConvGRU:  # the candidate's hidden bias stays inside of the reset
                    value = torch.cat([value[:12], ih[12:]])
            elif kept == "bias_hh":
                value = hh[12:]
            else:
                value = getattr(theirs, name)
            parameter.copy_(value.view(parameter.shape))
    return mine, theirs


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("lengths", [None, [7, 1, 4]])
def test_one_by_one_kernels_on_one_pixel_equal_torchs_twin(
    kind, layers, bidirectional, with_state, lengths
):
    mine, theirs = twins(kind, layers, bidirectional)
    x = torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True)
    x2 = x.detach()[..., None, None].requires_grad_()
    state, state2 = (), ()
    if with_state:
        shape = (layers * (1 + bidirectional), 3, 6)
        count = 2 if kind is ConvLSTM else 1
        state = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(count)]
        state2 = [s.detach()[..., None, None].requires_grad_() for s in state]

    def packed(parts):
        return tuple(parts) if kind is ConvLSTM else parts[0]

    source = x
    if lengths is not None:
        source = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    out, last = theirs(source, packed(state) if with_state else None)
    if lengths is not None:
        out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    out2, last2 = mine(x2, packed(state2) if with_state else None, lengths)
    torch.testing.assert_close(out2[..., 0, 0], out, **EXACT)
    for a, b in zip(as_tuple(last2), as_tuple(last), strict=True):
        torch.testing.assert_close(a[..., 0, 0], b, **EXACT)

    weight = torch.randn_like(out)
    ((out * weight).sum() + sum(part.sin().sum() for part in as_tuple(last))).backward()
    loss = (out2[..., 0, 0] * weight).sum() + sum(part.sin().sum() for part in as_tuple(last2))
    loss.backward()
    torch.testing.assert_close(x2.grad[..., 0, 0], x.grad, **EXACT)
    for name, parameter in mine.named_parameters():
        kept, suffix = name.split("_l", 1)
        if kept == "bias_hh":
            expected = getattr(theirs, f"bias_hh_l{suffix}").grad[12:]
        else:
            other = f"bias_ih_l{suffix}" if kept == "bias" else name
            expected = getattr(theirs, other).grad
        torch.testing.assert_close(parameter.grad.view(expected.shape), expected, **EXACT)
    for a, b in zip(state2, state, strict=True):
        torch.testing.assert_close(a.grad[..., 0, 0], b.grad, **EXACT)


@pytest.mark.parametrize("kind", TWINS)
def test_a_short_sequence_in_a_batch_is_as_if_alone(kind):
    layer = kind(2, 3, num_layers=2, bidirectional=True).double()
    x = sequence(b=3)
    output, last = layer(x, lengths=torch.tensor([2, 5, 3]))
    for b, length in enumerate([2, 5, 3]):
        alone, last_alone = layer(x[b, :length])
        torch.testing.assert_close(output[b, :length], alone, **EXACT)
        assert (output[b, length:] == 0).all()
        for a, part in zip(as_tuple(last), as_tuple(last_alone), strict=True):
            torch.testing.assert_close(a[:, b], part, **EXACT)


def test_what_lies_behind_a_sequences_end_gets_no_gradient():
    x = sequence(b=2).requires_grad_()
    ConvLSTM(2, 3, num_layers=2, bidirectional=True).double()(x, lengths=[2, 5])[0].sum().backward()
    assert (x.grad[0, 2:] == 0).all()
    assert (x.grad[0, :2] != 0).any()


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("filler", [torch.nan, torch.inf])
def test_what_lies_behind_a_sequences_end_may_be_anything(kind, filler):
    layer = kind(2, 3, num_layers=2, bidirectional=True).double()
    x = sequence(b=2)
    expected = outcome(layer, x.requires_grad_(), lengths=[2, 5])
    filled = x.detach().clone()
    filled[0, 2:] = filler
    results = outcome(layer, filled.requires_grad_(), lengths=[2, 5])
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize(
    ("lengths", "named"),
    [
        ([1], "2 whole lengths"),
        ([1.5, 2.0], "whole lengths"),
        (["2", "1"], "whole lengths"),
        ([[2], 1], "whole lengths"),
        ([True, True], "whole lengths"),
        ([0, 5], "from 1 to T = 5"),
        ([6, 5], "from 1 to T = 5"),
    ],
)
def test_bad_lengths_raise(lengths, named):
    with pytest.raises(ValueError, match=named):
        ConvRNN(2, 3)(torch.zeros(2, 5, 2, 4, 4), lengths=lengths)
    with pytest.raises(ValueError, match="one sequence"):
        ConvRNN(2, 3)(torch.zeros(5, 2, 4, 4), lengths=[5])


@pytest.mark.parametrize("kind", [ConvGRU, ConvRNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_gru_and_rnn_whole_equal_halves_and_single_steps(kind, layers):
    layer = kind(2, 3, (2, 3), layers, hidden_kernel_size=5).double()
    x = sequence()
    whole, last = layer(x)
    first, state = layer(x[:, :2])
    second, state = layer(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, **EXACT)
    torch.testing.assert_close(state, last, **EXACT)
    state, frames = None, []
    for t in range(x.shape[1]):
        frame, state = layer(x[:, t : t + 1], state)
        frames.append(frame)
    torch.testing.assert_close(torch.cat(frames, dim=1), whole, **EXACT)


@pytest.mark.parametrize("kind", [ConvGRU, ConvRNN])
@pytest.mark.parametrize("input_size", [0, 2])
def test_gradients_of_gru_and_rnn_are_those_of_finite_differences(kind, input_size):
    layer = kind(input_size, 2, (2, 3)).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 3, input_size, 3, 5, dtype=torch.float64, requires_grad=input_size > 0)
    h = torch.randn(1, 1, 2, 3, 5, dtype=torch.float64, requires_grad=True)

    def run(x, h, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, h))

    assert torch.autograd.gradcheck(run, (x, h, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("kind", [ConvGRU, ConvRNN])
def test_gru_and_rnn_name_bad_arguments_and_states(kind):
    for arguments, named in (
        ({"hidden_size": 0}, "hidden_size"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"dropout": 1.5}, "dropout .* 1.5"),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout .* 1.0"),
    ):
        with pytest.raises(ValueError, match=named):
            kind(**{"input_size": 1, "hidden_size": 2, **arguments})
    with pytest.raises(ValueError, match="state h of shape"):
        kind(2, 3)(torch.zeros(2, 3, 2, 4, 4), torch.zeros(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="one tensor h, got a tuple"):
        kind(2, 3)(torch.zeros(2, 3, 2, 4, 4), (torch.zeros(1, 2, 3, 4, 4),))


@pytest.mark.parametrize("peephole", PEEPHOLES)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_whole_sequence_equals_two_halves_with_the_state_carried(peephole, layers):
    layer = build(2, 3, 3, layers, peephole=peephole)
    x = sequence()
    whole, last = layer(x)
    first, state = layer(x[:, :2])
    second, state = layer(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, **EXACT)
    for a, b in zip(state, last, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("peephole", PEEPHOLES)
@pytest.mark.parametrize(("kernel", "hidden_kernel"), [(3, None), (5, 1), (2, 4), ((1, 3), 2)])
def test_a_whole_sequence_equals_the_cell_step_by_step(peephole, kernel, hidden_kernel):
    options = {"hidden_kernel_size": hidden_kernel, "peephole": peephole}
    layer = build(2, 3, kernel, 2, **options)
    cells = [
        ConvLSTMCell(size, 3, kernel, frame_size=(3, 5), **options).double() for size in (2, 3)
    ]
    for level, cell in enumerate(cells):
        cell.load_state_dict({n: getattr(layer, f"{n}_l{level}") for n in cell.state_dict()})
    x = sequence()
    states = [None, None]
    outputs = []
    for t in range(x.shape[1]):
        value = x[:, t]
        for level, cell in enumerate(cells):
            states[level] = cell(value, states[level])
            value = states[level][0]
        outputs.append(value)
    output, (h, c) = layer(x)
    torch.testing.assert_close(output, torch.stack(outputs, dim=1), **EXACT)
    torch.testing.assert_close(h, torch.stack([s[0] for s in states]), **EXACT)
    torch.testing.assert_close(c, torch.stack([s[1] for s in states]), **EXACT)


@pytest.mark.parametrize("peephole", PEEPHOLES)
@pytest.mark.parametrize("input_size", [0, 2])
def test_gradients_are_those_of_finite_differences(peephole, input_size):
    layer = build(input_size, 2, (2, 3), peephole=peephole)
    x = torch.randn(1, 3, input_size, 3, 5, dtype=torch.float64, requires_grad=input_size > 0)
    h, c = (torch.randn(1, 1, 2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in "hc")

    def run(x, h, c, *parameters):
        output, (h, c) = torch.func.functional_call(
            layer, dict(zip(dict(layer.named_parameters()), parameters, strict=True)), (x, (h, c))
        )
        return output, h, c

    # fast_mode compares along random directions instead of entry by entry.
    assert torch.autograd.gradcheck(run, (x, h, c, *layer.parameters()), fast_mode=True)


def test_without_input_the_layer_runs_on_its_state_alone():
    layer, fed = build(0, 3), build(2, 3)
    assert not hasattr(layer, "weight_ih_l0")
    state = tuple(torch.randn(1, 2, 3, 3, 5, dtype=torch.float64) for _ in "hc")
    with torch.no_grad():
        fed.weight_hh_l0.copy_(layer.weight_hh_l0)
        fed.bias_l0.copy_(layer.bias_l0)
    x = torch.empty(2, 4, 0, 3, 5, dtype=torch.float64)
    zeros = torch.zeros(2, 4, 2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, state)[0], fed(zeros, state)[0], **EXACT)


def test_the_backward_direction_reads_the_sequence_backwards():
    layer, backward = build(2, 3, bidirectional=True), build(2, 3)
    names = list(backward.state_dict())
    backward.load_state_dict({n: getattr(layer, f"{n}_reverse") for n in names})
    x = sequence()
    output, (h, c) = layer(x)
    expected, (h2, c2) = backward(x.flip(1))
    torch.testing.assert_close(output[:, :, 3:], expected.flip(1), **EXACT)
    torch.testing.assert_close(h[1], h2[0], **EXACT)
    torch.testing.assert_close(c[1], c2[0], **EXACT)


def test_unbatched_and_time_first_sequences_give_the_same_numbers():
    layer = build(2, 3, num_layers=2)
    time_first = build(2, 3, num_layers=2, batch_first=False)
    time_first.load_state_dict(layer.state_dict())
    x = sequence(b=1)
    state = tuple(torch.randn(2, 1, 3, 3, 5, dtype=torch.float64) for _ in "hc")
    output, (h, c) = layer(x, state)
    alone, (h1, c1) = layer(x[0], (state[0][:, 0], state[1][:, 0]))
    torch.testing.assert_close(alone, output[0], **EXACT)
    torch.testing.assert_close(h1, h[:, 0], **EXACT)
    torch.testing.assert_close(c1, c[:, 0], **EXACT)
    turned, _ = time_first(x.transpose(0, 1), state)
    torch.testing.assert_close(turned.transpose(0, 1), output, **EXACT)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (2, 5)])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
def test_frames_keep_their_size_and_one_frame_is_a_sequence(kernel, size):
    output, (h, _) = ConvLSTM(1, 2, kernel)(torch.rand(1, 1, 1, *size))
    assert output.shape == (1, 1, 2, *size)
    assert torch.equal(output[:, -1], h[0])


def test_parameters_have_the_names_order_and_shapes_of_nn_lstm():
    layer = ConvLSTM(
        3, 4, 3, 2, hidden_kernel_size=5, bidirectional=True, peephole="full", frame_size=(6, 7)
    )
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    one = {
        "weight_ih_l0": (16, 3, 3, 3),
        "weight_hh_l0": (16, 4, 5, 5),
        "bias_l0": (16,),
        "peephole_l0": (3, 4, 6, 7),
    }
    assert dict(list(shapes.items())[:4]) == one
    suffixes = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    kinds = ["weight_ih", "weight_hh", "bias", "peephole"]
    assert list(shapes) == [kind + suffix for suffix in suffixes for kind in kinds]
    assert shapes["weight_ih_l1_reverse"] == (16, 8, 3, 3)
    assert ConvLSTM(3, 4, peephole="channel").peephole_l0.shape == (3, 4, 1, 1)
    assert "bias_l0" not in ConvLSTM(3, 4, bias=False).state_dict()


LAYERS_AND_CELLS = [ConvLSTM, ConvGRU, ConvRNN, ConvLSTMCell, ConvGRUCell, ConvRNNCell]


@pytest.mark.parametrize("kind", LAYERS_AND_CELLS)
def test_device_and_dtype_are_given_as_to_any_layer_of_pytorch(kind):
    module = kind(3, 4, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
    empty = torch.nn.utils.skip_init(kind, 3, 4, 5)
    assert empty.state_dict().keys() == module.state_dict().keys()
    assert {(p.device.type, p.dtype) for p in empty.parameters()} == {("cpu", torch.float32)}


@pytest.mark.parametrize("kind", LAYERS_AND_CELLS)
def test_parameters_are_made_where_they_are_wanted_whatever_the_default(kind):
    torch.set_default_device("meta")
    try:
        module = kind(3, 4, device="cpu")
        module.reset_parameters()
    finally:
        torch.set_default_device(None)
    assert {p.device.type for p in module.parameters()} == {"cpu"}
    with FakeTensorMode():
        assert isinstance(next(kind(3, 4).parameters()), FakeTensor)


@pytest.mark.parametrize("kind", LAYERS_AND_CELLS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_parameters_are_floats(kind, dtype):
    with pytest.raises(ValueError, match=f"dtype must be a floating-point type, got {dtype}"):
        kind(3, 4, dtype=dtype)


def test_printing_a_layer_leaves_it_as_it_is():
    layer = torch.nn.utils.parametrizations.spectral_norm(ConvLSTM(3, 4, (3, 5)), "weight_ih_l0")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert "3, 4, kernel_size=(3, 5)" in repr(layer)
    assert "3, 4, kernel_size=(5, 5)" in repr(ConvLSTMCell(3, 4, 5))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_lengths_in_a_list_do_not_go_to_the_default_device():
    layer, x = ConvLSTM(2, 3), torch.rand(2, 4, 2, 5, 5)
    expected, _ = layer(x, lengths=torch.tensor([4, 2]))
    with torch.device("meta"):
        output, _ = layer(x, lengths=[4, 2])
    assert torch.equal(output, expected)


def test_pruned_weights_drawn_anew_stay_pruned():
    layer = ConvLSTM(3, 4)
    prune.random_unstructured(layer, "weight_hh_l0", amount=0.5)
    before, mask = layer.weight_hh_l0_orig.clone(), layer.weight_hh_l0_mask
    layer.reset_parameters()
    layer(torch.rand(1, 2, 3, 4, 4))
    assert not torch.equal(layer.weight_hh_l0_orig, before)
    assert torch.equal(layer.weight_hh_l0, layer.weight_hh_l0_orig * mask)


@pytest.mark.parametrize("kind", [ConvLSTM, ConvGRU, ConvRNN])
def test_weights_drawn_anew_are_those_of_a_new_layer(kind):
    options = {"hidden_kernel_size": 5, "bidirectional": True}
    torch.manual_seed(1)
    new = kind(3, 4, 3, 2, **options).state_dict()
    with torch.device("meta"):
        layer = kind(3, 4, 3, 2, **options)
    layer.to_empty(device="cpu")
    layer = pickle.loads(pickle.dumps(layer))
    torch.manual_seed(1)
    layer.reset_parameters()
    assert all(torch.equal(value, new[name]) for name, value in layer.state_dict().items())
    torch.manual_seed(2)
    layer.reset_parameters()
    assert not torch.equal(layer.weight_hh_l1, new["weight_hh_l1"])
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l1")
    torch.manual_seed(1)
    layer.reset_parameters()
    assert torch.allclose(layer.weight_hh_l1, new["weight_hh_l1"])
    assert torch.equal(layer.weight_ih_l1, new["weight_ih_l1"])


def test_dropout_acts_between_layers_in_training_only():
    layer = build(2, 3, num_layers=2, dropout=0.5)
    x = sequence()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    single = build(2, 3, dropout=0.5)
    assert torch.equal(single(x)[0], single(x)[0])


def test_recurrent_dropout_hides_whole_channels_for_a_whole_sequence(monkeypatch):
    layer = build(2, 3, recurrent_dropout=0.5)
    masks = []
    dropout = torch.nn.functional.dropout

    def recorded(*args, **kwargs):
        masks.append(dropout(*args, **kwargs))
        return masks[-1]

    monkeypatch.setattr("convlstm.layers.base.F.dropout", recorded)
    x = sequence()
    output, _ = layer(x)
    (mask,) = masks  # one for the sequence, not one a step
    assert mask.shape == (2, 3, 1, 1)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    cell = ConvLSTMCell(2, 3).double()
    cell.load_state_dict({n: getattr(layer, f"{n}_l0") for n in cell.state_dict()})
    h = c = torch.zeros(2, 3, 3, 5, dtype=torch.float64)
    for t in range(x.shape[1]):
        h, c = cell(x[:, t], (h * mask, c))
    torch.testing.assert_close(output[:, -1], h, **EXACT)
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", TWINS)
def test_after_eval_two_runs_are_identical(kind):
    layer = kind(2, 3, num_layers=2, dropout=0.5, recurrent_dropout=0.5).double()
    x = sequence()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", TWINS)
def test_bfloat16_autocast_stays_close_to_float32(kind):
    layer = kind(2, 8, num_layers=2)
    x = torch.rand(2, 6, 2, 8, 8)
    exact, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = layer(x)
    # bfloat16 has 8 significant bits; outputs are below 1 in magnitude.
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=2**-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"input_size": -1}, "input_size .* -1"),
        ({"hidden_size": 0}, "hidden_size .* 0"),
        ({"kernel_size": 0}, "kernel_size .* 0"),
        ({"kernel_size": 3.0}, "kernel_size .* 3.0"),
        ({"num_layers": 0}, "num_layers .* 0"),
        ({"dropout": 1.5}, "dropout .* 1.5"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout .* -0.1"),
        ({"checkpoint_every": -2}, "checkpoint_every .* -2"),
        ({"peephole": "full"}, "frame_size"),
    ],
)
def test_bad_arguments_name_value_and_expectation(arguments, named):
    with pytest.raises(ValueError, match=named):
        ConvLSTM(**{"input_size": 1, "hidden_size": 2, **arguments})


@pytest.mark.parametrize("shape", [(2, 3, 1, 4, 4), (2, 0, 2, 4, 4), (2, 4, 4), (3, 1, 4, 4)])
def test_a_sequence_of_another_shape_raises(shape):
    with pytest.raises(ValueError, match="expected a sequence"):
        ConvLSTM(2, 3)(torch.zeros(shape))


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64, torch.bfloat16])
def test_a_sequence_of_another_dtype_than_the_weights_raises_as_with_nn_lstm(kind, dtype):
    with pytest.raises(ValueError, match=rf"of torch\.float32, .* got {dtype}"):
        kind(2, 3)(torch.ones(2, 3, 2, 4, 4, dtype=dtype))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"got torch\.uint8"),
    ):
        kind(2, 3)(torch.ones(2, 3, 2, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("kind", TWINS)
def test_autocast_leaves_float64_alone(kind):
    layer, x = kind(2, 3).double(), sequence()
    expected, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = layer(x)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("kind", TWINS)
def test_shapes_can_be_asked_for_without_memory(kind):
    x = torch.empty(2, 4, 2, 500, 600, device="meta")
    output, _ = kind(2, 3).to("meta")(x)
    assert output.shape == (2, 4, 3, 500, 600)
    assert output.device.type == "meta"


@pytest.mark.parametrize("kind", TWINS)
def test_a_frozen_layer_gives_its_input_a_gradient_and_itself_none(kind, monkeypatch):
    layer, x = kind(2, 3).double(), sequence().requires_grad_()
    expected = torch.autograd.grad(layer(x)[0].sin().sum(), x)
    layer.requires_grad_(False)
    counted = []
    original = common.same_conv2d_grad_weight
    monkeypatch.setattr(
        common, "same_conv2d_grad_weight", lambda *args: counted.append(args) or original(*args)
    )
    layer(x)[0].sin().sum().backward()
    torch.testing.assert_close(x.grad, expected[0], **EXACT)
    assert not counted
    assert not layer(x.detach())[0].requires_grad


def test_a_state_of_another_shape_raises():
    layer = ConvLSTM(2, 3)
    x = torch.zeros(2, 3, 2, 4, 4)
    good, bad = torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"state c of shape \(1, 2, 3, 4, 4\).*\(1, 2, 3, 4, 5\)"):
        layer(x, (good, bad))


def test_full_peephole_refuses_frames_of_another_size():
    cell = ConvLSTMCell(2, 3, peephole="full", frame_size=(1, 5))
    with pytest.raises(ValueError, match=r"frames of \(1, 5\), got \(4, 5\)"):
        cell(torch.zeros(1, 2, 4, 5))
    layer = ConvLSTM(2, 3, peephole="full", frame_size=(4, 4))
    with pytest.raises(ValueError, match=r"frames of \(4, 4\), got \(4, 5\)"):
        layer(torch.zeros(1, 1, 2, 4, 5))


@pytest.mark.parametrize("kind", TWINS)
def test_arguments_of_another_kind_raise_naming_them(kind):
    for arguments, named in (
        ((2, [8, 8]), r"hidden_size must be an int >= 1, got \[8, 8\]"),
        ((2.0, 8), r"input_size must be an int >= 0, got 2\.0"),
        ((2, 8, 3, 2.0), r"num_layers must be an int >= 1, got 2\.0"),
        ((2, 8, 3, 0), "num_layers must be an int >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=named):
            kind(*arguments)
    assert kind(np.int64(2), np.int64(8)).weight_ih_l0.shape[1] == 2
    with pytest.raises(ValueError, match=r"frame_size must be .*, got 16"):
        ConvLSTM(2, 8, peephole="full", frame_size=16)


@pytest.mark.parametrize("kind", TWINS)
def test_a_sequence_that_is_no_tensor_raises_a_type_error(kind):
    layer, x = kind(2, 3), torch.zeros(2, 3, 2, 4, 4)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [3, 2], batch_first=True)
    for wrong, named in (
        (packed, "PackedSequence: pad it .* as `lengths`"),
        (x.numpy(), "expected a tensor, got a ndarray"),
        (layer(x), "expected a tensor, got a tuple"),
    ):
        with pytest.raises(TypeError, match=named):
            layer(wrong)
    for shape in ((2, 0, 2, 4, 4), (2, 3, 2, 0, 4), (2, 3, 2, 4, 0), (3, 2, 0, 4)):
        with pytest.raises(ValueError, match=r"with T, h and w >= 1, got shape"):
            layer(torch.zeros(shape))


def test_a_state_of_another_kind_raises():
    x, h = torch.zeros(2, 3, 2, 4, 4), torch.zeros(1, 2, 3, 4, 4)
    with pytest.raises(ValueError, match="pair"):
        ConvLSTM(2, 3)(x, h)
    for state, got in (((h,), "Tensor"), ([(h, h), (h, h)], "tuple, tuple"), ([3, 2], "int, int")):
        with pytest.raises(ValueError, match=rf"a state \(h, c\) of tensors, got \({got}\)"):
            ConvLSTM(2, 3)(x, state)


def test_a_batched_state_of_one_sequence_raises():
    h = torch.zeros(1, 1, 3, 4, 4)
    expected = (
        r"h of shape \(1, 3, 4, 4\) \(layers and directions, hidden_size, h, w\), got \(1, 1, 3"
    )
    with pytest.raises(ValueError, match=expected):
        ConvLSTM(2, 3)(torch.zeros(5, 2, 4, 4), (h, h))


@pytest.mark.parametrize("wrong", ["sequence", "weights"])
def test_autocast_does_not_mix_float64_with_others(wrong):
    layer, x = ConvLSTM(2, 3), torch.zeros(1, 2, 2, 4, 4)
    layer, x = (layer.double(), x) if wrong == "weights" else (layer, x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="as the wei"):
        layer(x)


def test_a_parametrized_layer_can_be_printed_and_computes_each_weight_once():
    layer = ConvLSTM(2, 3)
    drawn = []

    class Counting(torch.nn.Module):
        def forward(self, weight):
            drawn.append(weight)
            return weight

    for name in ("weight_ih_l0", "weight_hh_l0"):
        torch.nn.utils.parametrize.register_parametrization(layer, name, Counting())
    assert "2, 3, kernel_size=(3, 3)" in repr(layer)
    drawn.clear()
    layer(torch.zeros(1, 2, 2, 4, 4))
    assert len(drawn) == 2


def test_a_state_made_under_autocast_goes_on_without_it():
    layer = ConvLSTM(2, 3)
    x = torch.rand(1, 3, 2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = layer(x)
    assert layer(x, state)[0].dtype == torch.float32


def outcome(layer, x, state=None, lengths=None):
    """Output, last states and all gradients, with the same dropout every time."""
    torch.manual_seed(1)
    output, last = layer(x, state, lengths)
    loss = output.sin().sum() + sum(part.square().sum() for part in as_tuple(last))
    states = [part for part in as_tuple(state) if part is not None]
    gradients = torch.autograd.grad(loss, [x, *layer.parameters(), *states])
    return [output, *as_tuple(last), *gradients]


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("every", [1, 2, 5, 9])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 3]])
def test_segments_computed_again_give_the_same_results(kind, every, with_state, lengths):
    options = {"bidirectional": True, "recurrent_dropout": 0.5, "dropout": 0.3}
    layer = kind(2, 3, num_layers=2, **options).double()
    x = sequence().requires_grad_()
    state = None
    if with_state:
        shape = (4, 2, 3, 3, 5)
        parts = [torch.randn(shape, dtype=x.dtype, requires_grad=True) for _ in "hc"]
        state = tuple(parts) if kind is ConvLSTM else parts[0]
    expected = outcome(layer, x, state, lengths)
    layer.checkpoint_every = every
    for a, b in zip(outcome(layer, x, state, lengths), expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("kind", TWINS)
def test_segments_computed_again_are_the_same_under_autocast(kind):
    layer = kind(2, 3).float()
    x = sequence().float().requires_grad_()
    results = []
    for layer.checkpoint_every in (0, 2):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(outcome(layer, x))
    for a, b in zip(*results, strict=True):
        # bfloat16 keeps 8 bits; the kernels' gradients are added up in another order
        torch.testing.assert_close(a, b, rtol=0, atol=2**-7 * max(1, b.abs().max().item()))


def kept(layer, x, lengths=None):
    """Values that the graph of a forward pass keeps."""
    sizes = []

    def count(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer(x, lengths=lengths)
    return sum(sizes)


@pytest.mark.parametrize(("kind", "parts"), [(ConvLSTM, 2), (ConvGRU, 1)])
@pytest.mark.parametrize("lengths", [None, [9, 7]])
def test_of_a_segment_only_the_states_that_it_begins_with_are_kept(kind, parts, lengths):
    layer = kind(2, 8, checkpoint_every=3).double()
    x = sequence(t=9)
    maps = 8 * x[:, 0, 0].numel()
    weights_and_input = x.numel() + sum(parameter.numel() for parameter in layer.parameters())
    marker, ends = 1, 0 if lengths is None else 2 * 9 * 2  # where each sequence has ended
    states = kept(layer, x, lengths) - weights_and_input - marker - ends
    assert states <= parts * 3 * maps
    assert states < 9 * maps  # not even the outputs, which the caller has
    layer.checkpoint_every = 0
    gates_and_states = {ConvLSTM: 4 + 1 + 1, ConvGRU: 3 + 1 + 1}[kind] * 9 * maps
    assert kept(layer, x, lengths) >= gates_and_states


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("every", [0, 2])
def test_a_backward_pass_inside_of_autocast_is_as_exact_as_outside(kind, kernel, every):
    layer = kind(2, 3, kernel, checkpoint_every=every)
    size = kernel  # of one pixel a convolution is a product, which autocast sees elsewhere
    x = torch.randn(2, 5, 2, size, size)
    results = []
    for inside in (False, True):
        loss = layer(x)[0].sin().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            results.append(torch.autograd.grad(loss, list(layer.parameters())))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("every", [0, 2])
def test_only_a_backward_pass_computes_segments_again(kind, every, monkeypatch):
    layer = kind(2, 3, checkpoint_every=every).double()
    x = sequence(t=5)
    steps = []
    name = {ConvLSTM: "lstm", ConvGRU: "gru", ConvRNN: "rnn"}[kind] + "_forward"
    forward = getattr(plain, name)
    monkeypatch.setattr(plain, name, lambda *args: (steps.append(None), forward(*args)))
    with torch.no_grad():
        expected, _ = layer(x)
    assert len(steps) == 5
    output, _ = layer(x)
    assert len(steps) == 10
    torch.testing.assert_close(output, expected, **EXACT)
    output.sum().backward()
    again = 5 if every and kind is not ConvRNN else 0  # whose outputs are all that it needs
    assert len(steps) == 10 + again


@pytest.mark.parametrize("kind", TWINS)
def test_segments_gradients_are_added_up_in_float32(kind):
    layer = kind(1, 2, checkpoint_every=1).bfloat16()
    x = torch.rand(1, 300, 1, 4, 4).bfloat16()
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        output, _ = layer.to(dtype)(x.to(dtype))
        gradients = torch.autograd.grad(output.float().sum(), list(layer.parameters()))
        results.append([gradient.float() for gradient in gradients])
    for a, b in zip(*results, strict=True):
        # each of 300 parts is rounded to 8 bits, their sum is not
        assert (a - b).abs().max() <= 2**-5 * a.abs().max()


def test_a_printed_layer_shows_what_was_set():
    assert ConvLSTM(2, 3).extra_repr() == "2, 3, kernel_size=(3, 3)"
    layer = ConvGRU(2, 3, num_layers=2, bidirectional=True)
    assert layer.extra_repr() == "2, 3, kernel_size=(3, 3), num_layers=2, bidirectional=True"
