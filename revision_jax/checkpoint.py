"""The shipped form of a trained model: one folder that answers questions by itself.

    model.safetensors   every tensor of the state by its name ("params/text/...", "lora/dense/..."), float16 unless asked otherwise
    config.json         the ExperimentConfig
    tokenizer.json      of the `tokenizers` library; text_tokenizer/tokenizer.json is the text tower's, where it is another
    calibration.json    optional: temperature and threshold that turn a confidence into a probability

Written as a whole or not at all (a folder beside the target is filled, then renamed). Read with every mismatch told at once. NumPy and
safetensors only, so that answering needs nothing of training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from revision_jax import paths
from revision_jax.config import ConfigError, ExperimentConfig
from revision_jax.convert.source import Source, open_source
from revision_jax.convert.transforms import ordered
from revision_jax.errors import UserError
from revision_jax.files import new_folder

if TYPE_CHECKING:
    import jax

WEIGHTS, CONFIG, TOKENIZER, CALIBRATION = "model.safetensors", "config.json", "tokenizer.json", "calibration.json"
TEXT_TOKENIZER = "text_tokenizer"  # folder of a checkpoint, for a text tower whose tokenizer is not the decoder's
# What lies beside a released model's weights and travels with it, both ways: small, and an export opens with it as the original did.
BESIDE = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
)  # fmt: skip
FORMAT = {"format": "revision_jax", "version": "1"}
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}

Shapes = Mapping[str, tuple[int, ...]]
Index = tuple[slice, ...]
Shardings = Any  # one jax.sharding.Sharding for all leaves, or nested dicts of them like the state


class Shipped(NamedTuple):
    """What `load` returns."""

    config: ExperimentConfig
    state: dict[str, Any]
    tokenizer: Path
    calibration: dict[str, Any] | None


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of this dtype are floating ones, bfloat16 among them."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def export(
    state: Mapping[str, Any],
    config: ExperimentConfig,
    tokenizer_file: str | os.PathLike,
    out_dir: str | os.PathLike,
    *,
    calibration: Mapping[str, Any] | None = None,
    dtype: str = "float16",
) -> Path:
    """Writes `state` (nested dicts of arrays) and what belongs to it into `out_dir`; an older checkpoint there is replaced at once.

    tokenizer_file: a tokenizer.json; a folder `text_tokenizer` beside it goes along.
    Floating tensors are stored as `dtype` (float16, bfloat16, float32), int8 kernels as the weights they stand for, others as they are. Raises UserError
    for an unknown dtype, for a value that does not fit the dtype, for a target that holds something other than a checkpoint, and when the disk is full.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    out_dir, tokenizer_file = Path(out_dir), Path(tokenizer_file)
    if not tokenizer_file.is_file():
        raise UserError(f"{tokenizer_file}: no such tokenizer file")
    check_replaceable(out_dir)
    from revision_jax.models.quantize import dequantized  # not before: most that read checkpoints' configs do without jax

    tensors, unfit = {}, []
    leaves = paths.flatten(state)
    for name, leaf in leaves.items():
        array, scale = np.asarray(leaf), leaves.get(name.removesuffix("kernel") + "scale")
        if array.dtype == np.int8 and scale is not None:
            array = dequantized(array, np.asarray(scale))
        elif name.endswith("/scale") and leaves.get(name.removesuffix("scale") + "kernel", leaf).dtype == np.int8:
            continue  # of that kernel
        if is_float(array.dtype):
            with np.errstate(over="ignore"):
                cast = array.astype(DTYPES[dtype])
            if not np.isfinite(cast.astype(np.float32)).all():
                unfit.append(name)
            array = cast
        tensors[name] = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray turns a scalar into (1,)
    if unfit:
        raise UserError(f"{out_dir}: not written, these tensors have values that are not finite in {dtype}: {', '.join(unfit)}")
    with new_folder(out_dir) as building:
        try:
            save_file(tensors, building / WEIGHTS, metadata=FORMAT)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        os.chmod(building / WEIGHTS, 0o644)  # safetensors writes 0600
        write_rest(building, config, tokenizer_files(tokenizer_file.parent, tokenizer_file), calibration)
    return out_dir


