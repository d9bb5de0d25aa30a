"""Curves as a picture: panels side by side, both axes logarithmic, a straight line of slope 1 in each to compare with."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from revision_jax.files import write_bytes

INK, MUTED, GRID, PAPER = "#1f2328", "#656d76", "#e6e9ed", "#ffffff"
COLOURS = ("#0c4494", "#c92a2a", "#2b8a3e", "#862e9c")
WIDTH, HEIGHT, MARGIN, LEFT, TOP = 460, 400, 24, 78, 76  # of a panel, pixels


def draw(path: Path, title: str, xs: Sequence[float], labels: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Path:
    """Writes a PNG: a panel for each name, a curve over `xs` for each name in it. All numbers are above 0. Raises UserError where it cannot be written."""
    image = Image.new("RGB", (WIDTH * len(panels) + MARGIN, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 14), title, INK, _font(18))
    for number, (name, curves) in enumerate(panels.items()):
        _panel(pen, WIDTH * number + LEFT, name, xs, labels, curves)
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return write_bytes(path, data.getvalue())


def _panel(pen: ImageDraw.ImageDraw, left: int, name: str, xs: Sequence[float], labels: Sequence[str], curves: Mapping[str, Sequence[float]]) -> None:
    right, bottom = left + WIDTH - LEFT, HEIGHT - 44
    values = [value for curve in curves.values() for value in curve]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)
    across = lambda x: left + (right - left) * (math.log(x / xs[0]) / max(math.log(xs[-1] / xs[0]), 1e-9))
    up = lambda y: bottom - (bottom - TOP) * (math.log10(y) - low) / (high - low)
    pen.text((left, TOP - 30), name, INK, _font(14))
    for power in range(low, high + 1):
        y = up(10.0**power)
        pen.line((left, y, right, y), GRID, 1)
        pen.text((left - 6, y), f"{10.0**power:g}", MUTED, _font(11), anchor="rm")
    for x, label in zip(xs, labels, strict=True):
        pen.line((across(x), TOP, across(x), bottom), GRID, 1)
        pen.text((across(x), bottom + 8), label, MUTED, _font(11), anchor="ma")
    first = min(curve[0] for curve in curves.values())
    reach = min(xs[-1], xs[0] * 10.0**high / first)
    pen.line((across(xs[0]), up(first), across(reach), up(first * reach / xs[0])), MUTED, 1)
    for number, (curve, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = [(across(x), up(y)) for x, y in zip(xs, points, strict=True)]
        pen.line(line, colour, 2)
        for x, y in line:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        pen.text((left + 8, TOP + 6 + 16 * number), curve, colour, _font(12))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
