"""Streams: a plan into our layout, or our leaves into a foreign one. What lies in memory is a block of a few megabytes, whatever the model's size.

Our layout is one safetensors file whose stacked leaves are made of one source tensor a layer. Its header follows from the shapes alone; so the file
is made at full length first and every tensor is written at its place when the source comes to it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from revision_jax import checkpoint, paths
from revision_jax.config import ExperimentConfig
from revision_jax.convert.plan import Plan
from revision_jax.convert.source import DTYPES
from revision_jax.convert.transforms import ordered
from revision_jax.errors import UserError
from revision_jax.files import new_folder

BLOCK = 16 * 2**20  # bytes of one write
HEADER = 256 * 2**10  # bytes kept free for the header of an exported shard, whose tensors are not known when it begins
SHARD = 5 * 10**9
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


class _Place(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


def write_checkpoint(
    out_dir: str | os.PathLike,
    config: ExperimentConfig,
    plans: Sequence[Plan],
    files: Mapping[str, Path | str] | None = None,
    *,
    dtype: str | None = None,
    extra_state: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what the plans give, and `extra_state` (nested dicts of arrays), as a checkpoint of our layout; an older one there is replaced at once.

    files: what lies beside the weights, name ("tokenizer.json") -> file or its text. dtype: of floating tensors (float16, bfloat16, float32);
    None keeps the source's. Nothing is written unless everything is. Raises UserError:
    unknown dtype, a leaf given by two plans, values that the dtype cannot hold (all of them named), a target that is something else, a full disk.
    """
    out_dir = Path(out_dir)
    if dtype is not None and dtype not in checkpoint.DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(checkpoint.DTYPES)}")
    checkpoint.check_replaceable(out_dir)
    extra = {name: np.asarray(leaf) for name, leaf in paths.flatten(extra_state or {}).items()}
    wanted = None if dtype is None else checkpoint.DTYPES[dtype]
    leaves: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    stored = [({path: tuple(plan.target[path].shape) for path in plan.target if path not in plan.unfilled}, plan.dtypes()) for plan in plans]
    stored.append(({name: array.shape for name, array in extra.items()}, {name: array.dtype for name, array in extra.items()}))
    for shapes, dtypes in stored:
        twice = sorted(set(shapes) & set(leaves))
        if twice:
            raise UserError(f"{out_dir}: not written, given twice: {', '.join(twice)}")
        for path, shape in shapes.items():
            leaves[path] = shape, wanted if wanted is not None and checkpoint.is_float(dtypes[path]) else dtypes[path]
    places, header = _layout(leaves)
    unfit: list[str] = []
    with new_folder(out_dir) as building:
        with open(building / checkpoint.WEIGHTS, "wb+") as stream:
            stream.write(header)
            _allocate(stream, len(header) + sum(math.prod(place.shape) * place.dtype.itemsize for place in places.values()))
            streams = [*(plan.apply() for plan in plans), ((name, None, array) for name, array in extra.items())]
            for path, index, array in (item for stream_ in streams for item in stream_):
                place = places[path]
                size = math.prod(place.shape[0 if index is None else 1 :]) * place.dtype.itemsize
                stream.seek(len(header) + place.offset + (index or 0) * size)
                if not _write(stream, array, place.dtype):
                    unfit.append(path if index is None else f"{path}[{index}]")
        if unfit:
            raise UserError(f"{out_dir}: not written, these tensors have values that are not finite in {dtype or 'their dtype'}: {', '.join(unfit)}")
        checkpoint.write_rest(building, config, files or {}, calibration)
    return out_dir


