"""Turns features that others made into stores: `import_videos` into one store a video, `import_queries` into one store of all queries.

Each is checked while it streams through: a video that does not fit is refused as a whole, for a wrong example is worse than none. At the end, what did not
fit is an error that tells all of it, or was left out and counted, as the caller says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from revision_jax.data.feature_sources import ROWS, Broken, Rows, Source
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, FeatureStore, StoreError, matches, store_path
from revision_jax.data.prompts import clean_query
from revision_jax.data.text_features import TextFeatureWriter
from revision_jax.errors import UserError

OnBad = Literal["error", "skip"]
TOLD = 20  # reasons that an error spells out
CLIP_L14 = "clip-vit-large-patch14"  # what made MAD's and VidChapters' features, as ReVisionLLM distributes them
# What the token features and the sentence's vector of a query are called by those who distribute them, the first that is there.
TOKEN_NAMES = ("token_features", "last_hidden_state", "tokens", "features", "")
VECTOR_NAMES = ("cls_features", "pooler_output", "vectors")


class Misfit(Broken):
    """A checked entry that cannot be used. `kind` is what it is counted as."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass
class Imported:
    """What became of every entry."""

    written: int = 0
    kept: int = 0  # were there already, from the same encoder and at the same rate
    skipped: Counter[str] = field(default_factory=Counter)  # by kind
    reasons: list[str] = field(default_factory=list)  # one line for each that was skipped

    def skip(self, error: UserError) -> None:
        """Counts what cannot be used."""
        self.skipped[getattr(error, "kind", "unreadable")] += 1
        self.reasons.append(str(error))

    def check(self, on_bad: OnBad) -> None:
        """Raises UserError where something was skipped that must not be."""
        if self.reasons and on_bad == "error":
            more = f"; and {len(self.reasons) - TOLD} more" if len(self.reasons) > TOLD else ""
            raise UserError(f"{len(self.reasons)} entries cannot be imported: {'; '.join(self.reasons[:TOLD])}{more}")

    def __str__(self) -> str:
        skipped = "".join(f", {count} skipped: {kind}" for kind, count in sorted(self.skipped.items()))
        return f"{self.written} written, {self.kept} kept{skipped}"


def import_videos(
    source: Source, out: str | Path, *, encoder: str, rate: float, width: int, ids: Iterable[str] | None = None,
    durations: Mapping[str, float] | None = None, array: str | None = None, slack_s: float = 2.0, on_bad: OnBad = "error",
    progress: Callable[[str, int, int], None] | None = None,
) -> Imported:
    """Writes `out`/ID.features (`features.store_path`) for each video of `ids` (None: all that the source has), float16, one frame a tick of `rate`.

    encoder: what made the features, such as CLIP_L14; the store is refused by a model that wants another. width: D that the features must have.
    durations: seconds by id; features that end more than `slack_s` before it are too short, and such that reach beyond it by more than that and a twentieth
    were taken at another rate. Without it (or where an id is not in it) the features say how long the video is. array: the array's name, where a key has
    several. A store that is there and fits stays. progress(id, done, in all).

    What is missing, broken, not finite, of another width or length is left out and counted; on_bad="error" raises UserError for it when all else is
    written. Raises StoreError at once where nothing can be written.
    """
    result = Imported()
    ids = list(source.keys() if ids is None else ids)
    for done, video_id in enumerate(ids):
        if progress is not None:
            progress(video_id, done, len(ids))
        try:
            path = store_path(out, video_id)
            if _fits(path, f"id:{video_id}", encoder, rate):
                result.kept += 1
                continue
            with source.open(video_id) as arrays:
                where = f"{source.path}: {video_id!r}"
                rows = _choose(arrays, array, where)
                _import_video(path, video_id, rows, where, encoder, rate, width, (durations or {}).get(video_id), slack_s)
            result.written += 1
        except StoreError:
            raise
        except UserError as error:
            result.skip(error)
    result.check(on_bad)
    return result


def _import_video(
    path: Path, video_id: str, rows: Rows, where: str, encoder: str, rate: float, width: int, duration_s: float | None, slack_s: float
) -> None:
    if len(rows.shape) != 2 or rows.shape[1] != width or rows.dtype.kind != "f":
        raise Misfit("wrong shape", f"{where} is {rows.dtype} of shape {rows.shape}; wanted is floating numbers of shape (frames, {width})")
    if duration_s is not None and not 0 < duration_s < np.inf:
        raise Misfit("bad duration", f"{where}: a duration of {duration_s} s is none")
    covered = rows.shape[0] / rate
    if rows.shape[0] == 0:
        raise Misfit("too short", f"{where} holds no frame")
    if duration_s is not None and covered < duration_s - slack_s:
        raise Misfit("too short", f"{where} ends after {covered:g} s at {rate:g} frames a second; the video lasts {duration_s:g} s")
    if duration_s is not None and covered > duration_s * 1.05 + slack_s:
        raise Misfit("too long", f"{where} lasts {covered:g} s at {rate:g} frames a second, the video {duration_s:g} s; is the rate right?")
    header = FeatureHeader(f"id:{video_id}", encoder, rate, covered if duration_s is None else duration_s, {"frame": ((width,), "float16")})
    with FeatureWriter(path, header) as writer:
        for piece in rows.read(ROWS):
            with np.errstate(over="ignore"):
                frames = np.asarray(piece).astype(np.float16)
            _check_finite(frames, where, writer.frames, rate)
            writer.append(np.arange(writer.frames, writer.frames + len(frames)) / rate, {"frame": frames})


