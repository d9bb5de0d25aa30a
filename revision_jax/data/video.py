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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import Float64, UInt8

from revision_jax.errors import UserError

Plan = Literal["seek", "references", "all"]
SEEK_GAP_S = 1.0  # keyframes at most this far apart: seeking beats decoding in order (at 10 s it is three times slower)
SKIPPED_RUN = 4  # frames; no common encoder leaves more than three unreferenced frames in a row
MAX_FAILURES = 64  # reads in a row that may fail before a file counts as ended
NOT_VIDEO = ("ansi", "bintext", "xbin", "idf", "txd")  # FFmpeg takes plain text for pictures of it


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video stream. Width and height are as displayed: rotated, and pixels made square."""

    path: str
    duration_s: float
    fps: float  # average
    width: int  # pixels
    height: int  # pixels
    rotation: int  # degrees counter-clockwise, already counted in width and height: 0, 90, 180 or 270
    codec: str
    start_s: float  # timestamp of the stream's beginning; all other times are counted from it
    keyframe_gap_s: float  # longest time between keyframes, inf if there is one
    duration_known: bool = True  # False: the file does not say; `duration_s` is what was found in it


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
    _check_file(path)
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
    with _Source(path) as source:
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
        with _Source(path) as source:
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

    def _opened(self) -> _Source:
        source = _Source(self._path)
        if self.plan == "references":
            source.stream.codec_context.skip_frame = "NONREF"
        return source

    def _chunks(self, source: _Source) -> Iterator[FrameChunk]:
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

    def _picks(self, source: _Source, first: int) -> Iterator[tuple[float, np.ndarray]]:
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

    def _conclude(self, source: _Source, found: int) -> None:
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
    with _Source(path) as source:
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


class _Source:
    """An open file: its info, and decoded frames in order of time. Errors of single packets are counted, not raised."""

    def __init__(self, path: str | Path):
        _check_file(path)
        self.path = path
        self.failures = 0
        self.first_failure_s = 0.0
        self.decoded = 0
        self._clock_s = 0.0  # of the newest frame
        try:
            self.container = av.open(str(path), metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{path}: not a video that can be read ({getattr(error, 'strerror', None) or error})") from None
        try:
            self.stream = self._video_stream()
            self.time_base = self.stream.time_base
            self.info = self._look()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_) -> None:
        self.container.close()

    @property
    def tolerance_s(self) -> float:
        """Frame times are rounded to the time base (1 ms in Matroska): that much later still counts as at the tick."""
        return max(1e-6, 0.6 * float(self.time_base))

    def frames(self, wanted: list[float], jumps: bool) -> Iterator[tuple[float, av.VideoFrame]]:
        """(seconds, frame), rising; starts at or before `wanted[0]`, and with `jumps` leaves out whole groups that end before it.

        `wanted` is a one-item list that the reader moves on as its ticks are served.
        """
        position = -math.inf
        key = self._key_before(wanted[0])
        if self._keys[key] > 0 or wanted[0] > 2 * SEEK_GAP_S:
            decoding = self._from(key, wanted[0])
        else:
            decoding = self._decode()
        while True:
            item = next(decoding, None)
            if item is None:
                return
            time, frame = item
            if time > position:
                position = time
                yield time, frame
            if jumps:
                target = self._key_before(wanted[0])
                # Each keyframe once: where its data are missing, decoding goes on from an earlier one and must not jump back to it.
                if target > key and self._keys[target] > position + self.tolerance_s:
                    key = target
                    decoding = self._from(key, wanted[0])

    def _from(self, key: int, wanted_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes from a keyframe; from an earlier one where it turns out later than `wanted_s` (an index in decoding order may be off), or past the data."""
        target = self._keys[key] if len(self._keys) > 1 else wanted_s
        while True:
            try:
                self.container.seek(round((target + self._start_s) / self.time_base), stream=self.stream, backward=True)
            except (av.FFmpegError, OSError):
                target = self._earlier(target)
                if target is None:
                    return
                continue
            decoding = self._decode()
            head = next(decoding, None)
            if head is not None and head[0] <= wanted_s + self.tolerance_s:
                break
            target = self._earlier(target)
            if target is None:
                if head is None:
                    return
                break
        yield head
        yield from decoding

    def _earlier(self, target: float) -> float | None:
        """Where to seek next after `target` did not do; None at the beginning."""
        if target <= 0:
            return None
        if len(self._keys) > 1:
            return self._keys[max(0, bisect_right(self._keys, target - 1e-9) - 1)] if target > self._keys[0] else None
        return max(0.0, target - 10.0)

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decodes from where the container stands; survives packets and reads that fail."""
        fails_in_a_row = 0
        packets = self.container.demux(self.stream)
        while fails_in_a_row < MAX_FAILURES:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except av.EOFError:
                return
            except (av.FFmpegError, OSError, ValueError):
                if not self.failures:
                    self.first_failure_s = self._clock_s
                self.failures += 1
                fails_in_a_row += 1
                packets = self.container.demux(self.stream)  # a generator that raised is finished
                continue
            for frame in frames:
                stamp = frame.pts if frame.pts is not None else frame.dts
                time = self._clock_s + 1 / self._fps if stamp is None else max(0.0, float(stamp * self.time_base) - self._start_s)
                fails_in_a_row, self._clock_s = 0, time
                self.decoded += 1
                yield time, frame

    def _key_before(self, seconds: float) -> int:
        return max(0, bisect_right(self._keys, seconds + self.tolerance_s) - 1)

    def _video_stream(self) -> av.VideoStream:
        videos = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]  # not an album's cover
        if not videos:
            kind = "audio only" if self.container.streams.audio else "no picture"
            raise UserError(f"{self.path}: holds no video stream ({kind}); give a file with pictures")
        stream = videos[0]
        codec = stream.codec_context
        if codec is None or codec.name in NOT_VIDEO:
            raise UserError(f"{self.path}: not a video that can be read ({'unknown codec' if codec is None else 'text'})")
        return stream

    def _look(self) -> VideoInfo:
        stream = self.stream
        self._start_s = float((stream.start_time or 0) * self.time_base)
        self._fps = float(stream.average_rate or stream.guessed_rate or 25)
        seconds, self._keys = _duration(self.container, stream), _index_keys(stream)
        known = seconds is not None
        if not known or not self._keys:
            # Neither is in the file's head (Matroska keeps its index at the end, a cut file has none): read all packets, decode none.
            last_s, self._keys = self._scan()
            stream = self.stream  # the file was opened anew, and what belonged to the old container is freed memory
            if seconds is None:
                seconds = last_s
            elif not stream.duration and last_s <= seconds - self._start_s + 0.5:
                seconds -= self._start_s  # FFmpeg's Matroska counts its duration from zero, others from the first frame: the packets tell
        # A cut AVI states a duration that fits what is left of it; its number of frames still tells the truth.
        seconds = max(seconds, stream.frames / self._fps) if stream.frames > (seconds + 1) * self._fps else seconds
        self._keys = self._keys or [0.0]
        head = next(self._decode(), None)
        if head is None:
            raise UserError(f"{self.path}: holds no frame that can be decoded")
        frame = head[1]
        rotation = round((frame.rotation or 0) / 90) * 90 % 360
        width, height = frame.width, frame.height
        shape = stream.sample_aspect_ratio or 1
        if shape > 0 and shape != 1:
            width = max(1, round(width * shape))
        if rotation % 180:
            width, height = height, width
        if not seconds or seconds <= 0:
            seconds = head[0] + 1 / self._fps
        gaps = np.diff([*self._keys, seconds])
        gap = float(gaps.max()) if len(self._keys) > 1 else math.inf
        info = VideoInfo(str(self.path), seconds, self._fps, width, height, rotation, stream.codec_context.name, self._start_s, gap, known)
        self._rewind()
        return info

    def _scan(self) -> tuple[float, list[float]]:
        """End of the last packet and times of the keyframes, in seconds, by reading every packet."""
        end, keys = 0.0, []
        try:
            for packet in self.container.demux(self.stream):
                if packet.pts is None:
                    continue
                time = float(packet.pts * self.time_base) - self._start_s
                end = max(end, time + (float(packet.duration * self.time_base) if packet.duration else 1 / self._fps))
                if packet.is_keyframe:
                    keys.append(time)
        except (av.FFmpegError, OSError, ValueError):
            pass  # as far as it goes
        self._rewind()
        return end, sorted(set(keys))

    def _rewind(self) -> None:
        """Back to the beginning, forgetting what was counted: by opening anew, which no container refuses."""
        self.container.close()
        self.container = av.open(str(self.path), metadata_errors="ignore")
        self.stream = self._video_stream()
        self.failures, self.decoded, self._clock_s = 0, 0, 0.0


def _duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Seconds, as the file says; None if it does not."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _index_keys(stream: av.VideoStream) -> list[float]:
    """Times of the keyframes from the container's index, in seconds from the start; empty where it has no full one.

    An index is in decoding order: its stamps lie before the pictures' by the codec's delay, the same one for all keyframes, and the first is at zero.
    """
    stamps = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe]
    whole = len(stream.index_entries) >= max(2, stream.frames) and stream.frames > 0
    return [float((stamp - stamps[0]) * stream.time_base) for stamp in stamps] if whole and stamps else []


def _check_file(path: str | Path) -> None:
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a directory; give a video file")
