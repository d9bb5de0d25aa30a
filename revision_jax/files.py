"""Writing a result file at once or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from revision_jax.errors import UserError


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Writes `data` beside `path`, then renames: a reader, a Ctrl-C or a full disk never meets half a file.

    Makes the folder when it is missing. Raises UserError that names the path when it cannot be written.
    """
    path = Path(path)
    building = path.parent / f".{path.name}.{os.getpid()}.new"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            building.write_bytes(data)
            building.replace(path)
        finally:
            building.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from error
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode("utf-8"))
