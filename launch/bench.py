"""Measures: `python -m launch.bench NAME [--json F]`.

ground: what a person waits for on an hour of video, in fresh processes: the first question (reading, encoding, compiling, searching), another question as
a new command, a further one in the same process; how many programs are compiled for ten minutes and for three hours; and, with --long, how much
memory nine hours take beside one.

convert: a random checkpoint of a preset's full size, turned into this project's layout by `launch.convert`: its seconds, also as a share of a plain read
of the same files, and the most anonymous memory that it takes. With --load also the seconds until a `Chat` has either on its device.

curate: see `bench_curate.py`. startup: see `bench_startup.py`. weights: see `bench_weights.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.bench_commands import QUERIES, rendered, timed
from launch.bench_curate import curate
from launch.bench_startup import startup
from launch.bench_weights import weights
from launch.cli import Parser, run
from launch.ground import DEFAULT_CHECKPOINT


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m launch.bench", description="Measures and prints a table; every figure with what it was measured on.")
    parser.add_argument("name", choices=sorted(BENCHES), help="what to measure")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), metavar="DIR", help="default: the shipped tiny model")
    parser.add_argument(
        "--workdir", type=Path, default=Path("outputs/bench"), metavar="DIR", help="rendered videos, kept for the next time (default outputs/bench)"
    )
    parser.add_argument("--config", default="videollama3_2b", metavar="CONFIG", help="convert: the preset whose checkpoint is made (default videollama3_2b)")
    parser.add_argument("--load", action="store_true", help="convert: also load both onto the device, which takes the model's size in memory")
    parser.add_argument("--long", action="store_true", help="also nine hours of video, for memory (minutes more)")
    parser.add_argument("--videos", type=int, default=3, metavar="N", help="weights: how many videos are asked about (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    figures = BENCHES[options.name](options)
    import jax

    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=f"bench {options.name}", caption=", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if options.json is not None:
        from revision_jax.files import write_text

        write_text(options.json, json.dumps({"bench": options.name, "figures": figures, "machine": machine}, indent=1) + "\n")
    return 0


def ground(options: argparse.Namespace) -> dict[str, float | int]:
    """Figures of `launch.ground`; seconds are wall clock of whole commands unless they say otherwise."""
    hour, short, three = (rendered(options.workdir, seconds) for seconds in (3600, 600, 3 * 3600))
    cache = options.workdir / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "launch.ground", "--checkpoint", options.checkpoint, "--cache", str(cache)]
    figures: dict[str, float | int] = {}
    first = timed([*command, str(hour), "--query", QUERIES[0]])
    figures["first question on an hour, new command (s)"], figures["its peak memory (MiB)"] = first.seconds, first.peak_mib
    again = [timed([*command, str(hour), "--query", query]).seconds for query in QUERIES[1:4]]
    figures["a further question as a new command, median of 3 (s)"] = statistics.median(again)

    from revision_jax.grounding.grounder import Grounder

    grounder = Grounder.from_pretrained(options.checkpoint, cache_dir=cache)
    video = grounder.encode(hour)
    grounder.ground(video, [QUERIES[0]])
    seconds = []
    for query in QUERIES[1:]:
        began = time.perf_counter()
        grounder.ground(video, [query])
        seconds.append(time.perf_counter() - began)
    figures["a further question in the same process, median of 4 (s)"] = statistics.median(seconds)
    for name, path in (("ten minutes", short), ("three hours", three)):
        fresh = Grounder.from_pretrained(options.checkpoint, cache_dir=cache)
        fresh.ground(fresh.encode(path), [QUERIES[0]])
        figures[f"programs compiled for {name}"] = sum(fresh.programs.compiled.values())
    if options.long:
        shutil.rmtree(cache / "features", ignore_errors=True)
        nine = rendered(options.workdir, 9 * 3600)
        short, long = (timed([*command, str(video), "--query", QUERIES[0]]) for video in (hour, nine))
        figures["first question on nine hours, new command (s)"] = long.seconds
        figures["peak memory on one hour (MiB)"], figures["peak memory on nine hours (MiB)"] = short.peak_mib, long.peak_mib
        figures["nine hours to one, peak memory"] = long.peak_mib / short.peak_mib
    return figures


def convert(options: argparse.Namespace) -> dict[str, float | int]:
    """Figures of `launch.convert` on a random VideoLLaMA3 of full size. The files are read from the disk, not from memory, as far as the system allows."""
    from launch.train import load_config
    from revision_jax.convert.rehearsal import random_checkpoint

    source, out = options.workdir / f"{options.config}-random", options.workdir / f"{options.config}-converted"
    if not source.exists():
        random_checkpoint(source, "video_llama_3", load_config(options.config))
    shutil.rmtree(out, ignore_errors=True)
    files = sorted(source.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    _forget(files)
    began = time.perf_counter()
    for file in files:
        _read(file)
    plain = time.perf_counter() - began
    _forget(files)
    try:
        seconds, peak = watched([sys.executable, "-m", "launch.convert", "--source", "video_llama_3", "--path", str(source), "--out", str(out)])
        figures = {
            "size (GB)": size / 1e9, "converted in (s)": seconds, "a plain read of the files (s)": plain, "share of a plain read's speed": plain / seconds,
            "peak anonymous memory (MiB)": peak / 2**20,
        }  # fmt: skip
        if options.load:
            for name, folder in (("as it is", source), ("converted", out)):
                took = _loading(folder)
                figures |= {f"loaded {name} in (s)": took, f"loaded {name}, share of a plain read's speed": plain / took}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return figures


def _loading(folder: Path) -> float:
    """Seconds until the weights of a model to talk with are on the device, read from the disk as far as the system allows."""
    import jax

    from revision_jax.chat.chat import Chat

    jax.devices()
    _forget(sorted(folder.glob("*.safetensors")))
    began = time.perf_counter()
    jax.block_until_ready(Chat.from_pretrained(folder).engine.params)
    return time.perf_counter() - began


def data(options: argparse.Namespace) -> dict[str, float | int]:
    """See `bench_data.py`, which measures processes by this module's means."""
    from launch.bench_data import data as measured

    return measured(options)


BENCHES = {"ground": ground, "convert": convert, "curate": curate, "data": data, "startup": startup, "weights": weights}


def watched(command: list[str]) -> tuple[float, int]:
    """(wall seconds, most anonymous resident bytes) of a command in a process of its own, asked for every 5 ms. Linux only. Raises UserError if it fails."""
    from revision_jax.errors import UserError

    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.005)
    if process.returncode != 0:
        errors = process.stderr.read().strip()
        raise UserError(f"{' '.join(command[1:4])}: failed ({errors.splitlines()[-1] if errors else 'no message'})")
    return time.perf_counter() - began, peak


def anonymous(pid: int | str = "self") -> int:
    """Bytes of resident memory that no file backs; 0 for a process that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def _read(file: Path) -> None:
    buffer = bytearray(16 * 2**20)
    with open(file, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def _forget(files: Sequence[Path]) -> None:
    """Asks the system to drop the files' pages."""
    for file in files:
        with open(file, "rb+") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run(main)
