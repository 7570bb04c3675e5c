"""The convolution that every recurrence uses: stride 1, output as large as the input.

Of maps of one pixel, such as the flattened frames of an FC-LSTM, a 1×1 kernel is a product of
matrices, which takes a fraction of a convolution's time. On processors that do not compute in
bfloat16 or float16, results are computed in float32 and rounded: PyTorch takes many times as long
in software, and rounds the sum of a kernel's gradient at every map.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = Callable[[Tensor], Tensor]

# Calls for which it is not worthwhile to make a kernel ready.
FEW = 4

# Bytes of a gradient that are copied at a time, to have channels first.
COPIED = 2**25


def same_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves with zero padding so that the frame keeps its size, whatever the kernel's.

    An even kernel has no middle: the extra row and column of padding go below and to the right,
    as in `padding="same"` of PyTorch and Keras.

    Args:
        x: Maps (B, C, H, W).
        weight: Kernel (out, C, kh, kw), any size from 1.
        bias: (out,) or None.

    Returns:
        Maps (B, out, H, W).
    """
    if _is_in_software(weight.device, weight.dtype):
        exact = None if bias is None else bias.float()
        return same_conv2d(x.float(), weight.float(), exact).to(weight.dtype)
    height, width = weight.shape[-2:]
    if _is_product(x, weight):
        return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
    if height % 2 and width % 2:
        return F.conv2d(x, weight, bias, padding=(height // 2, width // 2))
    return F.conv2d(_pad(x, height, width), weight, bias)


def same_conv2d_grad_x(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `same_conv2d` with respect to x, of which only shape and layout count.

    Args:
        grad: That of the result, (B, out, H, W).
        x: Maps (B, C, H, W).
        weight: Kernel (out, C, kh, kw).

    Returns:
        (B, C, H, W).
    """
    if _is_in_software(weight.device, weight.dtype):
        like = torch.empty_like(x, dtype=torch.float32)
        return same_conv2d_grad_x(grad.float(), like, weight.float()).to(weight.dtype)
    height, width = weight.shape[-2:]
    if _is_product(x, weight):
        return (grad.flatten(1) @ weight.flatten(1))[:, :, None, None]
    d_x = _backward(grad, x, weight, 0)
    if height % 2 and width % 2:
        return d_x
    left, top = (width - 1) // 2, (height - 1) // 2
    return d_x[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def same_conv2d_grad_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `same_conv2d` with respect to the weight, of which only the shape counts.

    Takes the arguments of `same_conv2d_grad_x` and returns (out, C, kh, kw).
    """
    if _is_in_software(weight.device, weight.dtype):
        return same_conv2d_grad_weight(grad.float(), x.float(), weight.float()).to(weight.dtype)
    if _is_product(x, weight):
        return (grad.flatten(1).T @ x.flatten(1)).view(weight.shape)
    if not _is_slow_with_channels_last(x, weight):
        return _backward(grad, x, weight, 1)
    total, kernel = torch.zeros_like(weight), weight.contiguous()
    few = max(1, COPIED // (grad[:1].numel() * grad.element_size()))
    for d_y, maps in zip(grad.split(few), x.split(few), strict=True):
        total += _backward(d_y.contiguous(), maps.contiguous(), kernel, 1)
    return total


def repeated_conv2d(weight: Tensor, x: Tensor, times: int) -> Convolution:
    """`same_conv2d` with a kernel, made ready for so many calls with maps of the shape of x.

    PyTorch lays a kernel out for oneDNN at every call. In bfloat16, where convolutions are so much
    faster, this counts (docs/speed.md has figures); it is done once here.
    """
    if times < FEW or not _can_lay_out(weight, x):
        return lambda maps: same_conv2d(maps, weight)
    return _laid_out(weight, x.shape[0], *x.shape[2:])


def repeated_conv2d_grad_x(weight: Tensor, x: Tensor, times: int) -> Convolution:
    """`same_conv2d_grad_x` with a kernel, made ready for so many calls with maps like x.

    It is then a convolution with the kernel turned by 180°, from outputs to inputs.
    """
    if times < FEW or not _can_lay_out(weight, x):
        return lambda grad: same_conv2d_grad_x(grad, x, weight)
    turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    return _laid_out(turned, x.shape[0], *x.shape[2:])


def convolved(module: nn.Module, maps: Tensor) -> Tensor:
    """A module of convolutions applied to maps (N, C, h, w).

    Where autocast would choose a type that the processor does not compute in, the module computes
    in float32, and its result is rounded to that type.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    if dtype is None or maps.dtype == torch.float64 or not _is_in_software(maps.device, dtype):
        result: Tensor = module(maps)
        return result
    with torch.autocast("cpu", enabled=False):
        return module(maps.float()).to(dtype)


def kernel_shape(value: int | tuple[int, int] | list[int], name: str) -> tuple[int, int]:
    """Returns a kernel's (height, width) from an int or a pair.

    Raises:
        ValueError: A side is below 1, or there are not one or two of them.
    """
    shape = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(shape) != 2 or not all(hasattr(side, "__index__") and side >= 1 for side in shape):
        raise ValueError(f"{name} must be an int >= 1 or a pair of them, got {value!r}")
    return shape


def fan_in_uniform(shape: tuple[int, ...]) -> Tensor:
    """A convolution weight drawn uniformly from ±1/√fan_in, as PyTorch's own layers start."""
    bound = (shape[1] * shape[2] * shape[3]) ** -0.5
    return torch.empty(shape).uniform_(-bound, bound)


def _is_in_software(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions in a type are computed without instructions of the processor for it."""
    return bool(
        device.type == "cpu"
        and dtype in (torch.bfloat16, torch.float16)
        and not torch.compiler.is_compiling()
        and not (torch.backends.mkldnn.enabled and _has_instructions(dtype))
    )


@functools.cache
def _has_instructions(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in bfloat16, or float16, on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    onednn = torch.ops.mkldnn
    bfloat16 = dtype == torch.bfloat16
    return bool(
        onednn._is_mkldnn_bf16_supported() if bfloat16 else onednn._is_mkldnn_fp16_supported()
    )


def _is_product(x: Tensor, weight: Tensor) -> bool:
    # The kernel first: a size of maps that is not known yet is compared with 1 at most.
    return weight.shape[2:] == (1, 1) and x.shape[2:] == (1, 1)


def _is_slow_with_channels_last(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel's gradient takes longer than from copies with channels first.

    With AVX2 alone, oneDNN's takes ever longer per pixel the wider the maps (docs/speed.md).
    """
    return bool(
        not torch.compiler.is_compiling()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[2:] != (1, 1)
        and x.shape[1] >= 16
        and x.shape[3] >= 64
        and x.numel() > 0
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and torch.backends.mkldnn.enabled
    )


def _can_lay_out(weight: Tensor, x: Tensor) -> bool:
    """Whether a kernel can be laid out once for all calls, where that is known to pay."""
    return bool(
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and all(side % 2 for side in weight.shape[2:])
        and x.numel() > 0
        and not _is_product(x, weight)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.enabled
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and not torch.compiler.is_compiling()  # it has no shapes for such kernels
    )


def _laid_out(weight: Tensor, *size: int) -> Convolution:
    """The convolution of maps of a size (B, h, w) with a kernel in oneDNN's layout for it."""
    batch, height, width = size
    padding, ones = [side // 2 for side in weight.shape[2:]], [1, 1]
    shape = [batch, weight.shape[1], height, width]
    onednn = torch.ops.mkldnn
    kernel = onednn._reorder_convolution_weight(weight, padding, ones, ones, 1, shape)
    # Strides, dilation, groups; nothing after it.
    how: tuple[Any, ...] = (padding, ones, ones, 1, "none", [], "")
    return lambda maps: onednn._convolution_pointwise(maps, kernel, None, *how)


def _pad(x: Tensor, height: int, width: int) -> Tensor:
    """Zero padding for an even kernel."""
    return F.pad(x, ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: int) -> Tensor:
    """One of the two gradients; that of x is the padded frame's for an even kernel."""
    height, width = weight.shape[-2:]
    odd = height % 2 == 1 and width % 2 == 1
    gradients = torch.ops.aten.convolution_backward.default(
        grad,
        x if odd else _pad(x, height, width),
        weight,
        bias_sizes=None,
        stride=[1, 1],
        padding=[height // 2, width // 2] if odd else [0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[wanted == 0, wanted == 1, False],
    )
    return gradients[wanted]
