"""Asking every question of a set of videos, and keeping the answers so that a run that was stopped goes on where it was.

The answers of a video are one file of JSON lines, written whole when the video is done. They lie in a folder named by all that they depend on
(weights, config, calibration, method and its settings), so answers of another model are never taken for these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from revision_jax.evaluation import moments, retrieval
from revision_jax.evaluation.baselines import Decision, Method
from revision_jax.evaluation.datasets import Item
from revision_jax.evaluation.outcome import WINDOW_RANKS, Outcome
from revision_jax.files import write_text
from revision_jax.grounding.answer import answer
from revision_jax.grounding.found import Found
from revision_jax.grounding.grounder import EncodedVideo, Grounder
from revision_jax.grounding.levels import WINDOW_KINDS

VERSION = 4  # of what is kept
Spans = tuple[tuple[float, float], ...]  # seconds
Progress = Callable[[int, int, str], None]  # videos done, of, what is being done
Opened = Callable[[Grounder, Item], EncodedVideo]


def identity(checkpoint: str | Path, method: Method, top_k: int, given: Sequence[str] = ()) -> str:
    """Name of the folder of answers: the method and a hash of the checkpoint's files, the method's settings, what is kept, and what was `given` in place of
    videos and text tower."""
    asked = [VERSION, method.name, method.settings(), top_k, *given]
    digest = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=8)
    for name in ("config.json", "model.safetensors", "tokenizer.json", *(("calibration.json",) if method.name in ("model", "flat") else ())):
        path = Path(checkpoint) / name
        digest.update(name.encode())
        if path.is_file():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return f"{method.name}-{digest.hexdigest()}"


def run(
    grounder: Grounder, method: Method, items: Sequence[Item], answers: Path, *, top_k: int = 5, oracle: bool | None = None, progress: Progress | None = None,
    opened: Opened | None = None,
) -> list[Outcome]:
    """Every question of every video, in order. `answers`: the folder of `identity`; videos whose answers lie there are not asked again.

    oracle: also ask the frame level about the right windows (default: for the model only). opened: makes an item's features, in place of `video_of`. Raises
    UserError for a video or question that cannot be used.
    """
    oracle = method.name == "model" if oracle is None else oracle
    outcomes: list[Outcome] = []
    for done, item in enumerate(items):
        path = answers / f"{item.name.replace('/', '__')}.jsonl"
        kept = _read(path, item)
        if kept is None:
            if progress is not None:
                progress(done, len(items), f"encoding {item.name}")
            video = (opened or video_of)(grounder, item)
            if progress is not None:
                progress(done, len(items), f"asking {item.name}")
            kept = ask(grounder, method, item, video, top_k, oracle)
            write_text(path, "".join(json.dumps(outcome.to_json()) + "\n" for outcome in kept))
        outcomes += kept
        if progress is not None:
            progress(done + 1, len(items), item.name)
    return outcomes


def video_of(grounder: Grounder, item: Item) -> EncodedVideo:
    """The item's video, encoded; or its features, where there are these alone."""
    return grounder.open_features(item.video, item.duration_s) if item.features else grounder.encode(item.video)


def _read(path: Path, item: Item) -> list[Outcome] | None:
    """The kept answers, if they are to exactly these questions with this truth."""
    try:
        outcomes = [Outcome.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    asked = [(item.name, q.query_id, q.query, q.kind, q.truth, q.tags) for q in item.questions]
    return outcomes if [(o.video, o.query_id, o.query, o.kind, o.truth, o.tags) for o in outcomes] == asked else None


TOGETHER = 64  # questions of a video that are searched at once: each holds a token of every window (a film of MAD has hundreds of both)


def ask(grounder: Grounder, method: Method, item: Item, video: EncodedVideo, top_k: int, oracle: bool) -> list[Outcome]:
    """All questions of one video, TOGETHER at a time."""
    outcomes: list[Outcome] = []
    for first in range(0, len(item.questions), TOGETHER):
        part = replace(item, questions=item.questions[first : first + TOGETHER])
        found = method.search(grounder, video, [q.query for q in part.questions], top_k)
        given = oracle_ious(grounder, part, video) if oracle else [None] * len(found)
        outcomes += [outcome(part, n, one, method.decision, video.duration_s, iou) for n, (one, iou) in enumerate(zip(found, given, strict=True))]
    return outcomes


def outcome(item: Item, number: int, found: Found, decision: Decision, duration_s: float, oracle_iou: float | None = None) -> Outcome:
    """A search's result as what the metrics read; decided and rounded by the code that answers users."""
    question, said = item.questions[number], answer(found, decision.threshold, duration_s, further=decision.further)
    survivors, share, windows = _survivors(found)
    return Outcome(
        video=item.name, query_id=question.query_id, query=question.query, kind=question.kind, duration_s=float(duration_s), truth=question.truth,
        tags=question.tags,
        moments=tuple((m.start_s, m.end_s, m.confidence, m.accepted) for m in said.moments), parse_failures=found.parse_failures,
        survivors=survivors, survivors_share=share, windows=windows, oracle_iou=oracle_iou, seconds=float(sum(found.seconds.values())),
        prompts=float(sum(trace.prompts for trace in found.levels)), tokens=float(sum(trace.tokens for trace in found.levels)),
    )  # fmt: skip


def _survivors(found: Found) -> tuple[Spans | None, float | None, Spans | None]:
    """Seconds that the first level hands on, its share of windows, and its best windows; None where the first level answers itself."""
    if not found.levels or found.levels[0].level.kind not in WINDOW_KINDS:
        return None, None, None
    first = found.levels[0]
    best = sorted(first.windows, key=lambda ranked: (-ranked.score, ranked.window))[: max(WINDOW_RANKS)]
    windows = tuple((float(one.window.start_s), float(one.window.end_s)) for one in best)
    return tuple((float(s), float(e)) for s, e in first.survivors), len(first.kept) / max(first.count, 1), windows


def oracle_ious(grounder: Grounder, item: Item, video: EncodedVideo) -> list[float | None]:
    """Localisation without search: for each question the mean over its true moments of the frame level's best span's IoU, when it is
    given the window of its own grid that is nearest to the moment. None for absent questions."""
    level = next((level for level in grounder.config.grounding.levels if level.kind == "dense" and not level.baseline), None)
    rows = [(number, moment) for number, q in enumerate(item.questions) for moment in q.truth]
    if level is None or not rows:
        return [None] * len(item.questions)
    windows = [[retrieval.oracle_window(moment, level.span_s, level.stride_s, video.duration_s)] for _, moment in rows]
    found = grounder.searcher.localise(video.source, [item.questions[number].query for number, _ in rows], windows)
    ious: dict[int, list[float]] = {}
    for (number, moment), one in zip(rows, found, strict=True):
        ious.setdefault(number, []).append(moments.top_iou([(m.start_s, m.end_s) for m in one.moments], [moment]))
    return [float(np.mean(ious[number])) if number in ious else None for number in range(len(item.questions))]


def about(checkpoint: str | Path, method: Method, dataset: str, split: str, items: Sequence[Item], top_k: int) -> dict[str, Any]:
    """The "run" part of a report. The checkpoint goes by its folder's name: a result file says nothing about the machine's folders."""
    return {
        "method": method.name, "settings": method.settings(), "checkpoint": Path(checkpoint).resolve().name, "dataset": dataset, "split": split,
        "videos": len(items), "hours": round(sum(item.duration_s for item in items) / 3600, 3), "top_k": top_k,
    }  # fmt: skip
