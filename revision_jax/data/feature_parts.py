"""A feature store in the making that outlives the process making it: finished parts stay on disk, and the next process goes on behind them.

Beside STORE lies the folder `.STORE.parts` with one small feature store for each PART_FRAMES frames, `000000`, `000001`, ..., the last one named
`000012.last` and carrying the video's warnings. Each appears whole or not at all, so after a SIGKILL, or a power cut, whatever is there can be
believed. At the end the parts are copied into one store, whose bytes are those that a `FeatureWriter` would have written in one go, and the folder
goes. Whoever calls sees to it that one process at a time works on a store (`claims.claim`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, FeatureStore, StoreError
from revision_jax.errors import UserError

PART_FRAMES = 256
LAST = ".last"
DAMAGED = "damaged"  # the warning of a part during which the video turned out to be damaged
COPIED = 64  # frames that are joined at a time


class ResumableWriter:
    """A `FeatureWriter` that begins with what an earlier one left. `append` the frames from number `frames` on, unless `complete`; then `close`.

    Leaving it on an exception keeps the finished parts. Parts of another video, encoder, rate or shape are thrown away. `damaged`: whether the video has
    shown damage before frame `frames` (whoever reads it sets this): then it has to be read from its beginning, for the pictures that come behind
    damage depend on where reading began. Memory is one block. Raises StoreError as `FeatureWriter` does.
    """

    def __init__(self, path: str | Path, header: FeatureHeader, part_frames: int = PART_FRAMES):
        self.path, self.header, self.part_frames = Path(path), header, part_frames
        self.folder = parts_folder(path)
        self.complete = self.damaged = False
        self._parts: list[Path] = []
        self._current: FeatureWriter | None = None
        self._collect()

    @property
    def frames(self) -> int:
        """Frames that are there: of finished parts, and of the part that is being written."""
        return self._kept + (self._current.frames if self._current is not None else 0)

    def append(self, times: Float64[np.ndarray, "n"], arrays: Mapping[str, Shaped[np.ndarray, "n ..."]]) -> None:
        """Adds n frames, as `FeatureWriter.append` does."""
        while len(times):
            if self._current is not None and self._current.frames == self.part_frames:
                self._finish_part("", (DAMAGED,) if self.damaged else ())  # not before there is a frame behind it: it might have been the last
            if self._current is None:
                self._current = FeatureWriter(self._name(""), self.header)
            count = self.part_frames - self._current.frames
            self._current.append(times[:count], {name: array[:count] for name, array in arrays.items()})
            times, arrays = times[count:], {name: array[count:] for name, array in arrays.items()}

    def close(self, warnings: Iterable[str] = ()) -> None:
        """Finishes the last part, joins all of them into the store and removes them."""
        if not self.complete:
            self._current = self._current or FeatureWriter(self._name(""), self.header)
            self._finish_part(LAST, tuple(warnings))
            self.complete = True
        with FeatureWriter(self.path, self.header) as writer:
            for path in self._parts:
                warnings = self._copy(path, writer)
            writer.close(warnings=warnings)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> ResumableWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._current is not None:
            self._current.abort()

    @staticmethod
    def _copy(path: Path, writer: FeatureWriter) -> tuple[str, ...]:
        """Appends a part to the store; returns its warnings."""
        with contextlib.closing(FeatureStore(path)) as part:
            for start in range(0, part.frames, COPIED):
                try:
                    times, arrays = part.read_frames(start, start + COPIED)
                except UserError:
                    path.unlink(missing_ok=True)  # so that the next call makes it again
                    raise UserError(f"{path}: the disk gives back other bytes than were written; the part was removed, call again") from None
                writer.append(times, arrays)
            return part.header.warnings

    def _name(self, ending: str) -> Path:
        return self.folder / f"{len(self._parts):06d}{ending}"

    def _finish_part(self, ending: str, warnings: tuple[str, ...]) -> None:
        writer, self._current = self._current, None
        count = writer.frames
        writer.path = self._name(ending)
        writer.close(warnings=warnings)
        self._parts.append(writer.path)
        self._kept += count

    def _collect(self) -> None:
        """Takes the unbroken run of parts that fit; removes all else, such as what a killed process had half written."""
        self._kept = 0
        for left in self.path.parent.glob(f".{self.path.name}.*.partial"):
            left.unlink(missing_ok=True)
        while not self.complete and (part := self._usable()) is not None:
            self.complete = part.path.name.endswith(LAST)
            self.damaged = part.header.warnings == (DAMAGED,) and not self.complete
            self._kept += part.frames
            self._parts.append(part.path)
            part.close()
        try:
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                if path not in self._parts:
                    path.unlink()
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be cleared ({error.strerror})") from None

    def _usable(self) -> FeatureStore | None:
        for path in (self._name(""), self._name(LAST)):
            with contextlib.suppress(UserError):  # missing or broken: made again
                part = FeatureStore(path)
                full = part.frames == self.part_frames or (path.name.endswith(LAST) and part.frames < self.part_frames)
                if full and dataclasses.replace(part.header, warnings=()) == dataclasses.replace(self.header, warnings=()):
                    return part
                part.close()
        return None


def parts_folder(path: str | Path) -> Path:
    """Where the parts of a store in the making lie."""
    return Path(path).with_name(f".{Path(path).name}.parts")


def remove_parts(path: str | Path) -> None:
    """Removes what a writer of this store left that was killed after the store had got its name."""
    shutil.rmtree(parts_folder(path), ignore_errors=True)
