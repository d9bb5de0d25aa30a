"""The feature store: what the encoder said about one video, on disk, read by time or by frame number.

One ArrayRecord file a video. Frames are grouped into blocks of fixed duration; each array of each block is a record of its own, so that reading
the frame vectors of nine hours never touches their patch tokens, and a window costs the records of its blocks alone. The last record is the
header. What a record is: `records.py`. Format, version 1:

    records[i * (A + 1) + a]   array a (sorted by name; "times" is last) of the i-th stored block:  b"RVB1" u32 {"array","block","dtype","shape","sum"} bytes
    records[-1]                b"RVH1" u32 {"version", FeatureHeader's fields, "blocks": [[block number, frames], ...], "sums", "regular"}

A store appears under its name complete or not at all (written beside it, then renamed). Frame i is the tick i / rate: the store has one frame a
tick, and `times` holds the true timestamp of the picture that the tick got (`data/video.py`); "regular" says that these are the ticks themselves.

Blocks are read past ArrayRecord's reader, straight into arrays (`record_layout.py`): the first time whole, and judged by their sum ("sum", 16 hexadecimal
digits), later as much of them as is wanted. Where that does not work (a store without sums, a system without `preadv`, a file laid out otherwise)
ArrayRecord's reader does it, which takes longer.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Float64, Int64, Shaped, UInt8

from revision_jax.data import record_layout, records
from revision_jax.data.records import READER_OPTIONS
from revision_jax.errors import UserError

VERSION = 1
BLOCK_MAGIC = b"RVB1"
HEADER_MAGIC = b"RVH1"
TIMES = "times"
UNKNOWN = "?" * 16  # in place of a sum's digits


class StoreError(UserError):
    """A store cannot be written: a fault of the place it is to lie in, not of the video."""


@dataclass(frozen=True)
class FeatureHeader:
    """What a store says about itself. `arrays` is {name: (shape of one frame's entry, dtype)}, such as {"frame": ((96,), "float16")}."""

    video_hash: str  # content hash of the video file; of imported features, whose video nobody has, "id:" and the video's name
    encoder: str  # identity of what made the features: weights, frame size, patching; of imported ones the name that the importer was told
    rate: float  # ticks (frames) per second
    duration_s: float
    arrays: dict[str, tuple]  # name -> (shape, dtype)
    block_s: float = 60.0
    warnings: tuple[str, ...] = ()  # what was wrong with the video, as told when it was read
    fps: float = 0.0  # of the video itself

    def __post_init__(self):
        if not (self.rate > 0 and self.block_s > 0):
            raise ValueError(f"rate and block_s must be above 0, are {self.rate} and {self.block_s}")
        if TIMES in self.arrays:
            raise ValueError(f"the array name {TIMES!r} is taken by the timestamps")
        plain = {name: (tuple(int(n) for n in shape), np.dtype(dtype).name) for name, (shape, dtype) in sorted(self.arrays.items())}
        object.__setattr__(self, "arrays", plain)
        object.__setattr__(self, "warnings", tuple(self.warnings))
        for name in ("rate", "duration_s", "block_s", "fps"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 5 and 5.0 are the same bytes on disk


def store_path(folder: str | Path, video_id: str, kind: str = "features") -> Path:
    """Where a video's store lies in a folder of stores: `folder/VIDEO_ID.features` (`.patches` for the patch level's); an id may name sub-folders.

    Raises UserError for an id that is empty or leads out of the folder.
    """
    parts = video_id.split("/")
    if "\\" in video_id or "\0" in video_id or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"video id {video_id!r}: is no name of a file below {folder}; it must not be empty, absolute or climb out with '..'")
    return Path(folder, *parts[:-1], f"{parts[-1]}.{kind}")


def differences(header: FeatureHeader, video_hash: str | None, encoder: str, rate: float) -> list[str]:
    """How a store differs from what is wanted, one phrase each; empty if it can be used. A `video_hash` of None fits any."""
    wanted = {"video_hash": header.video_hash if video_hash is None else video_hash, "encoder": encoder, "rate": rate}
    return [f"its {name} is {getattr(header, name)!r}, not {value!r}" for name, value in wanted.items() if getattr(header, name) != value]


def matches(header: FeatureHeader, video_hash: str | None, encoder: str, rate: float) -> bool:
    """Whether a store was made from this video, by this encoder, at this rate."""
    return not differences(header, video_hash, encoder, rate)


def as_bytes(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "_"]:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8)


class FeatureStore:
    """Reads a store. Safe to share between threads; picklable (a worker process opens the file anew)."""

    def __init__(self, path: str | Path):
        """Raises UserError for a missing, truncated or foreign file."""
        self.path = Path(path)
        self._open()
        with contextlib.closing(self._record_reader()) as reader:
            values, total = self._load_header(reader), reader.num_records()
        self._blocks = [(int(block), int(count)) for block, count in values.pop("blocks")]
        self._sums, self.regular = values.pop("sums", False), values.pop("regular", False)
        arrays = {name: (tuple(shape), dtype) for name, (shape, dtype) in values.pop("arrays").items()}
        self.header = FeatureHeader(arrays=arrays, warnings=tuple(values.pop("warnings")), **values)
        self._names = [*self.header.arrays, TIMES]
        self._kinds = {**self.header.arrays, TIMES: ((), "float64")}
        self.starts = np.cumsum([0, *(count for _, count in self._blocks)])  # first frame of each block, then the total
        self._judged = np.zeros(total, bool)  # records that were read whole, and found right
        if total != len(self._blocks) * len(self._names) + 1:
            raise UserError(f"{self.path}: damaged feature store (records are missing); delete it and encode the video again")

    @property
    def frames(self) -> int:
        """Number of frames (ticks)."""
        return int(self.starts[-1])

    def __len__(self) -> int:
        return self.frames

    @property
    def covered_s(self) -> float:
        """Seconds from the start that there are features of: each frame stands for one tick."""
        return self.frames / self.header.rate

    def require(
        self, video_hash: str | None, encoder: str, rate: float, *, width: int | None = None, duration_s: float | None = None, slack_s: float = 2.0
    ) -> None:
        """Raises UserError, naming all that differs, unless the store was made from this video (None: any), by this encoder, at this rate.

        width: of the frame vectors. duration_s: the features must reach to within `slack_s` seconds of it.
        """
        found = differences(self.header, video_hash, encoder, rate)
        stored = self.header.arrays.get("frame", ((0,), ""))[0][-1]
        if width is not None and stored != width:
            found.append(f"its frame vectors have width {stored}, not {width}")
        if duration_s is not None and self.covered_s < duration_s - slack_s:
            found.append(f"it covers {self.covered_s:g} s of {duration_s:g} s")
        if found:
            raise UserError(f"{self.path}: these features do not fit: {'; '.join(found)}; delete the file and encode the video again")

    def read(
        self, start_s: float = 0.0, end_s: float | None = None, names: Iterable[str] | None = None
    ) -> tuple[Float64[np.ndarray, "n"], dict[str, Shaped[np.ndarray, "n ..."]]]:
        """The frames whose tick lies in [start_s, end_s) seconds: their true times and arrays (of `names`, or all)."""
        # The tolerance keeps a tick whose second is not exact in binary, such as 0.3 at 10 a second.
        first = int(np.ceil(start_s * self.header.rate - 1e-6))
        stop = self.frames if end_s is None else int(np.ceil(end_s * self.header.rate - 1e-6))
        return self.read_frames(first, stop, names)

    def read_frames(
        self, first: int | np.integer, stop: int | np.integer, names: Iterable[str] | None = None
    ) -> tuple[Float64[np.ndarray, "n"], dict[str, Shaped[np.ndarray, "n ..."]]]:
        """Frames first .. stop - 1 (clipped to the store): true times [n] and arrays [n ...], reading the records of the blocks concerned alone.

        Raises KeyError for an unknown name, UserError for a damaged record.
        """
        wanted = list(self.header.arrays) if names is None else list(names)
        first, stop = max(0, int(first)), min(self.frames, int(stop))
        count = max(0, stop - first)
        result = {}
        for name in wanted:
            if name not in self.header.arrays:
                raise KeyError(f"{self.path}: no array {name!r}; there are {', '.join(self.header.arrays)}")
            shape, dtype = self.header.arrays[name]
            result[name] = np.empty((count, *shape), dtype)
            if count:
                self.read_into(name, first, result[name])
        return self.times(first, stop), result

    def read_into(self, name: str, first: int, out: Shaped[np.ndarray, "n ..."]) -> None:
        """Fills `out`, of the array's shape and dtype and contiguous, with frames first .. first + n - 1, which must be there. Raises UserError for a damaged
        record."""
        stop = first + len(out)
        for block in range(int(np.searchsorted(self.starts, first, "right")) - 1, int(np.searchsorted(self.starts, stop, "left"))):
            begin, end = int(self.starts[block]), int(self.starts[block + 1])
            low, high = max(first, begin), min(stop, end)
            place = out[low - first : high - first]
            if len(place) == end - begin:
                self.read_block(name, block, low, high, place)
            else:
                found, base = self.read_block(name, block, low, high, np.empty((end - begin, *out.shape[1:]), out.dtype))
                place[...] = found[low - base : high - base]

    def read_block(
        self, name: str, block: int, low: int, high: int, scratch: Shaped[np.ndarray, "n ..."]
    ) -> tuple[Shaped[np.ndarray, "m ..."], int]:
        """Frames low .. high - 1 of the i-th stored block, and maybe more of it: (a part of `scratch`, which has room for the block; its first frame's number).

        Raises UserError for a damaged record.
        """
        begin, end = int(self.starts[block]), int(self.starts[block + 1])
        record = block * len(self._names) + self._names.index(name)
        if self._judged[record]:
            try:
                self._read_straight(record, scratch[: high - low], low - begin)
            except (EOFError, OSError) as error:
                raise UserError(f"{self.path}: cannot be read any more ({records.reason(error)})") from None
            return scratch[: high - low], low
        out = scratch[: end - begin]
        self._load(record, block, name, out)
        return out, begin

    def times(self, first: int = 0, stop: int | None = None) -> Float64[np.ndarray, "T"]:
        """True times of frames first .. stop - 1 (default: all), in seconds."""
        stop = self.frames if stop is None else min(stop, self.frames)
        if self.regular:
            return np.arange(first, max(first, stop)) / self.header.rate
        times = np.empty(max(0, stop - first))
        if len(times):
            self.read_into(TIMES, first, times)
        return times

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_reader", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def close(self) -> None:
        """Closes the file; the store cannot be read any more."""
        self._file.close()
        if self._reader is not None:
            self._reader.close()

    def _open(self) -> None:
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such feature store")
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  open as long as the store is
        self._reader: ArrayRecordReader | None = None  # opened where it is needed
        self._lock = threading.Lock()

    def _record_reader(self) -> ArrayRecordReader:
        reader = ArrayRecordReader(str(self.path), READER_OPTIONS)
        if not reader.ok() or reader.num_records() == 0:
            raise UserError(f"{self.path}: not a complete feature store (truncated, or another kind of file); delete it and encode the video again")
        return reader

    def _load_header(self, reader: ArrayRecordReader) -> dict:
        try:
            values, _ = records.unpack(self._read(reader, reader.num_records() - 1), HEADER_MAGIC)
            version = values.pop("version")
        except (ValueError, KeyError):
            raise UserError(f"{self.path}: not a feature store (another kind of ArrayRecord file)") from None
        if version != VERSION:
            raise UserError(f"{self.path}: feature store of version {version}, this program reads version {VERSION}; delete it and encode the video again")
        return values

    def _about(self, block: int, name: str) -> dict[str, Any]:
        """What the record of an array of the i-th stored block says about itself."""
        number, count = self._blocks[block]
        shape, dtype = self._kinds[name]
        return {"array": name, "block": number, "dtype": dtype, "shape": [count, *shape]}

    @functools.cached_property
    def _places(self) -> tuple[Int64[np.ndarray, "n"], list[tuple[bytes, bytes]]]:
        """Of each record but the last its position in the stream, and what stands in front of its numbers: before and behind the 16 digits of the sum."""
        abouts = [self._about(block, name) for block in range(len(self._blocks)) for name in self._names]
        fronts = [records.pack(BLOCK_MAGIC, {**about, "sum": UNKNOWN}) for about in abouts]
        sizes = [math.prod(about["shape"]) * np.dtype(about["dtype"]).itemsize for about in abouts]
        places = record_layout.starts(len(front) + size for front, size in zip(fronts, sizes, strict=True))
        return places, [tuple(front.split(UNKNOWN.encode())) for front in fronts]

    def _read_straight(self, record: int, out: Shaped[np.ndarray, "n ..."], skip: int = 0) -> bytearray:
        """The record's numbers from frame `skip` of its block on into `out`; returns what stands in front of them, where none is skipped.

        Raises EOFError or OSError where the file cannot be read so far.
        """
        places, fronts = self._places
        size, data = sum(map(len, fronts[record])) + len(UNKNOWN), as_bytes(out)
        front = bytearray(0 if skip else size)
        record_layout.read(self._file.fileno(), int(places[record]) + (size + skip * (len(data) // len(out)) if skip else 0), front, data)
        return front

    def _load(self, record: int, block: int, name: str, out: Shaped[np.ndarray, "n ..."]) -> None:
        """The whole of array `name` of the i-th stored block into `out`, judged by its sum, or read by ArrayRecord's reader."""
        if self._sums and record_layout.AVAILABLE and sys.byteorder == "little":
            try:
                front = self._read_straight(record, out)
            except (EOFError, OSError):
                front = bytearray()
            before, behind = self._places[1][record]
            if front.startswith(before) and front.endswith(behind):
                if front[len(before) : -len(behind)] != b"%016x" % records.checksum(as_bytes(out)):
                    number = self._blocks[block][0]
                    raise UserError(f"{self.path}: damaged feature store (block {number} of {name}); delete it and encode the video again")
                self._refuse_nan(name, block, out)
                self._judged[record] = True
                return
        with self._lock:  # its reads are short, and one reader's position is shared
            self._reader = self._reader or self._record_reader()
            found = self._read(self._reader, record)
        try:
            about, data = records.unpack(found, BLOCK_MAGIC)
            about.pop("sum", None)
            if about != self._about(block, name):
                raise ValueError("records are out of order")
            out[:] = records.array(about, data)
            self._refuse_nan(name, block, out)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: damaged feature store ({error}); delete it and encode the video again") from None

    def _refuse_nan(self, name: str, block: int, numbers: Shaped[np.ndarray, "n ..."]) -> None:
        if records.has_nan(numbers):
            second = self.starts[block] / self.header.rate
            raise UserError(f"{self.path}: {name} from {second:g} s on holds what is not a number (NaN); delete it and encode the video again")

    def _read(self, reader: ArrayRecordReader, number: int) -> bytes:
        try:
            return reader.read([number])[0]
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{self.path}: damaged feature store ({records.reason(error)}); delete it and encode the video again") from None
