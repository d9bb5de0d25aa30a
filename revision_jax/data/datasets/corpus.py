"""A grounding dataset and a folder of feature stores as the curriculum's films: each video with its store and all of its questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from revision_jax.config import ExperimentConfig
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import TrainVideo
from revision_jax.data.datasets.schema import Example
from revision_jax.data.features import FeatureStore, store_path
from revision_jax.errors import UserError

SHORT_S = 2.0  # features may end this much before the video does: durations are rounded, and the last tick is often not a whole one
TOLD = 5
BEHIND = "moments behind the end of the features"


def store_of(folder: Path, video_id: str, kind: str = "features") -> Path | None:
    """A video's feature store; None if it has none, or an id that no file can have."""
    try:
        path = store_path(folder, video_id, kind)
    except UserError:
        return None
    return path if path.is_file() else None


def train_videos(
    config: ExperimentConfig, examples: Iterable[Example], stores: str | Path, on_error: Literal["raise", "skip"] = "raise", encoder: str | None = None
) -> tuple[list[TrainVideo], dict[str, int]]:
    """The videos of a split in the order of their first question, and how many were used and left out, by reason.

    stores: folder of feature stores at `grounding.rate`, and beside them at the patch level's rate where there are such. encoder: what must have made them
    (None: anything). Raises UserError that lists the videos whose features are missing, too short, damaged, of another encoder, or of another rate or width
    than the config's; "skip" leaves these videos out. A moment that begins where the features have ended already (by less than SHORT_S) is listed too, or
    left out: nothing of it can be shown.
    """
    stores = Path(stores)
    if not stores.is_dir():
        raise UserError(f"{stores}: no such folder; it must hold a feature store for each video")
    asked: dict[str, list[Example]] = {}
    for example in examples:
        asked.setdefault(example.video_id, []).append(example)
    videos: list[TrainVideo] = []
    problems: list[str] = []
    counts: Counter = Counter()
    for video, questions in asked.items():
        path = store_of(stores, video)
        seconds = 0.0
        reason, what = "missing features", f"{video} has none"
        if path is not None:
            reason, what, seconds = _unfit(config, path, questions[0].duration_s, encoder)
        if reason:
            counts[reason] += 1
            problems.append(what)
            continue
        counts["used"] += 1
        listed = []
        for question in questions:
            shown = tuple(moment for moment in question.spans if moment[0] < seconds)
            if len(shown) < len(question.spans):
                counts[BEHIND] += len(question.spans) - len(shown)
                problems.append(f"{video}: {question.query[:40]!r} happens after the end of its features at {seconds:.1f} s")
            if shown or not question.spans:
                listed.append(TrainQuestion(question.query, shown, question.kind))
        videos.append(TrainVideo(video, questions[0].duration_s, path, store_of(stores, video, "patches"), tuple(listed)))
    if problems and (on_error == "raise" or not videos):
        more = f"; and {len(problems) - TOLD} more" if len(problems) > TOLD else ""
        bad = len(asked) - counts["used"]
        what = f"{bad} of {len(asked)} videos without usable features" if bad else f"{len(problems)} questions about what the features do not show"
        raise UserError(f"{stores}: {what}: {'; '.join(problems[:TOLD])}{more}")
    return videos, dict(sorted(counts.items()))


def _unfit(config: ExperimentConfig, path: Path, duration_s: float, encoder: str | None) -> tuple[str, str, float]:
    """Why a store can't be trained on: (reason, what to say, seconds that it covers), the first two empty if it can."""
    try:
        store = FeatureStore(path)
    except UserError as error:
        return "damaged features", str(error), 0.0
    header, seconds = store.header, store.frames / store.header.rate
    store.close()
    width = header.arrays.get("frame", ((0,), ""))[0][-1]
    if encoder is not None and header.encoder != encoder:
        return "other encoder", f"{path.name} was made by {header.encoder!r}, wanted is {encoder!r} (data.encoder, or this model's own)", seconds
    if header.rate != config.grounding.rate:
        return "other rate", f"{path.name} has {header.rate:g} frames a second, the config's grounding.rate is {config.grounding.rate:g}", seconds
    if width != config.vision.output:
        return "other width", f"{path.name} has frame vectors of width {width}, the config's are {config.vision.output}", seconds
    if seconds < duration_s - SHORT_S:
        return "short features", f"{path.name} ends at {seconds:.1f} s of {duration_s:.1f} s", seconds
    return "", "", seconds
