"""Drawing a script, frame by frame, in constant memory: the ground is redrawn only when it moved, subjects are small sprites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from revision_jax.data.synthetic.scenery import light_table, plan_scenery, texture
from revision_jax.data.synthetic.script import Script
from revision_jax.data.synthetic.shapes import paste, sprite
from revision_jax.data.synthetic.style import PALETTES, PLAIN, Style
from revision_jax.data.synthetic.world import FRAME, Drawn
from revision_jax.errors import UserError

SIZE = (160, 640)  # pixels


def check_size(size: int) -> None:
    if size % 16 or not SIZE[0] <= size <= SIZE[1]:
        raise UserError(f"size: must be a multiple of 16 in {SIZE[0]}..{SIZE[1]} pixels, is {size}")


def draw(image: UInt8[np.ndarray, "h w 3"], drawn: Sequence[Drawn], light: int = 100, palette: float = 0.0) -> None:
    """Draws subjects into a picture of h = w pixels, in place, back to front; `light` in percent acts on their colours, `palette` as in `shade`."""
    size = image.shape[0]
    for item in drawn:
        colours, opacity = sprite(item.subject, item.diameter * size // FRAME, item.tint, palette)
        if light != 100:
            colours = np.minimum(colours * np.float32(light / 100), np.float32(255))
        paste(image, colours, opacity, item.x * size // FRAME, item.y * size // FRAME)


def render(script: Script, size: int = FRAME, start: int = 0, stop: int | None = None, style: Style = PLAIN) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The script's frames start..stop-1, each a fresh array of size x size pixels, in the style's colours and grounds. Memory does not grow with the video."""
    check_size(size)
    scenery = plan_scenery(script.seed, script.frames, script.fps)
    grounds: dict[int, np.ndarray] = {}  # at most the two that are fading into each other
    waiting = list(range(len(script.events)))[::-1]  # by start: the next one is the last
    active: list[int] = []
    ground, known = None, None
    for frame in range(start, script.frames if stop is None else stop):
        state = scenery.state(frame)
        if state != known:
            number, before, faded, x, y, light = known = state
            for index in [index for index in grounds if index not in (number, before)]:
                del grounds[index]
            for index in (number, before):
                if index not in grounds:
                    grounds[index] = texture(scenery.textures[index], size, style.grounds)
            x, y = x * size // FRAME, y * size // FRAME
            ground = grounds[number][y : y + size, x : x + size]
            if faded < scenery.fade:
                below = grounds[before][y : y + size, x : x + size].astype(np.int32)
                ground = (below + (ground.astype(np.int32) - below) * faded // scenery.fade).astype(np.uint8)
            ground = light_table(light)[ground]
        while waiting and script.events[waiting[-1]].start <= frame:
            active.append(waiting.pop())
        active = [index for index in active if script.events[index].end > frame]
        image = ground.copy()
        draw(image, script.drawn(frame, active), known[5], PALETTES[style.palette])
        yield image
