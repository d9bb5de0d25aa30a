"""Scores the windows of a training set by a checkpoint: `python -m launch.score --checkpoint DIR --dataset mad --data DATASETS --features STORES --out FILE`.

What it writes is what semi-hard negatives are drawn by (`revision_jax/data/scores.py`); a stage names the file, and the checkpoint that it must be of:

    python -m launch.train CONFIG train.stages.1a.examples.scores=FILE train.stages.1a.examples.scored_by=NAME 'train.stages.1a.negatives=[["semi_hard", 1]]'
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli import Parser, counting_bar, run

if TYPE_CHECKING:
    from revision_jax.data.scores import Scored
    from revision_jax.evaluation.datasets import Asked, Item
    from revision_jax.grounding.grounder import Grounder

TOGETHER = 64  # questions of a film that are asked at once


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.score", description="Scores the windows of a data set's films for each of its questions, for semi-hard negatives.",
        epilog="Prints the checkpoint's name, which the training stage has to give. Exit status: 0 written, 2 bad input (nothing is written).",
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="what scores")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="one that launch.datasets lists (NAME or NAME/PRESET)")
    parser.add_argument("--data", required=True, metavar="DIR", help="where it was built, or its owners' annotations")
    parser.add_argument("--features", required=True, metavar="STORES", help="folder of the films' feature stores")
    parser.add_argument("--queries", metavar="FILE", help="a store of the questions' text features, in place of the checkpoint's text tower")
    parser.add_argument("--split", default="train", help="default train")
    parser.add_argument("--keep", type=int, default=64, metavar="N", help="best windows kept of each film and question (default 64)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N films alone")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax import checkpoint
    from revision_jax.data import scores
    from revision_jax.errors import UserError
    from revision_jax.evaluation import datasets
    from revision_jax.grounding.grounder import Grounder

    if options.keep < 1 or (options.limit is not None and options.limit < 1):
        raise UserError("--keep, --limit: must be at least 1")
    name = checkpoint.identity(options.checkpoint)
    items = datasets.field(options.dataset, Path(options.data), options.split, count=options.limit, features=Path(options.features))
    grounder = Grounder.from_pretrained(options.checkpoint, ask=False)
    if options.queries:
        grounder.use_queries(options.queries)
    with _progress(len(items)) as advance:
        count = scores.write(options.out, name, _rows(grounder, items, options.keep, advance))
    print(f"{options.out}: {count} questions, scored by {name}")


def _rows(grounder: Grounder, items: Sequence[Item], keep: int, advance: Callable[[], None]) -> Iterator[tuple[str, str, Scored]]:
    from revision_jax.evaluation import exam

    for item in items:
        video = exam.video_of(grounder, item)
        present = [question for question in item.questions if question.truth]
        for first in range(0, len(present), TOGETHER):
            part = present[first : first + TOGETHER]
            for question, ranked in zip(part, grounder.searcher.rank(video.source, [q.query for q in part]), strict=True):
                yield item.name, question.query, scored(question, ranked, keep)
        advance()


def scored(question: Asked, ranked: Sequence, keep: int) -> Scored:
    """A question's ranked windows, those that touch a moment of it apart from the others: of these the best are kept."""
    import numpy as np

    from revision_jax.data.scores import Scored
    from revision_jax.data.windows import overlaps_any

    touching = [overlaps_any(question.truth, one.window.start_s, one.window.end_s) for one in ranked]
    own = max((one.score for one, touches in zip(ranked, touching, strict=True) if touches), default=0.0)
    others = [(one.window.centre_s, one.score) for one, touches in zip(ranked, touching, strict=True) if not touches][:keep]
    return Scored(np.asarray(others, np.float32).reshape(-1, 2), own)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar with the time left, on a terminal only."""
    with counting_bar("films, left") as bar:
        if bar is None:
            yield lambda: None
            return
        task = bar.add_task("scoring", total=total)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    run(main)
