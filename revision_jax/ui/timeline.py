"""The timeline picture: one row a question over the length of the video, with where the search looked and what it found."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from revision_jax.files import write_bytes
from revision_jax.ui import view
from revision_jax.ui.clock import clock, length, ticks

INK, MUTED, FAINT, GRID, PAPER = "#1f2328", "#656d76", "#c4cad1", "#e6e9ed", "#ffffff"
FOUND, WEAK, NO = "#d9480f", "#8c959f", "#656d76"
HEAT = ((0.0, (238, 242, 247)), (0.5, (122, 170, 220)), (1.0, (12, 68, 148)))  # pale to deep blue: orders well in grey too
WIDTH = 1600  # pixels
MARGIN, HEADER, FOOTER = 40, 96, 84
TITLE, STRIP, LANE, LABEL, GAP = 40, 22, 20, 22, 26  # heights in a row: question, heat, bars, a line of labels, space after


@dataclass(frozen=True)
class _Row:
    question: view.Question
    labels: tuple[tuple[view.Found, int], ...]  # accepted moments with the line their label is on
    lines: int
    top: int

    @property
    def height(self) -> int:
        return TITLE + STRIP + 6 + LANE + self.lines * LABEL + GAP


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def heat(score: float) -> tuple[int, int, int]:
    """Colour of a score in [0, 1]."""
    for (low, first), (high, second) in itertools.pairwise(HEAT):
        if score <= high:
            share = (max(score, low) - low) / (high - low)
            return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return HEAT[-1][1]


def shortened(text: str, font: Any, width: float) -> str:
    """`text`, shortened with an ellipsis until it is at most `width` pixels wide."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle].rstrip() + "...") <= width else (low, middle - 1)
    return text[:low].rstrip() + "..."


class Axis:
    """The length of a video between two pixels of a picture."""

    def __init__(self, duration_s: float, left: float, right: float):
        self.duration_s, self.left, self.right = max(duration_s, 1e-3), float(left), float(right)

    def x(self, seconds: float) -> float:
        return self.left + (self.right - self.left) * min(max(seconds / self.duration_s, 0.0), 1.0)

    def bar(self, start_s: float, end_s: float, least: float) -> tuple[float, float]:
        """Left and right of a span, at least `least` pixels wide (five seconds of nine hours must still be seen), inside the axis."""
        left, right = self.x(start_s), self.x(end_s)
        if right - left < least:
            left = min(max((left + right - least) / 2, self.left), self.right - least)
            right = left + least
        return left, right


def _label(moment: view.Found) -> str:
    return f"{clock(moment.start_s)} - {clock(moment.end_s)}   {moment.confidence:.2f}"


def _place(question: view.Question, axis: Axis, font: Any) -> tuple[tuple[tuple[view.Found, int], ...], int]:
    """Puts each accepted moment's label on the first line where it does not touch another."""
    taken: list[list[tuple[float, float]]] = []
    placed = []
    for moment in sorted(question.accepted, key=lambda m: m.start_s):
        left, right = _label_span(moment, axis, font)
        line = next((i for i, spans in enumerate(taken) if all(right + 16 < a or b + 16 < left for a, b in spans)), len(taken))
        if line == len(taken):
            taken.append([])
        taken[line].append((left, right))
        placed.append((moment, line))
    return tuple(placed), len(taken)


def _label_span(moment: view.Found, axis: Axis, font: Any) -> tuple[float, float]:
    width = font.getlength(_label(moment))
    centre = (axis.x(moment.start_s) + axis.x(moment.end_s)) / 2
    left = min(max(centre - width / 2, axis.left), axis.right - width)
    return left, left + width


def _strip(draw: ImageDraw.ImageDraw, axis: Axis, level: view.Level | None, top: int) -> None:
    """First-level scores; where windows overlap a column of pixels takes the best."""
    draw.rectangle((axis.left, top, axis.right, top + STRIP), fill=heat(0.0))
    windows = [w for w in level.windows if w.score is not None] if level else []
    best = [-1.0] * (int(axis.right - axis.left) + 1)
    for window in windows:
        left, right = axis.bar(window.start_s, window.end_s, 2.0)
        for x in range(int(left - axis.left), min(int(right - axis.left) + 1, len(best))):
            best[x] = max(best[x], window.score or 0.0)
    for x, score in enumerate(best):
        if score >= 0:
            draw.line((axis.left + x, top, axis.left + x, top + STRIP), fill=heat(score))


