"""Planted faults: each is what it is said to be, and captions hold or do not, by the world itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from revision_jax.data.synthetic import spoilt
from revision_jax.data.synthetic.spoilt import BROKEN, COUNTS, near_copy, ugly, write_spoilt
from revision_jax.data.synthetic.stills import portrait, still
from revision_jax.data.synthetic.world import Dice

FEW = {kind: 4 if kind in ("good", "copy", "wrong", "near_miss") else 2 for kind in COUNTS}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoilt")
    return folder, write_spoilt(folder, 3, FEW)


def of_kind(planted, kind):
    folder, rows = planted
    return [(row, folder / "images" / row.image) for row in rows if row.kind == kind]


def test_everything_is_there_in_a_mixed_order_and_again_the_same(planted, tmp_path):
    folder, rows = planted
    assert len(rows) == sum(FEW.values()) and {kind: sum(row.kind == kind for row in rows) for kind in FEW} == FEW
    assert [row.kind for row in rows] != sorted(row.kind for row in rows)
    write_spoilt(tmp_path, 3, FEW)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((folder / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)
    assert [json.loads(line)["image"] for line in (folder / "captions.jsonl").read_text().splitlines()] == [row.image for row in rows]


def test_copies_are_near_their_originals_and_others_are_not(planted):
    small = lambda path: np.asarray(Image.open(path).convert("RGB").resize((8, 8), Image.Resampling.BOX), float).reshape(-1)
    folder, _ = planted
    for row, path in of_kind(planted, "copy"):
        original = folder / "images" / row.of
        other = next(file for one, file in of_kind(planted, "good") if one.image != row.of)
        assert path.read_bytes() != original.read_bytes()
        assert np.corrcoef(small(path), small(original))[0, 1] > 0.9 > np.corrcoef(small(path), small(other))[0, 1]


def test_strips_and_small_ones(planted):
    for _, path in of_kind(planted, "ratio"):
        sides = Image.open(path).size
        assert max(sides) / min(sides) > 4 and min(sides) >= 64
    assert all(Image.open(path).size == (48, 48) for _, path in of_kind(planted, "small"))


def test_captions_hold_or_do_not_as_the_world_says(monkeypatch, tmp_path):
    """`shows` is asked for every caption that is written."""
    told = []
    plain = spoilt.phrase
    monkeypatch.setattr(spoilt, "phrase", lambda query, dice: told.append(query) or plain(query, dice))
    shown = []
    plain_caption = spoilt._caption
    monkeypatch.setattr(spoilt, "_caption", lambda kind, drawn, *rest: shown.append((kind, drawn)) or plain_caption(kind, drawn, *rest))
    write_spoilt(tmp_path, 4, {"good": 8, "wrong": 8, "near_miss": 8, "copy": 2})
    assert len(told) == len(shown) == 26
    for query, (kind, drawn) in zip(told, shown, strict=True):
        assert spoilt.shows(query, drawn) == (kind in ("good", "copy")) and query.motion is None and query.to_colour is None


def test_ways_of_spoiling():
    picture, _ = still(1)
    assert {near_copy(picture, Dice("c", n))[1] for n in range(20)} == {"reencoded", "cropped", "brightness"}
    assert {ugly(picture, Dice("u", n))[1] for n in range(20)} == {"blurred", "noisy", "dark"}
    for n in range(20):
        copy, _ = near_copy(picture, Dice("c", n))
        bad, how = ugly(picture, Dice("u", n))
        assert copy.shape == bad.shape == picture.shape and copy.dtype == bad.dtype == np.uint8
        if how == "dark":
            assert bad.mean() < 0.2 * picture.mean()
        elif how == "blurred":
            assert np.abs(np.diff(bad.astype(int), axis=0)).mean() < 0.5 * np.abs(np.diff(picture.astype(int), axis=0)).mean()
        else:
            assert np.abs(bad.astype(int) - picture).mean() > 30


def test_what_is_broken_is_broken():
    picture, _ = still(2)
    made = {kind: BROKEN[kind](picture, Dice("b", kind))[0] for kind in BROKEN}
    assert made["empty"] == b"" and len(made["bomb"]) < 1000 and len(set(made.values())) == len(made)


def test_a_portrait_shows_one_thing():
    picture, drawn = portrait(5, spoilt.COMMON)
    assert [item.subject for item in drawn] == [spoilt.COMMON] and picture.shape == (160, 160, 3)
    assert np.array_equal(picture, portrait(5, spoilt.COMMON)[0]) and not np.array_equal(picture, portrait(6, spoilt.COMMON)[0])
