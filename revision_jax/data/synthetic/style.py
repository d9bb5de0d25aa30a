"""How a script is shown: what may differ from the world that models are trained on, while script, questions and answers stay the same.

`Style()` is that world, picture for picture and byte for byte. Every other style is out of distribution in as many ways as it names:

    grounds     coloured    the same textures in strong colours       tiles     grey tiles with sharp edges in place of textures
    palette     pale        the subjects' colours nearer to white     deep      nearer to black
    fps         frames a second of the video, whatever the script's
    crf         H.264's quality: 23 as trained, 51 the worst there is
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from revision_jax.errors import UserError

GROUNDS = ("muted", "coloured", "tiles")
PALETTES = {"plain": 0.0, "pale": 0.4, "deep": -0.4}  # share of the way to white, or to black
FPS, CRF = (1, 60), (0, 51)


@dataclass(frozen=True)
class Style:
    grounds: str = "muted"
    palette: str = "plain"
    fps: int = 0  # 0: the script's
    crf: int = 23

    def __post_init__(self):
        """Raises UserError that names the field."""
        for name, known in (("grounds", GROUNDS), ("palette", tuple(PALETTES))):
            if getattr(self, name) not in known:
                raise UserError(f"style.{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        for name, (low, high) in (("fps", FPS), ("crf", CRF)):
            value = getattr(self, name)
            if not (low <= value <= high or (name == "fps" and value == 0)):
                raise UserError(f"style.{name}: must lie in {low}..{high}, is {value}")

    @property
    def changes(self) -> dict[str, str | int]:
        """What differs from the world as trained: {} of the default."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}

    @property
    def name(self) -> str:
        """Part of a folder's name: "palette-pale", "" of the default."""
        return "-".join(f"{name}-{value}" for name, value in self.changes.items())


PLAIN = Style()
