"""The sequence operation against the readable cell; `test_layers.py` has more of it."""

import pytest
import torch

from convlstm import ConvGRU, ConvGRUCell, ConvLSTM, ConvLSTMCell, ConvRNN, ConvRNNCell
from convlstm.kernels import plain
from convlstm.sequence import common, gru_sequence, lstm_sequence, rnn_sequence


def build(dtype=torch.float64, peephole="channel", steps=5, kernel=3):
    cell = ConvLSTMCell(2, 3, kernel, peephole=peephole, frame_size=(4, 6)).to(dtype)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(steps, 2, 2, 4, 6, dtype=dtype, requires_grad=True)
    state = tuple(torch.randn(2, 3, 4, 6, dtype=dtype, requires_grad=True) for _ in "hc")
    return cell, x, state


def whole(cell, x, state=None, mask=None):
    weights = cell.weight_ih, cell.weight_hh, cell.bias
    outputs, last, _ = lstm_sequence(x, *weights, state, peephole=cell.peephole, mask=mask)
    return outputs, last


def step_by_step(cell, x, state=None, mask=None):
    outputs = []
    for frame in x:
        if state is not None and mask is not None:
            state = (state[0] * mask, state[1])
        state = cell(frame, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def gradients(run, cell, x, state, mask=None):
    outputs, (h, c) = run(cell, x, state, mask)
    weight = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    loss = (outputs * weight).sum() + h.square().sum() + c.sin().sum()
    wanted = [x, *cell.parameters(), *(state or ())]
    return [outputs, h, c, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("peephole", ["none", "channel", "full"])
@pytest.mark.parametrize("kernel", [3, (2, 5)])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_states_and_gradients_equal_the_cells(
    dtype, tolerance, peephole, kernel, with_state, masked
):
    cell, x, state = build(dtype, peephole, kernel=kernel)
    mask = torch.tensor([0.0, 2.0, 1.0], dtype=dtype).view(1, 3, 1, 1) if masked else None
    state = state if with_state else None
    mine = gradients(whole, cell, x, state, mask)
    theirs = gradients(step_by_step, cell, x, state, mask)
    for a, b in zip(mine, theirs, strict=True):
        # relative to the largest value: sums over pixels and steps round in another order
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("part", ["outputs", "h", "c", "one output"])
def test_a_loss_on_a_part_of_the_result_gives_the_cells_gradients(part):
    cell, x, state = build()
    pick = {
        "outputs": lambda o, h, c: o.sin().sum(),
        "h": lambda o, h, c: h.sin().sum(),
        "c": lambda o, h, c: c.sin().sum(),
        "one output": lambda o, h, c: o[1].sin().sum(),
    }[part]
    results = []
    for run in (whole, step_by_step):
        outputs, (h, c) = run(cell, x, state)
        wanted = [x, cell.weight_ih, cell.bias, *state]
        results.append(torch.autograd.grad(pick(outputs, h, c), wanted))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_kept_graph_can_be_walked_again():
    cell, x, state = build()
    outputs, _ = whole(cell, x, state)
    loss = outputs.square().sum()
    first = torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(cell.parameters()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "layer",
    [
        ConvLSTM(2, 3),
        ConvGRU(2, 3),
        ConvRNN(2, 3),
        ConvLSTM(2, 3, num_layers=2, checkpoint_every=1),
    ],
)
@pytest.mark.parametrize("loss", [torch.sum, lambda outputs: outputs.square().sum()])
def test_a_second_derivative_raises_clearly(layer, loss):
    x = torch.rand(1, 2, 2, 4, 4, requires_grad=True)
    expected = torch.autograd.grad(loss(layer(x)[0]), x)
    gradient = torch.autograd.grad(loss(layer(x)[0]), x, create_graph=True)
    assert torch.equal(gradient[0], expected[0])
    with pytest.raises(RuntimeError, match=r"no second derivative: .* a cell, such as"):
        gradient[0].square().sum().backward()


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (ConvLSTM(2, 3), {}),
        (ConvLSTM(2, 3, checkpoint_every=1), {}),
        (ConvLSTM(2, 3, checkpoint_every=2), {"lengths": [3]}),
        (ConvGRU(2, 3, checkpoint_every=2), {}),
        (ConvRNN(2, 3, checkpoint_every=2), {}),
    ],
)
def test_a_second_derivative_raises_with_frozen_weights_too(layer, options):
    layer.requires_grad_(False)
    x = torch.rand(1, 3, 2, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x, **options)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient.square().sum() + x.sum()).backward()


