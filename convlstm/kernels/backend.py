"""Which backend computes the gates: chosen by device and dtype, or forced."""

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from convlstm.kernels import native, plain

BACKENDS = ("plain", "native", "triton")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIABLE = "CONVLSTM_BACKEND"

_forced: ContextVar[str | None] = ContextVar("forced", default=None)


def choose(gates: Tensor) -> ModuleType:
    """The module that computes gates like these: `plain`, `native` or `fused`.

    Without a wish it is `fused` (Triton) for float32, bfloat16 and float16 on CUDA where Triton is
    installed; `native` for float32 and bfloat16 on a CPU for which it was compiled, but not inside
    of `torch.compile`, which sees through `plain` alone; else `plain`. A wish is `use_backend`, or
    else the environment variable `CONVLSTM_BACKEND`.

    Raises:
        ValueError: The wish is none of "plain", "native" and "triton".
        RuntimeError: What is wished for can't run here.
    """
    wish = _forced.get() or os.environ.get(VARIABLE) or None
    if wish is not None:
        _check(wish)
    name = wish or ("triton" if gates.is_cuda else "native")
    reason = _CANNOT[name](gates) if name != "plain" else None
    if reason and wish is not None:
        raise RuntimeError(f"the backend {wish!r} was asked for, but {reason}")
    return plain if reason else _module(name)


def mark(kernels: ModuleType) -> Tensor:
    """A tensor that says which module has kept gates, to be saved beside them.

    Each module keeps them in an order of its own, and a checkpoint may compute them again where
    another one is chosen.
    """
    name = "plain" if kernels is plain else "native" if kernels is native else "triton"
    return torch.tensor(BACKENDS.index(name), device="cpu")


def marked(marker: Tensor) -> ModuleType:
    """The module that `mark` was given."""
    return _module(BACKENDS[int(marker.item())])


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces "plain", "native" or "triton" for what runs inside, and for its backward pass.

    Where `torch.utils.checkpoint` computes a layer again, it is chosen anew.

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
        raise ValueError(f"backend must be 'plain', 'native' or 'triton', got {name!r}")


def _module(name: str) -> ModuleType:
    if name == "triton":
        from convlstm.kernels import fused  # where there is Triton only

        return fused
    return native if name == "native" else plain


def _native_cannot(gates: Tensor) -> str | None:
    """Why the kernels in C++ can't compute these gates; None if they can."""
    if gates.dtype not in native.DTYPES:
        return f"it has no kernels for {gates.dtype}"
    if gates.device.type != "cpu":
        return f"it runs on a CPU, not on {gates.device.type}"
    if torch.compiler.is_compiling() or type(gates) is not Tensor:
        return "torch.compile and other tracers do not see through it"
    return None if _loaded(native.library()) else "`convlstm build` has not compiled it here"


@functools.cache
def _loaded(library: Path) -> bool:
    """Whether there are kernels, and they could be loaded into this process."""
    if not (library.is_absolute() and os.access(library, os.R_OK)):
        return False
    try:
        torch.ops.load_library(library)
    except OSError as error:
        warnings.warn(
            f"the compiled gates {library} can't be loaded; compile them anew by `convlstm build` "
            f"({error.__cause__ or error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _triton_cannot(gates: Tensor) -> str | None:
    """Why Triton can't compute these gates; None if it can."""
    if not importlib.util.find_spec("triton"):
        return "the package triton is not installed"
    if gates.dtype not in TRITON_DTYPES:
        return f"it has no kernels for {gates.dtype}"
    if not gates.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on CUDA, not on {gates.device.type}"
    return _driver_failure() if gates.is_cuda else None


@functools.cache
def _driver_failure() -> str | None:
    """Why Triton can't start kernels on this machine; None if it can."""
    from triton.runtime import driver

    try:
        driver.active.get_current_device()  # compiles the driver at its first use
    except Exception as error:
        reason = f"Triton can't start kernels ({' '.join(str(error).split())})"
        warnings.warn(
            f"{reason}, so that gates are computed in plain PyTorch, which is slower: Triton needs "
            f"a C compiler and Python's headers ({VARIABLE}=plain leaves this out)",
            RuntimeWarning,
            stacklevel=2,
        )
        return reason
    return None


_CANNOT = {"native": _native_cannot, "triton": _triton_cannot}
