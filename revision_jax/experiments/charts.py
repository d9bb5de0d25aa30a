"""Pictures of rows, as PNG: bars, lines over an axis, and a map of heat. A chart is plain numbers; `draw` knows nothing of experiments."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from revision_jax.files import write_bytes

INK, MUTED, GRID, PAPER, BAR = "#1f2328", "#656d76", "#e6e9ed", "#ffffff", "#7aaadc"
SERIES = ("#0c4494", "#c92a2a", "#2b8a3e", "#e8a33d", "#862e9c", "#0b7285", "#868e96")
COLD, HOT = (255, 255, 255), (12, 68, 148)
MARGIN, HEADER, PANEL, HEIGHT, GAP, ROW, ACROSS = 36, 60, 560, 320, 56, 30, 2  # pixels; panels side by side


@dataclass(frozen=True)
class Point:
    """A value with its interval; low and high are the value itself where there is none."""

    value: float
    low: float
    high: float
    x: float = 0.0


@dataclass(frozen=True)
class Bars:
    """panels: title to {label: value}."""

    panels: dict[str, dict[str, Point]]


@dataclass(frozen=True)
class Lines:
    """panels: title to {name of the series: its points}."""

    panels: dict[str, dict[str, list[Point]]]
    axis: str
    logarithmic: bool = False


@dataclass(frozen=True)
class Heat:
    """values[y][x], from 0 to `top`; the lines of `y` go from the top down."""

    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    axes: tuple[str, str]
    top: float = 100.0


Chart = Bars | Lines | Heat


def draw(path: Path, title: str, chart: Chart) -> Path:
    """Writes the picture. Raises UserError where it cannot be written."""
    image = {Bars: _bars, Lines: _lines, Heat: _heat}[type(chart)](chart)
    pen = ImageDraw.Draw(image)
    size = next((size for size in range(20, 9, -1) if pen.textlength(title, _font(size)) <= image.width - 2 * MARGIN), 9)
    pen.text((MARGIN, 16), title, INK, _font(size))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return write_bytes(path, data.getvalue())


def _canvas(panels: int, height: int, wide: int = PANEL) -> tuple[Image.Image, list[tuple[int, int]]]:
    """An empty picture of so many panels, ACROSS side by side, and the upper left corner of each."""
    across, down = min(panels, ACROSS), -(-panels // ACROSS)
    image = Image.new("RGB", (2 * MARGIN + across * wide + (across - 1) * GAP, HEADER + down * height + (down - 1) * GAP // 2 + MARGIN), PAPER)
    return image, [(MARGIN + i % ACROSS * (wide + GAP), HEADER + i // ACROSS * (height + GAP // 2)) for i in range(panels)]


def _bars(chart: Bars) -> Image.Image:
    longest = max(len(panel) for panel in chart.panels.values())
    image, corners = _canvas(len(chart.panels), 30 + ROW * longest)
    pen = ImageDraw.Draw(image)
    labels = max((pen.textlength(label, _font(14)) for panel in chart.panels.values() for label in panel), default=0) + 12
    for (left, upper), (title, panel) in zip(corners, chart.panels.items(), strict=True):
        known = {label: point for label, point in panel.items() if math.isfinite(point.value)}
        low, high = _range([p.low for p in known.values()] + [p.high for p in known.values()] + [0.0])
        room = PANEL - labels - 60
        place = lambda value, left=left, low=low, high=high, room=room: left + labels + room * (value - low) / (high - low)
        pen.text((left, upper), title, INK, _font(16))
        for row, (label, point) in enumerate(panel.items()):
            top = upper + 30 + ROW * row
            pen.text((left, top + 2), label, INK, _font(14))
            if label not in known:
                pen.text((place(0), top + 2), "-", MUTED, _font(14))
                continue
            pen.rectangle(_box(place(0), place(point.value), top + 2, top + 18), BAR)
            pen.line((place(point.low), top + 10, place(point.high), top + 10), INK, 2)
            pen.text((max(place(point.high), place(point.value)) + 8, top + 2), _number(point.value), MUTED, _font(13))
    return image


def _box(x: float, other: float, top: float, bottom: float) -> tuple[float, float, float, float]:
    return min(x, other), top, max(x, other), bottom


def _lines(chart: Lines) -> Image.Image:
    image, corners = _canvas(len(chart.panels), HEIGHT + 70)
    pen = ImageDraw.Draw(image)
    for (corner, upper), (title, panel) in zip(corners, chart.panels.items(), strict=True):
        left, top = corner + 50, upper + 30
        pen.text((corner, upper), title, INK, _font(16))
        points = [point for series in panel.values() for point in series if math.isfinite(point.value)]
        if not points:
            continue
        scale = math.log10 if chart.logarithmic else float
        low, high = _range([p.low for p in points] + [p.high for p in points])
        first, last = _range([scale(p.x) for p in points])
        wide = PANEL - 50
        across = lambda x, left=left, first=first, last=last, wide=wide, scale=scale: left + wide * (scale(x) - first) / (last - first)
        down = lambda y, top=top, low=low, high=high: top + HEIGHT * (high - y) / (high - low)
        for step in range(5):
            y = low + (high - low) * step / 4
            pen.line((left, down(y), left + wide, down(y)), GRID, 1)
            pen.text((left - 46, down(y) - 8), _number(y), MUTED, _font(12))
        taken = -math.inf
        for x in _ticks([p.x for p in points]):
            if across(x) - 8 > taken:  # numbers of close values would lie over each other
                pen.text((across(x) - 8, top + HEIGHT + 6), _number(x), MUTED, _font(12))
                taken = across(x) + pen.textlength(_number(x), _font(12))
        pen.text((left + wide - pen.textlength(chart.axis, _font(13)), top + HEIGHT + 24), chart.axis, MUTED, _font(13))
        for index, (name, series) in enumerate(panel.items()):
            colour = SERIES[index % len(SERIES)]
            known = sorted((p for p in series if math.isfinite(p.value)), key=lambda p: p.x)
            pen.line([(across(p.x), down(p.value)) for p in known], colour, 3)
            for p in known if len(known) <= 40 else ():
                pen.line((across(p.x), down(p.low), across(p.x), down(p.high)), colour, 1)
                pen.ellipse((across(p.x) - 3, down(p.value) - 3, across(p.x) + 3, down(p.value) + 3), colour)
            if len(panel) > 1:
                pen.text((left + 12, top + 8 + 18 * index), name, colour, _font(14))
    return image


def _heat(chart: Heat) -> Image.Image:
    cell, labels = 84, 110
    image, _ = _canvas(1, 60 + 50 * len(chart.y), max(labels + cell * len(chart.x), 640))
    pen = ImageDraw.Draw(image)
    left, top = MARGIN + labels, HEADER + 26
    pen.text((MARGIN, HEADER), f"{chart.axes[1]} (down), {chart.axes[0]} (across)", MUTED, _font(13))
    for row, (name, values) in enumerate(zip(chart.y, chart.values, strict=True)):
        pen.text((MARGIN, top + 50 * row + 16), name, INK, _font(14))
        for column, value in enumerate(values):
            box = (left + cell * column, top + 50 * row, left + cell * (column + 1) - 3, top + 50 * row + 47)
            share = min(max(value / chart.top, 0.0), 1.0) if math.isfinite(value) else 0.0
            pen.rectangle(box, tuple(round(a + share * (b - a)) for a, b in zip(COLD, HOT, strict=True)), GRID)
            pen.text((box[0] + 24, box[1] + 15), _number(value), PAPER if share > 0.5 else INK, _font(14))
    for column, name in enumerate(chart.x):
        pen.text((left + cell * column + 16, top + 50 * len(chart.y) + 6), name, INK, _font(14))
    return image


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, never the same."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(values: Sequence[float], most: int = 8) -> list[float]:
    """Some of the values that there are, the ends among them."""
    found = sorted(set(values))
    step = max(1, math.ceil((len(found) - 1) / (most - 1)))
    return sorted({*found[::step], *found[-1:]})


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
