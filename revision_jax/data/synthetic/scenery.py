"""The ground: muted textures with clutter, a camera that drifts in small steps, light that changes in steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, Int64, UInt8
from PIL import Image, ImageDraw

from revision_jax.data.synthetic.world import FRAME, Dice

MARGIN = 64  # pixels the camera can wander, of a 160 x 160 frame
LIGHT = (85, 115)  # percent
_GROUNDS = ((126, 122, 116), (108, 98, 84), (118, 118, 96), (96, 100, 104), (142, 132, 116), (92, 88, 78), (110, 116, 106), (134, 134, 136))


def texture(seed: int, size: int = FRAME, grounds: str = "muted") -> UInt8[np.ndarray, "h w 3"]:
    """A ground of (size + margin)^2 pixels, of `style.GROUNDS`."""
    if grounds == "tiles":
        return _tiles(seed, size)
    muted = _muted(seed, size)
    return muted if grounds == "muted" else tinted(muted, Dice("coloured", seed))


def tinted(ground: UInt8[np.ndarray, "h w 3"], dice: Dice, strength: float = 1.0) -> UInt8[np.ndarray, "h w 3"]:
    """The same ground in a colour of its own, about as light as before: a strong one at 1, none at 0."""
    colour = np.array(dice.shuffled((1 + 0.45 * strength, 1.0, 1 - 0.45 * strength)), np.float32)
    return np.clip(ground * colour, 0, 255).astype(np.uint8)


def contrasted(ground: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    """The same ground, as light on the whole, every pixel `factor` times as far from its mean."""
    mean = ground.mean((0, 1), dtype=np.float32)
    return np.clip(mean + np.float32(factor) * (ground - mean), 0, 255).astype(np.uint8)


def _tiles(seed: int, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Tiles of even greys with dark joints: sharp edges and right angles, where no ground that models are trained on has any."""
    side = size + MARGIN * size // FRAME
    dice = Dice("tiles", seed)
    tile = dice.integer(14, 30) * size // FRAME
    count = -(-side // tile)
    greys = np.array([[dice.integer(70, 180) for _ in range(count)] for _ in range(count)], np.uint8)
    ground = greys.repeat(tile, 0).repeat(tile, 1)[:side, :side]
    joint = np.arange(side) % tile < max(1, size // FRAME)
    ground[joint, :], ground[:, joint] = 50, 50
    return np.repeat(ground[..., None], 3, -1)


def _muted(seed: int, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Value noise of several octaves, weave, clutter (blobs, thin lines, dots); low saturation."""
    side = size + MARGIN * size // FRAME
    state, dice = np.random.RandomState(seed % 2**32), Dice("texture", seed)  # NumPy promises RandomState's stream, not Generator's
    noise = np.zeros((side, side), np.float32)
    for cells in (3, 7, 15, 40, side // 2):
        grid = Image.fromarray(state.rand(cells, cells).astype(np.float32) - np.float32(0.5))
        noise += np.asarray(grid.resize((side, side), Image.BICUBIC)) * np.float32(dice.real(8, 44) if cells < 40 else dice.real(3, 14))
    if dice.chance(0.5):  # planks or weave: faint regular lines
        period, depth = dice.integer(9, 34) * side // 224, dice.real(4, 12)
        lines = np.where(np.arange(side) % period < max(1, period // 6), -depth, 0).astype(np.float32)
        noise += lines[:, None] if dice.chance(0.5) else lines[None, :]
    first, second = (np.array(dice.pick(_GROUNDS), np.float32) for _ in range(2))
    blend = np.asarray(Image.fromarray(state.rand(4, 4).astype(np.float32)).resize((side, side), Image.BILINEAR))[..., None]
    ground = first + blend * (second - first) + noise[..., None] + np.float32(dice.real(-16, 16))
    image = Image.fromarray(np.clip(ground, 48, 196).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    unit = size / FRAME
    for _ in range(dice.integer(3, 12)):
        _clutter(draw, dice, side, unit)
    return np.asarray(image)


def _clutter(draw: ImageDraw.ImageDraw, dice: Dice, side: int, unit: float) -> None:
    grey = dice.integer(58, 178)
    colour = (min(grey + dice.integer(0, 14), 190), grey, max(grey - dice.integer(0, 16), 44))
    x, y = dice.integer(0, side), dice.integer(0, side)
    kind = dice.integer(0, 2)
    if kind == 0:  # a soft-cornered blob of no nameable shape
        radius, points = dice.real(5, 17) * unit, []
        for step in range(9):
            reach = radius * dice.real(0.45, 1.2)
            direction = np.exp(2j * np.pi * step / 9)
            points.append((x + reach * direction.real, y + reach * direction.imag))
        draw.polygon(points, fill=colour)
    elif kind == 1:
        draw.line((x, y, x + int(dice.integer(-70, 70) * unit), y + int(dice.integer(-70, 70) * unit)), fill=colour, width=max(1, round(unit)))
    else:
        for _ in range(dice.integer(2, 7)):
            px, py = x + int(dice.integer(-20, 20) * unit), y + int(dice.integer(-20, 20) * unit)
            r = dice.real(0.6, 1.8) * unit
            draw.ellipse((px - r, py - r, px + r, py + r), fill=colour)


@dataclass(frozen=True)
class Scenery:
    """The ground over a whole video; a few bytes a frame.

    textures: the grounds' seeds, in order; changes: first frame of each. A ground fades in over `fade` frames.
    """

    textures: tuple[int, ...]
    changes: Int64[np.ndarray, " n"]
    fade: int
    camera: Int16[np.ndarray, "frames 2"]  # (x, y) of the crop's corner, pixels of a 160 x 160 frame
    light: Int16[np.ndarray, " frames"]  # percent

    def state(self, frame: int) -> tuple[int, int, int, int, int, int]:
        """(texture's number, number of the one before, how far it has faded in 0..fade, x, y, light) at a frame."""
        number = int(np.searchsorted(self.changes, frame, side="right")) - 1
        faded = self.fade if number == 0 else min(self.fade, frame - int(self.changes[number]) + 1)
        x, y = self.camera[frame]
        return number, max(number - 1, 0), faded, int(x), int(y), int(self.light[frame])


def plan_scenery(seed: int, frames: int, fps: float) -> Scenery:
    """The ground of the video with this seed: grounds last 1 to 3 minutes; the camera creeps, one pixel every 1 to 5 s, or rests; the light moves by steps."""
    dice = Dice("scenery", seed)
    changes = [0]
    while (following := changes[-1] + int(dice.real(60, 180) * fps)) < frames:
        changes.append(following)
    camera = np.empty((frames, 2), np.int16)
    x, y, frame = dice.integer(0, MARGIN), dice.integer(0, MARGIN), 0
    while frame < frames:
        if dice.chance(0.45):  # rest
            length = int(dice.real(8, 45) * fps)
            camera[frame : frame + length] = x, y
            frame += length
            continue
        dx, dy = dice.pick(((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)))
        step = max(1, int(dice.real(1, 5) * fps))
        for _ in range(dice.integer(4, 16)):
            x, y = (position if 0 <= position <= MARGIN else 2 * max(0, min(MARGIN, position)) - position for position in (x + dx, y + dy))
            camera[frame : frame + step] = x, y
            frame += step
    light = np.empty(frames, np.int16)
    level, frame = 100, 0
    while frame < frames:
        length = max(2, int(dice.real(20, 90) * fps))
        target, ramp = dice.integer(*LIGHT), max(1, int(2 * fps))
        light[frame : frame + length] = target
        slope = light[frame : frame + ramp]
        slope[:] = level + (target - level) * (np.arange(1, len(slope) + 1)) // ramp
        level, frame = target, frame + length
    seeds = tuple(dice.integer(0, 2**31 - 1) for _ in changes)
    return Scenery(seeds, np.array(changes, np.int64), max(1, int(2 * fps)), camera, light)


def light_table(percent: int) -> UInt8[np.ndarray, " 256"]:
    return np.clip((np.arange(256) * percent + 50) // 100, 0, 255).astype(np.uint8)
