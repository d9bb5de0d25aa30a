"""One record of a feature file: four magic bytes, a length, a small JSON object and raw little-endian bytes. No pickle anywhere.

Feature stores (`features.py`) and text feature stores (`text_features.py`) are ArrayRecord files of such records.
"""

from __future__ import annotations

import abc
import contextlib
import json
import struct
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Shaped, UInt8

# Features hardly compress (float16 noise), and uncompressed windows read twice as fast.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access

Writer = TypeVar("Writer")


def pack(magic: bytes, about: dict, data: bytes = b"") -> bytes:
    """magic u32 {about} data; the JSON is padded so that the raw bytes begin aligned."""
    text = json.dumps(about).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((magic, struct.pack("<I", len(text)), text, data))


def unpack(record: bytes, magic: bytes) -> tuple[dict, memoryview]:
    """The JSON object and the raw bytes of a record, not copied. Raises ValueError where it is not one of this magic."""
    if record[:4] != magic or len(record) < 8:
        raise ValueError(f"no {magic.decode()} record")
    end = 8 + struct.unpack("<I", record[4:8])[0]
    about = json.loads(record[8:end])
    if not isinstance(about, dict):
        raise ValueError("no object")
    return about, memoryview(record)[end:]


def array(about: dict, data: memoryview) -> np.ndarray:
    """The array that `about` ("dtype", "shape") says the bytes are, not copied. Raises ValueError or KeyError where they are not."""
    return np.frombuffer(data, np.dtype(about["dtype"]).newbyteorder("<")).reshape(about["shape"])


def checksum(data: UInt8[np.ndarray, "n"]) -> int:
    """Sum of the bytes as 64-bit words (the last one filled up with zeros), modulo 2^64: tells a damaged page or a flipped bit at the speed of memory."""
    whole = len(data) // 8 * 8
    return (int(np.add.reduce(data[:whole].view("<u8"), dtype=np.uint64)) + int.from_bytes(data[whole:].tobytes(), "little")) % (1 << 64)


def has_nan(array: Shaped[np.ndarray, "..."]) -> bool:
    """Whether an array of floating numbers holds one that is none. Of float16 the bits are looked at, which takes a tenth of the time."""
    if array.dtype == np.float16 and array.size:
        return bool((array.view(np.uint16) & 0x7FFF).max() > 0x7C00)
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def reason(error: Exception) -> str:
    """The operating system's words, without what the library adds around them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split(";")[0].strip() or type(error).__name__


class RecordWriter(abc.ABC):
    """A file of records that is written as `_partial`, beside its name, and has its name when it is closed, or not at all. As a context manager it closes, or
    on an exception leaves nothing behind. A store's own writer opens and closes `_writer`."""

    _partial: Path
    _writer: ArrayRecordWriter | None = None

    @abc.abstractmethod
    def close(self) -> None:
        """Finishes the file and gives it its name."""

    def abort(self) -> None:
        """Drops what was written; nothing appears under the store's name."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the file is removed anyway
                writer.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