@pytest.mark.parametrize("wanted", ["x", "bias_l0"])
def test_a_hessian_raises_instead_of_being_zero(wanted):
    layer = ConvLSTM(1, 2)
    x = torch.rand(1, 2, 1, 3, 3)

    def loss(value):
        given = {} if wanted == "x" else {wanted: value}
        return torch.func.functional_call(layer, given, (value if wanted == "x" else x,))[0].sum()

    point = x if wanted == "x" else layer.get_parameter(wanted).detach()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.functional.hessian(loss, point)


def test_incoming_gradients_are_left_as_they_were():
    cell, x, state = build()
    _, (h, c) = whole(cell, x, state)
    incoming = tuple(
        torch.randn_like(s).contiguous(memory_format=torch.channels_last) for s in (h, c)
    )
    before = [value.clone() for value in incoming]
    torch.autograd.grad((h, c), [*cell.parameters()], incoming)
    for a, b in zip(incoming, before, strict=True):
        assert torch.equal(a, b)


def test_without_gradients_the_numbers_are_the_same_and_no_history_is_kept():
    cell, x, state = build()
    expected, (h, c) = whole(cell, x, state)
    with torch.no_grad():
        outputs, (h2, c2) = whole(cell, x, state)
    assert outputs.grad_fn is None
    for a, b in ((outputs, expected), (h2, h), (c2, c)):
        assert torch.equal(a, b)


def test_the_inputs_are_left_as_they_were():
    cell, x, state = build()
    before = [value.detach().clone() for value in (x, *state, *cell.parameters())]
    gradients(whole, cell, x, state)
    for a, b in zip((x, *state, *cell.parameters()), before, strict=True):
        assert torch.equal(a, b)


