"""What every question about a film shares at a frame level: the KV cache of a window up to the question, least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import jax


class PrefixCache:
    """Values by key, at most `budget_bytes` of array data in all. A value larger than the budget is not kept."""

    def __init__(self, budget_bytes: int):
        self.budget_bytes = budget_bytes
        self.bytes = self.hits = self.misses = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> Any | None:
        """The value, which becomes the most recently used, or None."""
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a pytree of arrays; drops what was not used for longest until the budget holds."""
        if key in self._entries:
            self.bytes -= self._entries.pop(key)[1]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(value))
        if size > self.budget_bytes:
            return
        self._entries[key] = (value, size)
        self.bytes += size
        while self.bytes > self.budget_bytes:
            self.bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0
