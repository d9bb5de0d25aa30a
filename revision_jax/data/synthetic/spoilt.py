"""Stills with captions among which faults are planted, one kind each: what cleaning is tried on, for here it is known what should go.

    good            a still and a caption that holds, in one of several file formats
    common          a still of one thing alone, always the same: far too many of them
    copy            a good one again: encoded anew, cropped by a few per cent and scaled back, brighter or darker; `of` names the good one
    ratio           a strip
    small           48 x 48 pixels
    wrong           the caption of another picture, which does not hold for this one
    near_miss       a caption one attribute away from one that holds
    ugly            blurred, noisy, or nearly without light
    empty, truncated, text, bomb, animated, cmyk, rotated, alpha      files that cannot be read, or not by everyone
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from revision_jax.data.synthetic.language import phrase
from revision_jax.data.synthetic.stills import portrait, still, still_queries
from revision_jax.data.synthetic.world import Dice, Drawn, Subject, shows
from revision_jax.files import write_bytes, write_lines

COUNTS = {
    "good": 2000, "common": 500, "copy": 400, "ratio": 150, "small": 50, "wrong": 200, "near_miss": 200, "ugly": 250,
    "empty": 20, "truncated": 40, "text": 20, "bomb": 20, "animated": 40, "cmyk": 40, "rotated": 40, "alpha": 40,
}  # fmt: skip
COMMON = Subject("large", "plain", "red", "circle")
IMAGES, CAPTIONS, TRUTH = "images", "captions.jsonl", "truth.jsonl"
Picture = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Planted:
    """One image: its path in the images' folder, its kind, the way in which it is of that kind, and of a copy the image that it copies."""

    image: str
    kind: str
    how: str = ""
    of: str = ""


def write_spoilt(folder: str | Path, seed: int = 0, counts: Mapping[str, int] = COUNTS) -> list[Planted]:
    """Writes FOLDER/images, captions.jsonl ({"image", "caption"} a line) and truth.jsonl (what is planted), kinds mixed; a function of seed and counts."""
    folder = Path(folder)
    kinds = Dice("spoilt", seed).shuffled([kind for kind, count in counts.items() for _ in range(count)])
    good = [number for number, kind in enumerate(kinds) if kind == "good"]
    copied = dict(zip((n for n, kind in enumerate(kinds) if kind == "copy"), Dice("copied", seed).shuffled(good), strict=False))
    planted, captions = [], []
    for number, kind in enumerate(kinds):
        dice = Dice("spoil", seed, number)
        source = copied.get(number, number)
        picture, drawn = _shown(kind, seed, source)
        data, ending, how = _file(kind, picture, dice)
        of = _name(source, _good_file(_shown("good", seed, source)[0], Dice("spoil", seed, source))[1]) if kind == "copy" else ""
        planted.append(Planted(_name(number, ending), kind, how, of))
        captions.append(_caption(kind, drawn, Dice("caption", seed, source), lambda k: _shown("good", seed, k)[1], len(kinds)))
        write_bytes(folder / IMAGES / planted[-1].image, data)
    write_lines(folder / CAPTIONS, (json.dumps({"image": one.image, "caption": text}) for one, text in zip(planted, captions, strict=True)))
    write_lines(folder / TRUTH, (json.dumps(vars(one)) for one in planted))
    return planted


def _name(number: int, ending: str) -> str:
    return f"{number:05d}.{ending}"


def _shown(kind: str, seed: int, number: int) -> tuple[Picture, tuple[Drawn, ...]]:
    """A picture with something in it."""
    if kind == "common":
        return portrait(seed * 1_000_003 + number, COMMON)
    attempt = 0
    while True:
        picture, drawn = still(Dice("shown", seed, number, attempt).integer(0, 2**50))
        if drawn:
            return picture, drawn
        attempt += 1


def _caption(kind: str, drawn: tuple[Drawn, ...], dice: Dice, other: Callable[[int], tuple[Drawn, ...]], count: int) -> str:
    """A caption that speaks of looks alone; of another picture (`other`) for kind "wrong"."""
    while True:
        told = other(10**6 + dice.integer(0, count)) if kind == "wrong" else drawn
        for query in still_queries(told, 4, dice):
            still_alone = query.motion is None and query.to_colour is None
            wanted = shows(query, drawn) == (kind not in ("wrong", "near_miss")) and (kind != "wrong" or shows(query, told))
            if still_alone and wanted:
                return phrase(query, dice)


# ------------------------------------------------------------------------------------------------------------------------------ files