def _layout(leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> tuple[dict[str, _Place], bytes]:
    """Where each tensor lies after the header, and the header: widest dtypes first, so that every tensor is aligned, then by name."""
    places, offset = {}, 0
    for path in sorted(leaves, key=lambda path: (-leaves[path][1].itemsize, path)):
        shape, dtype = leaves[path]
        places[path] = _Place(offset, shape, dtype)
        offset += math.prod(shape) * dtype.itemsize
    return places, _header(places, checkpoint.FORMAT)


def _header(places: Mapping[str, _Place], metadata: Mapping[str, str], room: int = 0) -> bytes:
    """Length and JSON of a safetensors header, padded with spaces to `room` bytes, or to the next multiple of 64."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, place in places.items():
        end = place.offset + math.prod(place.shape) * place.dtype.itemsize
        table[name] = {"dtype": NAMES[place.dtype], "shape": list(place.shape), "data_offsets": [place.offset, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    length = (room or -(-(len(text) + 8) // 64) * 64) - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _allocate(stream: BinaryIO, size: int) -> None:
    """Gives the file its full length; a disk that is too small says so now."""
    stream.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)
    else:
        stream.truncate(size)


def _write(stream: BinaryIO, array: np.ndarray, dtype: np.dtype) -> bool:
    """Writes an array in C order as `dtype`, a block at a time. Whether a cast kept every value finite."""
    finite = True
    rows = array.reshape(-1, array.shape[-1]) if array.ndim > 2 and array.flags.c_contiguous else array
    rows = rows.reshape(1, -1) if rows.ndim < 2 else rows
    count = max(1, BLOCK // max(1, rows[0].size * max(dtype.itemsize, rows.dtype.itemsize)) if len(rows) else 1)
    for first in range(0, len(rows), count):
        part = rows[first : first + count]
        if part.flags.c_contiguous and part.dtype == dtype:
            block = part
        else:
            with np.errstate(over="ignore"):
                block = ordered(part, dtype)
            if part.dtype != dtype:
                finite &= bool(np.isfinite(block).all())
        stream.write(block.reshape(-1).view(np.uint8).data)
    return finite


# ------------------------------------------------------------------------------------------------------------------------ export


def write_external(
    out_dir: str | os.PathLike,
    tensors: Iterable[tuple[str, np.ndarray]],
    config: Mapping[str, Any] | None,
    shard_bytes: int = SHARD,
    *,
    stem: str = "model",
    config_name: str = "config.json",
    files: Mapping[str, Path | str] | None = None,
    dtype: str | None = None,
) -> Path:
    """Writes named tensors as safetensors, in shards with an index where one file would be longer than `shard_bytes`, and a JSON config.

    tensors: (name, array) one after another, each written before the next is asked for. files: see `write_checkpoint`. dtype: of floating
    tensors, None keeps theirs. Raises UserError: a target that exists and is not empty, values that the dtype cannot hold, a full disk.
    """
    out_dir = Path(out_dir)
    if dtype is not None and dtype not in checkpoint.DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(checkpoint.DTYPES)}")
    _check_new(out_dir)
    unfit: list[str] = []
    with new_folder(out_dir) as building:
        shards: list[dict[str, _Place]] = []
        stream: BinaryIO | None = None
        try:
            for name, array in tensors:
                kind = checkpoint.DTYPES[dtype] if dtype is not None and checkpoint.is_float(array.dtype) else array.dtype
                size = math.prod(array.shape) * kind.itemsize
                offset = 0 if stream is None else stream.tell() - HEADER
                if stream is None or offset + size > shard_bytes or _crowded(shards[-1], name):
                    _close(stream, shards)
                    shards.append({})
                    offset = 0
                    stream = open(building / f"{len(shards)}.part", "wb+")  # noqa: SIM115  closed by _close
                    stream.seek(HEADER)
                shards[-1][name] = _Place(offset, tuple(array.shape), kind)
                if not _write(stream, array, kind):
                    unfit.append(name)
            _close(stream, shards)
        finally:
            if stream is not None:
                stream.close()
        if unfit:
            raise UserError(f"{out_dir}: not written, these tensors have values that are not finite in {dtype}: {', '.join(unfit)}")
        _name_shards(building, shards, stem)
        if config is not None:
            (building / config_name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        checkpoint.copy_files(building, files or {})
    return out_dir


def write_torch(
    out_dir: str | os.PathLike,
    tensors: Iterable[tuple[str, np.ndarray]],
    name: str,
    files: Mapping[str, Path | str] | None = None,
    *,
    dtype: str | None = None,
) -> Path:
    """`write_external` into one file of torch.save called `name`, for formats that know no other. Small ones: all tensors lie in memory at once."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{name} is a file of torch.save: install torch (pip install 'revision-jax[torch]')") from error
    out_dir = Path(out_dir)
    _check_new(out_dir)

    def tensor(array: np.ndarray) -> Any:
        array = np.array(array, checkpoint.DTYPES[dtype] if dtype is not None and checkpoint.is_float(array.dtype) else array.dtype, order="C")
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16) if array.dtype == DTYPES["BF16"] else torch.from_numpy(array)

    with new_folder(out_dir) as building:
        torch.save({key: tensor(array) for key, array in tensors}, building / name)
        checkpoint.copy_files(building, files or {})
    return out_dir


def _check_new(out_dir: Path) -> None:
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise UserError(f"{out_dir}: exists and is not empty; choose an empty or new folder")


def _crowded(shard: Mapping[str, _Place], name: str) -> bool:
    """Whether the header of a shard has no room for one name more; 150 bytes hold the numbers of any tensor."""
    return sum(len(held) + 150 for held in (*shard, name)) > HEADER


def _close(stream: BinaryIO | None, shards: Sequence[Mapping[str, _Place]]) -> None:
    if stream is not None:
        stream.seek(0)
        stream.write(_header(shards[-1], {"format": "pt"}, HEADER))
        stream.close()


def _name_shards(building: Path, shards: Sequence[Mapping[str, _Place]], stem: str) -> None:
    """One shard is `<stem>.safetensors`; several are numbered, and an index says which tensor lies where."""
    if len(shards) == 1:
        (building / "1.part").rename(building / f"{stem}.safetensors")
        return
    table = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        (building / f"{number}.part").rename(building / name)
        table |= dict.fromkeys(shard, name)
    total = sum(math.prod(place.shape) * place.dtype.itemsize for shard in shards for place in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
    (building / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
