"""How long every conversation of a dataset is, found out once and kept beside it: what packing is planned from.

    <dataset>/lengths/<identity>/part-00003.npz     512 conversations; a killed run goes on with the parts that are missing
    <dataset>/lengths/<identity>/lengths.npz        all of them, once every part is there
    <dataset>/lengths/<identity>/problems.json      number of a conversation -> why it cannot be used

Each conversation is prepared just as training prepares it, pictures decoded and pruned, and only its numbers are kept. So lengths are exact, and what
cannot be read is known before a run begins. The identity is a hash of the dataset (its sources and rules), the tokenizer and all else that decides lengths;
with another one they are measured anew.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from revision_jax.data.conversation import ConversationReader, runs
from revision_jax.data.datasets.build import Built, read
from revision_jax.data.datasets.conversations import Conversation
from revision_jax.errors import UserError
from revision_jax.files import write_bytes, write_text

VERSION = 1
PART = 512
SPLIT = "train"
WHOLE, PROBLEMS = "lengths.npz", "problems.json"

Report = Callable[[str, int, int], None]  # (what is being done, conversations done, conversations in all)


@dataclass(frozen=True)
class Lengths:
    """Of each conversation: tokens (0: it cannot be used), visual tokens and learnt tokens among them, and the encoder's pictures as runs of equal ones."""

    tokens: Int[np.ndarray, " n"]
    visual: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " n+1"]  # conversation i has the runs first[i] : first[i + 1]
    pictures: Int[np.ndarray, " r"]  # of each run
    patches: Int[np.ndarray, " r"]  # of each picture of the run

    def __len__(self) -> int:
        return len(self.tokens)

    def runs(self, index: int | np.integer) -> list[tuple[int, int]]:
        at = slice(self.first[index], self.first[index + 1])
        return list(zip(self.pictures[at].tolist(), self.patches[at].tolist(), strict=True))


FIELDS = tuple(field.name for field in dataclasses.fields(Lengths))


def joined(parts: list[Lengths]) -> Lengths:
    """Datasets (or parts of one) behind each other."""
    ends = np.concatenate([[0], np.cumsum([len(part.pictures) for part in parts])])
    first = np.concatenate([*(part.first[:-1] + end for part, end in zip(parts, ends, strict=False)), ends[-1:]]).astype(np.int64)
    rest = {name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS if name != "first"}
    return Lengths(first=first, **rest)


def measured(samples: list[tuple[int, int, int, list[tuple[int, int]]]]) -> Lengths:
    """From (tokens, visual, labels, runs) of each conversation."""
    first = np.concatenate([[0], np.cumsum([len(own) for *_, own in samples])]).astype(np.int64)
    flat = [run for *_, own in samples for run in own]
    column = lambda rows, at: np.array([row[at] for row in rows], np.int32)
    return Lengths(*(column(samples, at) for at in range(3)), first, column(flat, 0), column(flat, 1))


# ------------------------------------------------------------------------------------------------------------------------ identity


def identity(built: Built, reader: ConversationReader) -> str:
    """A hash of all that decides the lengths but the media themselves."""
    vision = {name: getattr(reader.vision, name) for name in ("patch", "std")}
    pruner = None if reader.pruner is None else dataclasses.asdict(reader.pruner)
    about = (VERSION, built.metadata, dataclasses.asdict(reader.rules), pruner, vision, reader.stream_ends, reader.tokenizer.text())
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=10).hexdigest()


def folder(built: Built, reader: ConversationReader) -> Path:
    return built.path / "lengths" / identity(built, reader)


# -------------------------------------------------------------------------------------------------------------------------- making


def measure(reader: ConversationReader, conversation: Conversation, before_encoder: bool) -> tuple[int, int, int, list[tuple[int, int]]]:
    """(tokens, visual tokens, learnt tokens, runs) of a conversation. Raises UserError where it cannot be used."""
    sample = reader.read(conversation)
    own = [run for shot in sample.shots for run in runs(shot, reader.vision.patch, before_encoder)]
    return len(sample.ids), int(sample.places.sum()), int(sample.learnt.sum()), own


def _part(built: Built, reader: ConversationReader, before_encoder: bool, part: int) -> tuple[int, Lengths, dict[str, str]]:
    """Worker: the lengths of one part."""
    source = read(built, SPLIT)
    found, problems = [], {}
    for index in range(part * PART, min((part + 1) * PART, len(source))):
        try:
            found.append(measure(reader, Conversation.of(source[index]), before_encoder))
        except UserError as error:
            found.append((0, 0, 0, []))
            problems[str(index)] = str(error)
    return part, measured(found), problems


def make(
    built: Built, reader: ConversationReader, before_encoder: bool = False, *, workers: int = 0, share: tuple[int, int] = (0, 1), report: Report | None = None
) -> None:
    """Measures the parts that are missing, of which this process takes every n-th (`share` = (i, n)), and writes them.

    workers: processes to measure in, 0 = threads. Raises UserError where the dataset's folder cannot be written.
    """
    where, total = folder(built, reader), len(read(built, SPLIT))
    parts = [part for part in range(-(-total // PART)) if part % share[1] == share[0] and not (where / _name(part)).is_file()]
    if not parts or (where / WHOLE).is_file():
        return
    name = built.path.parents[2].name
    with _executor(workers) as pool:
        waiting = [pool.submit(_part, built, reader, before_encoder, part) for part in parts]
        try:
            for done, future in enumerate(concurrent.futures.as_completed(waiting), start=1):
                part, lengths, problems = future.result()
                write_bytes(where / _name(part), _packed(lengths, problems))
                if report is not None:
                    report(f"measuring the conversations of {name}", min(done * PART, total), min(len(parts) * PART, total))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _executor(workers: int) -> concurrent.futures.Executor:
    if workers > 0:
        return concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1)


def _name(part: int) -> str:
    return f"part-{part:05d}.npz"


def _packed(lengths: Lengths, problems: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, problems=np.array(json.dumps(problems)), **vars(lengths))
    return buffer.getvalue()


def _unpacked(path: Path) -> tuple[Lengths, dict[str, str]]:
    try:
        with np.load(path) as file:
            return Lengths(*(file[name] for name in FIELDS)), json.loads(str(file["problems"]))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not readable as lengths ({error}); delete it, it is made again") from error


def finish(built: Built, reader: ConversationReader) -> None:
    """Joins the parts, once all are there; one process does it."""
    where, total = folder(built, reader), len(read(built, SPLIT))
    if (where / WHOLE).is_file():
        return
    paths = [where / _name(part) for part in range(-(-total // PART))]
    parts = [_unpacked(path) for path in paths]
    problems = {key: why for _, some in parts for key, why in some.items()}
    write_text(where / PROBLEMS, json.dumps(problems, indent=1, ensure_ascii=False) + "\n")
    write_bytes(where / WHOLE, _packed(joined([part for part, _ in parts]), problems))
    for path in paths:
        path.unlink()


def load(built: Built, reader: ConversationReader) -> tuple[Lengths, dict[str, str]]:
    """(lengths of the dataset's conversations, number -> why it cannot be used). Raises UserError where there are none."""
    path = folder(built, reader) / WHOLE
    if not path.is_file():
        raise UserError(f"{path}: there are no lengths for this tokenizer and these rules yet")
    return _unpacked(path)


def of(built: Built, reader: ConversationReader, before_encoder: bool = False, **options: Any) -> tuple[Lengths, dict[str, str]]:
    """`make`, `finish` and `load` for one process alone."""
    make(built, reader, before_encoder, **options)
    finish(built, reader)
    return load(built, reader)