def import_queries(
    source: Source, out: str | Path, *, encoder: str, width: int, queries: Mapping[str, str] | None = None, max_tokens: int | None = None,
    tokens: str | None = None, vector: str | None = None, on_bad: OnBad = "error", progress: Callable[[str, int, int], None] | None = None,
) -> Imported:
    """Writes the query token features of a source into one `TextFeatureStore` at `out`: "tokens" [S D], and the sentence's "vectors" [1 E] if there.

    queries: {key of the source: text of the query}; None: the keys are the texts. They are found by their text as it is asked (`prompts.clean_query`); two keys
    with one text are stored once (the second counts as kept).
    width: D of a token. max_tokens: tokens beyond are cut off. tokens, vector: names of the arrays; by default the first of TOKEN_NAMES, and of VECTOR_NAMES
    where the first query has one. Raises as `import_videos` does; then no store is written.
    """
    result = Imported()
    keys = list(source.keys()) if queries is None else []
    wanted = dict(zip(keys, keys, strict=True)) if queries is None else queries
    writer: TextFeatureWriter | None = None
    try:
        for done, (key, text) in enumerate(wanted.items()):
            if progress is not None:
                progress(key, done, len(wanted))
            try:
                where = f"{source.path}: {key!r}"
                with source.open(key) as arrays:
                    if writer is None:
                        vector = vector or next((name for name in VECTOR_NAMES if name in arrays), None)
                        size = None if vector is None else _vector(arrays, vector, where).shape
                        shapes = {"tokens": (("S", width), "float16")} | ({} if vector is None else {"vectors": (size, "float16")})
                        writer = TextFeatureWriter(out, encoder, shapes)
                    values = _query(arrays, tokens, vector, where, width, max_tokens)
                    if vector is not None and values["vectors"].shape != writer.arrays["vectors"][0]:
                        raise Misfit("wrong shape", f"{where} has a vector of shape {values['vectors'].shape}, the others {writer.arrays['vectors'][0]}")
                added = writer.add(clean_query(text), values)
                result.written, result.kept = result.written + added, result.kept + (not added)
            except StoreError:
                raise
            except UserError as error:
                result.skip(error)
        result.check(on_bad)
        if writer is None:
            raise UserError(f"{source.path}: holds no query that can be used{': ' + result.reasons[0] if result.reasons else ''}")
        writer.close()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    return result


def _query(
    arrays: Mapping[str, Rows], tokens: str | None, vector: str | None, where: str, width: int, max_tokens: int | None
) -> dict[str, np.ndarray]:
    found = next((name for name in TOKEN_NAMES if name in arrays), None) if tokens is None else tokens
    rows = _choose(arrays, found, where)
    if len(rows.shape) != 2 or rows.shape[1] != width or rows.shape[0] == 0 or rows.dtype.kind != "f":
        raise Misfit("wrong shape", f"{where} is {rows.dtype} of shape {rows.shape}; wanted is floating numbers of shape (tokens, {width})")
    values = {"tokens": rows.all()[:max_tokens]}
    if vector is not None:
        values["vectors"] = _vector(arrays, vector, where)
    for name, value in values.items():
        with np.errstate(over="ignore"):
            values[name] = value.astype(np.float16)
        if not np.isfinite(values[name]).all():
            raise Misfit("not finite", f"{where}: its {name} hold NaN, infinity or a number beyond float16")
    return values


def _vector(arrays: Mapping[str, Rows], name: str, where: str) -> np.ndarray:
    """The sentence's vector as [1 E], stored as that or as [E]."""
    value = _choose(arrays, name, where).all()
    value = value[None] if value.ndim == 1 else value
    if value.ndim != 2 or len(value) != 1 or value.dtype.kind != "f":
        raise Misfit("wrong shape", f"{where}: {name} is {value.dtype} of shape {value.shape}, not one vector")
    return value


def _choose(arrays: Mapping[str, Rows], name: str | None, where: str) -> Rows:
    if name is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if name is None or name not in arrays:
        there = ", ".join(map(repr, arrays)) or "none"
        raise Misfit("array missing", f"{where} has the arrays {there}; " + ("say which one is wanted" if name is None else f"{name!r} is wanted"))
    return arrays[name]


def _check_finite(frames: np.ndarray, where: str, first: int, rate: float) -> None:
    finite = np.isfinite(frames).all(axis=1)
    if not finite.all():
        number = first + int(np.argmin(finite))
        raise Misfit("not finite", f"{where}: frame {number} ({number / rate:g} s) holds NaN, infinity or a number beyond float16")


def _fits(path: Path, video_hash: str, encoder: str, rate: float) -> bool:
    if not path.is_file():
        return False
    try:
        store = FeatureStore(path)
    except UserError:
        return False  # broken: made again
    store.close()
    return matches(store.header, video_hash, encoder, rate)
