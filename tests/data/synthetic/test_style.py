"""Styles change what is seen, and nothing else; the default changes nothing at all."""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from revision_jax.data.synthetic.render import render
from revision_jax.data.synthetic.scenery import texture
from revision_jax.data.synthetic.script import Script, make_script
from revision_jax.data.synthetic.shapes import RGB, shade
from revision_jax.data.synthetic.style import PALETTES, PLAIN, Style
from revision_jax.data.synthetic.write import write
from revision_jax.errors import UserError
from revision_jax.evaluation import datasets

SCRIPT = make_script(7, 60)
# Made before there were styles.
FRAMES_OF_7 = "945e1fc9dc31d266"


def picture(style, script=SCRIPT, number=SCRIPT.events[0].start):
    return next(render(script, start=number, stop=number + 1, style=style)).astype(int)


def test_the_default_is_the_world_as_it_was():
    digest = hashlib.blake2b(digest_size=8)
    for number in range(0, SCRIPT.frames, 30):
        digest.update(picture(PLAIN, number=number).astype(np.uint8).tobytes())
    assert digest.hexdigest() == FRAMES_OF_7


def test_grounds_change_the_ground_and_palettes_the_subjects():
    bare = Script(SCRIPT.seed, SCRIPT.fps, SCRIPT.frames, ())
    plain = picture(PLAIN, bare)
    for grounds in ("coloured", "tiles"):
        assert np.abs(picture(Style(grounds=grounds), bare) - plain).mean() > 15
    assert np.array_equal(picture(Style(palette="pale"), bare), plain)
    item = SCRIPT.drawn(SCRIPT.events[0].start)[0]
    box = np.s_[item.y - 8 : item.y + 8, item.x - 8 : item.x + 8]
    shown = {palette: picture(Style(palette=palette))[box].mean() for palette in ("deep", "plain", "pale")}
    assert item.subject.colour not in ("white", "black") and shown["deep"] + 10 < shown["plain"] < shown["pale"] - 10


def test_a_shade_keeps_its_hue_and_stays_apart_from_the_others():
    for palette in ("pale", "deep"):
        shades = {colour: np.array(shade(colour, PALETTES[palette])) for colour in RGB}
        for colour, rgb in shades.items():
            assert np.array_equal(np.argsort(rgb, kind="stable"), np.argsort(RGB[colour], kind="stable")) and (rgb >= 0).all() and (rgb <= 255).all()
        apart = [np.abs(a - b).max() for one, a in shades.items() for other, b in shades.items() if one < other]
        assert min(apart) > 60
    assert shade("red") == RGB["red"] and shade("black", PALETTES["pale"]) == RGB["black"]


def test_coloured_grounds_are_coloured_and_tiles_are_grey():
    for seed in range(4):
        spread = {grounds: np.ptp(texture(seed, grounds=grounds).astype(int), axis=-1).mean() for grounds in ("muted", "coloured", "tiles")}
        assert spread["coloured"] > 60 > spread["muted"] and spread["tiles"] == 0
        assert texture(seed, grounds="tiles").shape == texture(seed).shape


@pytest.mark.parametrize("fps", [1, 2, 5, 12])
def test_another_frame_rate_shows_the_same_moments(tmp_path, fps):
    path = write(SCRIPT, tmp_path, style=Style(fps=fps))
    with av.open(str(path / "video.mp4")) as container:
        shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(container.streams.video[0])]
    assert len(shown) == 60 * fps and shown[-1][0] == pytest.approx(60 - 1 / fps)
    for time, image in shown[:: max(1, len(shown) // 9)]:
        drawn = picture(PLAIN, number=int(time * SCRIPT.fps + 1e-6))
        assert np.abs(image.astype(int) - drawn).mean() < 8
    about, plain = (json.loads((place / "annotations.json").read_text()) for place in (path, write(SCRIPT, tmp_path / "plain")))
    assert about["queries"] == plain["queries"] and about["fps"] == fps and "style" not in plain
    assert about.get("style", {}) == {"fps": fps}


def test_hard_compression_makes_small_files(tmp_path):
    sizes = [(write(SCRIPT, tmp_path / str(crf), style=Style(crf=crf)) / "video.mp4").stat().st_size for crf in (23, 45)]
    assert sizes[1] < sizes[0] / 3


def test_a_split_in_another_style_lies_beside_the_plain_one(tmp_path):
    made = [datasets.synthetic("test", tmp_path, 1, 60.0, style=style)[0] for style in (PLAIN, Style(grounds="tiles"))]
    assert made[0].questions == made[1].questions and made[0].video != made[1].video
    assert made[1].video.parent.parent.name == "test-60s-grounds-tiles"
    before = Path(made[1].video).stat().st_mtime_ns
    assert datasets.synthetic("test", tmp_path, 1, 60.0, style=Style(grounds="tiles")) == [made[1]] and Path(made[1].video).stat().st_mtime_ns == before


@pytest.mark.parametrize("wrong", [{"grounds": "plaid"}, {"palette": "neon"}, {"fps": 61}, {"fps": -1}, {"crf": 52}])
def test_bad_styles_are_named(wrong):
    with pytest.raises(UserError, match=f"style.{next(iter(wrong))}: "):
        Style(**wrong)
