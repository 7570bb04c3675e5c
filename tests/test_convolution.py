"""The convolution against PyTorch's own and its autograd."""

import pytest
import torch
import torch.nn.functional as F

from convlstm import convolution
from convlstm.convolution import (
    FEW,
    convolved,
    repeated_conv2d,
    repeated_conv2d_grad_x,
    same_conv2d,
    same_conv2d_grad_weight,
    same_conv2d_grad_x,
)


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


@pytest.fixture
def backward_calls(monkeypatch):
    """What PyTorch's backward pass is called with."""
    calls = []
    original = convolution._backward
    monkeypatch.setattr(
        convolution, "_backward", lambda *given: calls.append(given) or original(*given)
    )
    return calls


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (2, 4)])
@pytest.mark.parametrize("at_a_time", [1, 2, 3, 7])
def test_the_kernels_gradient_of_wide_maps_comes_from_copies_in_parts(
    monkeypatch, backward_calls, kernel, at_a_time
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(convolution, "COPIED", at_a_time * 8 * 5 * 64 * 4)
    maps = [torch.randn(7, channels, 5, 64) for channels in (16, 8)]
    x, grad = (value.to(memory_format=torch.channels_last) for value in maps)
    weight = torch.randn(8, 16, *kernel).to(memory_format=torch.channels_last)
    found = same_conv2d_grad_weight(grad, x, weight)
    assert [len(d_y) for d_y, *_ in backward_calls] == [len(part) for part in grad.split(at_a_time)]
    assert all(value.is_contiguous() for given in backward_calls for value in given[:3])
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = same_conv2d_grad_weight(grad.double(), x.double(), weight.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "width", "kernel", "dtype", "capability"),
    [
        (15, 64, 3, torch.float32, "AVX2"),
        (16, 63, 3, torch.float32, "AVX2"),
        (16, 64, 1, torch.float32, "AVX2"),
        (16, 64, 3, torch.float64, "AVX2"),
        (16, 64, 3, torch.float32, "AVX512"),
    ],
)
def test_other_kernels_gradients_are_not_copied(
    monkeypatch, backward_calls, channels, width, kernel, dtype, capability
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(convolution, "COPIED", 1)
    x = torch.randn(3, channels, 4, width, dtype=dtype)
    grad = torch.randn(3, 2, 4, width, dtype=dtype)
    same_conv2d_grad_weight(grad, x, torch.randn(2, channels, kernel, kernel, dtype=dtype))
    assert len(backward_calls) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3), (2, 5)])
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (1, 1, 1, 7), (2, 3, 1, 1), (0, 3, 4, 4)])
@pytest.mark.parametrize("times", [1, FEW])
def test_a_kernel_made_ready_convolves_as_any_other(dtype, kernel, shape, times):
    x = torch.randn(shape, dtype=dtype)
    weight = torch.randn(8, shape[1], *kernel, dtype=dtype)
    grad = torch.randn(shape[0], 8, *shape[2:], dtype=dtype)
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    for mine, theirs in (
        (repeated_conv2d(weight, x, times)(x), same_conv2d(x, weight)),
        (repeated_conv2d_grad_x(weight, x, times)(grad), same_conv2d_grad_x(grad, x, weight)),
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=bound, atol=bound)


def test_kernels_are_laid_out_once_for_many_calls_in_bfloat16(monkeypatch):
    able = (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    laid_out = []
    original = convolution._laid_out
    monkeypatch.setattr(
        convolution, "_laid_out", lambda *given: laid_out.append(given) or original(*given)
    )
    for dtype, times, expected in (
        (torch.float32, 9, 0),
        (torch.bfloat16, 1, 0),
        (torch.bfloat16, 9, 2 if able else 0),
    ):
        laid_out.clear()
        x, weight = torch.randn(1, 2, 4, 4, dtype=dtype), torch.randn(8, 2, 3, 3, dtype=dtype)
        convolve = repeated_conv2d(weight, x, times)
        repeated_conv2d_grad_x(weight, x, times)
        convolve(x)
        convolve(x)
        assert len(laid_out) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
def test_sums_over_many_maps_are_not_rounded_at_each_of_them(dtype, kernel):
    """Against float64, of the same rounded values."""
    x, grad = torch.rand(2000, 2, 8, 8).to(dtype), torch.rand(2000, 3, 8, 8).to(dtype)
    weight = torch.randn(3, 2, *kernel).to(dtype)
    exact = [tensor.double() for tensor in (grad, x, weight)]
    for function, order in (
        (same_conv2d_grad_weight, (0, 1, 2)),
        (same_conv2d_grad_x, (0, 1, 2)),
        (same_conv2d, (1, 2)),
    ):
        result = function(*([grad, x, weight][i] for i in order))
        expected = function(*(exact[i] for i in order))
        assert result.dtype == dtype
        bound = torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_instructions_for_a_type_modules_convolve_in_float32_under_autocast(
    dtype, monkeypatch
):
    module, maps = torch.nn.Conv2d(2, 3, 3), torch.rand(4, 2, 5, 6)
    seen = []
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    exact = module(maps)
    monkeypatch.setattr(convolution, "_has_instructions", lambda dtype: False)
    with torch.autocast("cpu", dtype):
        result = convolved(module, maps)
    assert torch.equal(result, exact.to(dtype))
    monkeypatch.setattr(convolution, "_has_instructions", lambda dtype: True)
    with torch.autocast("cpu", dtype):
        assert convolved(module, maps.to(dtype)).dtype == dtype
    assert convolved(module, maps).dtype == torch.float32
    assert seen == [torch.float32, torch.float32, dtype, torch.float32]


def test_no_maps_give_a_kernel_no_gradient(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    x, d, kernel = torch.zeros(0, 2, 4, 64), torch.zeros(0, 16, 4, 64), torch.ones(2, 16, 3, 3)
    gradient = convolution.same_conv2d_grad_weight(x, d, kernel)
    assert torch.equal(gradient, torch.zeros(2, 16, 3, 3))
