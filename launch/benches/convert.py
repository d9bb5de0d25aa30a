"""`launch.bench convert`: a random checkpoint of a preset's full size, turned into this project's layout by `launch.convert`.

Its seconds, also as a share of a plain read of the same files, and the most anonymous memory that it takes. With --load also the seconds until a `Chat` has
either on its device.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


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