def is_checkpoint(directory: str | os.PathLike) -> bool:
    """Whether a folder holds a checkpoint of this project, and not one of another that has files of the same names."""
    directory = Path(directory)
    try:
        return (directory / WEIGHTS).is_file() and "grounding" in json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def check_replaceable(out_dir: Path) -> None:
    """Raises UserError unless `out_dir` is new, empty or a checkpoint of this project."""
    if out_dir.exists() and not (out_dir.is_dir() and (is_checkpoint(out_dir) or not any(out_dir.iterdir()))):
        raise UserError(f"{out_dir}: exists and is not a checkpoint; choose an empty or new folder")


def write_rest(building: Path, config: ExperimentConfig, files: Mapping[str, Path | str], calibration: Mapping[str, Any] | None = None) -> None:
    """Everything of a checkpoint but its weights. files: name in the checkpoint ("tokenizer.json") -> file, or its text."""
    (building / CONFIG).write_text(config.to_json() + "\n", encoding="utf-8")
    copy_files(building, files)
    if calibration is not None:
        (building / CALIBRATION).write_text(json.dumps(calibration, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def tokenizer_files(folder: Path, tokenizer: Path | None = None) -> dict[str, Path]:
    """The tokenizers of a checkpoint or work directory and what else lies beside its weights (BESIDE), by their names in a checkpoint.

    tokenizer: in place of the folder's tokenizer.json.
    """
    own, text = ([place / name for name in sorted(BESIDE) if (place / name).is_file()] for place in (folder, folder / TEXT_TOKENIZER))
    files = {**{file.name: file for file in own}, **{f"{TEXT_TOKENIZER}/{file.name}": file for file in text}}
    return files if tokenizer is None else {**files, TOKENIZER: tokenizer}


def copy_files(building: Path, files: Mapping[str, Path | str]) -> None:
    """Files (or texts) under new names into a folder; names may lie in folders of it."""
    for name, file in files.items():
        (building / name).parent.mkdir(exist_ok=True)
        if isinstance(file, Path):
            shutil.copyfile(file, building / name)
        else:
            (building / name).write_text(file, encoding="utf-8")


def set_calibration(directory: str | os.PathLike, calibration: Mapping[str, Any]) -> None:
    """Stores a newly fitted calibration in an existing checkpoint folder, at once or not at all."""
    directory = Path(directory)
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"{directory}: not a checkpoint (no {WEIGHTS})")
    building = directory / f".{CALIBRATION}.{os.getpid()}"
    try:
        building.write_text(json.dumps(calibration, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        building.replace(directory / CALIBRATION)
    except OSError as error:
        building.unlink(missing_ok=True)
        raise UserError(f"{directory / CALIBRATION}: could not be written ({error})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error


def load_config(directory: str | os.PathLike) -> ExperimentConfig:
    """The config of a checkpoint folder, without its weights. Raises UserError."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such checkpoint folder")
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory}: not a checkpoint, {CONFIG} is missing")
    try:
        return ExperimentConfig.from_dict(_read_json(directory / CONFIG), CONFIG)
    except ConfigError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from error


def identity(directory: str | os.PathLike) -> str:
    """What a checkpoint folder is called where files speak of it: its folder's name and a hash of its weights and config. Raises UserError for none."""
    directory = Path(directory)
    load_config(directory)  # raises
    digest = hashlib.blake2b(digest_size=6)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: not a checkpoint, {name} is missing")
        with open(directory / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return f"{directory.resolve().name}-{digest.hexdigest()}"


def mismatches(found: Shapes, expected: Shapes) -> list[str]:
    """One phrase for every tensor that is missing, extra or of another shape."""
    wrong = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    wrong += [f"{name} is not part of the model" for name in sorted(set(found) - set(expected))]
    both = sorted(set(found) & set(expected))
    wrong += [f"{name} has shape {tuple(found[name])}, config says {tuple(expected[name])}" for name in both if tuple(found[name]) != tuple(expected[name])]
    return wrong


def sharding_of(shardings: Shardings) -> Callable[[str], jax.sharding.Sharding]:
    """The sharding of each leaf, by its full path."""
    if not isinstance(shardings, Mapping):
        return lambda name: shardings
    return paths.flatten(shardings).__getitem__


def place(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """An array of which every device gets its part: `read(index)` is asked for the parts of this process's devices and for no other, each once.

    A view is copied first, so that no device buffer depends on a mapped file.
    """
    import jax

    parts: dict[str, np.ndarray] = {}  # by the index as text: devices that hold the same part share it

    def part(index: Index) -> np.ndarray:
        if str(index) not in parts:
            array = read(index)
            parts[str(index)] = array if array.flags.owndata and array.flags.c_contiguous else ordered(array)
        return parts[str(index)]

    return jax.make_array_from_callback(shape, sharding, part)


def open_weights(directory: str | os.PathLike) -> Source:
    """The tensors of a checkpoint folder, none of them read yet. Raises UserError: files missing or not readable."""
    directory = Path(directory)
    for name in (WEIGHTS, TOKENIZER):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: not a checkpoint, {name} is missing")
    return open_source(directory / WEIGHTS)


def placed(source: Source, name: str, dtype: np.dtype, sharding: jax.sharding.Sharding, row: int | None = None) -> jax.Array:
    """One tensor of a source on its devices, as `dtype`; or one row of it."""
    shape, at = source.tensors[name].shape, () if row is None else (row,)
    return place(shape[len(at) :], sharding, lambda index: ordered(np.asarray(source.read(name)[(*at, *index)]), dtype))


def load(
    directory: str | os.PathLike,
    expected: Shapes | Callable[[ExperimentConfig], Shapes] | None = None,
    *,
    dtype: str | None = None,
    shardings: Any = None,
    each: Callable[[str, Any], dict[str, Any]] | None = None,
    apart: str = "",
) -> Shipped:
    """Reads a folder that `export` wrote: (config, state as nested dicts of arrays, path of tokenizer.json, calibration or None).

    expected: name -> shape of every tensor the model has, or a function that makes it from the config that was read; None takes the file
    as it is. dtype: floating tensors are turned into it; None keeps what is stored. shardings: None gives NumPy arrays; a jax sharding, nested dicts
    of them like the state, or a function that makes either from the config, gives jax arrays, whose parts go from the mapped file to their devices
    one at a time. each: for a leaf's path and the leaf, as it comes, the leaves that take its place. apart: a path under which leaves come apart by their
    leading axis (`paths.slices`), each placed by itself; with one sharding for all. Raises UserError: folder or file missing, not readable, or tensors that do
    not match (all of them listed).
    """
    directory = Path(directory)
    config, source = load_config(directory), open_weights(directory)
    if expected is not None:
        found = {name: info.shape for name, info in source.tensors.items()}
        wrong = mismatches(found, expected(config) if callable(expected) else expected)
        if wrong:
            raise UserError(f"{directory / WEIGHTS}: {len(wrong)} tensors do not match {CONFIG}: {'; '.join(wrong)}")
    wanted = {name: DTYPES[dtype] if dtype is not None and is_float(info.dtype) else info.dtype for name, info in source.tensors.items()}
    where = None if shardings is None else sharding_of(shardings(config) if callable(shardings) else shardings)
    tensors = {}
    for name, kind in wanted.items():
        for path, row in paths.slices(name, source.tensors[name].shape, apart):
            if where is None:
                leaf = (source.read(name) if row is None else source.read(name)[row]).astype(kind)
            else:
                leaf = placed(source, name, kind, where(path), row)
            tensors |= {path: leaf} if each is None else each(path, leaf)
    calibration = _read_json(directory / CALIBRATION) if (directory / CALIBRATION).is_file() else None
    return Shipped(config, paths.unflatten(tensors), directory / TOKENIZER, calibration)

