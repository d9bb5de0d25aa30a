"""Features as their owners distribute them, read in pieces: HDF5 (MAD), a .npy or .npz file each (VidChapters, QVHighlights), LMDB of npz (CONE, ReVisionLLM).

A source maps keys (videos or queries) to arrays by name; an array gives its shape at once and its rows in pieces, so that nine hours cost as much memory as
a minute. Nothing here can unpickle: an array of objects is an error. h5py and lmdb are optional (`pip install "revision-jax[features]"`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from revision_jax.errors import UserError

ROWS = 4096  # of a piece, by default: 6 MB of 768 float16 numbers


class Broken(UserError):
    """One entry of a source cannot be used; the others can."""


@dataclass(frozen=True)
class Rows:
    """An array whose rows are read when they are asked for. `read(n)` iterates over pieces [<= n, ...]; it may be called once."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int], Iterator[Shaped[np.ndarray, "n ..."]]]

    def all(self) -> Shaped[np.ndarray, "n ..."]:
        """The whole array: for what is known to be small."""
        parts = list(self.read(ROWS))
        return np.concatenate(parts) if parts else np.zeros(self.shape, self.dtype)


@runtime_checkable
class Source(Protocol):
    """Arrays by key. `open` raises Broken for a key that is missing, or whose arrays cannot be read."""

    path: Path

    def keys(self) -> Iterable[str]: ...

    def open(self, key: str) -> contextlib.AbstractContextManager[dict[str, Rows]]: ...


class Hdf5Source:
    """One HDF5 file: a dataset a key, or a group a key with datasets by name. A dataset of its own is called ""."""

    def __init__(self, path: str | Path):
        """Raises UserError without h5py, and for a file that is no HDF5."""
        self.path, self._h5py = Path(path), optional("h5py")
        with self._file() as file:
            self._keys = list(file.keys())

    def keys(self) -> list[str]:
        return self._keys

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[dict[str, Rows]]:
        with self._file() as file:
            try:
                found = file.get(key)
            except (OSError, RuntimeError, KeyError) as error:
                raise Broken(f"{self.path}: {key!r} cannot be read ({error})") from None
            if found is None:
                raise Broken(f"{self.path}: holds no group or dataset {key!r}")
            datasets = {"": found} if isinstance(found, self._h5py.Dataset) else {name: x for name, x in found.items() if isinstance(x, self._h5py.Dataset)}
            yield {name: Rows(tuple(data.shape), data.dtype, self._reader(key, data)) for name, data in datasets.items()}

    def _file(self) -> Any:
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        try:
            # A small cache: rows are read once and in order.
            return self._h5py.File(self.path, "r", rdcc_nbytes=1 << 20)
        except OSError as error:
            raise UserError(f"{self.path}: not an HDF5 file that can be read ({error})") from None

    def _reader(self, key: str, data: Any) -> Callable[[int], Iterator[np.ndarray]]:
        def read(count: int) -> Iterator[np.ndarray]:
            for start in range(0, len(data), count):
                try:
                    yield data[start : start + count]
                except (OSError, RuntimeError) as error:
                    raise Broken(f"{self.path}: {key!r} cannot be read from row {start} on ({error})") from None

        return read


class FolderSource:
    """A folder (with sub-folders) of KEY.npy or KEY.npz. The array of a .npy file is called ""."""

    def __init__(self, path: str | Path):
        """Raises UserError where there is no such folder, no such file in it, or two for one key."""
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder")
        self._files: dict[str, Path] = {}
        for file in sorted(file for ending in ("npy", "npz") for file in self.path.rglob(f"*.{ending}")):
            key = file.relative_to(self.path).with_suffix("").as_posix()
            if key in self._files:
                raise UserError(f"{self.path}: {self._files[key].name} and {file.name} are both {key!r}; leave one of them")
            self._files[key] = file
        if not self._files:
            raise UserError(f"{self.path}: holds no .npy or .npz file")

    def keys(self) -> list[str]:
        return list(self._files)

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[dict[str, Rows]]:
        file = self._files.get(key)
        if file is None:
            raise Broken(f"{self.path}: holds no {key}.npy or {key}.npz")
        if file.suffix == ".npz":
            with _npz(file, str(file)) as arrays:
                yield arrays
        else:
            yield {"": _npy(file)}


