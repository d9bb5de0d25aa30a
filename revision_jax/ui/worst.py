"""The worst answers of a run as a page of Markdown, each with its picture, and what they have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from revision_jax.evaluation import worst
from revision_jax.evaluation.outcome import KINDS, Outcome
from revision_jax.evaluation.worst import CAUSES, Judged
from revision_jax.ui.mistake import span

ORDER = """Wrong is: something absent was accepted, something present refused, or the first answer has an IoU below 0.5 (a moment that is missed beside
a right one is not looked at). The loss is how wrong (1; of a first answer 1 - IoU) times how sure (the confidence; of a refusal 1 - confidence): a confident
wrong answer is worst. Equal ones go by video and id. An answer's cause is the first step that failed:"""


def page(about: dict[str, Any], outcomes: Sequence[Outcome], shown: Sequence[Judged], pictures: Sequence[str]) -> str:
    """The whole page. about: the "run" of the report; outcomes: all its answers; shown: the worst of them, worst first; pictures: the file of each."""
    count = len(worst.wrong(outcomes))
    these = "" if not shown else ", here are all of them" if len(shown) == count else f", here are the worst {len(shown)}"
    lines = ["# The worst answers", "", f"{_run(about)}{count} of {len(outcomes)} questions were answered wrong{these}.", "", ORDER, ""]
    lines += [*(f"- {cause}: {meaning}" for cause, meaning in CAUSES.items()), ""]
    for number, (one, picture) in enumerate(zip(shown, pictures, strict=True), 1):
        lines += [f"## {number}. {_plain(one.outcome.query)}", "", *_told(one), "", f"![{one.cause}]({picture})", ""]
    return "\n".join([*lines, *_common(outcomes, shown)]) + "\n"


def _run(about: dict[str, Any]) -> str:
    said = ", ".join(f"{name} {_plain(about[name])}" for name in ("method", "checkpoint", "dataset", "split") if about.get(name))
    return f"{said[:1].upper()}{said[1:]}: " if said else ""


def _told(one: Judged) -> list[str]:
    outcome, through = one.outcome, one.let_through
    lines = [
        f"{_plain(outcome.video)}, question {_plain(outcome.query_id)}: {_plain(', '.join((outcome.kind.replace('_', ' '), *outcome.tags)))}",
        f"**{one.cause}**: {one.reason}; loss {one.loss:.2f}",
        f"truth: {', '.join(map(span, outcome.truth)) or 'not in the video'}",
        f"answer: {_answer(one)}",
    ]
    if through is not None:
        let = f"{through[0]} of {through[1]}" if through[1] > 1 else "yes" if through[0] else "no"
        lines.append(f"the first level let the right window through: {let}")
    return [f"- {line}" for line in lines]


def _answer(one: Judged) -> str:
    ranked = sorted(one.outcome.moments, key=lambda moment: -moment[2])
    told = lambda moment: f"{span(moment)} (confidence {moment[2]:.2f})"
    iou = f", IoU {one.iou:.2f}" if one.outcome.present else ""
    if one.first is None:
        return "refused, no candidate"
    if one.refused:
        return f"refused; best candidate {told(one.first)}{iou}"
    others = [told(moment) for moment in ranked if moment[3] and moment != one.first]
    return f"{told(one.first)}{iou}" + (f"; then {', '.join(others)}" if others else "")


def _common(outcomes: Sequence[Outcome], shown: Sequence[Judged]) -> list[str]:
    """How many of the shown ones there are of each cause and kind and with each tag, and of how many questions asked."""
    counts, asked = worst.common(shown), worst.asked(outcomes)
    columns = [what for what in ("all", *KINDS, *sorted(counts["all"].keys() - {"all", *KINDS})) if asked[what]]
    lines = ["## What they have in common", "", _line(["", *(_plain(column.replace("_", " ")) for column in columns)]), _line(["---"] * (len(columns) + 1))]
    lines += [_line([cause, *(str(counts[cause][what] or "") for what in columns)]) for cause in CAUSES]
    lines.append(_line(["**shown**", *(f"**{counts['all'][what]}**" for what in columns)]))
    return [*lines, _line(["asked", *(str(asked[what]) for what in columns)])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: object) -> str:
    """Words on one line in which Markdown finds nothing of its own."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", " ".join(str(text).split()))
