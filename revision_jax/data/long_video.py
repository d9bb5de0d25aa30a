"""Frames of a long video file, decoded by several processes: the same chunks as `video.read_frames` gives, bit for bit.

    ticks      |  segment 0  |  segment 1  |  segment 2  |  segment 3  |  ..
    process    |      0      |      1      |      0      |      1      |  ..      each reads from the keyframe before its segment

A segment is a whole number of chunks, long beside the time between keyframes. A process sends a segment when it is finished and waits until it is taken, so
memory is bounded by a segment for each of them. Where a segment is not what it should be (damage, an end too early, a process that died), one process goes on
from the segment before it, where nothing had happened yet: what lies behind damage depends on where reading began.

Processes are started as commands of their own, which asks nothing of the caller's main module; one that nobody listens to any more ends at its next segment.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from revision_jax.data.video import FrameChunk, FrameReader
from revision_jax.errors import UserError

LONG_S = 600.0  # a shorter video is read by one process
GAPS = 6  # times between keyframes that a segment is long at least: that much more is decoded than by one process, at most a sixth
CHUNKS = 16  # of a segment, at most
MOST = 8  # processes unless told otherwise


def default_decoders() -> int:
    """Half of the cores, where there are four or more; else one."""
    cores = os.cpu_count() or 1
    return min(cores // 2, MOST) if cores >= 4 else 1


def read_frames(
    path: str | Path, rate: float, *, start_s: float = 0.0, end_s: float | None = None, size: tuple[int, int] | None = None, chunk: int = 64,
    progress: Callable[[float, float], None] | None = None, decoders: int | None = None,
) -> FrameReader:
    """`video.read_frames` by `decoders` processes (default: by the cores), or by one where the file is short, or does not say where its keyframes are.

    Raises UserError as that does, and for a number below 1.
    """
    decoders = default_decoders() if decoders is None else decoders
    if decoders < 1:
        raise UserError(f"decoders: must be at least 1, is {decoders}")
    reader = SegmentReader(path, rate, start_s, end_s, size, chunk, progress, None)
    reader.decoders = decoders if reader.end_s - reader.start_s >= LONG_S and reader.segments() else 1
    return reader


class SegmentReader(FrameReader):
    """The result of `read_frames`. It can be left at any time; then its processes end."""

    decoders = 1

    def segments(self) -> list[tuple[float, float]]:
        """(start, end) of each, in seconds; none where the file cannot be cut."""
        if not (self.info.duration_known and math.isfinite(self.info.keyframe_gap_s)):
            return []
        chunks = max(1, math.ceil(GAPS * self.info.keyframe_gap_s * self.rate / self._chunk))
        if chunks > CHUNKS:
            return []
        first, stop = (math.ceil(second * self.rate - 1e-6) for second in (self.start_s, self.end_s))
        cuts = [*range(first, stop, chunks * self._chunk)]
        return [(a / self.rate, b / self.rate) for a, b in itertools.pairwise(cuts)] + ([(cuts[-1] / self.rate, self.end_s)] if cuts else [])

    def __iter__(self) -> Iterator[FrameChunk]:
        if self.decoders == 1:
            yield from super().__iter__()
            return
        self.warnings, self.readable_s, self.failures = [], self.end_s, 0
        segments, processes = self.segments(), []
        number = 0
        try:
            for i in range(min(self.decoders, len(segments))):
                processes.append(self._start(segments[i :: self.decoders]))
            for number, (_, end) in enumerate(segments):
                found = _receive(processes[number % self.decoders].stdout)
                if found is None:
                    break
                for i, part in enumerate(found, start=1):
                    self._tell(end if i == len(found) else end - (len(found) - i) * self._chunk / self.rate)
                    yield part
            else:
                return
        finally:
            for process in processes:
                process.kill()
                process.stdout.close()
                process.wait()
        yield from self._alone(segments, number)

    def _alone(self, segments: list[tuple[float, float]], number: int) -> Iterator[FrameChunk]:
        """The chunks from segment `number` on, read by this process from the segment before it on."""
        begin = segments[max(number - 1, 0)][0]
        seen = round((segments[number][0] - begin) * self.rate) // self._chunk
        rest = FrameReader(self._path, self.rate, begin, self.end_s, self.size, self._chunk, lambda done, _: self._tell(begin + done), self.plan)
        for part in itertools.islice(iter(rest), seen, None):
            self.failures = rest.failures
            yield part
        self.warnings, self.readable_s, self.failures = rest.warnings, rest.readable_s, rest.failures

    def _tell(self, done_s: float) -> None:
        if self._progress:
            self._progress(min(done_s, self.end_s) - self.start_s, self.end_s - self.start_s)

    def _start(self, segments: list[tuple[float, float]]) -> subprocess.Popen:
        work = {"path": str(self._path), "rate": self.rate, "size": self.size, "chunk": self._chunk, "plan": self.plan, "segments": segments}
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
        process = subprocess.Popen(
            [sys.executable, "-m", "revision_jax.data.long_video"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        try:
            process.stdin.write(json.dumps(work).encode())
            process.stdin.close()
        except OSError:  # it died already: found out where its first segment is asked for
            pass
        return process


# -------------------------------------------------------------------------------------------------------------------------- processes


def _receive(stream: BinaryIO) -> list[FrameChunk] | None:
    """A segment's chunks; None where it is not as it should be, or nothing comes any more."""
    try:
        shapes = json.loads(stream.readline())
    except ValueError:
        return None
    found = []
    for shape in shapes or []:
        chunk = FrameChunk(np.empty(shape[0], np.float64), np.empty(shape, np.uint8))
        for array in (chunk.times, chunk.frames):
            view = memoryview(array).cast("B")
            if stream.readinto(view) != len(view):
                return None
        found.append(chunk)
    return found or None


def _send(stream: BinaryIO, chunks: list[FrameChunk] | None) -> None:
    stream.write(json.dumps(None if chunks is None else [chunk.frames.shape for chunk in chunks]).encode() + b"\n")
    for chunk in chunks or []:
        for array in (chunk.times, chunk.frames):
            stream.write(memoryview(np.ascontiguousarray(array)).cast("B"))
    stream.flush()


def _serve(work: dict[str, Any], stream: BinaryIO) -> None:
    """Sends each segment's chunks; None, and nothing more, for the first that is not as it should be."""
    segments, size = work["segments"], work["size"]
    reader = FrameReader(work["path"], work["rate"], 0.0, None, size and tuple(size), work["chunk"], None, work["plan"])
    for (start, end), chunks in zip(segments, reader.stretches(segments), strict=True):
        try:
            found = list(chunks)
        except UserError:
            found = []
        ticks = math.ceil(end * reader.rate - 1e-6) - math.ceil(start * reader.rate - 1e-6)
        good = not (reader.warnings or reader.failures) and sum(map(len, found)) == ticks
        _send(stream, found if good else None)
        if not good:
            return


def main() -> None:
    try:
        _serve(json.load(sys.stdin), sys.stdout.buffer)
        sys.stdout.buffer.close()
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)  # and nothing is left to flush


if __name__ == "__main__":
    main()
