"""Files of all kinds: what is said of each, and that nothing raises."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from revision_jax.curation import pictures
from revision_jax.curation.config import FilterConfig
from revision_jax.data.synthetic.spoilt import BROKEN, png_bomb
from revision_jax.data.synthetic.world import Dice
from tests.curation.conftest import picture

SHOWN = picture(0)
CONFIG = FilterConfig()


def saved(tmp_path, data, name="a"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def encoded(image, form, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def said(path, config=CONFIG):
    """(reason, measure, threshold) of the header, or of the pixels."""
    refused = pictures.refusal(pictures.look(path, CONFIG.max_pixels), config)
    if refused is None and isinstance(pictures.decode(path), str):
        return ("undecodable", None, None)
    return refused and tuple(refused[:3])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "empty"), ("truncated", "undecodable"), ("text", "unreadable"), ("animated", "animated"), ("cmyk", "cmyk"), ("rotated", "rotated"),
        ("alpha", "alpha"),
    ],
)  # fmt: skip
def test_every_planted_fault_has_its_name(tmp_path, kind, reason):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)  # a JPEG of more than its header
    for seed in range(3):
        data, _ = BROKEN[kind](noise, Dice("test", seed))
        assert said(saved(tmp_path, data)) == (reason, None, None)


def test_too_many_pixels_and_too_few(tmp_path):
    assert said(saved(tmp_path, png_bomb(12_000, 12_000))) == ("pixels", 144_000_000, 64_000_000)
    path = saved(tmp_path, png_bomb(60_000, 60_000))  # PIL itself refuses this one
    assert said(path)[0] == "pixels" and "3600000000 pixels" in pictures.refusal(pictures.look(path, CONFIG.max_pixels), CONFIG).note
    assert said(saved(tmp_path, encoded(SHOWN[:40], "PNG"))) == ("small", 40, 64)
    # A bomb is not decoded to be looked at, but it is when the bound is raised.
    row = pictures.look(saved(tmp_path, png_bomb(12_000, 12_000)), CONFIG.max_pixels)
    assert row["traits"] is None and pictures.looked_at(row, CONFIG.max_pixels) and not pictures.looked_at(row, 200_000_000)
    assert said(tmp_path / "nothing") == ("missing", None, None) and pictures.stamp(tmp_path / "nothing") is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_everyone_reads_stays(tmp_path, form):
    path = saved(tmp_path, encoded(SHOWN, form))
    assert said(path) is None
    row = pictures.look(path, CONFIG.max_pixels)
    assert (row["width"], row["height"], row["traits"]) == (96, 80, []) and pictures.decode(path).shape == SHOWN.shape


def test_more_that_stays(tmp_path):
    grey = Image.fromarray(SHOWN).convert("L")
    assert said(saved(tmp_path, encoded(grey, "PNG"))) is None
    opaque = Image.fromarray(SHOWN).convert("RGBA")  # has an alpha channel, but nothing shows through
    assert said(saved(tmp_path, encoded(opaque, "PNG"))) is None
    assert np.array_equal(pictures.decode(saved(tmp_path, encoded(opaque, "PNG"))), SHOWN)
    # A phone's JPEG with a second picture in it.
    assert said(saved(tmp_path, encoded(Image.fromarray(SHOWN), "MPO", save_all=True, append_images=[Image.fromarray(SHOWN)]))) is None


def test_what_is_let_through_is_converted(tmp_path):
    config = FilterConfig(refused=())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    path = saved(tmp_path, encoded(SHOWN, "PNG", exif=exif))
    assert said(path, config) is None and np.array_equal(pictures.decode(path), np.rot90(SHOWN, -1))
    half = Image.fromarray(np.dstack([SHOWN, np.full(SHOWN.shape[:2], 0, np.uint8)]))
    assert np.array_equal(pictures.decode(saved(tmp_path, encoded(half, "PNG"))), np.full_like(SHOWN, 255))
    deep = Image.fromarray(SHOWN[..., 0].astype(np.uint16) * 256 + 7)
    path = saved(tmp_path, encoded(deep, "PNG"))
    assert said(path) == ("deep", None, None) and said(path, config) is None
    assert np.array_equal(pictures.decode(path)[..., 1], SHOWN[..., 0])
    cmyk = saved(tmp_path, encoded(Image.fromarray(SHOWN).convert("CMYK"), "TIFF"))
    assert said(cmyk, config) is None and np.abs(pictures.decode(cmyk).astype(int) - SHOWN).max() <= 2


def test_the_ratio_of_the_sides_has_no_direction():
    assert pictures.ratio({"width": 100, "height": 25}) == pictures.ratio({"width": 25, "height": 100}) == 4.0


FILES = [encoded(SHOWN, "JPEG"), encoded(SHOWN, "PNG"), encoded(SHOWN, "GIF"), encoded(SHOWN, "WEBP"), encoded(SHOWN, "TIFF", compression="tiff_lzw")]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FILES), st.floats(0, 1), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8))
def test_nothing_raises_whatever_the_bytes(tmp_path_factory, data, share, changes):
    broken = bytearray(data[: int(len(data) * share)])
    for place, value in changes:
        if broken:
            broken[int(place * len(broken))] = value
    path = saved(tmp_path_factory.getbasetemp(), bytes(broken), "fuzz")
    row = pictures.look(path, CONFIG.max_pixels)
    refused = pictures.refusal(row, CONFIG)
    assert refused is None or refused.reason
    decoded = pictures.decode(path)
    assert (isinstance(decoded, str) and decoded) or decoded.dtype == np.uint8


def test_thumbnails_and_data_urls():
    thumb = pictures.thumbnail(SHOWN)
    assert thumb.shape == (8, 8, 3) and np.allclose(thumb.mean((0, 1)), SHOWN.mean((0, 1)), atol=1.0)
    import base64

    head, data = pictures.data_url(picture(1, 160, 320), 100, 90).split(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (100, 50)
