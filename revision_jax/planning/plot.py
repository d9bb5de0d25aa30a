"""The plan as a picture: for each program a pair of bar charts, memory of a chip against its HBM, and the three times of a step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from revision_jax.files import write_bytes
from revision_jax.planning.report import Report, by_program, milliseconds, shape
from revision_jax.sharding.chips import GIB

INK, MUTED, GRID, PAPER, LIMIT = "#1f2328", "#656d76", "#e6e9ed", "#ffffff", "#c92a2a"
MEMORY = {"arguments": "#0c4494", "temporaries": "#7aaadc", "output": "#c4cad1"}
TIMES = {"compute": "#2b8a3e", "hbm": "#e8a33d", "interconnect": "#862e9c"}
WIDTH, MARGIN, LABELS, GAP = 1500, 36, 300, 60  # pixels; LABELS: the column of strategies, GAP: between the two charts
HEADER, TITLE, ROW, BAR = 92, 52, 34, 20
CHART = (WIDTH - 2 * MARGIN - LABELS - GAP) // 2


def draw(path: Path, title: str, reports: Sequence[Report]) -> Path:
    """Writes the picture as PNG. Raises UserError where it cannot be written."""
    groups = by_program(reports)
    height = HEADER + sum(TITLE + ROW * len(group) + 16 for group in groups.values()) + MARGIN
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 20), title, INK, _font(22))
    left = _legend(pen, MARGIN, MEMORY, "GiB of a chip: ")
    _legend(pen, max(left, MARGIN + LABELS + CHART + GAP), TIMES, "ms of a step at best: ")
    top = HEADER
    for name, group in groups.items():
        pen.text((MARGIN, top + 14), name, INK, _font(17))
        _program(pen, top + TITLE, group)
        top += TITLE + ROW * len(group) + 16
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return write_bytes(path, data.getvalue())


def _program(pen: ImageDraw.ImageDraw, top: int, group: Sequence[Report]) -> None:
    memory = max([*(report.bytes.get("total", 0) for report in group), *(report.bytes.get("available", 0) for report in group), 1])
    slowest = max([*(report.seconds.get(name, 0.0) for report in group for name in TIMES), 1e-12])
    first, second = MARGIN + LABELS, MARGIN + LABELS + CHART + GAP
    limit = group[0].bytes.get("available", 0)
    if limit:
        x = first + round((CHART - 110) * limit / memory)
        pen.line((x, top - 4, x, top + ROW * len(group) - 6), LIMIT, 2)
    for number, report in enumerate(group):
        y = top + ROW * number
        pen.text((MARGIN, y), report.strategy, INK, _font(15))
        pen.text((MARGIN, y + 16), shape(report.mesh), MUTED, _font(11))
        if not report.bytes:
            pen.text((first, y + 2), report.problem[:150], MUTED, _font(12))
            continue
        x = first
        for part, colour in MEMORY.items():
            size = report.bytes.get(part, 0) - (report.bytes.get("aliased", 0) if part == "output" else 0)
            wide = round((CHART - 110) * max(0, size) / memory)
            pen.rectangle((x, y, x + wide, y + BAR), colour)
            x += wide
        told = f"{report.bytes['total'] / GIB:.1f}" + (f", {report.lacks / GIB:.1f} too much" if report.lacks else "")
        pen.rectangle((x + 1, y, x + 10 + pen.textlength(told, _font(13)), y + BAR), PAPER)
        pen.text((x + 6, y + 2), told, LIMIT if report.lacks else INK, _font(13))
        for line, (part, colour) in enumerate(TIMES.items() if report.seconds else ()):
            wide = round((CHART - 90) * report.seconds.get(part, 0.0) / slowest)
            own = (second, y + 8 * line, second + wide, y + 8 * line + 6)
            pen.rectangle(own, colour)
            if report.binds == part:
                pen.text((own[2] + 6, own[1] - 4), milliseconds(report.seconds[part]), INK, _font(13))


def _legend(pen: ImageDraw.ImageDraw, x: int, colours: dict[str, str], text: str) -> int:
    pen.text((x, 58), text, MUTED, _font(14))
    x += round(pen.textlength(text, _font(14)))
    for name, colour in colours.items():
        pen.rectangle((x, 60, x + 12, 72), colour)
        pen.text((x + 18, 58), name, MUTED, _font(14))
        x += 18 + round(pen.textlength(name, _font(14))) + 16
    return x


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
