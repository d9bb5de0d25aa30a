"""A foreign checkpoint as a table of tensors: names, shapes and dtypes at once, values one at a time and memory-mapped.

    open_source("Qwen2.5-7B")               model-*-of-*.safetensors with its index, model.safetensors, pytorch_model*.bin, adapter_model.*
    open_source("x/mm_projector.bin")       any single .safetensors, .bin, .pt, .pth
    ArraySource({"a.weight": array})        made in memory, for tests
    source.renamed(lambda name: ...)        the same tensors by other names, e.g. a prefix stripped; None leaves one out

Safetensors are read here directly (8 bytes of header length, a JSON header, the data), because only a memory map gives a tensor without a copy of
it in memory. Files of torch.save need torch (extra `[torch]`); they are opened with weights_only=True, so that no code in them ever runs.

Source: safetensors format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from revision_jax.errors import UserError

SAFETENSORS, TORCH = (".safetensors",), (".bin", ".pt", ".pth")
CONFIGS = ("adapter_config.json", "config.json")
STEMS = ("model", "pytorch_model", "adapter_model")  # names of a directory's weights, in this order
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip


class Info(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path


class Source:
    """Tensors by name, in the order in which they lie in their files."""

    def __init__(
        self, path: Path, tensors: Mapping[str, Info], readers: Mapping[str, Callable[[], np.ndarray]], config: dict | None = None, metadata: dict | None = None
    ):
        self.path = path
        self.tensors = dict(tensors)
        self.config = {} if config is None else config  # config.json, or adapter_config.json beside adapter_model.*; {} without
        self.metadata = {} if metadata is None else metadata  # of the first safetensors file
        self._readers = readers

    def read(self, name: str) -> np.ndarray:
        """One tensor, read-only and without a copy where the format allows. Raises KeyError for a name that `tensors` does not hold."""
        return self._readers[name]()

    def renamed(self, function: Callable[[str], str | None]) -> Source:
        """The same tensors under `function(name)`; None leaves one out. Raises UserError if two would get the same name."""
        names: dict[str, str] = {}
        for old in self.tensors:
            new = function(old)
            if new is not None and new in names:
                raise UserError(f"{self.path}: {names[new]} and {old} are both {new}")
            if new is not None:
                names[new] = old
        tensors = {new: self.tensors[old] for new, old in names.items()}
        return Source(self.path, tensors, {new: self._readers[old] for new, old in names.items()}, self.config, self.metadata)


class ArraySource(Source):
    """A source made of arrays."""

    def __init__(self, arrays: Mapping[str, np.ndarray], config: dict | None = None, path: str | os.PathLike = "arrays"):
        path = Path(path)
        tensors = {name: Info(np.shape(array), np.asarray(array).dtype, path) for name, array in arrays.items()}
        super().__init__(path, tensors, {name: (lambda array=array: np.asarray(array)) for name, array in arrays.items()}, config)


# -------------------------------------------------------------------------------------------------------------------- opening


def read_json(path: Path) -> Any:
    """A JSON file's value. Raises UserError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error


def open_source(path: str | os.PathLike) -> Source:
    """The tensors of a directory or file; nothing but headers is read.

    Raises one UserError with every finding: no such path, no weights in it, absent shards, an index that names absent files or tensors, damaged
    files, a pickle that wants code, torch missing, a config that is no JSON.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    problems: list[str] = []
    files, index = _files(path, problems)
    tensors: dict[str, Info] = {}
    readers: dict[str, Callable[[], np.ndarray]] = {}
    metadata: dict = {}
    for file in files:
        try:
            found, about = (_open_safetensors if file.suffix in SAFETENSORS else _open_torch)(file)
        except UserError as error:
            problems.append(str(error))
            continue
        metadata = metadata or about
        for name in sorted(set(found) & set(tensors)):
            problems.append(f"{file.name}: {name} is also in {tensors[name].file.name}")
        for name, (info, reader) in found.items():
            tensors[name], readers[name] = info, reader
    opened = {info.file.name for info in tensors.values()}
    for name, file in index.items():
        if file in opened and (name not in tensors or tensors[name].file.name != file):
            problems.append(f"the index says {name} lies in {file}, but it does not")
    config = {}
    try:
        config = _config(path, files)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(f"{path}: cannot be read: {'; '.join(problems)}")
    return Source(path, tensors, readers, config, metadata)


def _files(path: Path, problems: list[str]) -> tuple[list[Path], dict[str, str]]:
    """The files that hold the weights, and the index's table (tensor -> file name), {} without an index."""
    if path.is_file():
        if path.suffix not in SAFETENSORS + TORCH:
            raise UserError(f"{path}: not a file of weights; known are {', '.join(SAFETENSORS + TORCH)}")
        return [path], {}
    for stem in STEMS:
        for suffix in (*SAFETENSORS, ".bin"):
            index = path / f"{stem}{suffix}.index.json"
            if index.is_file():
                return _indexed(index, problems)
            if (path / f"{stem}{suffix}").is_file():
                return [path / f"{stem}{suffix}"], {}
            shards = {int(m[1]): (file, int(m[2])) for file in path.glob(f"{stem}-*-of-*{suffix}") if (m := re.search(r"-(\d+)-of-(\d+)\.", file.name))}
            if shards:
                count = max(of for _, of in shards.values())
                problems += [f"{stem}-{i:05d}-of-{count:05d}{suffix} is missing" for i in range(1, count + 1) if i not in shards]
                return [shards[i][0] for i in sorted(shards)], {}
    alone = [file for file in sorted(path.iterdir()) if file.suffix in SAFETENSORS + TORCH]
    if len(alone) == 1:
        return alone, {}
    told = f"none of the {len(alone)} files of weights there ({', '.join(file.name for file in alone)}) has one of these names" if alone else "no weights there"
    raise UserError(f"{path}: {told}; expected {', '.join(f'{stem}.*' for stem in STEMS)}, or one .safetensors, .bin or .pt file")


