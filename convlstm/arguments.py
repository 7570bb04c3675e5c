"""Arguments of layers and cells that are of another kind than they should be."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor


def require_int(minimum: int, **options: Any) -> None:
    """Raises ValueError for the first of the named options that is no int, or below `minimum`."""
    for name, value in options.items():
        if not isinstance(value, Integral) or int(value) < minimum:
            raise ValueError(f"{name} must be an int >= {minimum}, got {value!r}")


def are_sizes(value: Any, count: int | None = None) -> bool:
    """Whether a value is so many sizes, or any number of them above 0: all ints at least 1."""
    if not isinstance(value, Sequence) or len(value) != (count or len(value)) or not value:
        return False
    return all(isinstance(size, Integral) and int(size) >= 1 for size in value)


def require_tensor(x: Any) -> None:
    """Raises TypeError unless x is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor, got a {type(x).__name__}")
