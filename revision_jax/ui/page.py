"""The search page: one HTML file that needs nothing else but, beside it, the video.

Per question the verdict, a strip over the whole video, and each moment with pictures, confidence and the way the search came to it.
A click plays the video from there; where the browser cannot play the file the pictures stand for it, and the page says so. Everything a
person or a file name brings in is escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from revision_jax.files import write_text
from revision_jax.ui import path as path_drawing
from revision_jax.ui import view
from revision_jax.ui.clock import clock, length, ticks
from revision_jax.ui.style import SCRIPT, STYLE, warmth

THUMBNAIL_HEIGHT = 90  # pixels as shown; stored at twice that for sharp screens, never enlarged
PICTURED = 24  # accepted moments of a question that get pictures; more would make the page heavy

FrameAt = Callable[[float], "np.ndarray | None"]


def picture(frame: np.ndarray, height: int = 2 * THUMBNAIL_HEIGHT) -> str:
    """A uint8 (h, w, 3) frame as a `data:` JPEG of at most `height` pixels."""
    image = Image.fromarray(frame)
    if image.height > height:
        image = image.resize((max(round(image.width * height / image.height), 1), height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _css(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.3f}%"


def _place(start_s: float, end_s: float, duration_s: float) -> str:
    return f"left:{_css(start_s / duration_s)};width:{_css((end_s - start_s) / duration_s)}"


def _strip(question: view.Question, duration_s: float) -> str:
    """Scores of the first level over the whole video, the moments on top, and an axis."""
    parts = []
    if question.levels:
        for window in sorted(question.levels[0].windows, key=lambda w: w.score or 0.0):  # the likelier lies on top
            if window.score is not None:
                title = f"{clock(window.start_s)} to {clock(window.end_s)}: {window.score:.2f}"
                parts.append(f'<i style="{_place(window.start_s, window.end_s, duration_s)};background:{warmth(window.score)}" title="{title}"></i>')
    bars = []
    for moment in reversed(question.moments):
        kind = "found" if moment.accepted else "weak"
        title = f"{clock(moment.start_s, 1)} to {clock(moment.end_s, 1)}, confidence {moment.confidence:.2f}"
        bars.append(f'<button class="bar {kind}" style="{_place(moment.start_s, moment.end_s, duration_s)}" data-at="{moment.start_s:.2f}" '
                    f'title="{title}" aria-label="play {title}"></button>')  # fmt: skip
    marks = "".join(f'<span style="left:{_css(mark / duration_s)}">{clock(mark)}</span>' for mark in ticks(0.0, duration_s, 7))
    return f'<div class="strip"><div class="heat">{"".join(parts)}</div><div class="lane">{"".join(bars)}</div><div class="axis">{marks}</div></div>'


def _moment(moment: view.Found, question: view.Question, duration_s: float, frame_at: FrameAt | None, shown: bool = False) -> str:
    shots = ""
    if frame_at is not None:
        for seconds, name in ((moment.start_s, "start"), ((moment.start_s + moment.end_s) / 2, "middle")):
            frame = frame_at(seconds)
            if frame is not None:
                shots += f'<img src="{picture(frame)}" alt="{name}, at {clock(seconds, 1)}" height="{THUMBNAIL_HEIGHT}">'
    path = path_drawing.svg(question, moment, duration_s) if moment.accepted else ""
    trail = f'<details class="path"{" open" if shown else ""}><summary>how the search got here</summary>{path}</details>' if path else ""
    return (
        f'<li class="{"found" if moment.accepted else "weak"}"><button class="moment" data-at="{moment.start_s:.2f}" data-to="{moment.end_s:.2f}">'
        f'<span class="shots">{shots}</span><span class="facts">'
        f'<span class="when">{clock(moment.start_s, 1)}<span class="to">to</span>{clock(moment.end_s, 1)}</span>'
        f'<span class="long">{length(moment.end_s - moment.start_s)}</span>'
        f'<span class="confidence"><span class="meter"><span style="width:{_css(moment.confidence)}"></span></span>{moment.confidence:.2f}</span>'
        f"</span></button>{trail}</li>"
    )


def _question(question: view.Question, duration_s: float, frame_at: FrameAt | None) -> str:
    found = "".join(_moment(m, question, duration_s, frame_at if i < PICTURED else None, i == 0) for i, m in enumerate(question.accepted))
    weak = "".join(_moment(m, question, duration_s, frame_at if i < 3 else None) for i, m in enumerate(question.rejected))
    body = f'<ol class="moments">{found}</ol>' if found else '<p class="absent">Nothing in this video reached the threshold for this question.</p>'
    if weak:
        count = len(question.rejected)
        body += f'<details class="others"><summary>{count} weaker candidate{"" if count == 1 else "s"}</summary><ol class="moments">{weak}</ol></details>'
    spent = f'<span class="spent">{question.seconds:.1f} s</span>' if question.seconds is not None else ""
    return (
        f"<article><header><h2>{escape(question.query)}</h2>"
        f'<span class="verdict {"yes" if question.present else "no"}">{question.verdict}</span>{spent}</header>'
        f"{_strip(question, duration_s)}{body}</article>"
    )


def _link(video: str, page: Path) -> str:
    """The video as seen from the page's folder, quoted for a URL."""
    try:
        relative = os.path.relpath(os.path.abspath(video), os.path.abspath(page.parent))
    except ValueError:  # another drive
        relative = os.path.abspath(video)
    return quote(Path(relative).as_posix())


def _section(answered: view.Answered, page: Path, frame_at: FrameAt | None) -> str:
    name = escape(Path(answered.path).name)
    duration_s = max(answered.duration_s, 1e-3)
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in answered.warnings)
    questions = "".join(_question(question, duration_s, frame_at) for question in answered.questions)
    return (
        f'<section><div class="side"><div class="player"><video controls preload="metadata" src="{escape(_link(answered.path, page))}"></video>'
        f'<p class="unplayable" hidden>This browser cannot play {name} from where it lies, so the pictures beside each moment stand for it.</p>'
        f'<p class="file"><b>{name}</b><span>{length(answered.duration_s)}</span></p>{warnings}</div></div><div class="questions">{questions}</div></section>'
    )


def html(results: dict[str, Any] | Iterable[dict[str, Any]], page: str | Path, frames: Callable[[str], FrameAt | None] | None = None) -> str:
    """The page as text. results: one or several videos' parts of `launch.ground`'s JSON; page: where the text will be saved (the video
    is linked relative to it); frames: for a video's path a function from seconds to a uint8 (h, w, 3) picture or None, None for a page
    without pictures. Raises UserError for results of another structure."""
    page = Path(page)
    videos = [view.read(result) for result in ([results] if isinstance(results, dict) else results)]
    sections = "".join(_section(answered, page, frames(answered.path) if frames else None) for answered in videos)
    title = ", ".join(Path(answered.path).name for answered in videos)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{sections}</main><script>{SCRIPT}</script></body></html>\n"
    )


def write_page(path: str | Path, results: dict[str, Any] | Iterable[dict[str, Any]], frames: Callable[[str], FrameAt | None] | None = None) -> Path:
    """Writes the page whole or not at all; see `html`."""
    return write_text(path, html(results, path, frames))
