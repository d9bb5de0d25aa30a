"""One grounding example, whatever dataset it comes from: how it is checked, stored and read back. Times are seconds from the start of the video.

    video_id     the video's name, as its file and its feature store are called
    duration_s   its length
    query_id     unique within a split
    query        the sentence, after the rules' text normalisation
    moments      float32 [n, 2]: start and end, 0 <= start < end <= duration_s; n = 0: it does not happen
    kind         one | several | absent | near_miss
    category     the owners' label of the question, "" where they have none
    source_id    the longer recording that the video was cut from, "" where it is whole; offset_s: where in it the video begins
    split        train | validation | test

Durations and moments are both float32: rounding keeps their order, so what lies inside of the video still does when it is read back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from revision_jax.data.datasets.rules import Rules, normalise

KINDS = ("one", "several", "absent", "near_miss")
ABSENT_KINDS = ("absent", "near_miss")
Moments = Float32[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Annotation:
    """What a builder reads: the owners' values as they are. `moments`: None where they do not say when, () where they say that it does not happen."""

    where: str  # file, and line or key, for messages
    video_id: Any
    duration_s: Any
    query_id: Any
    query: Any
    moments: Any
    kind: Any = None  # None: follows from the number of moments
    category: Any = ""
    source_id: Any = ""
    offset_s: Any = 0.0


class Problem(NamedTuple):
    """Why something gives no example. `reason` is what it is counted as; a filter is no error."""

    where: str
    reason: str
    what: str
    filtered: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, eq=False)
class Example:
    video_id: str
    duration_s: float
    query_id: str
    query: str
    moments: Moments
    kind: str
    category: str
    source_id: str
    offset_s: float
    split: str

    def record(self) -> dict[str, Any]:
        """The values TFDS stores."""
        return dict(vars(self))

    @staticmethod
    def of(record: dict[str, Any]) -> Example:
        """From what TFDS reads: text comes back as bytes."""
        return Example(**{name: value.decode("utf-8") if isinstance(value, bytes) else value for name, value in record.items()})

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        return tuple((float(start), float(end)) for start, end in self.moments)


def features() -> Any:
    """The TFDS features of an Example."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    return tfds.features.FeaturesDict({
        "video_id": text, "duration_s": np.float32, "query_id": text, "query": text, "moments": tfds.features.Tensor(shape=(None, 2), dtype=np.float32),
        "kind": text, "category": text, "source_id": text, "offset_s": np.float32, "split": text,
    })  # fmt: skip


def check(annotation: Annotation, rules: Rules, split: str) -> Example | Problem:
    """An annotation as an example that obeys the rules, or why it can't be one. A query loses its place with its first bad moment: with one of its
    moments missing, the window that shows it would pass for one that does not."""
    where = annotation.where
    texts = {}
    for name in ("video_id", "query_id", "category", "source_id"):
        value = getattr(annotation, name)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or (value == "" and name in ("video_id", "query_id")):
            return Problem(where, "malformed", f"{name} must be text or a whole number, is {value!r}")
        texts[name] = str(value)
    if not is_number(annotation.duration_s) or not annotation.duration_s > 0:
        return Problem(where, "duration", f"the video's duration must be above 0 seconds, is {annotation.duration_s!r}")
    if annotation.query is not None and not isinstance(annotation.query, str):
        return Problem(where, "malformed", f"query must be text, is {annotation.query!r}")
    if not is_number(annotation.offset_s):
        return Problem(where, "malformed", f"offset_s must be a number of seconds, is {annotation.offset_s!r}")
    query = normalise(annotation.query or "", rules)
    if not query:
        return Problem(where, "empty_query", "the query is empty", rules.empty_query == "drop")
    for name, text in {**texts, "query": query}.items():
        if not encodes(text):
            return Problem(where, "not_utf8", f"{name} holds half of a surrogate pair: {text!r}")
    if annotation.moments is None:
        return Problem(where, "no_moment", "has no moment; a question without an answer has an empty list of them", rules.no_moment == "drop")
    if not isinstance(annotation.moments, (list, tuple)):
        return Problem(where, "malformed", f"moments must be a list of [start, end], is {annotation.moments!r:.60}")
    moments = []
    for number, pair in enumerate(annotation.moments):
        found = _moment(pair, float(annotation.duration_s), rules)
        if isinstance(found, tuple):
            moments.append(found)
        else:
            reason, what, rule = found
            return Problem(where, reason, f"moment {number + 1} {what}", rule == "drop")
    kind = annotation.kind or ("absent" if not moments else "one" if len(moments) == 1 else "several")
    if kind not in KINDS:
        return Problem(where, "kind", f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if (kind in ABSENT_KINDS) != (not moments):
        return Problem(where, "kind", f"is {kind!r} and has {len(moments)} moments")
    return Example(
        **texts, duration_s=float(np.float32(annotation.duration_s)), query=query, moments=np.asarray(moments, np.float32).reshape(-1, 2), kind=kind,
        offset_s=float(annotation.offset_s), split=split,
    )  # fmt: skip


def _moment(pair: Any, duration_s: float, rules: Rules) -> tuple[float, float] | list:
    """(start, end), or [reason, what is wrong, rule that decides]."""
    try:
        start, end = pair
    except (TypeError, ValueError):
        start = end = None
    if not (is_number(start) and is_number(end)):
        return ["malformed", f"must be two numbers, start and end in seconds, is {pair!r}", "error"]
    start, end = float(start), float(end)
    if start > end and rules.reversed_moment == "swap":
        start, end = end, start
    said = f"[{start:g}, {end:g}]"
    if start >= end:
        return ["reversed_moment", f"{said} must begin before it ends", "error" if rules.reversed_moment == "error" else "drop"]
    if start < 0 or end > duration_s:
        beyond = max(-start, end - duration_s)
        if beyond > rules.slack_s and rules.outside_moment != "clip":
            return ["outside_moment", f"{said} must lie inside the video's {duration_s:g} s", rules.outside_moment]
        start, end = max(0.0, start), min(end, duration_s)
        if start >= end:
            return ["outside_moment", f"{said} lies wholly outside of the video's {duration_s:g} s", "drop" if rules.outside_moment == "clip" else "error"]
    if np.float32(start) >= np.float32(end):
        return ["reversed_moment", f"{said} is too short to be told apart from nothing", "error" if rules.reversed_moment == "error" else "drop"]
    if rules.longest_share < 1 and end - start >= rules.longest_share * duration_s:
        return ["longest_share", f"{said} covers at least {rules.longest_share:g} of the video's {duration_s:g} s", "drop"]
    return start, end


def is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
