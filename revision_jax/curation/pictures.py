"""Image files as they are found: what the header says of one, which of that is refused, and the pixels.

Whatever is wrong with a file becomes a word for the count and a note, never an exception: decoders raise what they stumble over.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from revision_jax.curation.config import FilterConfig

ORIENTATION = 0x0112  # EXIF
THUMB = 8  # pixels to a side
Picture = UInt8[np.ndarray, "h w 3"]


class Refusal(NamedTuple):
    """Why an image goes: a word, the number that decided and the bound that it broke, and what else there is to say."""

    reason: str
    measure: float | None = None
    threshold: float | None = None
    note: str = ""


def stamp(path: str | Path) -> list[int] | None:
    """[bytes, nanoseconds of the last change], by which a file is known to be the one looked at before; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def look(path: str | Path, max_pixels: int) -> dict[str, Any]:
    """What is known without decoding: {"content" hash, "width", "height", "traits"}, or {"wrong", "note"} of a file that is no image.

    traits: see `FilterConfig.refused`; None for a picture of more than `max_pixels`, of which nothing is decoded. Of others only one that may be see-through
    is, to tell whether anything shows through.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return {"wrong": "missing", "note": error.strerror or ""}
    row: dict[str, Any] = {"content": hashlib.blake2b(data, digest_size=16).hexdigest()}
    if not data:
        return row | {"wrong": "empty", "note": "the file has no bytes"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                row |= {"width": image.width, "height": image.height}
                row["traits"] = _traits(image) if image.width * image.height <= max_pixels else None
    except Image.DecompressionBombError as error:
        return row | {"wrong": "pixels", "note": str(error)}
    except Exception as error:
        return row | {"wrong": "unreadable", "note": _said(error)}
    return row


def _traits(image: Image.Image) -> list[str]:
    traits = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's JPEG with a second picture in it
        traits.append("animated")
    if image.mode == "CMYK":
        traits.append("cmyk")
    if Image.Image.getexif(image).get(ORIENTATION, 1) not in (0, 1):  # that of PNG files decodes the whole image, to find a tag behind it
        traits.append("rotated")
    if image.mode == "F" or image.mode.startswith("I"):
        traits.append("deep")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        traits.append("alpha")
    return traits


def looked_at(row: dict[str, Any], max_pixels: int) -> bool:
    """Whether a row of `look` serves under this bound, too."""
    return "wrong" in row or row["traits"] is not None or row["width"] * row["height"] > max_pixels


def refusal(row: dict[str, Any], config: FilterConfig) -> Refusal | None:
    """What the header alone decides, in this order: unreadable, too many pixels, a trait, too small."""
    if "wrong" in row:
        return Refusal(row["wrong"], note=row["note"])
    pixels, side = row["width"] * row["height"], min(row["width"], row["height"])
    if pixels > config.max_pixels:
        return Refusal("pixels", pixels, config.max_pixels)
    for trait in row["traits"]:
        if trait in config.refused:
            return Refusal(trait)
    if side < config.min_side:
        return Refusal("small", side, config.min_side)
    return None


def ratio(row: dict[str, Any]) -> float:
    """Longer side to shorter side, at least 1."""
    return max(row["width"], row["height"]) / min(row["width"], row["height"])


def decode(path: str | Path) -> Picture | str:
    """The first frame as RGB: turned as its EXIF tag says, what is see-through laid on white, 16 bits cut to 8. A text says what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                turned = ImageOps.exif_transpose(image)
                if turned.mode.startswith("I"):
                    turned = Image.fromarray((np.asarray(turned).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
                if turned.has_transparency_data:
                    clear = turned.convert("RGBA")
                    turned = Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear)
                return np.asarray(turned.convert("RGB"))
    except Exception as error:
        return _said(error)


def thumbnail(picture: Picture) -> UInt8[np.ndarray, "8 8 3"]:
    """The picture in 8 x 8 means: what is left of it after another encoding, a little cropping, other brightness."""
    return np.asarray(Image.fromarray(picture).resize((THUMB, THUMB), Image.Resampling.BOX))


def data_url(picture: Picture, side: int, quality: int) -> str:
    """The picture as a JPEG in a URL, made smaller where its longer side is above `side` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _said(error: Exception) -> str:
    """The decoder's words, without the object it printed."""
    return " ".join(str(error).split()).split(" <")[0][:200] or type(error).__name__
