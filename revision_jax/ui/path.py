"""The way from the whole video to one moment, as a picture: each level drawn at its own scale, joined to the one above like a zoom."""

from __future__ import annotations

from html import escape

from revision_jax.ui import view
from revision_jax.ui.clock import clock
from revision_jax.ui.style import warmth

WIDTH, LEFT, BAR, ZOOM = 900.0, 240.0, 14.0, 16.0  # SVG units; LEFT is where the bars begin, names and times stand before them


def way(question: view.Question, moment: view.Found) -> list[tuple[view.Level, view.Window]]:
    """The window of each level through which the moment was found: of those that show most of it the best scored, kept ones first.

    Levels without such a window (the moment's edge was moved past them, or nothing was recorded) are left out.
    """
    steps = []
    for level in question.levels:
        touching = [(min(w.end_s, moment.end_s) - max(w.start_s, moment.start_s), w) for w in level.windows]
        touching = [(shared, w) for shared, w in touching if shared > 0]
        if touching:
            most = max(shared for shared, _ in touching)
            fullest = [w for shared, w in touching if shared >= most - 1e-6]
            steps.append((level, max(fullest, key=lambda w: (w.kept, -1.0 if w.score is None else w.score, w.start_s - w.end_s))))
    return steps


class _Scale:
    """Seconds to SVG units inside one row."""

    def __init__(self, start_s: float, end_s: float):
        self.start_s, self.end_s = start_s, max(end_s, start_s + 1e-3)

    def x(self, seconds: float) -> float:
        share = (seconds - self.start_s) / (self.end_s - self.start_s)
        return LEFT + (WIDTH - LEFT) * min(max(share, 0.0), 1.0)

    def bar(self, start_s: float, end_s: float, least: float = 2.0) -> tuple[float, float]:
        left, right = self.x(start_s), self.x(end_s)
        if right - left < least:
            left = min(max((left + right - least) / 2, LEFT), WIDTH - least)
            right = left + least
        return left, right - left


def _rect(kind: str, x: float, y: float, width: float, style: str = "") -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR:.0f}" rx="2"{style}/>'


def svg(question: view.Question, moment: view.Found, duration_s: float) -> str:
    """Inline SVG, styled by the page. A row a level: its windows shaded by score, those it kept outlined, the one that leads on marked.

    A row shows the window chosen above it, widened where this level's own window (or the moment) reaches beyond.
    """
    steps = way(question, moment)
    parts: list[str] = []
    low, high, y = 0.0, duration_s, 0.0
    for depth, (level, window) in enumerate(steps):
        scale = _Scale(low, high)
        parts += _name(level.name, window.start_s, window.end_s, y)
        parts.append(_rect("track", LEFT, y, WIDTH - LEFT))
        visible = [w for w in level.windows if w.end_s > low and w.start_s < high]
        for other in sorted(visible, key=lambda w: (w.kept, w.score or 0.0)):
            left, width = scale.bar(other.start_s, other.end_s)
            if other.score is not None:
                parts.append(_rect("scored", left, y, width, f' style="fill:{warmth(other.score)}"'))
        for other in visible:
            if other.kept:
                parts.append(_rect("kept", *_at(scale, other, y)))
        parts.append(_rect("way", *_at(scale, window, y)))
        ends = [window, steps[depth + 1][1] if depth + 1 < len(steps) else moment]
        low, high = min(end.start_s for end in ends), max(end.end_s for end in ends)
        left, width = scale.bar(low, high)
        below = y + BAR + ZOOM
        parts.append(f'<path class="zoom" d="M{left:.1f} {y + BAR} H{left + width:.1f} L{WIDTH:.1f} {below:.1f} H{LEFT:.1f} Z"/>')
        y = below
    parts += _name("moment", moment.start_s, moment.end_s, y)
    parts.append(_rect("track", LEFT, y, WIDTH - LEFT))
    left, width = _Scale(low, high).bar(moment.start_s, moment.end_s, 4.0)
    parts.append(_rect("goal", left, y, width))
    y += BAR + 2
    return f'<svg viewBox="0 0 {WIDTH:.0f} {y:.0f}" role="img" aria-label="windows from the whole video down to the moment">{"".join(parts)}</svg>'


def _name(name: str, start_s: float, end_s: float, y: float) -> list[str]:
    line = f"{y + BAR - 2:.0f}"
    return [f'<text x="0" y="{line}">{escape(name)}</text>', f'<text class="end" x="{LEFT - 16:.0f}" y="{line}">{clock(start_s)} to {clock(end_s)}</text>']


def _at(scale: _Scale, window: view.Window, y: float) -> tuple[float, float, float]:
    left, width = scale.bar(window.start_s, window.end_s)
    return left, y, width
