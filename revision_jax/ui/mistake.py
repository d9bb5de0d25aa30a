"""A wrong answer as a picture: where it lies in the video beside what is true, and frames of both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from revision_jax.data import video
from revision_jax.evaluation.worst import Judged
from revision_jax.ui.clock import clock, ticks
from revision_jax.ui.timeline import FAINT, FOUND, GRID, INK, MUTED, PAPER, WEAK, Axis, font_of, heat, shortened

TRUE = "#2b8a3e"
WIDTH, MARGIN, LABELS = 900, 24, 92  # pixels; LABELS: the column of the lanes' names
HEADER, LANE, STEP, AXIS, TITLE, UNDER = 70, 14, 22, 38, 26, 24  # heights: above the lanes, a bar, lane to lane, ticks, a row's title, its times
FRAMES, FRAME = 5, 162  # frames of a moment, and the side of the square that each fits into
LIMIT = 60_000  # bytes of a file

Frames = dict[float, tuple[float, UInt8[np.ndarray, "h w 3"]]]  # second asked for -> (its true time, picture)


@dataclass(frozen=True)
class Row:
    """A moment that frames are shown of: what it is, and the seconds."""

    title: str
    colour: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Lane:
    """Spans over the whole video, filled, or outlined where there is no colour; and what is written where there are none."""

    name: str
    spans: Sequence[Sequence[float]]
    colour: str
    empty: str


def rows(one: Judged) -> list[Row]:
    """What is true, if anything is, and the first answer, or the candidate that would have been it."""
    found = []
    if one.nearest:
        which = f" (one of {len(one.outcome.truth)})" if len(one.outcome.truth) > 1 else ""
        found.append(Row(f"truth{which}  {span(one.nearest)}", TRUE, _inside(one.nearest)))
    if one.first:
        said = f"{span(one.first)}   confidence {one.first[2]:.2f}" + (f"   IoU {one.iou:.2f}" if one.outcome.present else "")
        found.append(Row(f"{'best candidate, refused' if one.refused else 'first answer'}  {said}", MUTED if one.refused else FOUND, _inside(one.first)))
    return found


def span(moment: Sequence[float]) -> str:
    return f"{clock(moment[0], 1)} - {clock(moment[1], 1)}"


def _inside(moment: Sequence[float]) -> tuple[float, ...]:
    """The middles of FRAMES equal parts of a moment, in seconds."""
    return tuple(moment[0] + (moment[1] - moment[0]) * (part + 0.5) / FRAMES for part in range(FRAMES))


def read_frames(path: str | Path, wrong: Sequence[Judged]) -> Frames:
    """The frames that the pictures of wrong answers about one video show, each as large as it is drawn; seconds behind its end are left out."""
    seconds = sorted({second for one in wrong for row in rows(one) for second in row.seconds})
    info = video.probe(path)
    scale = FRAME / max(info.height, info.width)
    size = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    return dict(zip(seconds, video.read_at(path, seconds, size=size), strict=False))


def draw(one: Judged, frames: Frames | None) -> Image.Image:
    """The picture of one wrong answer. frames: of `read_frames`; without any, the lanes alone."""
    shown = [] if frames is None else rows(one)
    high = max((picture.shape[0] for _, picture in frames.values()), default=FRAME) if frames else FRAME
    lanes = _lanes(one)
    top = HEADER + STEP * len(lanes) + AXIS
    image = Image.new("RGB", (WIDTH, top + len(shown) * (TITLE + high + UNDER + 8) + (8 if shown else 0)), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 16), shortened(one.outcome.query, font_of(20), WIDTH - 2 * MARGIN), INK, font_of(20))
    pen.text((MARGIN, 44), shortened(f"{one.outcome.video} · {one.cause}: {one.reason}", font_of(14), WIDTH - 2 * MARGIN), MUTED, font_of(14))
    _draw_lanes(pen, one.outcome.duration_s, lanes)
    for row in shown:
        pen.text((MARGIN, top), row.title, row.colour, font_of(16))
        _draw_frames(image, pen, row, frames or {}, top + TITLE, high)
        top += TITLE + high + UNDER + 8
    return image


def _lanes(one: Judged) -> list[Lane]:
    accepted, others = ([moment for moment in one.outcome.moments if moment[3] is yes] for yes in (True, False))
    lanes = [
        Lane("truth", one.outcome.truth, TRUE, "not in the video"),
        Lane("answers", accepted, FOUND, "refused"),
        Lane("candidates", others, "", "no other"),
    ]
    if one.outcome.survivors is not None:
        lanes.append(Lane("survivors", one.outcome.survivors, "#{:02x}{:02x}{:02x}".format(*heat(0.5)), "none"))
    return lanes


def _draw_lanes(pen: ImageDraw.ImageDraw, duration_s: float, lanes: Sequence[Lane]) -> None:
    axis, bottom = Axis(duration_s, MARGIN + LABELS, WIDTH - MARGIN), HEADER + STEP * len(lanes)
    for mark in ticks(0.0, duration_s, 9):
        pen.line((axis.x(mark), HEADER, axis.x(mark), bottom + 4), GRID)
        half = font_of(12).getlength(clock(mark)) / 2
        pen.text((min(axis.x(mark), axis.right - half), bottom + 14), clock(mark), MUTED, font_of(12), anchor="mm")
    for number, lane in enumerate(lanes):
        y = HEADER + STEP * number
        pen.text((MARGIN, y + LANE / 2), lane.name, MUTED, font_of(14), anchor="lm")
        pen.line((axis.left, y + LANE / 2, axis.right, y + LANE / 2), GRID)
        for moment in lane.spans:
            left, right = axis.bar(moment[0], moment[1], 6.0)
            pen.rectangle((left, y, right, y + LANE), lane.colour or PAPER, lane.colour or WEAK, 1 if lane.colour else 2)
        if not lane.spans:
            wide = font_of(13).getlength(lane.empty)
            pen.rectangle((axis.left, y, axis.left + wide + 8, y + LANE), PAPER)
            pen.text((axis.left, y + LANE / 2), lane.empty, WEAK, font_of(13), anchor="lm")


def _draw_frames(image: Image.Image, pen: ImageDraw.ImageDraw, row: Row, frames: Frames, top: int, high: int) -> None:
    apart = (WIDTH - 2 * MARGIN - FRAMES * FRAME) // (FRAMES - 1)
    for number, second in enumerate(row.seconds):
        left = MARGIN + number * (FRAME + apart)
        if second not in frames:
            pen.rectangle((left, top, left + FRAME - 1, top + high - 1), PAPER, FAINT)
            pen.text((left + FRAME / 2, top + high / 2), "no frame", MUTED, font_of(13), anchor="mm")
            continue
        time, picture = frames[second]
        image.paste(Image.fromarray(picture), (left + (FRAME - picture.shape[1]) // 2, top + (high - picture.shape[0]) // 2))
        pen.text((left + FRAME / 2, top + high + 12), clock(time, 1), MUTED, font_of(13), anchor="mm")


def png(image: Image.Image, limit: int = LIMIT) -> bytes:
    """A PNG file of at most `limit` bytes: of as many colours as that allows, and where pictures are too rich for it, of half the size."""
    for smaller, colours in ((1, 256), (1, 64), (1, 48), (1, 32), (1, 16), (2, 64), (2, 16)):
        data = io.BytesIO()
        # The octree keeps the few bright pixels of the bars apart, which the median cut mixes with the frames.
        image.reduce(smaller).quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
        if data.tell() <= limit:
            break
    return data.getvalue()
