import numpy as np
import pytest
import torch

from convlstm.attention import ContextAttention


def build(hidden_size, memory_size, neighbourhood):
    attention = ContextAttention(hidden_size, memory_size, neighbourhood).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention


def reference(attention, hidden, series, n):
    """Equations 5, 7 and 8 of https://arxiv.org/abs/1508.04025, point by point, in NumPy."""
    w_a = attention.key.weight[:, :, 0, 0].detach().numpy()
    w_c = attention.combine.weight[:, :, 0, 0].detach().numpy()
    b_c = attention.combine.bias.detach().numpy()
    hidden, series = hidden.numpy(), series.numpy()
    steps, batch, channels, height, width = hidden.shape
    result = np.zeros(hidden.shape)
    weights = np.zeros((batch, steps, len(series), n, n, height, width))
    for s, b, y, x in np.ndindex(steps, batch, height, width):
        places = [
            (t, dy, dx)
            for t, dy, dx in np.ndindex(len(series), n, n)
            if 0 <= y + dy - n // 2 < height and 0 <= x + dx - n // 2 < width
        ]
        seen = np.array([series[t, b, :, y + p - n // 2, x + q - n // 2] for t, p, q in places])
        h = hidden[s, b, :, y, x]
        scores = np.exp(seen @ w_a.T @ h / channels**0.5)
        scores /= scores.sum()
        for (t, dy, dx), score in zip(places, scores, strict=True):
            weights[b, s, t, dy, dx, y, x] = score
        result[s, b, :, y, x] = np.tanh(w_c @ np.concatenate([h, scores @ seen]) + b_c)
    return result, weights


@pytest.mark.parametrize("neighbourhood", [1, 3, 5])
def test_it_computes_the_papers_equations_at_each_point(neighbourhood):
    attention = build(3, 4, neighbourhood)
    hidden = torch.randn(2, 2, 3, 4, 3, dtype=torch.float64)
    series = torch.randn(5, 2, 4, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        got, weights = attention(hidden, attention.remember(series))
    expected, expected_weights = reference(attention, hidden, series, neighbourhood)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights, expected_weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights.sum((2, 3, 4)), 1, rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    attention = build(2, 3, 3)
    hidden = torch.randn(2, 1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    series = torch.randn(2, 1, 3, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(hidden, series, *parameters):
        return attention(hidden, attention.remember(series))

    assert torch.autograd.gradcheck(run, (hidden, series, *attention.parameters()), fast_mode=True)


@pytest.mark.parametrize("neighbourhood", [-1, 0, 2])
def test_a_neighbourhood_has_a_middle(neighbourhood):
    with pytest.raises(ValueError, match=f"attention .*odd.* got {neighbourhood}"):
        ContextAttention(2, 2, neighbourhood)