def test_under_autocast_gates_are_bfloat16_and_cells_float32():
    cell, x, state = build(torch.float32)
    exact = gradients(whole, cell, x, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, (h, c) = whole(cell, x, state)
        rough = gradients(whole, cell, x, state)
    assert (outputs.dtype, h.dtype, c.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    for a, b in zip(rough, exact, strict=True):
        # bfloat16 keeps 8 bits; five steps and their sums lose three more.
        bound = 2**-5 * b.abs().max().item()
        torch.testing.assert_close(a.float(), b, rtol=0, atol=bound)
    for parameter in cell.parameters():
        assert parameter.dtype == torch.float32


def test_a_bfloat16_layer_runs_forward_and_backward():
    cell, x, state = build(torch.bfloat16)
    for value in gradients(whole, cell, x, state):
        assert value.isfinite().all()


def test_maps_come_out_with_channels_last_in_memory():
    cell, x, _ = build(torch.float32)
    outputs, _ = whole(cell, x)
    assert outputs.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


SIMPLE = {ConvGRUCell: gru_sequence, ConvRNNCell: rnn_sequence}


def build_simple(kind, dtype, kernel=3, bias=True):
    cell = kind(2, 3, kernel, bias=bias).to(dtype)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 2, 2, 4, 6, dtype=dtype, requires_grad=True)
    h = torch.randn(2, 3, 4, 6, dtype=dtype, requires_grad=True)
    return cell, x, h


def simple_whole(cell, x, h=None, mask=None):
    biases = [cell.bias, cell.bias_hh] if isinstance(cell, ConvGRUCell) else [cell.bias]
    return SIMPLE[type(cell)](x, cell.weight_ih, cell.weight_hh, *biases, h, mask=mask)


def simple_steps(cell, x, h=None, mask=None):
    outputs = []
    for frame in x:
        if mask is None or h is None:
            h = cell(frame, h)
        else:  # the mask hides h from the convolution only
            gates = cell.input_gates(frame)
            if isinstance(cell, ConvGRUCell):
                masked, z = cell.step(gates, h * mask), None
                size = cell.hidden_size
                from_h = torch.nn.functional.conv2d(h * mask, cell.weight_hh, padding="same")
                z = torch.sigmoid(gates[:, size : 2 * size] + from_h[:, size : 2 * size])
                h = masked + z * (h - h * mask)
            else:
                h = cell.step(gates, h * mask)
        outputs.append(h)
    return torch.stack(outputs), h


def simple_gradients(run, cell, x, h, mask=None):
    outputs, last = run(cell, x, h, mask)
    weight = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    loss = (outputs * weight).sum() + last.square().sum()
    wanted = [x, *cell.parameters(), *([] if h is None else [h])]
    return [outputs, last, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kernel", [3, (2, 5)])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gru_and_rnn_equal_their_cells(kind, dtype, tolerance, kernel, with_state, bias):
    cell, x, h = build_simple(kind, dtype, kernel, bias)
    h = h if with_state else None
    mine = simple_gradients(simple_whole, cell, x, h)
    theirs = simple_gradients(simple_steps, cell, x, h)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("with_state", [False, True])
def test_recurrent_dropout_hides_h_from_the_convolution_only(kind, with_state):
    cell, x, h = build_simple(kind, torch.float64)
    h = h if with_state else None
    mask = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    mine = simple_gradients(simple_whole, cell, x, h, mask)
    theirs = simple_gradients(simple_steps, cell, x, h, mask)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", SIMPLE)
def test_gru_and_rnn_keep_a_graph_and_need_no_gradient(kind):
    cell, x, h = build_simple(kind, torch.float64)
    outputs, last = simple_whole(cell, x, h)
    loss = outputs.square().sum()
    first = torch.autograd.grad(loss, list(cell.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(cell.parameters()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    (one,) = torch.autograd.grad(simple_whole(cell, x, h)[1].sum(), h)  # the last state alone
    (expected,) = torch.autograd.grad(simple_steps(cell, x, h)[1].sum(), h)
    torch.testing.assert_close(one, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        again, last_again = simple_whole(cell, x, h)
    assert torch.equal(again, outputs)
    assert torch.equal(last_again, last)


@pytest.mark.parametrize("kind", SIMPLE)
def test_gru_and_rnn_under_autocast_stay_close(kind):
    cell, x, h = build_simple(kind, torch.float32)
    exact = simple_gradients(simple_whole, cell, x, h)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = simple_gradients(simple_whole, cell, x, h)
    assert rough[0].dtype == torch.bfloat16
    for a, b in zip(rough, exact, strict=True):
        # bfloat16 keeps 8 bits; five steps and their sums lose three more.
        bound = 2**-5 * b.abs().max().item()
        torch.testing.assert_close(a.float(), b, rtol=0, atol=bound)


def test_frozen_weights_and_no_gradient_give_the_same_numbers():
    """Where nothing needs a gradient, each step's cell state overwrites the one before."""
    cell, x, state = build()
    expected, (h, c) = whole(cell, x, state)
    cell.requires_grad_(False)
    state = tuple(part.detach() for part in state)
    with torch.no_grad():
        outputs, (h2, c2) = whole(cell, x.detach(), state)
        zero, _ = whole(cell, x.detach())
    for a, b in ((outputs, expected), (h2, h), (c2, c), (zero, whole(cell, x)[0])):
        assert torch.equal(a, b)


LAYERS = [ConvLSTM, ConvGRU, ConvRNN]


def trained(layer, x):
    output, _ = layer(x)
    return [output, *torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("kind", LAYERS)
def test_input_gates_made_a_few_steps_at_a_time_are_the_same(kind, monkeypatch):
    layer = kind(2, 3).double()
    x = torch.randn(2, 5, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = trained(layer, x)
    at_once = []

    def convolve(x, *args):
        at_once.append(len(x))
        return torch.nn.functional.conv2d(x, *args, padding=1)

    monkeypatch.setattr(common, "same_conv2d", convolve)
    step = 2 * layer.weight_ih_l0.shape[0] * 4 * 6 * 8  # bytes
    monkeypatch.setitem(common.AHEAD, "cpu", 2 * step)
    with torch.no_grad():
        output, _ = layer(x)
    assert at_once == [4, 4, 2]  # steps and a batch of two
    torch.testing.assert_close(output, expected[0], rtol=0, atol=1e-12)
    at_once.clear()
    results = trained(layer, x)
    assert at_once == ([4, 4, 2] if kind is ConvRNN else [10])  # all that is kept, in one call
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("last", [-1, -2, 0])
def test_what_is_kept_for_the_backward_pass_may_lie_elsewhere_meanwhile(kind, last):
    # As with `torch.autograd.graph.save_on_cpu`: values and shape come back, strides need not.
    layer = kind(2, 3).double()
    x = torch.randn(2, 5, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = trained(layer, x)

    def put_away(kept):  # with another dimension last in memory
        if kept.ndim <= 1:
            return kept.detach().clone()
        return kept.detach().movedim(last, -1).contiguous().movedim(-1, last)

    with torch.autograd.graph.saved_tensors_hooks(put_away, lambda kept: kept):
        results = trained(layer, x)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_backward_pass_may_have_other_threads_than_the_forward_pass(kind, monkeypatch):
    layer = kind(2, 8)
    x = torch.randn(1, 3, 2, 64, 50, requires_grad=True)  # more rows than lie in one block
    expected = trained(layer, x)
    threads = torch.get_num_threads()
    monkeypatch.setattr(plain, "TILE", 8 * 1600)  # half of them
    monkeypatch.setattr(plain, "_memory", plain._Memory())  # no tiles cut before
    output, _ = layer(x)
    torch.set_num_threads(threads % 2 + 1)
    try:
        results = torch.autograd.grad(output.sin().sum(), [x, *layer.parameters()])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip([output, *results], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("kind", [ConvGRU, ConvRNN])
def test_incoming_gradients_of_a_last_state_are_left_as_they_were(kind):
    layer = kind(2, 3)
    _, h = layer(torch.randn(2, 4, 2, 4, 4))
    incoming = torch.randn(2, 4, 4, 3).permute(0, 3, 1, 2)[None]
    before = incoming.clone()
    torch.autograd.grad(h, list(layer.parameters()), incoming)
    assert torch.equal(incoming, before)


@pytest.mark.parametrize("kind", [ConvLSTM, ConvGRU, ConvRNN])
def test_each_parameter_and_state_alone_gets_its_gradient(kind):
    layer = (kind(2, 3, peephole="channel") if kind is ConvLSTM else kind(2, 3)).double()
    x = torch.randn(2, 4, 2, 4, 5, dtype=torch.float64)
    parts = [torch.randn(1, 2, 3, 4, 5, dtype=torch.float64) for _ in "hc"[: layer.state_parts]]
    state = tuple(parts) if kind is ConvLSTM else parts[0]
    leaves = [*layer.parameters(), *parts]

    def gradients(wanted):
        for leaf in leaves:
            leaf.requires_grad_(any(leaf is other for other in wanted))
        return torch.autograd.grad(layer(x, state)[0].sin().sum(), wanted)

    for leaf, expected in zip(leaves, gradients(leaves), strict=True):
        torch.testing.assert_close(gradients([leaf])[0], expected, rtol=0, atol=1e-10)
