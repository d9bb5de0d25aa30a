"""An open video file: what it says about itself, and its decoded frames in order of time. PyAV."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from revision_jax.errors import UserError

SEEK_GAP_S = 1.0  # keyframes at most this far apart: seeking beats decoding in order (at 10 s it is three times slower)
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


class VideoFile:
    """An open file: its info, and decoded frames in order of time. Errors of single packets are counted, not raised."""

    def __init__(self, path: str | Path):
        check_file(path)
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

    def __enter__(self) -> VideoFile:
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


def check_file(path: str | Path) -> None:
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a directory; give a video file")
