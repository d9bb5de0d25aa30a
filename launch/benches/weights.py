"""bench weights: what answers lose where weights take 16 or 8 bits.

The shipped model answers the questions of videos of the world's test split (`--videos` of ten minutes each) with its weights as float32, bfloat16 and int8 (the
matrices of the decoder's layers). An answer is the same if both say that it is present, or both that it is not, and, where present, their first moments begin
and end at the same 0.1 s. The IoU is that of the first moments, accepted or not, of questions that have one both times.
"""

from __future__ import annotations

import argparse
import statistics

HELD = ("float32", "bfloat16", "int8")
DURATION = 600.0  # seconds of a video


def weights(options: argparse.Namespace) -> dict[str, float | int]:
    """Figures of agreement with float32, and bytes of the decoder's matrices."""
    import jax

    from revision_jax.evaluation import datasets
    from revision_jax.grounding.grounder import Grounder

    items = datasets.synthetic("test", options.workdir / "data", options.videos, DURATION)
    figures: dict[str, float | int] = {"videos": len(items), "questions": sum(len(item.questions) for item in items)}
    firsts: dict[str, list] = {}
    for held in HELD:
        grounder = Grounder.from_pretrained(options.checkpoint, cache_dir=options.workdir / "cache", ask=False, weights=held)
        figures[f"{held}: MB of the decoder"] = sum(leaf.nbytes for leaf in jax.tree.leaves(grounder.programs.state["params"]["decoder"])) / 1e6
        firsts[held] = [
            (answer.moments[0] if answer.moments else None, bool(answer.moments and answer.moments[0].accepted))
            for item in items for answer in grounder.ground(grounder.encode(item.video), [question.query for question in item.questions])
        ]  # fmt: skip
    for held in HELD[1:]:
        figures |= {f"{held}: {name}": value for name, value in agreement(firsts["float32"], firsts[held]).items()}
    return figures


def agreement(first: list, second: list) -> dict[str, float]:
    """first, second: (best moment or None, whether it is accepted) of each question. Shares of all questions, and the mean IoU of the best moments."""
    ious = [iou(one, other) if one is not None and other is not None else None for (one, _), (other, _) in zip(first, second, strict=True)]
    decided = [a == b for (_, a), (_, b) in zip(first, second, strict=True)]
    same = [alike and (not present or value == 1.0) for alike, (_, present), value in zip(decided, first, ious, strict=True)]
    found = [value for value in ious if value is not None]
    return {
        "share of the same answers": statistics.fmean(same), "share of the same decisions": statistics.fmean(decided),
        "mean IoU of best moments": statistics.fmean(found) if found else 1.0,
    }  # fmt: skip


def iou(one, other) -> float:
    """Intersection over union of two moments, their ends rounded to 0.1 s; 1 for two that are the same instant."""
    (a, b), (c, d) = ((round(moment.start_s, 1), round(moment.end_s, 1)) for moment in (one, other))
    union = max(b, d) - min(a, c)
    return 1.0 if (a, b) == (c, d) else max(0.0, min(b, d) - max(a, c)) / union
