"""What is cleaned: the images of a folder, with the captions that came with them.

Without a list every image file below the folder is taken. A list is JSONL, an object a line, in one of two forms:

    {"image": "a/b.jpg", "caption": "a dog", "id": "17"}                                     caption and id may be missing
    {"image": ["a/b.jpg"], "conversations": [{"from": "human", ...}, {"from": "gpt", "value": "a dog"}]}      VideoLLaMA3's: the first answer is the caption
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revision_jax.data.datasets.files import OwnersFile, climbs, json_lines
from revision_jax.data.datasets.schema import Problem, encodes
from revision_jax.errors import UserError

SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"])
SHOWN = 5  # findings that an error lists


@dataclass(frozen=True)
class Item:
    """One image. `image` is its path in the images' folder; `caption` what came with it, "" for nothing."""

    id: str
    image: str
    caption: str = ""


@dataclass(frozen=True)
class Block:
    """A piece of the work: `number` names its files."""

    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        return f"{self.number:06d}"


def read_items(folder: str | Path, captions: str | Path | None = None) -> list[Item]:
    """The images of a folder, in the order of the list `captions`, or of their paths. Raises UserError naming the line: no image, no such folder, a list that
    cannot be read, a path that leads out of the folder, an id twice."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    if captions is None:
        files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file())
        names = sorted(path.relative_to(folder).as_posix() for path in files)
        items = [Item(name, name) for name in names if encodes(name)]
        if not items:
            raise UserError(f"{folder}: holds no file that ends like an image's ({', '.join(sorted(SUFFIXES))})")
        return items
    if not Path(captions).is_file():
        raise UserError(f"{captions}: no such file")
    items, wrong, seen = [], [], {}
    for where, row in json_lines(OwnersFile(Path(captions))):
        found = row if isinstance(row, Problem) else _item(where, row)
        if isinstance(found, Item) and seen.setdefault(found.id, where) != where:
            found = Problem(where, "duplicate_id", f"{found.id!r} is already the id of {seen[found.id]}")
        if isinstance(found, Problem):
            wrong.append(found)
        else:
            items.append(found)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(f"{captions}: {'; '.join(map(str, wrong[:SHOWN]))}{more}")
    if not items:
        raise UserError(f"{captions}: lists no image")
    return items


def _item(where: str, row: Any) -> Item | Problem:
    if not isinstance(row, dict):
        return Problem(where, "malformed", 'is no object with "image"')
    image = row.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image or not encodes(image):
        return Problem(where, "malformed", f"image must be the path of one image, is {row.get('image')!r:.60}")
    if climbs(image):
        return Problem(where, "path", f"{image!r} leads out of the images' folder")
    caption = row.get("caption")
    if caption is None and "conversations" in row:
        try:
            caption = next((turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"), None)
        except (TypeError, KeyError):
            return Problem(where, "malformed", "conversations are not of VideoLLaMA3's format")
    name = row.get("id", image)
    if caption is not None and not isinstance(caption, str):
        return Problem(where, "malformed", f"caption must be text, is {caption!r:.60}")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "" or not encodes(str(name)):
        return Problem(where, "malformed", f"id must be text or a whole number, is {name!r:.60}")
    return Item(str(name), image, caption or "")


def blocks_of(items: Sequence[Item], size: int) -> list[Block]:
    """The items in pieces of `size`, in order: a list that grows at its end leaves the blocks before it as they were."""
    return [Block(number, tuple(items[start : start + size])) for number, start in enumerate(range(0, len(items), size))]
