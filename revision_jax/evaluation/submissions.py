"""Predictions in the forms that the field hands in: other people's are scored by our code, ours by other people's.

    QVHighlights      a JSON object a line: {"qid", "query", "vid", "pred_relevant_windows": [[start, end, score], ...]}; best first
    ExtremeWhenBench  a JSON object a line: {"qid", "video_id", "question", "pred": [start, end] or null}; one span a question
    MAD               one JSON object: {query id: [[start, end, score], ...]}; best first. The owners' baselines write figures alone, so the form is ours, keyed
                      as their annotations are. Work on MAD often uses the first form, which is read for any dataset.

Seconds. What is read is told apart by its fields. A span may lack its score: then the order ranks; otherwise the score does, and among equal ones the order.
Scores need not be probabilities: where one lies outside of [0, 1] they are replaced by their places among all of the file, and there are no calibration
figures. Spans are judged as they are: outside of the video, ending before they start (IoU 0), repeated (claims nothing again). A question without a
prediction counts as one without an answer. Sources: moment_detr's `standalone_eval`, ExtremeWhenBench's `evaluation/eval_qwen35_vllm.py`, MAD's annotations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from revision_jax.data.datasets.schema import Example
from revision_jax.errors import UserError
from revision_jax.evaluation.outcome import Outcome
from revision_jax.files import write_lines

Span = tuple[float, float, float | None]  # start, end, score
Predictions = dict[str, tuple[Span, ...]]  # by query id, best first
FORMS = ("qvhighlights", "mad", "extremewhenbench")
NOTHING = [[0.0, 0.0, 0.0]]  # "no answer" in QVHighlights' form: the owners' script takes the first span of every list


def form_of(dataset: str) -> str:
    """The form in which answers to a dataset (NAME or NAME/CONFIG) are handed in: its own, or QVHighlights'."""
    name = dataset.partition("/")[0]
    return name if name in FORMS else "qvhighlights"


def read(path: str | Path) -> Predictions:
    """Any of the three forms. Raises UserError that names file and line (or query) for what is none of them, and for a query that is there twice."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of predictions") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    found: Predictions = {}
    for where, query, spans in _rows(path, text):
        if query in found:
            raise UserError(f"{where}: query {query} is there twice; leave one of them")
        found[query] = () if spans == NOTHING else tuple(_span(where, span) for span in spans)
    if not found:
        raise UserError(f"{path}: holds no predictions")
    return found


def _rows(path: Path, text: str) -> Iterator[tuple[str, str, list]]:
    """(where, query id, spans) of every question."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    try:
        first = json.loads(lines[0][1]) if lines else {}
    except (ValueError, RecursionError):
        first = {}  # maybe one value over many lines
    if not (isinstance(first, dict) and "qid" in first):
        yield from _mad_rows(path, text)
        return
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not JSON ({error})") from None
        query = row.get("qid") if isinstance(row, dict) else None
        if isinstance(query, bool) or not isinstance(query, (str, int)):
            raise UserError(f"{where}: must be an object with a qid, text or a whole number")
        if "pred_relevant_windows" in row:
            spans = row["pred_relevant_windows"]
        elif "pred" in row:
            spans = [] if row["pred"] is None else [row["pred"]]
        else:
            raise UserError(f"{where}: holds neither pred_relevant_windows (QVHighlights) nor pred (ExtremeWhenBench)")
        yield where, str(query), _list(where, spans)


def _mad_rows(path: Path, text: str) -> Iterator[tuple[str, str, list]]:
    wanted = "must hold lines of objects with a qid (QVHighlights, ExtremeWhenBench), or one object {query id: [[start, end, score], ...]} (MAD)"
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a dict would hide a query that is there twice
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {wanted}; it is not JSON ({error})") from None
    if not text.lstrip().startswith("{"):
        raise UserError(f"{path}: {wanted}")
    for query, spans in pairs:
        where = f"{path}: query {query}"
        yield where, query, _list(where, spans)


def _list(where: str, spans: Any) -> list:
    if not isinstance(spans, list):
        raise UserError(f"{where}: spans must be a list of [start, end, score], is {str(spans)[:40]!r}")
    return spans


def _span(where: str, span: Any) -> Span:
    numbers = isinstance(span, list) and all(isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) for value in span)
    if not numbers or len(span) not in (2, 3):
        raise UserError(f"{where}: a span must be [start, end] or [start, end, score] in finite numbers, is {str(span)[:60]}")
    return float(span[0]), float(span[1]), float(span[2]) if len(span) == 3 else None


def outcomes(examples: Sequence[Example], predictions: Mapping[str, Sequence[Span]], threshold: float | None = None) -> list[Outcome]:
    """The annotated questions with what was predicted for them. threshold: spans of at least this score are accepted; None: all are.

    Raises UserError for a prediction without a question, and for a threshold where scores are missing.
    """
    unknown = predictions.keys() - {example.query_id for example in examples}
    if unknown:
        some = ", ".join(sorted(unknown)[:5])
        raise UserError(f"{len(unknown)} of {len(predictions)} predictions are for queries that the annotations do not have: {some}")
    scores = [score for spans in predictions.values() for *_, score in spans]
    missing = any(score is None for score in scores)
    if missing and threshold is not None:
        raise UserError("--threshold: there are predictions without a score")
    probabilities = not missing and all(0 <= score <= 1 for score in scores)
    places = np.unique([] if missing else scores)

    def confidences(spans: Sequence[Span]) -> list[float]:
        if probabilities:
            return [score for *_, score in spans]
        if missing:
            return np.linspace(1.0, 0.0, len(spans), endpoint=False).tolist()
        return ((np.searchsorted(places, [score for *_, score in spans]) + 1) / (len(places) + 1)).tolist()

    made = []
    for example in examples:
        spans = predictions.get(example.query_id, ())
        accepted = [threshold is None or score >= threshold for *_, score in spans]
        moments = tuple((s, e, c, a) for (s, e, _), c, a in zip(spans, confidences(spans), accepted, strict=True))
        about = (example.video_id, example.query_id, example.query, example.kind, example.duration_s)
        made.append(Outcome(*about, example.spans, moments, probabilities=probabilities))
    return made


def write(path: str | Path, answers: Iterable[Outcome], form: str) -> None:
    """All candidates of every question, best first, refused or not, in one of FORMS (ExtremeWhenBench: the best one)."""
    write_lines(path, _mad_lines(answers) if form == "mad" else (json.dumps(_row(outcome, form)) for outcome in answers))


def _mad_lines(answers: Iterable[Outcome]) -> Iterator[str]:
    before = "{"
    for outcome in answers:
        yield f"{before}{json.dumps(outcome.query_id)}: {json.dumps(_ranked(outcome))}"
        before = ","
    yield "}" if before == "," else "{}"


def _row(outcome: Outcome, form: str) -> dict[str, Any]:
    ranked, query = _ranked(outcome), int(outcome.query_id) if outcome.query_id.isdecimal() else outcome.query_id  # as QVHighlights' are
    if form == "extremewhenbench":
        return {"qid": query, "video_id": outcome.video, "question": outcome.query, "pred": ranked[0][:2] if ranked else None}
    return {"qid": query, "query": outcome.query, "vid": outcome.video, "pred_relevant_windows": ranked or NOTHING}


def _ranked(outcome: Outcome) -> list[list[float]]:
    return [[s, e, c] for s, e, c, _ in sorted(outcome.moments, key=lambda moment: -moment[2])]
