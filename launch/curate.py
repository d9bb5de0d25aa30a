"""Cleans images with captions: `python -m launch.curate IMAGES --checkpoint DIR --out OUT --captions FILE [--short MODEL --detailed MODEL] [field=value ...]`.

The stages of VideoLLaMA3's VL3-Syn7M: sides, looks, coarse caption and how well it fits, near-duplicates and categories, new captions. Can be killed at any
time and started again; several processes may be given the same OUT. docs/data.md says what is written, and what each field does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launch.cli import Parser, counting_bar, run

if TYPE_CHECKING:
    from revision_jax.curation.curator import Recipe
    from revision_jax.curation.pipeline import Report

MODEL = "a folder with a VideoLLaMA3 checkpoint, or MODEL@URL of any OpenAI-compatible endpoint (InternVL2-8B@http://127.0.0.1:8000/v1)"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.curate", description="Cleans images with captions as VideoLLaMA3's VL3-Syn7M was; says of every image that goes why.",
        epilog="Exit status: 0 done, 1 some images got no answer from an endpoint (the next run asks again), 2 bad input, 130 stopped by Ctrl-C.",
    )
    add_arguments(parser)
    return parser.parse_intermixed_args(arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this main and `launch.curate_beam` have in common."""
    parser.add_argument("images", metavar="IMAGES", help="folder of the images; without --captions all image files below it")
    parser.add_argument("--captions", metavar="FILE", help='JSONL: {"image": path below IMAGES, "caption": text} a line, or VideoLLaMA3\'s conversations')
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="towers for features and similarity: a checkpoint with an image-text pair")
    parser.add_argument("--out", metavar="OUT", required=True, help="folder of the results; made where it does not exist")
    parser.add_argument("--aesthetic", metavar="HEAD", default="", help="a safetensors file of a linear or MLP head over the image vectors, or a scorer's URL")
    parser.add_argument("--coarse", metavar="MODEL", default="", help=f"writes captions that images are held against: {MODEL} (default: those of --captions)")
    parser.add_argument("--short", metavar="MODEL", default="", help="writes short captions of the images that stay")
    parser.add_argument("--detailed", metavar="MODEL", default="", help="writes detailed ones")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="a threshold or a limit, such as similarity=0.6 or endpoint.parallel=8")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    recipe = read_recipe(options)
    from revision_jax.curation.curator import Curator
    from revision_jax.curation.duplicates import import_faiss
    from revision_jax.curation.items import read_items
    from revision_jax.curation.pipeline import run as curate

    import_faiss()
    items = read_items(options.images, options.captions)
    curator = Curator(recipe)
    with _progress() as progress:
        report = curate(curator, items, progress)
    return tell(report)


def read_recipe(options: argparse.Namespace) -> Recipe:
    """Raises ConfigError for a field that does not exist, or cannot be what it is said to be."""
    from revision_jax.config import override
    from revision_jax.curation.config import CurationConfig
    from revision_jax.curation.curator import Recipe

    models = {name: getattr(options, name) for name in ("aesthetic", "coarse", "short", "detailed")}
    return Recipe(options.images, options.checkpoint, options.out, **models, config=override(CurationConfig(), options.overrides))


def tell(report: Report) -> int:
    """Prints what became of the images; returns the exit status."""
    print(f"{report.images} images")
    for row in report.stages:
        reasons = ", ".join(f"{count} {reason}" for reason, count in row["reasons"].items())
        print(f"  {row['stage']:<10} {row['images']:>8} came, {row['dropped']:>7} went{': ' + reasons if reasons else ''}")
    for name, count in report.kept.items():
        print(f"  captions/{name}: {count}")
    for drop in report.failed:
        print(f"failed: {drop.image}: {drop.note}", file=sys.stderr)
    return 1 if report.failed else 0


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar with the time left, on a terminal only."""
    with counting_bar(speed_estimate_period=600) as bar:
        if bar is None:
            yield None
            return
        tasks: dict[str, int] = {}

        def report(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done)

        yield report


if __name__ == "__main__":
    run(main)