def _indexed(index: Path, problems: list[str]) -> tuple[list[Path], dict[str, str]]:
    table = read_json(index)
    table = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise UserError(f"{index}: has no weight_map from tensor names to file names")
    files = []
    for name in sorted(set(table.values())):
        if Path(name).name != name:
            problems.append(f"{index.name} names {name}, which is no file of this directory")
        elif (index.parent / name).is_file():
            files.append(index.parent / name)
        else:
            problems.append(f"{name} is missing, {index.name} says it holds {sum(file == name for file in table.values())} tensors")
    return files, table


def _config(path: Path, files: list[Path]) -> dict:
    folder = path if path.is_dir() else path.parent
    adapter = bool(files) and files[0].name.startswith("adapter_model")
    for name in CONFIGS if adapter else CONFIGS[1:]:
        if (folder / name).is_file():
            config = read_json(folder / name)
            if not isinstance(config, dict):
                raise UserError(f"{folder / name}: must hold a JSON object")
            return config
    return {}


# -------------------------------------------------------------------------------------------------------------------- the files

Found = dict[str, tuple[Info, Callable[[], np.ndarray]]]


def _open_safetensors(file: Path) -> tuple[Found, dict]:
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{file.name} is truncated or no safetensors file: {size} bytes cannot hold its header")
        try:
            header = json.loads(stream.read(length))
            metadata = header.pop("__metadata__", {})
            rows = sorted((*map(int, item["data_offsets"]), name, item["dtype"], tuple(map(int, item["shape"]))) for name, item in header.items())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file.name} is no safetensors file: its header is not readable ({error!r})") from error
    data = 8 + length
    found: Found = {}
    for start, end, name, dtype, shape in rows:
        if dtype not in DTYPES:
            raise UserError(f"{file.name}: {name} has dtype {dtype}; known are {', '.join(DTYPES)}")
        info = Info(shape, np.dtype(DTYPES[dtype]), file)
        if end - start != int(np.prod(shape, dtype=np.int64)) * info.dtype.itemsize or start < 0:
            raise UserError(f"{file.name}: {name} has shape {shape} of {dtype} in {end - start} bytes; the file is damaged")
        found[name] = info, lambda info=info, offset=data + start: _mapped(info, offset)
    needed = data + max((end for _, end, *_ in rows), default=0)
    if size < needed:
        raise UserError(f"{file.name} is truncated: {size} bytes, its header describes {needed}")
    return found, metadata


def _mapped(info: Info, offset: int) -> np.ndarray:
    if 0 in info.shape:
        return np.zeros(info.shape, info.dtype)
    return np.asarray(np.memmap(info.file, info.dtype, "r", offset, info.shape))


def _open_torch(file: Path) -> tuple[Found, dict]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{file.name} is a file of torch.save: install torch (pip install 'revision-jax[torch]'), or convert it to safetensors") from error

    def load(mmap: bool) -> Any:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            values = load(True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            values = load(False)  # torch's format before 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+\.[\w.]+)", str(error))
        told = f" ({wanted[1]})" if wanted else ""
        raise UserError(f"{file.name}: refused, its pickle wants to run code{told} or is damaged; save it as safetensors") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{file.name}: not readable as a file of torch.save ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error
    if isinstance(values, dict) and len(values) == 1 and isinstance(next(iter(values.values())), dict):
        values = next(iter(values.values()))  # {"state_dict": {...}}
    if not isinstance(values, dict) or not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in values.items()):
        raise UserError(f"{file.name}: does not hold a table of tensors by name")

    def array(tensor: Any) -> np.ndarray:
        tensor = tensor.detach()
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()

    dtype = lambda tensor: np.dtype(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else torch.zeros((), dtype=tensor.dtype).numpy().dtype
    return {name: (Info(tuple(tensor.shape), dtype(tensor), file), lambda tensor=tensor: array(tensor)) for name, tensor in values.items()}, {}
