"""The owners' files: found in the folder a person filled, in it or in an archive there, and read line by line or as JSON.

Archives are read in place, nothing of them is extracted; one that holds a path which climbs out of its folder, or a link, is refused as a whole: whoever
made it wanted it extracted somewhere else. Text is UTF-8 (a byte order mark is allowed).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from revision_jax.data.datasets.schema import Annotation, Problem
from revision_jax.errors import UserError

Row = Annotation | Problem
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Wanted:
    """A file of the owners. It may have several names, or lie in an archive; `splits` need it (all, if empty)."""

    role: str
    names: tuple[str, ...]
    archives: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def __str__(self) -> str:
        inside = f" (or {', '.join(self.archives)} with it)" if self.archives else ""
        return " or ".join(self.names) + inside


@dataclass(frozen=True)
class OwnersFile:
    path: Path
    member: str | None = None  # of an archive

    @property
    def name(self) -> str:
        """For messages and for the record of what was read: without the folder's path, which differs from machine to machine."""
        return self.path.name if self.member is None else f"{self.path.name}:{self.member}"

    def open(self) -> io.BufferedIOBase:
        """Raises UserError where it cannot be opened."""
        try:
            if self.member is None:
                return open(self.path, "rb")
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive:
                    return io.BytesIO(archive.read(self.member))
            with tarfile.open(self.path) as archive:
                return io.BytesIO(archive.extractfile(self.member).read())
        except BROKEN as error:
            raise UserError(f"{self.path}: cannot be read ({error}); get the file again") from None

    def digest(self) -> str:
        """SHA-256 of its bytes."""
        with self.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def find(directory: Path, wanted: Wanted) -> OwnersFile | None:
    """Where a wanted file is: under one of its names in the directory or anywhere below, or else in one of its archives there. None if it is missing.

    Raises UserError where it is there twice, and for an archive that cannot be trusted or read.
    """
    for name in wanted.names:
        if (directory / name).is_file():
            return OwnersFile(directory / name)
        below = sorted(path for path in directory.rglob(name) if path.is_file())
        if len(below) > 1:
            places = ", ".join(str(path.relative_to(directory)) for path in below)
            raise UserError(f"{directory}: holds {name} more than once ({places}); leave one of them")
        if below:
            return OwnersFile(below[0])
    for archive in wanted.archives:
        for path in sorted(directory.rglob(archive)):
            for member in members(path):
                if PurePosixPath(member).name in wanted.names:
                    return OwnersFile(path, member)
    return None


def members(path: Path) -> list[str]:
    """Names of an archive's files (zip, or tar in any compression). Raises UserError for an archive with a path that climbs out of it, or a link."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found = [(info.filename, not info.is_dir(), _zip_link(info)) for info in archive.infolist()]
        else:
            with tarfile.open(path) as archive:
                found = [(info.name, info.isfile(), not (info.isfile() or info.isdir())) for info in archive]
    except BROKEN as error:
        raise UserError(f"{path}: is not an archive that can be read ({error}); get the file again") from None
    bad = sorted({name for name, _, link in found if link or climbs(name)})
    if bad:
        raise UserError(f"{path}: refused, it holds paths that lead out of it, or links: {', '.join(map(repr, bad[:5]))}{' ...' if len(bad) > 5 else ''}")
    return [name for name, file, _ in found if file]


def climbs(name: str) -> bool:
    """Whether a path leads out of the folder that it is relative to."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or bool(re.match(r"[A-Za-z]:", plain)) or ".." in plain.split("/") or "\0" in plain


def _zip_link(info: zipfile.ZipInfo) -> bool:
    return (info.external_attr >> 16) & 0o170000 == 0o120000


def lines(file: OwnersFile) -> Iterator[tuple[str, str | Problem]]:
    """("file:number", line without its end) of every line that is not blank; a Problem where one is not UTF-8."""
    with file.open() as stream:
        for number, raw in enumerate(stream, 1):
            where = f"{file.name}:{number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield where, Problem(where, "not_utf8", f"is not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1}); save the file as UTF-8")
                continue
            if text.strip():
                yield where, text.rstrip("\r\n")


def json_lines(file: OwnersFile) -> Iterator[tuple[str, Any]]:
    """("file:number", value) of a file with one JSON value a line; a Problem where a line is no JSON or names a field twice."""
    for where, line in lines(file):
        if isinstance(line, Problem):
            yield where, line
            continue
        twice: list[str] = []
        try:
            value = json.loads(line, object_pairs_hook=partial(_once, twice))
        except ValueError as error:
            value = Problem(where, "malformed", f"is not JSON ({error})")
        except RecursionError:
            value = Problem(where, "malformed", "is not JSON that can be read (nested too deeply)")
        yield where, Problem(where, "malformed", f"names {', '.join(twice)} twice") if twice else value


def json_value(file: OwnersFile) -> tuple[Any, list[Problem]]:
    """A file's JSON value, and a Problem for every name that occurs twice in one object (the first one counts).

    Raises UserError for a file that is no JSON or not UTF-8.
    """
    with file.open() as stream:
        raw = stream.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file.path}: {file.name}:{line} is not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from None
    twice: list[str] = []
    try:
        value = json.loads(text, object_pairs_hook=partial(_once, twice))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.path}: {file.name} is not JSON ({error})") from None
    return value, [Problem(file.name, "duplicate_id", f"{name!r} is there twice") for name in twice]


def _once(twice: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that keeps the first of two values of one name, and notes the name."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            twice.append(name)
        else:
            values[name] = value
    return values


def table(file: OwnersFile, *columns: str) -> Iterator[tuple[str, Any]]:
    """("file:number", {column: text}) of a comma-separated file with a header. Raises UserError where a column of `columns` is missing."""
    problems: list[tuple[str, Problem]] = []
    place = [file.name]  # of the line that was read last

    def texts() -> Iterator[str]:
        for where, line in lines(file):
            place[0] = where
            if isinstance(line, Problem):
                problems.append((where, line))
            else:
                yield f"{line}\n"

    reader = csv.DictReader(texts())
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{file.path}: {file.name} has no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ()) or 'none'}")
    try:
        for row in reader:
            complete = all(isinstance(row[name], str) for name in columns)
            yield place[0], row if complete else Problem(place[0], "malformed", f"has fewer columns than the header, which names {', '.join(columns)}")
    except csv.Error as error:
        raise UserError(f"{file.path}: {place[0]} is not comma-separated text ({error})") from None
    yield from problems


def each(rows: Iterable[tuple[str, Any]], read: Callable[[str, Any], Annotation | Iterable[Row]]) -> Iterator[Row]:
    """`read` of every row; what is not of the owners' layout becomes a Problem that names the field."""
    for where, row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        try:
            found = read(where, row)
            found = [found] if isinstance(found, (Annotation, Problem)) else list(found)
        except KeyError as error:
            found = [Problem(where, "malformed", f"has no field {error.args[0]!r}")]
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            found = [Problem(where, "malformed", f"is not of the owners' layout ({error})")]
        yield from found
