"""Text features of queries, on disk, read by the query's text: what `features.py` is for videos.

One ArrayRecord file for any number of queries (MAD has 384,600: 19 GB), written in a stream and read at random. Records are those of `records.py`; one
query is one record, so that asking for one reads one. Each array has as many rows as the query has tokens ("S" in its shape), or a fixed shape.
Format, version 1:

    records[i]     b"RVQ1" u32 {"text", "arrays": [[name, dtype, shape], ...]} bytes of all arrays, one behind the other
    records[-2]    b"RVK1" u32 {"dtype", "shape"} the 16-byte keys of all texts, in ascending order, [n 16] uint8
    records[-1]    b"RVT1" u32 {"version", "encoder", "arrays": {name: [shape, dtype]}, "count"}

Behind the keys, in the same record, stands the record number of each, [n] u32. A key is the hash of the text as it was given: whoever writes and whoever
reads bring it into the same form first (`prompts.clean_query`, or CLIP's closing period). A store appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Shaped

from revision_jax.data import records
from revision_jax.data.features import StoreError
from revision_jax.data.records import RecordWriter
from revision_jax.errors import UserError

VERSION = 1
QUERY_MAGIC, KEYS_MAGIC, HEADER_MAGIC = b"RVQ1", b"RVK1", b"RVT1"
TOKENS = "S"  # the axis of a query's tokens

Shape = tuple[int | str, ...]


def key_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


class TextFeatureWriter(RecordWriter):
    """Writes a store: `add` one query after the other, then `close`; as a context manager it closes, or on an exception leaves nothing behind.

    `arrays` is {name: (shape, dtype)}, such as {"tokens": (("S", 768), "float16"), "vector": ((768,), "float16")}. Memory is 20 bytes a query.
    Raises StoreError where the disk is full or the path cannot be written.
    """

    def __init__(self, path: str | Path, encoder: str, arrays: Mapping[str, tuple[Shape, Any]]):
        self.path, self.encoder = Path(path), encoder
        self.arrays = {name: (tuple(shape), np.dtype(dtype).name) for name, (shape, dtype) in sorted(arrays.items())}
        self._keys: dict[bytes, int] = {}
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._writer: ArrayRecordWriter | None = None
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = ArrayRecordWriter(str(self._partial), records.WRITER_OPTIONS)
            if not self._writer.ok():
                self._writer.close()  # raises what went wrong

    def __contains__(self, text: str) -> bool:
        return key_of(text) in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, text: str, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> bool:
        """Adds a query's features, cast to the store's dtypes; False where the text is there already (the first stays).

        Raises UserError for values that are no finite numbers, ValueError for other names or shapes than the store's.
        """
        if set(arrays) != set(self.arrays):
            raise ValueError(f"arrays are {', '.join(sorted(arrays))}; the store's are {', '.join(self.arrays)}")
        if text in self:
            return False
        cast, tokens = {}, None
        for name, (shape, dtype) in self.arrays.items():
            array = np.asarray(arrays[name])
            tokens = array.shape[0] if tokens is None and TOKENS in shape and array.ndim == len(shape) else tokens
            if array.shape != tuple(tokens if n == TOKENS else n for n in shape):
                raise ValueError(f"{name} has shape {array.shape}, not {shape}")
            with np.errstate(over="ignore"):
                cast[name] = array.astype(np.dtype(dtype).newbyteorder("<"))
            if not np.isfinite(cast[name]).all():
                raise UserError(f"{self.path}: {name} of the query {text[:60]!r} holds what is not a finite {dtype} number")
        about = {"text": text, "arrays": [[name, array.dtype.name, array.shape] for name, array in cast.items()]}
        with self._told():
            self._writer.write(records.pack(QUERY_MAGIC, about, b"".join(array.tobytes() for array in cast.values())))
        self._keys[key_of(text)] = len(self._keys)
        return True

    def close(self) -> None:
        """Finishes the store and gives it its name."""
        if self._writer is None:
            return
        order = sorted(self._keys)
        keys = np.frombuffer(b"".join(order), np.uint8).reshape(-1, 16)
        numbers = np.array([self._keys[key] for key in order], "<u4")
        header = {"version": VERSION, "encoder": self.encoder, "arrays": self.arrays, "count": len(order)}
        with self._told():
            self._writer.write(records.pack(KEYS_MAGIC, {"dtype": "uint8", "shape": keys.shape}, keys.tobytes() + numbers.tobytes()))
            self._writer.write(records.pack(HEADER_MAGIC, header))
            self._writer.close()
            os.replace(self._partial, self.path)
            self._writer = None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            self.abort()
            raise StoreError(f"{self.path}: cannot be written ({records.reason(error)}); nothing was kept") from None


class TextFeatureStore:
    """Reads a store. Safe to share between threads; picklable. Opening reads the keys (20 bytes a query), asking for a query its one record."""

    def __init__(self, path: str | Path):
        """Raises UserError for a missing, truncated or foreign file."""
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such store of text features")
        self._open()
        total = self._reader.num_records()
        try:
            header, _ = records.unpack(self._read([total - 1])[0], HEADER_MAGIC)
            if header["version"] != VERSION:
                raise UserError(f"{self.path}: text features of version {header['version']}, this program reads version {VERSION}; make them again")
            self.encoder: str = header["encoder"]
            self.arrays: dict[str, tuple[Shape, str]] = {name: (tuple(shape), dtype) for name, (shape, dtype) in header["arrays"].items()}
            self.count = int(header["count"])
            if total != self.count + 2:
                raise ValueError("records are missing")
            about, data = records.unpack(self._read([total - 2])[0], KEYS_MAGIC)
            keys = np.frombuffer(data, np.uint8, 16 * self.count).reshape(about["shape"])
            self._numbers = np.frombuffer(data, "<u4", self.count, 16 * self.count)
        except (ValueError, KeyError, TypeError, IndexError):
            raise UserError(f"{self.path}: not a store of text features (damaged, or another kind of ArrayRecord file)") from None
        # In the order of the bytes; contiguous and native, or every search would copy them.
        self._high, self._low = (np.ascontiguousarray(half, np.uint64) for half in keys.view(">u8").T)

    def __len__(self) -> int:
        return self.count

    def __contains__(self, text: str) -> bool:
        return self._number(text) is not None

    def require(self, encoder: str) -> None:
        """Raises UserError unless this encoder made the features."""
        if self.encoder != encoder:
            raise UserError(f"{self.path}: these text features were made by {self.encoder!r}, not {encoder!r}; make them again")

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those of the texts that are not there."""
        return [text for text in texts if text not in self]

    def read(self, text: str) -> dict[str, Shaped[np.ndarray, "..."]]:
        """The arrays of one query. Raises KeyError where it is not there, UserError for a damaged record."""
        return self.read_many([text])[0]

    def features(self, text: str) -> dict[str, Shaped[np.ndarray, "..."]]:
        """`read`, for a query that someone asks: UserError where it is not there."""
        if text not in self:
            raise UserError(f"{self.path}: has no features of the query {text[:60]!r}; import or extract them for all queries that are asked")
        return self.read(text)

    def read_many(self, texts: Iterable[str]) -> list[dict[str, Shaped[np.ndarray, "..."]]]:
        """The arrays of several queries, in their order, read at once."""
        texts = list(texts)
        numbers = [self._number(text) for text in texts]
        for text, number in zip(texts, numbers, strict=True):
            if number is None:
                raise KeyError(f"{self.path}: no features of the query {text[:60]!r}")
        return [self._unpack(record, text) for record, text in zip(self._read(numbers), texts, strict=True)]

    def texts(self) -> Iterator[str]:
        """All texts, in the order in which they were added; reads the whole file."""
        for start in range(0, self.count, 256):
            for record in self._read(list(range(start, min(start + 256, self.count)))):
                yield records.unpack(record, QUERY_MAGIC)[0]["text"]

    def close(self) -> None:
        """Closes the file; the store cannot be read any more."""
        self._reader.close()

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])

    def _number(self, text: str) -> int | None:
        high, low = np.frombuffer(key_of(text), ">u8").astype(np.uint64)
        place = int(np.searchsorted(self._high, high))
        while place < self.count and self._high[place] == high:
            if self._low[place] == low:
                return int(self._numbers[place])
            place += 1
        return None

    def _unpack(self, record: bytes, text: str) -> dict[str, np.ndarray]:
        try:
            about, data = records.unpack(record, QUERY_MAGIC)
            if about["text"] != text:
                raise ValueError("another query's record")
            arrays, offset = {}, 0
            for name, dtype, shape in about["arrays"]:
                kind, count = np.dtype(dtype).newbyteorder("<"), int(np.prod(shape, dtype=np.int64))
                arrays[name] = np.frombuffer(data, kind, count, offset).reshape(shape)
                offset += count * kind.itemsize
            return arrays
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: damaged store of text features ({error}); make it again") from None

    def _open(self) -> None:
        self._reader = ArrayRecordReader(str(self.path), records.READER_OPTIONS)
        self._lock = threading.Lock()
        if not self._reader.ok() or self._reader.num_records() < 2:
            raise UserError(f"{self.path}: not a complete store of text features (truncated, or another kind of file); make it again")

    def _read(self, numbers: list[int]) -> list[bytes]:
        if not numbers:
            return []
        try:
            with self._lock:
                return self._reader.read(numbers)
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{self.path}: damaged store of text features ({records.reason(error)}); make it again") from None
