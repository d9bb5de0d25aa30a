"""What was measured, kept line by line: a JSON object for each image, in the file of its block, on disk as soon as it is known.

A process that is killed loses what it was measuring and no more. A row is found by a key that holds all that it depends on (the image's content, say), so
thresholds may change and files may move, and nothing is measured twice. One process at a time works on a file (`claims.claim`).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from revision_jax.errors import UserError


class Journal:
    """Rows of one block by key. A last line that a kill cut off is removed; a line that the disk has spoilt counts as missing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: dict[str, dict[str, Any]] = {}
        try:
            raw = self.path.read_bytes() if self.path.exists() else b""
            whole = raw.rfind(b"\n") + 1
            if whole < len(raw):
                os.truncate(self.path, whole)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None
        for line in raw[:whole].splitlines():
            try:
                row = json.loads(line)
                self.rows[row.pop("key")] = row
            except (ValueError, KeyError, AttributeError, TypeError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def add(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Writes (key, row) pairs; they are on disk when this returns. Raises UserError where they cannot be written."""
        rows = list(rows)
        lines = "".join(json.dumps({"key": key, **row}, allow_nan=False) + "\n" for key, row in rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(lines.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: could not be written ({error.strerror or error}); what was there is kept") from None
        self.rows.update(rows)


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON: base64 of its little-endian bytes."""
    array = np.ascontiguousarray(array)
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": base64.b64encode(data).decode("ascii")}


def unpacked(value: dict[str, Any]) -> np.ndarray:
    """The inverse of `packed`."""
    return np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]).newbyteorder("<")).reshape(value["shape"])
