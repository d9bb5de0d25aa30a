"""Measures a checkpoint on a data set: `python -m launch.evaluate --dataset synthetic --split test --json F`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launch.cli import Parser, counting_bar, run, share

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "tiny"


RETRIEVAL = "msrvtt"  # of the datasets the one that asks which video it is


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.evaluate",
        description="Asks every question of a data set and reports search, localisation, refusal and calibration; on msrvtt, which video it is.",
        epilog="Stopped and started again, it goes on with the video it was at.",
    )
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), metavar="DIR", help="default: the shipped tiny model")
    known = "synthetic (the rendered world, default), folder (annotated videos under --data), or a dataset that launch.datasets lists"
    parser.add_argument("--dataset", default="synthetic", metavar="NAME", help=known)
    where = "where the videos are, or are rendered to (default: the cache folder); of a listed dataset where it was built, or its owners' annotations"
    parser.add_argument("--data", metavar="DIR", help=where)
    parser.add_argument("--videos", metavar="DIR", help="the videos of a listed dataset, each called by its id (default: --data)")
    parser.add_argument("--features", metavar="STORES", help="of a listed dataset: a folder of feature stores, in place of videos (MAD has no others)")
    parser.add_argument("--queries", metavar="FILE", help="a store of the questions' text features, in place of the checkpoint's text tower")
    parser.add_argument("--split", help="of the world: train, validation, test, composition, length (default test; with --fit: validation)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N videos of the split (default: all that the checkpoint's config names)")
    parser.add_argument("--questions", type=int, metavar="N", help="the first N questions of each video (default: all)")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="of the rendered videos (default an hour, of the length split three)")
    parser.add_argument("--baseline", metavar="NAME", help="instead of the model: retrieval, flat or random")
    parser.add_argument("--without", action="append", default=[], metavar="LEVEL", help="leave a level out, to see what it is worth (patch, say)")
    parser.add_argument("--fit", action="store_true", help="fit calibration, threshold and the baselines' settings, and store them in the checkpoint")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="ranked moments a question (default 5)")
    parser.add_argument("--json", metavar="FILE", help="the report with every answer; launch.worst shows what went wrong in it")
    compared = "the report of another run: paired bootstrap of every figure; give two to compare them without running anything"
    handed_in = "the answers in the form that the dataset's owners score (QVHighlights', MAD's, ExtremeWhenBench's)"
    parser.add_argument("--submission", metavar="FILE", help=handed_in)
    parser.add_argument("--compare", nargs="+", metavar="FILE", help=compared)
    published = "the papers' table of this dataset with this run's column, as Markdown, where their figures are known (mad, vidchapters)"
    parser.add_argument("--published", metavar="FILE", help=published)
    held = "how the weights are held: int8 is for the matrices of the decoder's layers (default: as the checkpoint's activations)"
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), help=held)
    shared = "ask only the I-th (from 0) of N shares of the videos, for one of N processes; the same command without it then reports on all"
    parser.add_argument("--shard", metavar="I/N", help=shared)
    parser.add_argument("--cache", metavar="DIR", help="where encoded videos are kept (default: the user's cache folder)")
    parser.add_argument("--workdir", metavar="DIR", help="where the answers are kept until the run is complete (default: answers/ in the cache folder)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    _check(options)
    if options.dataset.partition("/")[0] == RETRIEVAL:
        _retrieve(options)
        return
    from revision_jax.evaluation import report

    others = [report.load(path) for path in options.compare or ()]  # before an hour is spent
    if len(others) == 2:
        _compare(others[0], others[1], *options.compare)
        return
    from revision_jax import checkpoint
    from revision_jax.errors import UserError
    from revision_jax.evaluation import datasets, exam, fitting, published, submissions
    from revision_jax.evaluation.baselines import BASELINES, leave_out, make

    config = checkpoint.load_config(options.checkpoint)
    if options.baseline is not None and options.baseline not in BASELINES:
        raise UserError(f"--baseline: {options.baseline!r} is not one of {', '.join(BASELINES)}")
    leave_out(config, options.without)
    from revision_jax.extraction.jobs import shard
    from revision_jax.files import write_text
    from revision_jax.grounding.grounder import Grounder, default_cache

    cache = Path(options.cache) if options.cache else default_cache()
    split = options.split or ("validation" if options.fit else "test")
    with _progress("rendering") as progress:
        if options.dataset == "synthetic":
            count = options.limit or datasets.videos_of(split, config.data)
            data = Path(options.data) if options.data else cache / "data"
            items = datasets.synthetic(split, data, count, options.duration, lambda done, of: progress(done, of, "rendering videos"))
        elif options.dataset == "folder":
            items = datasets.folder(Path(options.data), options.limit)
        else:
            videos, features = (Path(place) if place else None for place in (options.videos, options.features))
            items = datasets.field(options.dataset, Path(options.data), split, videos, options.limit, features)
    if options.questions:
        items = [replace(item, questions=item.questions[: options.questions]) for item in items]
    if options.shard:
        items = shard(items, *share(options.shard))
    grounder = Grounder.from_pretrained(options.checkpoint, cache_dir=cache, ask=False, weights=options.weights)
    if options.queries:
        grounder.use_queries(options.queries)
    if options.fit:
        _fit(options, grounder, items)
        return
    method = make(options.baseline, grounder, fitting.stored(options.checkpoint), options.without)
    given = [f"{name} {Path(place).resolve()}" for name, place in (("features", options.features), ("queries", options.queries)) if place]
    given += [f"questions {options.questions}"] if options.questions else []
    given += [f"weights {options.weights}"] if options.weights else []
    answers = (Path(options.workdir) if options.workdir else cache / "answers") / exam.identity(options.checkpoint, method, options.top_k, given)
    with _progress("asking") as progress:
        outcomes = exam.run(grounder, method, items, answers, top_k=options.top_k, progress=progress)
    if options.shard:
        print(f"share {options.shard}: {len(outcomes)} questions about {len(items)} videos answered; without --shard the same command reports on all")
        return
    result = report.build(outcomes, exam.about(options.checkpoint, method, options.dataset, split, items, options.top_k))
    if options.json:
        report.save(options.json, result)
    if options.submission:
        submissions.write(options.submission, outcomes, submissions.form_of(options.dataset))
    for table in (report.table(result), report.tag_table(result)):
        if table is not None:
            _console().print(table)
    if options.published:
        write_text(options.published, published.markdown(options.dataset, result))
        _console().print(published.table(options.dataset, result))
    if others:
        _compare(result, others[0], "this run", options.compare[0])


def _check(options: argparse.Namespace) -> None:
    from revision_jax.errors import UserError
    from revision_jax.evaluation import published
    from revision_jax.evaluation.datasets import DATASETS

    if options.dataset.partition("/")[0] not in DATASETS:
        raise UserError(f"--dataset: {options.dataset!r} is not one of {', '.join(DATASETS)}")
    if options.dataset == "folder" and not options.data:
        raise UserError("--data: a folder of annotated videos must be given with --dataset folder")
    if options.dataset != "synthetic" and not options.data and len(options.compare or ()) != 2:
        raise UserError(f"--data: a folder must be given with --dataset {options.dataset}: where it was built, or its owners' annotations")
    for name in ("videos", "features"):
        if getattr(options, name) and options.dataset in ("synthetic", "folder"):
            raise UserError(f"--{name}: is for the datasets that launch.datasets lists; of others the videos lie under --data")
    if options.videos and options.features:
        raise UserError("--features: are looked at in place of videos; leave out --videos")
    if options.dataset == "folder" and options.split and not options.fit:
        raise UserError("--split: a folder has no splits; give the folder of the split as --data")
    for name in ("limit", "questions", "top_k"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 1, is {value}")
    if options.duration is not None and not options.duration > 0:
        raise UserError(f"--duration: must be above 0 seconds, is {options.duration}")
    if options.compare and len(options.compare) > 2:
        raise UserError(f"--compare: takes one file, or two to compare them with each other; got {len(options.compare)}")
    if options.fit and (options.baseline or options.compare or options.without):
        raise UserError("--fit: fits the whole model and all baselines at once; leave out --baseline, --without and --compare")
    if options.dataset.partition("/")[0] == RETRIEVAL and (
        options.fit or options.baseline or options.without or options.submission or options.shard or options.weights or options.questions
    ):
        given = "--fit, --baseline, --without, --submission, --shard, --weights and --questions"
        raise UserError(f"--dataset: {RETRIEVAL} asks which video it is; leave out {given}")
    if options.baseline and options.without:
        raise UserError("--without: leaves out levels of the model; a baseline has none")
    if options.shard and (options.fit or options.json or options.submission or options.published or options.compare):
        raise UserError("--shard: a share of the videos has no report; leave out --json, --submission, --published, --compare and --fit")
    if options.shard:
        share(options.shard)
    if options.published:
        published.check(options.dataset)
    if options.fit and options.split in ("test", "composition", "length"):
        raise UserError(f"--split: {options.split} is for the exam; fit on validation")


def _retrieve(options: argparse.Namespace) -> None:
    """Text-to-video retrieval: every question about all of the split's videos."""
    from revision_jax.evaluation import report, video_retrieval

    others = [video_retrieval.load(path) for path in options.compare or ()]
    if len(others) == 2:
        result, name = others[0], Path(options.compare[0]).stem
    else:
        result, name = _ranked(options), "this run"
        if options.json:
            report.save(options.json, result)
        _console().print(video_retrieval.table(result))
    if others:
        comparison = video_retrieval.compare(result, others[-1])
        _console().print(report.comparison_table(comparison, name, Path(options.compare[-1]).stem, video_retrieval.FIGURES))


