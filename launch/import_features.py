"""Makes stores of features that others computed: `python -m launch.import_features CLIP_frames_features_5fps.h5 --rate 5 --out STORE`.

Videos become STORE/NAME.features each; with `--queries`, query token features become one file. Started again, it goes on where it was: stores that fit stay.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cli import Parser, counting_bar, run

if TYPE_CHECKING:
    from revision_jax.data.datasets.schema import Example


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.import_features", description="Makes feature stores of HDF5 (MAD), .npy or .npz files (VidChapters), LMDB of npz.",
        epilog="Exit status: 0 all imported, 2 bad input (all of it is told), 130 stopped by Ctrl-C.",
    )
    parser.add_argument("source", metavar="PATH", help="an HDF5 file, an LMDB, or a folder of .npy or .npz files")
    parser.add_argument("--out", metavar="STORE", required=True, help="folder of the stores; with --queries, the file to write")
    parser.add_argument("--encoder", metavar="NAME", help="what made the features (default: clip-vit-large-patch14); a model that wants another refuses them")
    parser.add_argument("--rate", type=float, metavar="FPS", help="of the videos' features: MAD 5, VidChapters 2")
    parser.add_argument("--width", type=int, default=768, metavar="D", help="numbers a frame or token (default 768)")
    parser.add_argument("--array", metavar="NAME", help="which array, where a key has several")
    these = "JSON, {video: seconds}, or a built dataset's folder: these videos only, and features that do not fit their length are refused"
    parser.add_argument("--durations", metavar="PATH", help=these)
    asked = "JSON, {key: text of the query}, or a built dataset's folder (keys are its query ids): the source holds token features of queries"
    parser.add_argument("--queries", metavar="PATH", help=asked)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="with --queries: tokens beyond are cut off")
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count what cannot be used, instead of ending with an error")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax.data.feature_import import CLIP_L14, import_queries, import_videos
    from revision_jax.data.feature_sources import open_source
    from revision_jax.errors import UserError

    if options.width < 1 or (options.max_tokens is not None and options.max_tokens < 1):
        raise UserError("--width, --max-tokens: must be at least 1")
    if options.queries is None and not (options.rate is not None and 0 < options.rate <= 1000):
        raise UserError("--rate: must be given for videos, above 0 and at most 1000 frames a second")
    if options.queries is not None and (options.rate is not None or options.durations is not None):
        raise UserError("--queries: queries have no --rate and no --durations")
    common = {"encoder": options.encoder or CLIP_L14, "width": options.width, "on_bad": "skip" if options.skip_bad else "error"}
    durations = _table(options.durations, (int, float), "seconds", lambda example: (example.video_id, float(example.duration_s)))
    queries = _table(options.queries, str, "text", lambda example: (example.query_id, example.query))
    source = open_source(options.source)
    with _progress() as progress:
        if queries is not None:
            result = import_queries(source, options.out, queries=queries, max_tokens=options.max_tokens, tokens=options.array, progress=progress, **common)
        else:
            ids = None if durations is None else list(durations)
            result = import_videos(source, options.out, rate=options.rate, ids=ids, durations=durations, array=options.array, progress=progress, **common)
    for reason in result.reasons:
        print(f"skipped: {reason}", file=sys.stderr)
    print(result)


def _table(file: str | None, kind: type | tuple[type, ...], what: str, of_example: Callable[[Example], tuple[str, Any]]) -> dict | None:
    """A JSON object of one kind of values, or what `of_example` says of each example of all splits of a built dataset. Raises UserError."""
    from revision_jax.errors import UserError

    if file is None:
        return None
    if Path(file).is_dir():
        from revision_jax.data.datasets.build import at, examples

        built = at(file)
        return dict(of_example(example) for split in built.counts for example in examples(built, split))
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(values, dict) or not all(isinstance(value, kind) and not isinstance(value, bool) for value in values.values()):
        raise UserError(f"{file}: is not one JSON object whose values are {what}")
    return values


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar with the time left, on a terminal only."""
    with counting_bar() as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("importing", total=None)
        yield lambda key, done, of: bar.update(task, description=key, completed=done, total=of)


if __name__ == "__main__":
    run(main)
