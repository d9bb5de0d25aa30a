"""Writing a result, a file or a folder, at once or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from revision_jax.errors import UserError


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file beside `path` to write; on leaving it takes the place of `path`: a reader, a Ctrl-C or a full disk never meets half a file.

    Makes the folder when it is missing. On any exception `path` is as it was. Raises UserError that names the path when it cannot be written.
    """
    path = Path(path)
    building = path.parent / f".{path.name}.{os.getpid()}.new"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(building, "wb") as file:
                yield file
            building.replace(path)
        finally:
            building.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from error


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Writes `data` by way of `new_file`."""
    with new_file(path) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode("utf-8"))


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> int:
    """Lines as UTF-8, written as they come, at once or not at all; returns their number."""
    count = 0
    with new_file(path) as file:
        for line in lines:
            file.write(line.encode("utf-8") + b"\n")
            count += 1
    return count


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder beside `path` to fill; on leaving it takes the place of `path`, and of what was there before, in one step. Whoever calls checks that
    what is there may go.

    On any exception the folder vanishes and `path` is as it was. Raises UserError that names the path when it cannot be written.
    """
    path = Path(path)
    building, replaced = (path.parent / f".{path.name}.{os.getpid()}.{word}" for word in ("new", "old"))
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        if path.exists():
            path.rename(replaced)
        building.rename(path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
