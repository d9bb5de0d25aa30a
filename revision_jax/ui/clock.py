"""Seconds as people read them, and where to put the ticks of a time axis."""

from __future__ import annotations

STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 43200, 86400)


def clock(seconds: float, decimals: int = 0) -> str:
    """hh:mm:ss, or hh:mm:ss.s with `decimals`; rounds before it splits, so 59.96 s is 00:01:00.0 and never 00:00:60.0."""
    scale = 10**decimals
    ticks = round(max(float(seconds), 0.0) * scale)
    whole, part = divmod(ticks, scale)
    text = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{text}.{part:0{decimals}d}" if decimals else text


def length(seconds: float) -> str:
    """How long something lasts: "7.5 s", "1 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(whole / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def ticks(start_s: float, end_s: float, most: int) -> list[float]:
    """Round times inside [start_s, end_s], at most `most` of them, evenly spaced by a step a clock has.

    `ticks(0, 3600, 7)` is every ten minutes.
    """
    span = max(end_s - start_s, 1e-9)
    step = next((step for step in STEPS_S if span / step <= most - 1 + 1e-9), None)
    while step is None or span / step > most - 1 + 1e-9:
        step = (step or STEPS_S[-1]) * 2
    first = -(-start_s // step)
    return [float(k * step) for k in range(int(first), int(end_s // step + 1e-9) + 1)]
