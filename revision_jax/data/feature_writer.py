"""Writing a feature store, `features.py`'s format, frame by frame and whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float64, Shaped

from revision_jax.data import records
from revision_jax.data.features import BLOCK_MAGIC, HEADER_MAGIC, TIMES, VERSION, FeatureHeader, StoreError, as_bytes
from revision_jax.data.records import WRITER_OPTIONS, RecordWriter
from revision_jax.errors import UserError


class FeatureWriter(RecordWriter):
    """Writes a store. `append` in order of time, then `close`; as a context manager it closes, or on an exception leaves nothing behind.

    Memory is one block. Raises StoreError where the disk is full or the path cannot be written, and UserError for features that are not numbers; what
    was written is removed first.
    """

    complete = damaged = False  # `feature_parts.ResumableWriter` may begin with more than nothing

    def __init__(self, path: str | Path, header: FeatureHeader):
        self.path = Path(path)
        self.header = header
        self._names = [*header.arrays, TIMES]
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._block: int | None = None
        self._pending: dict[str, list[np.ndarray]] = {}
        self._blocks: list[tuple[int, int]] = []
        self.frames = 0  # appended so far
        self._last_time = -np.inf
        self._regular = True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer: ArrayRecordWriter | None = ArrayRecordWriter(str(self._partial), WRITER_OPTIONS)
            if not self._writer.ok():
                self._writer.close()  # raises what went wrong
        except (OSError, RuntimeError) as error:
            self.abort()
            raise StoreError(f"{self.path}: cannot be written ({records.reason(error)})") from None

    def append(self, times: Float64[np.ndarray, "n"], arrays: Mapping[str, Shaped[np.ndarray, "n ..."]]) -> None:
        """Adds n frames: seconds (never falling) and their arrays, converted to the header's dtypes.

        Raises ValueError where names, shapes or the order of times are not the header's.
        """
        if set(arrays) != set(self.header.arrays):
            raise ValueError(f"arrays are {', '.join(sorted(arrays))}; the header names {', '.join(self.header.arrays)}")
        if len(times) == 0:
            return
        if times[0] < self._last_time or (np.diff(times) < 0).any():
            raise ValueError("times must not fall")
        cast = {TIMES: np.asarray(times, "<f8")}
        self._regular &= np.array_equal(times, np.arange(self.frames, self.frames + len(times)) / self.header.rate)
        for name, (shape, dtype) in self.header.arrays.items():
            array = np.asarray(arrays[name])
            if array.shape != (len(times), *shape):
                raise ValueError(f"{name} has shape {array.shape}, not {(len(times), *shape)}")
            with np.errstate(over="ignore"):  # beyond float16 is infinity: for whoever reads to judge
                cast[name] = array.astype(np.dtype(dtype).newbyteorder("<"))
            if records.has_nan(cast[name]):
                self.abort()
                number = self.frames + int(np.isnan(cast[name]).reshape(len(times), -1).any(1).argmax())
                raise UserError(f"{self.path}: {name} of frame {number} ({number / self.header.rate:g} s) is not a number (NaN); nothing was kept")
        # A frame's block follows from its number, not from its time: blocks then have one size, and a tick whose picture is a little older stays put.
        numbers = ((np.arange(self.frames, self.frames + len(times)) + 0.5) / (self.header.rate * self.header.block_s)).astype(np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(times)]
        try:
            for start, stop in pairwise(cuts):
                if self._block is not None and numbers[start] != self._block:
                    self._flush()
                self._block = int(numbers[start])
                for name, array in cast.items():
                    self._pending.setdefault(name, []).append(array[start:stop].copy())
        except (OSError, RuntimeError) as error:
            self._fail(error)
        self.frames += len(times)
        self._last_time = float(times[-1])

    def close(self, duration_s: float | None = None, warnings: Iterable[str] | None = None) -> None:
        """Finishes the store and gives it its name; duration and warnings replace the header's where reading the video taught better."""
        if self._writer is None:
            return
        if duration_s is not None:
            self.header = dataclasses.replace(self.header, duration_s=float(duration_s))
        if warnings is not None:
            self.header = dataclasses.replace(self.header, warnings=tuple(warnings))
        try:
            if self._block is not None:
                self._flush()
            values = {"version": VERSION, **dataclasses.asdict(self.header), "blocks": self._blocks, "sums": True, "regular": bool(self._regular)}
            self._writer.write(records.pack(HEADER_MAGIC, values))
            self._writer.close()
            os.replace(self._partial, self.path)
            self._writer = None
        except (OSError, RuntimeError) as error:
            self._fail(error)

    def _flush(self) -> None:
        count = sum(map(len, self._pending[TIMES]))
        for name in self._names:
            array = np.concatenate(self._pending[name])
            about = {"array": name, "block": self._block, "dtype": array.dtype.name, "shape": array.shape}
            self._writer.write(records.pack(BLOCK_MAGIC, {**about, "sum": f"{records.checksum(as_bytes(array)):016x}"}, array.tobytes()))
        self._blocks.append((self._block, count))
        self._pending, self._block = {}, None

    def _fail(self, error: Exception) -> None:
        self.abort()
        raise StoreError(f"{self.path}: cannot be written ({records.reason(error)}); nothing was kept") from None
