"""The convolution against PyTorch's own and its autograd."""

import pytest
import torch
import torch.nn.functional as F

from convlstm.convolution import same_conv2d, same_conv2d_grad_weight, same_conv2d_grad_x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
@pytest.mark.parametrize("last", [-1, 1, 0])
def test_output_and_gradients_are_those_of_pytorch(kernel, size, last):
    x = torch.randn(5, 2, *size, dtype=torch.float64)
    x = x.movedim(last, -1).contiguous().movedim(-1, last).requires_grad_()
    weight = torch.randn(3, 2, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, padding="same")
    grad = torch.randn(5, 3, *size, dtype=torch.float64)
    d_x, d_weight = torch.autograd.grad(expected, [x, weight], grad)
    with torch.no_grad():
        for mine, theirs in (
            (same_conv2d(x, weight, bias), expected),
            (same_conv2d_grad_x(grad, x, weight), d_x),
            (same_conv2d_grad_weight(grad, x, weight), d_weight),
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
