"""Frames of a video file at a wanted rate, with their true timestamps, in bounded memory. PyAV.

Tick k is second k / rate. It gets the nearest decoded frame at or before it, which carries its own timestamp: variable frame rates, offsets of the
start and lost frames move no frame in time. The cheapest of three reading plans is taken (measured per hour of 640x360 video at one frame a second:
18 s, 68 s, 98 s):

    seek         jump from keyframe to keyframe, where they are near each other and the rate is low
    references   decode in order, leaving out frames that no other needs, where a tick then still gets a picture that is fresh for its rate
    all          decode in order

Only frames that a tick takes are converted and resized. Damage is survived packet by packet and told in `warnings`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import Float64, UInt8

from revision_jax.data.video_file import SEEK_GAP_S, VideoFile, VideoInfo, check_file
from revision_jax.errors import UserError

Plan = Literal["seek", "references", "all"]
SKIPPED_RUN = 4  # frames; no common encoder leaves more than three unreferenced frames in a row


@dataclass(frozen=True)
class FrameChunk:
    """Some consecutive ticks: seconds from the start of the video, never falling, and RGB pictures."""

    times: Float64[np.ndarray, "n"]
    frames: UInt8[np.ndarray, "n h w 3"]

    def __len__(self) -> int:
        return len(self.times)


def content_hash(path: str | Path) -> str:
    """BLAKE2b of a file's size and of its first, middle and last MiB, 32 hex digits: tells files apart without reading hours of video.

    Raises UserError if the file cannot be read.
    """
    piece = 1 << 20
    check_file(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
            for offset in (0, max(0, size // 2 - piece // 2), max(0, size - piece)):
                file.seek(offset)
                digest.update(file.read(piece))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def probe(path: str | Path) -> VideoInfo:
    """Opens a video and looks at its index and its first frame.

    Raises UserError for a missing file, a directory, a file that is no video, audio only, and a video without a frame that can be decoded.
    """
    with VideoFile(path) as source:
        return source.info


def read_frames(
    path: str | Path, rate: float, *, start_s: float = 0.0, end_s: float | None = None, size: tuple[int, int] | None = None, chunk: int = 64,
    progress: Callable[[float, float], None] | None = None, plan: Plan | None = None,
) -> FrameReader:
    """One frame a tick of `rate` ticks a second, for ticks in [start_s, end_s); iterate over the result for `FrameChunk`s of at most `chunk`.

    `size` is (rows, columns) in pixels, as displayed; None keeps the video's own. `progress` is called with (seconds done, seconds in all).
    `plan` forces a reading plan. Raises UserError as `probe` does, and if the video ends before `start_s`.
    """
    return FrameReader(path, rate, start_s, end_s, size, chunk, progress, plan)


class FrameReader:
    """The result of `read_frames`. Can be iterated again; `info`, `plan` are known at once, `warnings` and `readable_s` after the last chunk."""

    def __init__(self, path, rate, start_s, end_s, size, chunk, progress, plan):
        if not (rate > 0 and chunk > 0):
            raise ValueError(f"rate and chunk must be above 0, are {rate} and {chunk}")
        self._path, self.rate, self._chunk, self._progress = path, float(rate), chunk, progress
        with VideoFile(path) as source:
            self.info = source.info
        end = self.info.duration_s if end_s is None else min(end_s, self.info.duration_s)
        if not 0 <= start_s < end:
            raise UserError(f"{path}: nothing to read from {clock(start_s)} to {clock(end)}; the video lasts {clock(self.info.duration_s)}")
        self.start_s, self.end_s = float(start_s), float(end)
        self.plan: Plan = plan or choose_plan(self.info, self.rate)
        self.size = size or (self.info.height, self.info.width)
        self.warnings: list[str] = []
        self.readable_s = self.end_s  # up to where pictures were found
        self.failures = 0  # packets that could not be decoded so far

    def __iter__(self) -> Iterator[FrameChunk]:
        with self._opened() as source:
            yield from self._chunks(source)

    def stretches(self, wanted: Iterable[tuple[float, float]]) -> Iterator[Iterator[FrameChunk]]:
        """The chunks of several stretches, (start, end) in seconds and rising, of a file that is opened once. Each is to be read before the next."""
        with self._opened() as source:
            for self.start_s, self.end_s in wanted:
                yield self._chunks(source)

    def _opened(self) -> VideoFile:
        source = VideoFile(self._path)
        if self.plan == "references":
            source.stream.codec_context.skip_frame = "NONREF"
        return source

    def _chunks(self, source: VideoFile) -> Iterator[FrameChunk]:
        self.warnings, self.readable_s, self.failures = [], self.end_s, 0
        first = math.ceil(self.start_s * self.rate - 1e-6)
        times, frames, found = [], [], 0
        for time, frame in self._picks(source, first):
            self.failures = source.failures
            times.append(time)
            frames.append(frame)
            if len(times) == self._chunk:
                yield self._emit(times, frames, (first + found) / self.rate)
                times, frames = [], []
            found += 1
        if times:
            yield self._emit(times, frames, self.readable_s)
        self._conclude(source, found)

    def _picks(self, source: VideoFile, first: int) -> Iterator[tuple[float, np.ndarray]]:
        """(time, picture) of each tick. Holds one decoded frame: the newest, which the coming ticks may take."""
        k, held_time, held, picture = first, 0.0, None, None
        tolerance = source.tolerance_s
        wanted = [first / self.rate]  # the tick that the source may jump to
        last_end = 0.0
        for time, frame in source.frames(wanted, jumps=self.plan == "seek"):
            while k / self.rate < min(time - tolerance, self.end_s):
                if held is None:  # the video's first frame is later than the tick: show it early rather than nothing
                    held_time, held = time, frame
                if picture is None:
                    picture = self._convert(held)
                yield held_time, picture
                k += 1
                wanted[0] = k / self.rate
            held_time, held, picture = time, frame, None
            last_end = time + max(float((frame.duration or 0) * source.time_base), 1 / self.info.fps)
            if wanted[0] >= self.end_s - 1e-9:
                return
        # The file ended. A last frame may be shown for long (then its duration says so); a cut file ends where its pictures end.
        complete = last_end + max(0.5, (SKIPPED_RUN + 1) / self.info.fps) >= self.info.duration_s
        until = self.end_s if complete else min(self.end_s, last_end)
        if not complete:
            self.readable_s = until
        while held is not None and k / self.rate < until - 1e-9:
            picture = self._convert(held) if picture is None else picture
            yield held_time, picture
            k += 1

    def _convert(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        return _picture(frame, self.size, self.info.rotation)

    def _emit(self, times: list[float], frames: list[np.ndarray], done_s: float) -> FrameChunk:
        if self._progress:
            self._progress(min(done_s, self.end_s) - self.start_s, self.end_s - self.start_s)
        return FrameChunk(np.array(times, np.float64), np.stack(frames))

    def _conclude(self, source: VideoFile, found: int) -> None:
        name = self._path
        if found == 0 and math.ceil(self.start_s * self.rate - 1e-6) / self.rate < self.end_s - 1e-9:
            raise UserError(f"{name}: no frame between {clock(self.start_s)} and {clock(self.end_s, up=True)} can be decoded")
        if self.readable_s < self.end_s:
            self.warnings.append(f"{name}: readable up to {clock(self.readable_s)} of {clock(self.info.duration_s, up=True)}")
        elif not self.info.duration_known:
            self.warnings.append(f"{name}: readable up to {clock(self.info.duration_s)}; the file does not say how long it should be, it may be cut off")
        if source.failures and self.readable_s >= self.end_s:
            self.warnings.append(f"{name}: damaged; {source.failures} packets could not be decoded, the first after {clock(source.first_failure_s)}")


def read_at(path: str | Path, seconds: Sequence[float], *, size: tuple[int, int] | None = None) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """(true time, picture) for each of the rising `seconds`: the frame that is shown then, or the first one there is. Stops where the video ends early.

    `size` as for `read_frames`; seconds that lie far apart are jumped to. Raises UserError as `probe` does.
    """
    if not len(seconds):
        return
    with VideoFile(path) as source:
        info = source.info
        size = size or (info.height, info.width)
        gap = (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
        wanted, k, held_time, held, picture = [float(seconds[0])], 0, 0.0, None, None
        for time, frame in source.frames(wanted, jumps=gap >= min(info.keyframe_gap_s, 10 * SEEK_GAP_S)):
            while k < len(seconds) and seconds[k] < time - source.tolerance_s:
                if held is None:
                    held_time, held = time, frame
                picture = _picture(held, size, info.rotation) if picture is None else picture
                yield held_time, picture
                k += 1
                wanted[0] = float(seconds[min(k, len(seconds) - 1)])
            if k == len(seconds):
                return
            held_time, held, picture = time, frame, None
        # The last frame is shown until the file says that it ends; a cut file's pictures end earlier.
        shown_until = held_time + max(0.5, (SKIPPED_RUN + 1) / info.fps)
        while held is not None and k < len(seconds) and seconds[k] <= shown_until:
            picture = _picture(held, size, info.rotation) if picture is None else picture
            yield held_time, picture
            k += 1


def _picture(frame: av.VideoFrame, size: tuple[int, int], rotation: int) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame as RGB of (rows, columns) `size`, as displayed."""
    height, width = size if rotation % 180 == 0 else size[::-1]
    picture = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC").to_ndarray()
    return np.rot90(picture, rotation // 90) if rotation else picture


def choose_plan(info: VideoInfo, rate: float) -> Plan:
    """The cheapest reading plan that still gives every tick a fresh frame (figures above)."""
    if rate <= 1 and info.keyframe_gap_s <= max(SEEK_GAP_S, 0.5 / rate):
        return "seek"
    # Without unreferenced frames a tick's picture can be SKIPPED_RUN frames old: allowed up to a quarter of the time between ticks.
    return "references" if SKIPPED_RUN / info.fps <= 0.25 / rate else "all"


def clock(seconds: float, up: bool = False) -> str:
    """hh:mm:ss, rounded down (or up)."""
    whole = max(0, math.ceil(seconds - 1e-6) if up else math.floor(seconds + 1e-6))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
