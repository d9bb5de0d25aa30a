"""Where the bytes of a record lie in an uncompressed ArrayRecord file of one record a group, and reading them straight into arrays.

ArrayRecord's own reader hands a record out as `bytes`, after copies and a hash of its own. But where a record begins follows from the lengths of those before
it, so whoever knows these lengths can have the operating system put the bytes where they are wanted. The file is a stream of chunks, one for each record, and
every 64 KiB of it begin with a header of the stream itself:

    stream    chunk of 40 bytes (signature) | 40 bytes, 0, length of the next varint, varint of the record's length, record | 40 bytes, 0, ...
    file      24 bytes, 65,512 of the stream | 24 bytes, 65,512 of the stream | ...

Positions here are the stream's. Nothing is verified: `features.py` knows what its records must begin with, and their sums. Source: the ArrayRecord and
Riegeli formats (github.com/google/array_record, github.com/google/riegeli, doc/riegeli_records_file_format.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64, UInt8

AVAILABLE = hasattr(os, "preadv")  # not on macOS and Windows
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
ROOM = BLOCK - BLOCK_HEADER  # bytes of the stream in a block of the file
PIECES = 1000  # of one call: systems allow 1,024

Bytes = UInt8[np.ndarray, "_"] | bytearray


def starts(lengths: Iterable[int]) -> Int64[np.ndarray, "n"]:
    """Position of the first byte of each record of these lengths (bytes), the first records of the file."""
    found, position = [], CHUNK_HEADER
    for length in lengths:
        varint = (max(length.bit_length(), 1) + 6) // 7
        position += CHUNK_HEADER + 2 + varint
        found.append(position)
        position += length
    return np.asarray(found, np.int64)


def read(file: int, position: int, *buffers: Bytes) -> None:
    """Fills the buffers, one behind the other, with the stream from `position` on. file: a descriptor. Raises EOFError where the file ends before."""
    place = position // ROOM * BLOCK + BLOCK_HEADER + position % ROOM
    pieces = _pieces(position, buffers)
    for first in range(0, len(pieces), PIECES):
        some = pieces[first : first + PIECES]
        wanted = sum(map(len, some))
        if os.preadv(file, some, place) != wanted:
            raise EOFError("it ends early")
        place += wanted


def _pieces(position: int, buffers: Iterable[Bytes]) -> list[memoryview | bytearray]:
    """The buffers in parts that lie in the file as wholes, with the headers between them read into a place that nobody looks at."""
    left, header = ROOM - position % ROOM, bytearray(BLOCK_HEADER)
    pieces: list[memoryview | bytearray] = []
    for buffer in buffers:
        view, done, size = memoryview(buffer), 0, len(buffer)
        while done < size:
            if left == 0:
                left = ROOM
                pieces.append(header)
            end = min(done + left, size)
            pieces.append(view[done:end])
            done, left = end, left - (end - done)
    return pieces