def _draw_row(draw: ImageDraw.ImageDraw, axis: Axis, row: _Row, fonts: dict[str, Any]) -> None:
    question, top = row.question, row.top
    colour = FOUND if question.present else NO
    verdict = question.verdict
    wide = fonts["small"].getlength(verdict) + 24
    draw.rounded_rectangle((axis.right - wide, top, axis.right, top + 28), 14, fill=colour if question.present else PAPER, outline=colour, width=2)
    draw.text((axis.right - wide / 2, top + 14), verdict, font=fonts["small"], fill=PAPER if question.present else colour, anchor="mm")
    draw.text((axis.left, top + 14), shortened(question.query, fonts["query"], axis.right - axis.left - wide - 30), font=fonts["query"], fill=INK, anchor="lm")
    top += TITLE
    _strip(draw, axis, question.levels[0] if question.levels else None, top)
    top += STRIP + 6
    draw.line((axis.left, top + LANE / 2, axis.right, top + LANE / 2), fill=GRID, width=2)
    for moment in question.rejected:
        left, right = axis.bar(moment.start_s, moment.end_s, 6.0)
        draw.rounded_rectangle((left, top + 4, right, top + LANE - 4), 2, fill=PAPER, outline=WEAK, width=2)
    for moment in question.accepted:
        left, right = axis.bar(moment.start_s, moment.end_s, 8.0)
        draw.rounded_rectangle((left, top, right, top + LANE), min(4, (right - left) / 4), fill=FOUND)
    for moment, line in row.labels:  # lines first: a label may lie on another one's line, never under it
        if line:
            centre = (axis.x(moment.start_s) + axis.x(moment.end_s)) / 2
            draw.line((centre, top + LANE + 1, centre, top + LANE + 6 + line * LABEL), fill=FAINT, width=1)
    for moment, line in row.labels:
        left, right = _label_span(moment, axis, fonts["small"])
        y = top + LANE + 4 + line * LABEL
        draw.rectangle((left - 3, y, right + 3, y + LABEL - 2), fill=PAPER)
        draw.text((left, y + LABEL / 2), _label(moment), font=fonts["small"], fill=FOUND, anchor="lm")


def draw_timeline(result: dict[str, Any], *, width: int = WIDTH) -> Image.Image:
    """The picture of one video's answers. `result`: {"video": {...}, "results": [...]} as `launch.ground --json` writes it.

    Height follows the number of questions. Raises UserError for another structure.
    """
    answered = view.read(result)
    axis = Axis(answered.duration_s, MARGIN, width - MARGIN)
    fonts = {"title": font_of(28), "query": font_of(21), "small": font_of(17)}
    rows, top = [], HEADER
    for question in answered.questions:
        labels, lines = _place(question, axis, fonts["small"])
        rows.append(_Row(question, labels, max(lines, 0), top))
        top += rows[-1].height
    image = Image.new("RGB", (width, top + FOOTER), PAPER)
    draw = ImageDraw.Draw(image)
    about = f"{length(answered.duration_s)}   {len(rows)} question{'' if len(rows) == 1 else 's'}"
    draw.text((axis.right, 42), about, font=fonts["small"], fill=MUTED, anchor="rm")
    name = shortened(Path(answered.path).name, fonts["title"], axis.right - axis.left - fonts["small"].getlength(about) - 40)
    draw.text((axis.left, 40), name, font=fonts["title"], fill=INK, anchor="lm")
    bottom = top
    marks = ticks(0.0, answered.duration_s, max(2, int(axis.right - axis.left) // 130))
    for mark in marks:
        draw.line((axis.x(mark), HEADER - 14, axis.x(mark), bottom), fill=GRID)
    for row in rows:
        draw.rectangle((axis.left - 2, row.top - 2, axis.right + 2, row.top + TITLE - 2), fill=PAPER)  # grid lines stay out of the text
        _draw_row(draw, axis, row, fonts)
    draw.line((axis.left, bottom, axis.right, bottom), fill=FAINT, width=2)
    for mark in marks:
        x = axis.x(mark)
        draw.line((x, bottom, x, bottom + 7), fill=FAINT, width=2)
        text = clock(mark)
        half = fonts["small"].getlength(text) / 2
        draw.text((min(max(x, axis.left + half), axis.right - half), bottom + 20), text, font=fonts["small"], fill=MUTED, anchor="mm")
    _legend(draw, axis.left, float(bottom + 56), fonts["small"], brief=width < 1150)
    return image


def _legend(draw: ImageDraw.ImageDraw, x: float, y: float, font: Any, brief: bool) -> None:
    def text(words: str) -> None:
        nonlocal x
        draw.text((x, y), words, font=font, fill=MUTED, anchor="lm")
        x += font.getlength(words) + 34

    for step in range(60):
        draw.line((x + step, y - 7, x + step, y + 7), fill=heat(step / 59))
    x += 70
    text("window score" if brief else "first look at every window: unlikely to likely")
    draw.rounded_rectangle((x, y - 8, x + 26, y + 8), 4, fill=FOUND)
    x += 36
    text("moment" if brief else "moment, with its confidence")
    draw.rounded_rectangle((x, y - 6, x + 26, y + 6), 3, outline=WEAK, width=2)
    x += 36
    text("below threshold" if brief else "candidate below the threshold")


def png(result: dict[str, Any], *, width: int = WIDTH) -> bytes:
    """`draw_timeline` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    draw_timeline(result, width=width).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_timeline(path: str | Path, result: dict[str, Any], *, width: int = WIDTH) -> Path:
    """Writes the PNG whole or not at all."""
    return write_bytes(path, png(result, width=width))