def _file(kind: str, picture: Picture, dice: Dice) -> tuple[bytes, str, str]:
    """(bytes, ending, how)."""
    if kind == "copy":
        changed, how = near_copy(picture, dice)
        return _encoded(changed, "JPEG", quality=dice.integer(40, 90)), "jpg", how
    if kind == "ugly":
        changed, how = ugly(picture, dice)
        return _encoded(changed, "JPEG", quality=92), "jpg", how
    if kind == "ratio":
        height = dice.integer(18, 36)
        top = dice.integer(0, len(picture) - height)
        strip = Image.fromarray(picture[top : top + height]).resize((640, 4 * height), Image.Resampling.BICUBIC)
        return _encoded(np.asarray(strip.transpose(Image.Transpose.ROTATE_90) if dice.chance(0.5) else strip), "JPEG", quality=92), "jpg", f"160:{height}"
    if kind == "small":
        return _encoded(np.asarray(Image.fromarray(picture).resize((48, 48), Image.Resampling.BICUBIC)), "JPEG", quality=92), "jpg", ""
    if kind in BROKEN:
        return *BROKEN[kind](picture, dice), ""
    return _good_file(picture, dice)


def _good_file(picture: Picture, dice: Dice) -> tuple[bytes, str, str]:
    """One of the formats that everyone reads."""
    how = dice.weighted({"jpeg": 0.6, "progressive": 0.1, "png": 0.1, "opaque": 0.05, "palette": 0.05, "webp": 0.1})
    if how == "jpeg":
        return _encoded(picture, "JPEG", quality=92), "jpg", how
    if how == "progressive":
        return _encoded(picture, "JPEG", quality=92, progressive=True), "jpg", how
    if how == "webp":
        return _encoded(picture, "WEBP", quality=92), "webp", how
    image = Image.fromarray(picture)
    return _saved(image.convert("RGBA") if how == "opaque" else image.quantize(255) if how == "palette" else image, "PNG"), "png", how


def near_copy(picture: Picture, dice: Dice) -> tuple[Picture, str]:
    """What is still the same picture to a person: (picture, how)."""
    how = dice.pick(("reencoded", "cropped", "brightness"))
    if how == "cropped":
        cut = [dice.integer(0, 5) for _ in range(4)]
        cut[0] += 1
        part = Image.fromarray(picture[cut[0] : len(picture) - cut[1], cut[2] : len(picture) - cut[3]])
        return np.asarray(part.resize(picture.shape[1::-1], Image.Resampling.BICUBIC)), how
    if how == "brightness":
        return (picture * (dice.real(1.08, 1.2) if dice.chance(0.5) else dice.real(0.8, 0.92))).clip(0, 255).astype(np.uint8), how
    return picture, how


def ugly(picture: Picture, dice: Dice) -> tuple[Picture, str]:
    """What no one would keep: (picture, how)."""
    how = dice.pick(("blurred", "noisy", "dark"))
    if how == "blurred":
        side = dice.integer(10, 16)
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
        return np.asarray(small.resize(picture.shape[1::-1], Image.Resampling.BICUBIC)), how
    if how == "noisy":
        noise = np.random.default_rng(dice.integer(0, 2**31)).normal(0, dice.real(60, 90), picture.shape)
        return (picture + noise).clip(0, 255).astype(np.uint8), how
    return (picture * dice.real(0.06, 0.14)).astype(np.uint8), how


def _encoded(picture: Picture, form: str, **options: object) -> bytes:
    return _saved(Image.fromarray(picture), form, **options)


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _animated(picture: Picture, dice: Dice) -> tuple[bytes, str]:
    frames = [Image.fromarray(np.roll(picture, 8 * step, 1)) for step in range(4)]
    return _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100), "gif"


def _rotated(picture: Picture, dice: Dice) -> tuple[bytes, str]:
    exif = Image.Exif()
    exif[0x0112] = dice.pick((3, 6, 8))
    return _encoded(picture, "JPEG", quality=92, exif=exif), "jpg"


def _alpha(picture: Picture, dice: Dice) -> tuple[bytes, str]:
    fade = np.linspace(0, 255, picture.shape[1]).astype(np.uint8)
    return _saved(Image.fromarray(np.dstack([picture, np.broadcast_to(fade, picture.shape[:2])])), "PNG"), "png"


def png_bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


BROKEN: dict[str, Callable[[Picture, Dice], tuple[bytes, str]]] = {
    "empty": lambda picture, dice: (b"", "jpg"),
    "truncated": lambda picture, dice: ((data := _encoded(picture, "JPEG", quality=92))[: int(len(data) * dice.real(0.3, 0.9))], "jpg"),
    "text": lambda picture, dice: (b"<html>404 Not Found</html>\n", "jpg"),
    "bomb": lambda picture, dice: (png_bomb(*((12_000, 12_000) if dice.chance(0.5) else (60_000, 60_000))), "png"),
    "animated": _animated,
    "cmyk": lambda picture, dice: (_saved(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=92), "jpg"),
    "rotated": _rotated,
    "alpha": _alpha,
}
