"""Answers questions about videos: `python -m launch.ground VIDEO --query "a red ring turns green"`."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.cli import Parser, run

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "tiny"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.ground", description="Says when in a video something happens, in seconds and with a confidence, or that it does not.",
        epilog="Exit status: 0 answered, 2 bad input, 130 stopped by Ctrl-C.",
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="any file that FFmpeg reads; several are answered one after another")
    parser.add_argument("--query", action="append", default=[], metavar="TEXT", help="what to look for; may be given several times")
    parser.add_argument("--queries", metavar="FILE", help='one question a line, or JSONL with "query" and, if wanted, "query_id"')
    model = "a folder with config.json, model.safetensors and tokenizer.json (default: the shipped tiny model)"
    parser.add_argument("--checkpoint", metavar="DIR", default=str(DEFAULT_CHECKPOINT), help=model)
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="ranked moments a question, accepted or not (default 5)")
    held = "how the weights are held: int8 is for the matrices of the decoder's layers (default: as the checkpoint's activations)"
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), help=held)
    limit = "device memory to answer within, such as 24GB: chooses how much is computed together and how many shared prefixes are kept"
    parser.add_argument("--memory-limit", metavar="BYTES", help=limit)
    parser.add_argument("--threshold", type=float, metavar="P", help="confidence in [0, 1] from which a moment is accepted (default: the checkpoint's)")
    alarms = "in place of a threshold: accept as much as keeps to so many false moments an hour of video, on what the checkpoint was fitted on"
    parser.add_argument("--max-false-alarms-per-hour", type=float, metavar="X", help=alarms)
    parser.add_argument("--from", dest="start", metavar="TIME", help="search from here: hh:mm:ss or seconds")
    parser.add_argument("--to", dest="end", metavar="TIME", help="search up to here: hh:mm:ss or seconds")
    parser.add_argument("--json", metavar="FILE", help="answers as JSON (a list of them for several videos)")
    parser.add_argument("--html", metavar="FILE", help="a page with the answers, pictures, and the way to each of them")
    parser.add_argument("--png", metavar="FILE", help="a timeline picture (numbered ones for several videos)")
    parser.add_argument("--clips", metavar="DIR", help="cut the accepted moments out as files")
    parser.add_argument("--cache", metavar="DIR", help="where encoded videos and compiled programs are kept (default: the user's cache folder)")
    parser.add_argument("--cache-limit", metavar="BYTES", help="encoded videos are kept up to so much, such as 50GB; the longest unused go (default 20GB)")
    parser.add_argument("--decoders", type=int, metavar="N", help="processes that decode a long video (default: half of four cores or more, else 1)")
    only = "answer nothing: compile and store every program that the checkpoint can need, whatever the video, so that the first command starts as fast as any"
    parser.add_argument("--compile-only", action="store_true", help=only)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax.errors import UserError

    if options.compile_only:
        return compile_programs(options)
    if not options.videos:
        raise UserError("no video is given (see --help)")
    if options.top_k < 1:
        raise UserError(f"--top-k: must be at least 1, is {options.top_k}")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold: must lie in [0, 1], is {options.threshold}")
    limit = options.max_false_alarms_per_hour
    if limit is not None and not 0 <= limit < float("inf"):
        raise UserError(f"--max-false-alarms-per-hour: must be at least 0, is {limit}")
    if limit is not None and options.threshold is not None:
        raise UserError("--max-false-alarms-per-hour: chooses the threshold; leave out --threshold")
    start, end = seconds("--from", options.start), seconds("--to", options.end)
    if start is not None and end is not None and start >= end:
        raise UserError(f"--from: {options.start} is not before --to {options.end}")
    if options.decoders is not None and options.decoders < 1:
        raise UserError(f"--decoders: must be at least 1, is {options.decoders}")
    asked = questions(options.query, options.queries)
    # What is cheap to find out is found out before jax is loaded, and before anything is encoded.
    from revision_jax.checkpoint import load_config
    from revision_jax.convert.assemble import is_foreign
    from revision_jax.data.video import probe

    if not is_foreign(options.checkpoint):
        load_config(options.checkpoint)
    for video in options.videos:
        probe(video)

    if limit is not None:
        from revision_jax.evaluation.fitting import threshold_for

        options.threshold = threshold_for(options.checkpoint, limit)
    grounder = model(options)
    for _, query in asked:
        grounder.check(query)
    results = []
    for path in options.videos:
        with bar(Path(path).name, "encoding") as progress:
            video = grounder.encode(path, progress)
        with bar(Path(path).name, "searching") as progress:
            report = None if progress is None else lambda level, done, of, progress=progress: progress(done, of)
            answers = grounder.ground(video, [query for _, query in asked], options.top_k, options.threshold, start, end, report)
        for warning in video.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        result = grounder.to_json(video, answers)
        for entry, (query_id, _) in zip(result["results"], asked, strict=True):
            if query_id is not None:
                entry["query_id"] = query_id
        results.append(result)
        show(result)
    write(options, results)


def model(options: argparse.Namespace, **more: Any) -> Any:
    """The checkpoint as the options want it held. Raises UserError."""
    from revision_jax.grounding.grounder import Grounder
    from revision_jax.grounding.memory import parse_bytes

    limits = {"--memory-limit": options.memory_limit, "--cache-limit": options.cache_limit}
    memory, cache = (None if text is None else parse_bytes(name, text) for name, text in limits.items())
    grounder = Grounder.from_pretrained(options.checkpoint, cache_dir=options.cache, weights=options.weights, memory_limit=memory, **more)
    grounder.decoders = options.decoders
    grounder.cache_limit = grounder.cache_limit if cache is None else cache
    return grounder


def compile_programs(options: argparse.Namespace) -> None:
    """`--compile-only`: says how many programs there are, and where. Raises UserError."""
    from revision_jax.errors import UserError

    if options.videos or options.query or options.queries:
        raise UserError("--compile-only: takes no video and no question; it depends on the checkpoint alone")
    from revision_jax.stored_programs import program_folder

    began = time.perf_counter()
    grounder = model(options, ask=False)
    with bar(Path(options.checkpoint).name, "compiling") as progress:
        count = grounder.compile(progress)
    where = program_folder()
    print(f"{options.checkpoint}: {count} programs ready after {time.perf_counter() - began:.1f} s, kept in {where and where.parent}")


def seconds(name: str, text: str | None) -> float | None:
    """hh:mm:ss, mm:ss or seconds, with or without a fraction. Raises UserError."""
    from revision_jax.errors import UserError

    if text is None:
        return None
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d*)?", text):
        raise UserError(f"{name}: {text!r} is not a time; write hh:mm:ss or seconds")
    parts = [float(part) for part in text.split(":")]
    if any(part >= 60 for part in parts[1:]):
        raise UserError(f"{name}: {text!r} is not a time; minutes and seconds go up to 59")
    return math.fsum(part * 60**place for place, part in enumerate(reversed(parts)))


def questions(given: Sequence[str], file: str | None) -> list[tuple[str | None, str]]:
    """(query_id or None, query) of the command line and of a file. Raises UserError where there is none, or a line cannot be used."""
    from revision_jax.data.prompts import clean_query
    from revision_jax.errors import UserError

    asked: list[tuple[str | None, str]] = [(None, query) for query in given]
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read as text ({getattr(error, 'strerror', None) or error})") from None
        asked += [_line(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not asked:
        raise UserError("nothing is asked; give --query TEXT or --queries FILE" if file is None else f"{file}: holds no question")
    for _, query in asked:
        clean_query(query)
    return asked


def _line(where: str, line: str) -> tuple[str | None, str]:
    from revision_jax.errors import UserError

    if not line.lstrip().startswith("{"):
        return None, line.strip()
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(values.get("query"), str):
        raise UserError(f'{where}: has no text "query"')
    query_id = values.get("query_id")
    return None if query_id is None else str(query_id), values["query"]


@contextmanager
def bar(name: str, doing: str) -> Iterator[Callable[[float, float], None] | None]:
    """A progress bar with the time left, on a terminal only; gives progress(done, of), or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{doing} {name}", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def show(result: dict[str, Any]) -> None:
    """A table of the answers on the terminal; plain lines where there is none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    table = Table(title=Text(result["video"]["path"]), title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("question", overflow="fold", ratio=1)
    for name in ("from", "to", "confidence", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for entry in result["results"]:
        accepted = [moment for moment in entry["moments"] if moment["accepted"]]
        if not accepted:
            best = f"best guess {entry['moments'][0]['confidence']:.2f}" if entry["moments"] else ""
            table.add_row(Text(entry["query"]), "", "", "", f"not present  {best}", style="dim")
        for number, moment in enumerate(accepted):
            table.add_row(Text(entry["query"] if number == 0 else ""), moment["start"], moment["end"], f"{moment['confidence']:.2f}", "found")
    console.print(table)


def write(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """The files that were asked for, each whole or not at all."""
    from revision_jax.files import write_text

    if options.json:
        write_text(options.json, json.dumps(results[0] if len(results) == 1 else results, indent=1, ensure_ascii=False) + "\n")
    if options.png:
        from revision_jax.ui.timeline import write_timeline

        path = Path(options.png)
        for number, result in enumerate(results):
            write_timeline(path if number == 0 else path.with_stem(f"{path.stem}-{number + 1}"), result)
    if options.html:
        from revision_jax.ui.page import write_page

        write_page(options.html, results, thumbnails)
    if options.clips:
        clips(Path(options.clips), results)


def thumbnails(video: str) -> Callable[[float], Any]:
    """For a video, a function from seconds to its picture there, or None where there is none."""
    from revision_jax.data.video import probe, read_frames
    from revision_jax.errors import UserError

    info = probe(video)
    height = min(180, info.height)
    size = (height, max(1, round(info.width * height / info.height)))

    def at(second: float) -> Any:
        second = min(max(second, 0.0), max(info.duration_s - 1 / info.fps, 0.0))
        # A tick is a multiple of 1 / rate: 8 a second put the picture within an eighth of a second.
        tick = math.floor(second * 8) / 8
        try:
            return next((chunk.frames[0] for chunk in read_frames(video, 8.0, start_s=tick, end_s=tick + 0.1, size=size, chunk=1)), None)
        except UserError:
            return None

    return at


def clips(folder: Path, results: list[dict[str, Any]]) -> None:
    """Every accepted moment as a file: <video>-q<question>-<rank>-<start>.mp4."""
    from revision_jax.data.clips import cut

    for result in results:
        path = Path(result["video"]["path"])
        for number, entry in enumerate(result["results"], 1):
            for rank, moment in enumerate((m for m in entry["moments"] if m["accepted"]), 1):
                start = moment["start"].replace(":", "").split(".")[0]
                print(cut(path, moment["start_s"], moment["end_s"], folder / f"{path.stem}-q{number}-{rank}-{start}.mp4"))


if __name__ == "__main__":
    run(main)
