import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from convlstm import ConvGRUCell, ConvLSTMCell, ConvRNNCell


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def convolve(x, weight):
    """(C, h, w) with (out, C, kh, kw), zero padded so that the size stays, by SciPy."""
    kh, kw = weight.shape[2:]
    padded = np.pad(x, ((0, 0), ((kh - 1) // 2, kh // 2), ((kw - 1) // 2, kw // 2)))
    return np.stack(
        [sum(correlate2d(padded[c], w[c], "valid") for c in range(len(x))) for w in weight]
    )


def reference_step(x, h, c, weight_ih, weight_hh, bias, peephole):
    """Equation 3 of https://arxiv.org/abs/1506.04214, gate by gate, for one sample."""
    size = len(h)
    w_xi, w_xf, w_xg, w_xo = (weight_ih[k * size : (k + 1) * size] for k in range(4))
    w_hi, w_hf, w_hg, w_ho = (weight_hh[k * size : (k + 1) * size] for k in range(4))
    b_i, b_f, b_g, b_o = (bias[k * size : (k + 1) * size, None, None] for k in range(4))
    w_ci, w_cf, w_co = peephole
    i = sigmoid(convolve(x, w_xi) + convolve(h, w_hi) + w_ci * c + b_i)
    f = sigmoid(convolve(x, w_xf) + convolve(h, w_hf) + w_cf * c + b_f)
    c = f * c + i * np.tanh(convolve(x, w_xg) + convolve(h, w_hg) + b_g)
    o = sigmoid(convolve(x, w_xo) + convolve(h, w_ho) + w_co * c + b_o)
    return o * np.tanh(c), c


@pytest.mark.parametrize("peephole", ["none", "channel", "full"])
@pytest.mark.parametrize(("kernel", "hidden_kernel"), [(3, 3), (5, 1), (2, 4), ((1, 3), (2, 5))])
def test_a_step_equals_the_papers_equation_in_numpy(peephole, kernel, hidden_kernel):
    torch.manual_seed(0)
    cell = ConvLSTMCell(
        2, 3, kernel, hidden_kernel_size=hidden_kernel, peephole=peephole, frame_size=(5, 4)
    ).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter)
    x, h, c = torch.randn(2, 5, 4), torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    x, h, c = x.double(), h.double(), c.double()
    weights = (
        cell.peephole.detach().numpy() if cell.peephole is not None else np.zeros((3, 1, 1, 1))
    )
    expected = reference_step(
        x.numpy(),
        h.numpy(),
        c.numpy(),
        cell.weight_ih.detach().numpy(),
        cell.weight_hh.detach().numpy(),
        cell.bias.detach().numpy(),
        weights,
    )
    got = cell(x[None], (h[None], c[None]))
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine[0].detach().numpy(), theirs, rtol=0, atol=1e-12)


def gru_reference(x, h, weight_ih, weight_hh, bias, bias_hh):
    """Gate by gate as in the documentation of torch.nn.GRU, with convolutions; one sample."""
    size = len(h)
    w_xr, w_xz, w_xn = (weight_ih[k * size : (k + 1) * size] for k in range(3))
    w_hr, w_hz, w_hn = (weight_hh[k * size : (k + 1) * size] for k in range(3))
    b_r, b_z, b_n = (bias[k * size : (k + 1) * size, None, None] for k in range(3))
    r = sigmoid(convolve(x, w_xr) + convolve(h, w_hr) + b_r)
    z = sigmoid(convolve(x, w_xz) + convolve(h, w_hz) + b_z)
    n = np.tanh(convolve(x, w_xn) + b_n + r * (convolve(h, w_hn) + bias_hh[:, None, None]))
    return (1 - z) * n + z * h


def rnn_reference(x, h, weight_ih, weight_hh, bias):
    return np.tanh(convolve(x, weight_ih) + convolve(h, weight_hh) + bias[:, None, None])


@pytest.mark.parametrize(
    ("kind", "reference"), [(ConvGRUCell, gru_reference), (ConvRNNCell, rnn_reference)]
)
@pytest.mark.parametrize(("kernel", "hidden_kernel"), [(3, 3), (5, 1), (2, 4), ((1, 3), (2, 5))])
def test_a_step_of_the_others_equals_their_equation_in_numpy(
    kind, reference, kernel, hidden_kernel
):
    cell = kind(2, 3, kernel, hidden_kernel_size=hidden_kernel).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter)
    x, h = torch.randn(2, 5, 4).double(), torch.randn(3, 5, 4).double()
    parameters = [p.detach().numpy() for p in cell.parameters()]
    expected = reference(x.numpy(), h.numpy(), *parameters)
    got = cell(x[None], h[None])[0].detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="input_size"):
        kind(0, 3)


