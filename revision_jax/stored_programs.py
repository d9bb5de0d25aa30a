"""Programs that are traced once for all processes: beside jax's cache of compiled code lies what was compiled.

That cache alone does not make a process start fast: it is found by the lowered program, so every process traces and lowers all of them again. Here a
program is exported (`jax.export`: StableHLO) when it is first traced, and later processes read it:

    FOLDER/*-cache                 compiled code, jax's own (`jax_compilation_cache_dir`)
    FOLDER/programs/KEY.stored     a digest, and the exported program

KEY is a hash of all that a program is made of: its name, the arguments' shapes and dtypes, what it closes over (`identity`), the source of this package,
versions, settings, platform. So what is found is never stale. Weights are arguments: one program serves all weights of a config. A file that is cut,
damaged or another one's is ignored and made anew; it is written whole or not at all, and two processes at once write the same. Nothing is unpickled.
Compiled code is trusted, as jax trusts it: the folder must be the user's own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from revision_jax.errors import UserError
from revision_jax.files import write_bytes

SUFFIX = ".stored"
LIMIT = 2**28  # bytes of exported programs; what was not used for longest goes first
DIGEST = 32  # bytes
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion", "jax_default_prng_impl", "jax_threefry_partitionable")
# Calls of cuDNN that `models/attention.py` makes. jax promises nothing about them for programs that outlive its version; these do not.
ALLOWED = tuple(map(jax.export.DisabledSafetyCheck.custom_call, ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")))


def use_compile_cache(folder: Path) -> None:
    """Keeps compiled code and exported programs on disk, so that a new process does not make them again. Leaves a cache that is configured already alone."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def program_folder() -> Path | None:
    """Where exported programs lie; None where jax keeps no compiled code, or not in a folder of this machine."""
    cache = jax.config.jax_compilation_cache_dir
    return None if not cache or "://" in cache else Path(cache) / "programs"


class StoredProgram:
    """A function of arrays, compiled once for each signature of its arguments, and for all processes where there is a compile cache.

    Called like `jax.jit(function)`. `count`: signatures that were made ready; `traced`: those of them that no earlier process had stored.
    """

    def __init__(self, function: Callable, name: str, identity: str):
        """identity: tells apart what the function closes over: the config, tables, the tokenizer behind them. Two that differ must not share it."""
        self.function, self.name, self.identity = function, name, identity
        self.traced = 0
        self._ready: dict[Hashable, Callable] = {}

    @property
    def count(self) -> int:
        return len(self._ready)

    def __call__(self, *args: Any) -> Any:
        return self.prepare(*args)(*args)

    def prepare(self, *args: Any) -> Callable:
        """The compiled program for arguments of these shapes and dtypes: arrays, or `jax.ShapeDtypeStruct` in their place."""
        leaves, tree = jax.tree.flatten(args)
        signature = (tree, tuple((np.shape(leaf), leaf.dtype) for leaf in leaves))
        if signature not in self._ready:
            self._ready[signature] = self._made(args, leaves)
        return self._ready[signature]

    def _made(self, args: tuple, leaves: list) -> Callable:
        if _elsewhere(leaves):  # on several devices, or on another than the first: an exported program knows nothing of that
            self.traced += 1
            return jax.jit(self.function)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), args)
        folder = program_folder()
        if folder is None:
            self.traced += 1
            return jax.jit(self.function).lower(*shapes).compile()
        leaves, tree = jax.tree.flatten(shapes)
        settings = [(name, str(getattr(jax.config, name, None))) for name in SETTINGS]
        file = _file(folder, self.name, self.identity, str(tree), [(x.shape, str(x.dtype)) for x in leaves], settings, jax.default_backend())
        exported = _exported(file)
        if exported is None:
            self.traced += 1
            exported = jax.export.export(jax.jit(self.function), disabled_checks=ALLOWED)(*shapes)
            _write(file, bytes(exported.serialize()))

        def call(*args: Any) -> Any:
            return exported.call(*args)

        call.__name__ = re.sub(r"\W", "_", self.name)  # in profiles and in the compile cache
        return jax.jit(call).lower(*shapes).compile()


def stored_json(name: str, identity: str, make: Callable[[], Any]) -> Any:
    """`make()`, a JSON value that takes a while to find out and depends on `identity` and the package's source alone; read where it was stored before."""
    folder = program_folder()
    if folder is None:
        return make()
    file = _file(folder, name, identity)
    data = _read(file)
    if data is None:
        data = json.dumps(make()).encode()
        _write(file, data)
    return json.loads(data)


def _exported(file: Path) -> jax.export.Exported | None:
    data = _read(file)
    try:
        return None if data is None else jax.export.deserialize(bytearray(data))
    except ValueError:
        return None


def _elsewhere(leaves: list) -> bool:
    home = {jax.local_devices()[0]}
    return any(isinstance(leaf, jax.Array) and leaf.devices() != home for leaf in leaves)


def versions() -> tuple[str, ...]:
    """Of jax, jaxlib and flax."""
    return tuple(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax"))


@functools.cache
def source_digest() -> str:
    """A hash of this package's source: whatever changes in it, nothing made by the old code is read."""
    digest, root = hashlib.blake2b(digest_size=20), Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------------- files


def _file(folder: Path, *parts: Any) -> Path:
    key = hashlib.blake2b(repr((*parts, versions(), source_digest())).encode(), digest_size=20).hexdigest()
    return folder / f"{key}{SUFFIX}"


def _read(file: Path) -> bytes | None:
    """What `_write` stored, or None where it is not there or not whole."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if data[:DIGEST] != _digest(file, data[DIGEST:]):
        return None
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(file)  # used just now
    return data[DIGEST:]


def _write(file: Path, data: bytes) -> None:
    """Stores something, and drops other things where the limit asks for it. A folder that cannot be written costs the next process its time, and no more."""
    with contextlib.suppress(UserError, OSError):
        write_bytes(file, _digest(file, data) + data)
        _drop(file.parent)


def _digest(file: Path, data: bytes) -> bytes:
    return hashlib.blake2b(file.name.encode() + b"\0" + data, digest_size=DIGEST).digest()


def _drop(folder: Path) -> None:
    """Removes what was not used for longest until the rest is within the limit. Another process may remove the same."""
    found = sorted(_sizes(folder), reverse=True)
    total = 0
    for _, size, file in found:
        total += size
        if total > LIMIT:
            file.unlink(missing_ok=True)


def _sizes(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """(time of last use, bytes, file) of all that is stored."""
    for file in folder.glob(f"*{SUFFIX}"):
        try:
            status = file.stat()
        except OSError:
            continue
        yield status.st_mtime_ns, status.st_size, file