class LmdbSource:
    """An LMDB environment (a folder, or a single file) whose values are npz archives, read where they are mapped."""

    def __init__(self, path: str | Path):
        """Raises UserError without lmdb, and for what is no LMDB."""
        self.path, lmdb = Path(path), optional("lmdb")
        if not self.path.exists():
            raise UserError(f"{self.path}: no such LMDB")
        try:
            self._environment = lmdb.open(str(self.path), subdir=self.path.is_dir(), readonly=True, create=False, lock=False, readahead=False, max_readers=1)
        except lmdb.Error as error:
            raise UserError(f"{self.path}: not an LMDB that can be read ({error})") from None

    def keys(self) -> Iterator[str]:
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            for key in cursor.iternext(keys=True, values=False):
                yield key.decode("utf-8", "backslashreplace")

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[dict[str, Rows]]:
        with self._environment.begin(buffers=True) as transaction:  # a view of the mapped file, not a copy
            value = transaction.get(key.encode("utf-8"))
            if value is None:
                raise Broken(f"{self.path}: holds no key {key!r}")
            with _npz(io.BufferedReader(_View(value)), f"{self.path}: {key!r}") as arrays:
                yield arrays


def open_source(path: str | Path) -> Source:
    """The source that lies at a path: a .h5 or .hdf5 file, an LMDB (a folder with data.mdb in it, or a .lmdb or .mdb file), or a folder of .npy and .npz files.

    Raises UserError where it is none of them.
    """
    path = Path(path)
    if path.suffix in (".h5", ".hdf5"):
        return Hdf5Source(path)
    if (path / "data.mdb").is_file() or (path.is_file() and path.suffix in (".lmdb", ".mdb")):
        return LmdbSource(path)
    if path.is_dir():
        return FolderSource(path)
    what = "another kind of file" if path.exists() else "no such file or folder"
    raise UserError(f"{path}: {what}; wanted is an HDF5 file (.h5, .hdf5), an LMDB, or a folder of .npy or .npz files")


class _View(io.RawIOBase):
    """Bytes in memory as a file, not copied."""

    def __init__(self, data: memoryview):
        self._data, self._place = memoryview(data), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, len(self._data))[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._place : self._place + len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


def _npy(file: Path) -> Rows:
    def mapped() -> np.ndarray:
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise Broken(f"{file}: not a .npy file of numbers ({error})") from None

    def read(count: int) -> Iterator[np.ndarray]:
        for start in range(0, rows, count):
            yield np.array(mapped()[start : start + count])  # mapped anew each time: pages that were read do not stay

    array = mapped()
    if array.ndim == 0:
        raise Broken(f"{file}: holds a single number")
    rows = len(array)
    return Rows(array.shape, array.dtype, read)


@contextlib.contextmanager
def _npz(file: Any, name: str) -> Iterator[dict[str, Rows]]:
    """The arrays of an npz archive; members are unpacked as they are read. Single numbers and texts are left out (`savez(..., allow_pickle=True)`
    writes one by that name)."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise Broken(f"{name}: not an npz archive ({error})") from None
    with archive:
        arrays = {}
        for member in archive.namelist():
            with _reading(name, member), archive.open(member) as stream:
                shape, fortran, dtype = _npy_header(stream)
                if dtype.hasobject:
                    raise ValueError("objects, which only pickle can read")
            if len(shape) > 0 and dtype.kind in "fiu":
                arrays[member.removesuffix(".npy")] = Rows(shape, dtype, _member(archive, member, name, fortran))
        yield arrays


def _member(archive: zipfile.ZipFile, member: str, name: str, fortran: bool) -> Callable[[int], Iterator[np.ndarray]]:
    def read(count: int) -> Iterator[np.ndarray]:
        with _reading(name, member), archive.open(member) as stream:
            shape, _, dtype = _npy_header(stream)
            row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            if fortran and len(shape) > 1:  # columns lie together: no piece is there before the end
                yield np.frombuffer(_exactly(stream, shape[0] * row), dtype).reshape(shape[::-1]).T
                return
            for start in range(0, shape[0], count):
                rows = min(count, shape[0] - start)
                yield np.frombuffer(_exactly(stream, rows * row), dtype).reshape(rows, *shape[1:])

    return read


def _npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    return np.lib.format.read_array_header_1_0(stream) if version == (1, 0) else np.lib.format.read_array_header_2_0(stream)


def _exactly(stream: Any, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("it ends early")
    return data


@contextlib.contextmanager
def _reading(name: str, member: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Broken(f"{name}: {member} cannot be read ({error})") from None


def optional(module: str) -> ModuleType:
    """h5py or lmdb. Raises UserError that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f'{module} is not installed; pip install "revision-jax[features]" brings it') from None