def test_kerass_published_figure_through_step():
    """From the test of ConvLSTM2D in https://github.com/keras-team/keras (conv_lstm2d_test.py)."""
    x = (torch.arange(480).reshape(2, 3, 4, 4, 5) / 100).movedim(-1, 2)  # (B, T, C, H, W)
    cell = ConvLSTMCell(5, 2, 3)
    with torch.no_grad():
        cell.weight_ih.fill_(0.01)
        cell.weight_hh.fill_(0.02)
        cell.bias.fill_(0.03)
        cell.bias[2:4] = 1
        h = c = torch.zeros(2, 2, 2, 2)
        for t in range(3):  # input convolution without padding: 4×4 becomes 2×2
            gates = torch.nn.functional.conv2d(x[:, t], cell.weight_ih, cell.bias)
            h, c = cell.step(gates, (h, c))
    expected = torch.tensor(
        [
            [[0.48694518, 0.50237733], [0.5461202, 0.5598283]],
            [[0.8661607, 0.86909103], [0.8774414, 0.8800861]],
        ]
    )
    for channel in range(2):
        torch.testing.assert_close(h[:, channel], expected, rtol=0, atol=1e-6)


def test_no_state_is_a_zero_state():
    cell = ConvLSTMCell(2, 3)
    x, zero = torch.randn(2, 2, 4, 4), torch.zeros(2, 3, 4, 4)
    for a, b in zip(cell(x), cell(x, (zero, zero)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [ConvLSTMCell, ConvGRUCell, ConvRNNCell])
def test_weights_drawn_anew_are_those_of_a_new_cell(kind):
    torch.manual_seed(1)
    new = kind(3, 4, 3).state_dict()
    cell = kind(3, 4, 3)
    assert not torch.equal(cell.weight_hh, new["weight_hh"])
    torch.nn.init.ones_(cell.bias)
    torch.manual_seed(1)
    cell.reset_parameters()
    assert all(torch.equal(value, new[name]) for name, value in cell.state_dict().items())


def test_the_forget_bias_starts_at_one_and_the_rest_at_zero():
    bias = ConvLSTMCell(2, 3).bias
    assert bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"input_size": 0}, "input_size .* 0"),
        ({"hidden_size": 0}, "hidden_size .* 0"),
        ({"kernel_size": 0}, "kernel_size .* 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"hidden_kernel_size": -1}, "hidden_kernel_size .* -1"),
        ({"peephole": "some"}, "peephole .* 'some'"),
        ({"peephole": "full"}, "frame_size"),
        ({"peephole": "full", "frame_size": (0, 6)}, "frame_size"),
        ({"peephole": "full", "frame_size": (1, 6, 6)}, "frame_size"),
    ],
)
def test_bad_arguments_name_value_and_expectation(arguments, named):
    with pytest.raises(ValueError, match=named):
        ConvLSTMCell(**{"input_size": 1, "hidden_size": 2, **arguments})


def test_a_frame_with_other_channels_raises():
    with pytest.raises(ValueError, match=r"\(B, 2, h, w\), got shape \(1, 3, 4, 4\)"):
        ConvLSTMCell(2, 3)(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 1, 1), (2, 1, 4, 4), (3, 4, 4)])
@pytest.mark.parametrize("kind", [ConvLSTMCell, ConvGRUCell, ConvRNNCell])
def test_a_state_that_would_only_broadcast_raises(kind, shape):
    cell, x, right = kind(2, 3), torch.zeros(2, 2, 4, 4), torch.zeros(2, 3, 4, 4)
    states = [torch.zeros(shape)]
    if kind is ConvLSTMCell:
        states = [(right, states[0]), (states[0], right)]
    for state in states:
        with pytest.raises(ValueError, match=r"expected state [hc] of shape \(2, 3, 4, 4\)"):
            cell(x, state)


def test_a_state_of_another_kind_raises():
    x, h = torch.zeros(2, 2, 4, 4), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"a pair \(h, c\)"):
        ConvLSTMCell(2, 3)(x, h)
    with pytest.raises(ValueError, match="one tensor h, got a tuple"):
        ConvGRUCell(2, 3)(x, (h, h))
