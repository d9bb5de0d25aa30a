"""A random order of any number of things in constant memory: where number i of an epoch stands is computed, not stored.

A Feistel network is a permutation of the numbers below a power of four, whatever its round function; numbers that come out too large go through it again
("cycle walking") until one does not, which keeps it one of the numbers below `count`. Another epoch is another key.
"""

from __future__ import annotations

import hashlib

ROUNDS = 6


def permuted(index: int, count: int, key: bytes) -> int:
    """Where `index` stands in the order of `key`: one of 0 .. count - 1, each of them for one index. Raises ValueError for an index outside of the count."""
    if not 0 <= index < count:
        raise ValueError(f"index {index} is not below {count}")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(ROUNDS):
            digest = hashlib.blake2b(b"%d %d" % (number, right), digest_size=8, key=key).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = left << half | right
        if index < count:
            return index
