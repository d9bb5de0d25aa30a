"""Moments of a video cut out as files of their own: re-encoded, so that a cut lies on the frame and not on the nearest keyframe. PyAV."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av

from revision_jax.errors import UserError


def cut(video: str | Path, start_s: float, end_s: float, target: str | Path, crf: int = 20) -> Path:
    """Writes seconds [start_s, end_s) of the pictures (no sound) as H.264 MP4, whole or not at all. A rotation tag is kept as such is displayed.

    Raises UserError for what cannot be read or written, and where the range holds no frame.
    """
    target = Path(target)
    building = target.with_name(f".{target.name}.{os.getpid()}.mp4")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        written = _write(video, start_s, end_s, building, crf)
        if not written:
            raise UserError(f"{video}: no frame between {start_s:.1f} s and {end_s:.1f} s to make {target} of")
        building.replace(target)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{target}: could not be cut out of {video} ({getattr(error, 'strerror', None) or error})") from None
    finally:
        with contextlib.suppress(OSError):
            building.unlink(missing_ok=True)
    return target


def _write(video: str | Path, start_s: float, end_s: float, building: Path, crf: int) -> int:
    written, last = 0, -1
    with av.open(str(video), metadata_errors="ignore") as source, av.open(str(building), "w", format="mp4", options={"movflags": "+faststart"}) as sink:
        stream = source.streams.video[0]
        base, origin = stream.time_base, float((stream.start_time or 0) * stream.time_base)
        source.seek(int((max(start_s, 0.0) + origin) / base), stream=stream, backward=True)
        out = sink.add_stream("libx264", rate=stream.average_rate or 25, options={"crf": str(crf), "preset": "veryfast"})
        out.width, out.height, out.pix_fmt = stream.width - stream.width % 2, stream.height - stream.height % 2, "yuv420p"
        out.time_base = out.codec_context.time_base = Fraction(1, 90000)
        for frame in source.decode(stream):
            if frame.pts is None:
                continue
            time = float(frame.pts * base) - origin
            if time >= end_s - 1e-6:
                break
            if time < start_s - 1e-6:
                continue
            picture = frame.reformat(width=out.width, height=out.height, format="yuv420p")
            picture.pts, picture.time_base = max(round((time - start_s) * 90000), last + 1), Fraction(1, 90000)
            picture.pict_type = 0  # the encoder decides
            last = picture.pts
            sink.mux(out.encode(picture))
            written += 1
        if written:
            sink.mux(out.encode(None))
    return written