def _ranked(options: argparse.Namespace) -> dict:
    from revision_jax.evaluation import datasets, exam, video_retrieval
    from revision_jax.evaluation.baselines import Model
    from revision_jax.grounding.grounder import Grounder, default_cache

    split = options.split or "test"
    videos, features = (Path(place) if place else None for place in (options.videos, options.features))
    items = datasets.field(options.dataset, Path(options.data), split, videos, options.limit, features)
    grounder = Grounder.from_pretrained(options.checkpoint, cache_dir=Path(options.cache) if options.cache else default_cache(), ask=False)
    if options.queries:
        grounder.use_queries(options.queries)
    about = exam.about(options.checkpoint, Model(), options.dataset, split, items, len(items))
    with _progress("ranking") as progress:
        return video_retrieval.run(grounder, items, about, progress)


def _fit(options: argparse.Namespace, grounder, items) -> None:
    from revision_jax import checkpoint
    from revision_jax.evaluation import fitting

    levels, stored = fitting.hierarchy_of(grounder, items), fitting.stored(options.checkpoint)
    with _progress("fitting") as progress:
        fitted, alarms = fitting.calibrator(grounder, items, progress)
        settings = fitting.fit_baselines(grounder, items, progress)
    where = {"dataset": options.dataset, "videos": len(items), "questions": sum(len(item.questions) for item in items), "hierarchy": levels}
    values = {**fitted.to_dict(), "baselines": settings, "false_alarms": alarms, "fitted_on": where}
    checkpoint.set_calibration(options.checkpoint, fitting.merged(stored, values))
    told = f"temperature {fitted.temperature:.3f}, threshold {fitted.threshold:.3f}, of further moments {fitted.further:.3f}"
    print(f"{Path(options.checkpoint) / checkpoint.CALIBRATION}: {levels}: {told}")
    for name, value in settings.items():
        print(f"  {name}: {', '.join(f'{key} {number}' for key, number in value.items())}")


def _compare(first: dict, second: dict, first_name: str, second_name: str) -> None:
    from revision_jax.evaluation import report

    _console().print(report.comparison_table(report.compare(first, second), Path(first_name).stem, Path(second_name).stem))


def _console():
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left on a terminal; elsewhere a line now and then, so that a log says how far an hour-long run is."""
    with counting_bar("videos, left") as bar:
        if bar is not None:
            task = bar.add_task(doing, total=None)
            yield lambda done, of, what: bar.update(task, completed=done, total=of, description=what)
            return
    began, before = time.monotonic(), 0

    def line(done: int, of: int, what: str) -> None:
        nonlocal began, before
        if done < before:  # the next round over the same videos
            began, before = time.monotonic(), 0
        if done > before:
            before = done
            left = (time.monotonic() - began) / done * (of - done)
            print(f"{doing}: {done} of {of} videos, about {left / 60:.1f} min left", file=sys.stderr, flush=True)

    yield line


if __name__ == "__main__":
    run(main)
