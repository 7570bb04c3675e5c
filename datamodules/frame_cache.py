"""Decoded frames, kept for the next time as far as a budget of memory allows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from numpy.typing import NDArray


class FrameCache:
    """Keeps arrays up to a number of bytes; what was not used for longest goes first.

    Another process starts with an empty one.

    Args:
        max_bytes: An array that is larger is not kept at all.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()

    @property
    def room(self) -> int:
        """Bytes that can be added with nothing having to go."""
        return self.max_bytes - self.num_bytes

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays

    def get(self, key: Hashable) -> NDArray[Any] | None:
        """The array that is kept under a key, now the one used last; None if there is none."""
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def put(self, key: Hashable, array: NDArray[Any]) -> None:
        """Keeps an array under a key that has none."""
        if array.nbytes > self.max_bytes:
            return
        self._arrays[key] = array
        self.num_bytes += array.nbytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._arrays.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
