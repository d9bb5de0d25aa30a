"""The eight shapes as anti-aliased masks, and coloured sprites made of them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8

from revision_jax.data.synthetic.world import Dice, Subject

DIAMETERS = {"small": (26, 30), "large": (48, 56)}  # pixels of a 160 x 160 frame, both ends included
RGB = {
    "red": (225, 28, 28), "green": (22, 168, 40), "blue": (28, 62, 235), "yellow": (246, 222, 24),
    "magenta": (238, 40, 200), "cyan": (28, 220, 228), "white": (246, 246, 246), "black": (14, 14, 14),
}  # fmt: skip
STRIPE = {"black": (138, 138, 138), "blue": (4, 8, 50), "white": (84, 84, 84)}  # others: a darker shade of the colour
EDGE = {"black": (210, 210, 210), "white": (30, 30, 30)}  # outlines, so that these two stand out from any ground; others likewise
_SAMPLES = 4  # per pixel and axis


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points of [-1, 1]^2 (y downwards) the shape covers."""
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius <= 0.97
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.86
    if shape == "triangle":
        return (y <= 0.86) & (y >= -0.92 + 1.78 * np.abs(x))
    if shape == "ring":
        return (radius <= 0.99) & (radius >= 0.50)
    if shape == "star":
        angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5)
        angle = np.minimum(angle, 2 * np.pi / 5 - angle)  # 0 at a tip, pi/5 at a notch
        tip, notch = 1.05, 0.44
        px, py = radius * np.cos(angle), radius * np.sin(angle)
        nx, ny = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
        return (px - tip) * ny - py * (nx - tip) <= 0  # inside the line from tip to notch
    if shape == "cross":
        wide, thin = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        return (wide <= 0.96) & (thin <= 0.32)
    if shape == "crescent":
        return (radius <= 0.99) & (np.hypot(x - 0.55, y) >= 0.80)
    if shape == "hourglass":
        return (np.abs(y) <= 0.92) & (np.abs(x) <= 0.10 + 0.80 * np.abs(y))
    raise KeyError(shape)


def _average(samples: np.ndarray, n: int) -> np.ndarray:
    return samples.reshape(n, _SAMPLES, n, _SAMPLES).mean((1, 3), dtype=np.float32)


@lru_cache(maxsize=512)
def masks(shape: str, diameter: int) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """(whole shape, its inside without the outline, stripes), coverage in [0, 1]; n = diameter pixels."""
    ticks = (np.arange(diameter * _SAMPLES) + 0.5) / (diameter * _SAMPLES / 2) - 1
    x, y = np.meshgrid(ticks, ticks)
    whole = _inside(shape, x, y)
    inner = whole.copy()
    for _ in range(max(4, round(diameter * _SAMPLES / 45))):  # outline: about one pixel, a little more on large shapes
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    stripes = np.mod((x + y) * (1.55 if diameter <= max(DIAMETERS["small"]) else 2.1) + 0.25, 1.0) < 0.40  # diagonal, wide enough to survive the codec
    return _average(whole, diameter), _average(inner, diameter), _average(stripes, diameter)


@lru_cache(maxsize=512)
def footprint(shape: str, diameter: int) -> Bool[np.ndarray, "n n"]:
    return masks(shape, diameter)[0] > 0.5


def shade(colour: str, palette: float = 0.0) -> tuple[int, int, int]:
    """RGB of a colour, `palette` of the way to white, or to black if negative; white and black, which have no paler or deeper shade of the same name, stay."""
    way = 0.0 if colour in ("white", "black") else palette
    return tuple(round(part + abs(way) * ((255 if way > 0 else 0) - part)) for part in RGB[colour])


@lru_cache(maxsize=256)
def sprite(
    subject: Subject, diameter: int, tint: tuple[int, int, int], palette: float = 0.0
) -> tuple[Float[np.ndarray, "n n 3"], Float[np.ndarray, "n n 1"]]:
    """(colours, opacity in [0, 1]) of a subject, n = diameter pixels; colours in [0, 255], not multiplied by the opacity."""
    whole, inner, stripes = masks(subject.shape, diameter)
    base = np.clip(np.array(shade(subject.colour, palette), np.float32) + np.array(tint, np.float32), 0, 255)
    edge = np.array(EDGE[subject.colour], np.float32) if subject.colour in EDGE else base * np.float32(0.35)
    colour = np.broadcast_to(base, (diameter, diameter, 3))
    if subject.pattern == "striped":
        stripe = np.array(STRIPE[subject.colour], np.float32) if subject.colour in STRIPE else base * np.float32(0.22)
        colour = colour + stripes[..., None] * (stripe - base)
    colour = edge + (inner / np.maximum(whole, 1e-6))[..., None] * (colour - edge)
    return colour.astype(np.float32), whole[..., None]


def diameter_and_tint(subject: Subject, dice: Dice) -> tuple[int, tuple[int, int, int]]:
    """The chance part of a subject's look: its size within the size class and a small tint of its colour."""
    return dice.integer(*DIAMETERS[subject.size]), (dice.integer(-9, 9), dice.integer(-9, 9), dice.integer(-9, 9))


def overlap(upper: tuple[str, int], lower: tuple[str, int], dx: int, dy: int) -> tuple[float, float]:
    """How two shapes (name, diameter) cover each other when the upper's centre lies (dx, dy) pixels from the lower's.

    Returns (covered area as a share of the smaller shape's area, share of the lower one that stays visible).
    """
    top, bottom = footprint(*upper), footprint(*lower)
    n, m = top.shape[0], bottom.shape[0]
    left, up = dx - n // 2 + m // 2, dy - n // 2 + m // 2  # the upper's corner in the lower's pixels
    x0, x1, y0, y1 = max(left, 0), min(left + n, m), max(up, 0), min(up + n, m)
    if x0 >= x1 or y0 >= y1:
        return 0.0, 1.0
    both = np.count_nonzero(bottom[y0:y1, x0:x1] & top[y0 - up : y1 - up, x0 - left : x1 - left])
    below, above = np.count_nonzero(bottom), np.count_nonzero(top)
    return both / min(below, above), 1.0 - both / below


def paste(image: UInt8[np.ndarray, "h w 3"], colours: Float[np.ndarray, "n n 3"], opacity: Float[np.ndarray, "n n 1"], x: int, y: int) -> None:
    """Draws a sprite with its centre at (x, y), in place; it must lie inside the image."""
    n = colours.shape[0]
    region = image[y - n // 2 : y - n // 2 + n, x - n // 2 : x - n // 2 + n]
    region[:] = (region + opacity * (colours - region) + np.float32(0.5)).astype(np.uint8)
