"""Which backend computes the gates: chosen by device and dtype, or forced."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from convlstm.kernels import plain

BACKENDS = ("plain", "triton")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIABLE = "CONVLSTM_BACKEND"

_forced: ContextVar[str | None] = ContextVar("forced", default=None)


def choose(gates: Tensor) -> ModuleType:
    """The module that computes gates like these: `plain` or `fused`.

    Without a wish it is `fused` (Triton) for float32, bfloat16 and float16 on CUDA where Triton is
    installed, else `plain`. A wish is `use_backend`, or else the environment variable
    `CONVLSTM_BACKEND`.

    Raises:
        ValueError: The wish is neither "plain" nor "triton".
        RuntimeError: Triton is wished for and can't run here.
    """
    wish = _forced.get() or os.environ.get(VARIABLE) or None
    if wish is not None:
        _check(wish)
    if wish == "plain" or (wish is None and not gates.is_cuda):
        return plain
    reason = _triton_cannot(gates)
    if reason and wish == "triton":
        raise RuntimeError(f"the backend 'triton' was asked for, but {reason}")
    if reason:
        return plain
    from convlstm.kernels import fused  # where there is Triton only

    return fused


def mark(kernels: ModuleType) -> Tensor:
    """A tensor that says which module has kept gates, to be saved beside them.

    Each module keeps them in an order of its own, and a checkpoint may compute them again where
    another one is chosen.
    """
    return torch.tensor(kernels is not plain, device="cpu")


def marked(marker: Tensor) -> ModuleType:
    """The module that `mark` was given."""
    if not marker.item():
        return plain
    from convlstm.kernels import fused

    return fused


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend, "plain" or "triton", for what runs inside, and for its backward pass.

    Of what is computed again in the backward pass (`checkpoint_every`) it is chosen anew.

    Raises:
        ValueError: There is no such backend.
    """
    _check(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend must be 'plain' or 'triton', got {name!r}")


def _triton_cannot(gates: Tensor) -> str | None:
    """Why Triton can't compute these gates; None if it can."""
    if not importlib.util.find_spec("triton"):
        return "the package triton is not installed"
    if gates.dtype not in TRITON_DTYPES:
        return f"it has no kernels for {gates.dtype}"
    if not gates.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on CUDA, not on {gates.device.type}"
    return None
