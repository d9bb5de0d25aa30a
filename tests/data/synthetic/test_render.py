"""Pixels: what a script says is in the picture, and nothing else is."""

import itertools

import numpy as np
import pytest

from revision_jax.data.synthetic.render import render
from revision_jax.data.synthetic.scenery import MARGIN, plan_scenery, texture
from revision_jax.data.synthetic.script import Script, make_script
from revision_jax.data.synthetic.shapes import masks, sprite
from revision_jax.data.synthetic.world import COLOURS, PATTERNS, SHAPES, Subject
from revision_jax.errors import UserError


def frame(script, number, size=160):
    return next(render(script, size, number, number + 1))


def test_every_subject_is_drawn_where_the_script_says_and_the_ground_is_left_alone():
    script = make_script(11, 300)
    empty = Script(script.seed, script.fps, script.frames, ())
    for number in range(0, script.frames, 37):
        picture, ground = frame(script, number).astype(int), frame(empty, number).astype(int)
        changed = np.abs(picture - ground).max(-1) > 6
        outside = changed.copy()
        for item in script.drawn(number):
            left, top = item.x - item.diameter // 2, item.y - item.diameter // 2
            box = np.s_[top : top + item.diameter, left : left + item.diameter]
            assert changed[box].mean() > 0.15
            outside[box] = False
        assert not outside.any()


def test_frames_can_be_drawn_from_anywhere():
    script = make_script(12, 120)
    whole = list(itertools.islice(render(script), 300))
    for number in (0, 7, 151, 299):
        assert np.array_equal(whole[number], frame(script, number))


def test_the_size_scales_the_picture():
    script = make_script(11, 60)
    number = script.events[0].start
    small, large = frame(script, number), frame(script, number, 320)
    assert large.shape == (320, 320, 3)
    item = script.drawn(number)[0]
    for picture, scale in ((small, 1), (large, 2)):
        box = picture[item.y * scale - 3 : item.y * scale + 4, item.x * scale - 3 : item.x * scale + 4]
        assert box.shape == (7, 7, 3)


@pytest.mark.parametrize("size", [0, 100, 150, 161, 656])
def test_bad_size(size):
    with pytest.raises(UserError):
        next(render(make_script(1, 60), size))


def test_grounds_are_muted():
    for seed in range(8):
        ground = texture(seed).astype(int)
        assert (ground.max(-1) - ground.min(-1)).mean() < 45 and 40 < ground.mean() < 200


def test_scenery_covers_every_frame_in_small_steps():
    for seed in range(5):
        scenery = plan_scenery(seed, 9000, 5)
        assert scenery.camera.min() >= 0 and scenery.camera.max() <= MARGIN
        assert np.abs(np.diff(scenery.camera.astype(int), axis=0)).max() <= 1
        assert scenery.light.min() >= 85 and scenery.light.max() <= 115
        assert np.abs(np.diff(scenery.light.astype(int))).max() <= 4
        moved = (np.diff(scenery.camera.astype(int), axis=0) != 0).any(1)
        assert 0.01 < moved.mean() < 0.2  # most frames stand still
        assert (np.diff(scenery.changes) >= 300).all() and (np.diff(scenery.changes) <= 900).all()


def test_looks_differ_from_each_other():
    """No two looks of a size are alike: coverage between shapes, colours between colours, stripes against none."""
    for diameter in (28, 52):
        for first, second in itertools.combinations(SHAPES, 2):
            assert np.abs(masks(first, diameter)[0] - masks(second, diameter)[0]).mean() > 0.12, (first, second)
    for pattern in PATTERNS:
        for first, second in itertools.combinations(COLOURS, 2):
            one, two = (sprite(Subject("small", pattern, colour, "circle"), 28, (0, 0, 0)) for colour in (first, second))
            assert np.linalg.norm(((one[0] - two[0]) * one[1]).mean((0, 1))) > 60, (pattern, first, second)
    for colour in COLOURS:
        for shape in SHAPES:
            plain, striped = (sprite(Subject("small", pattern, colour, shape), 28, (0, 0, 0))[0] for pattern in PATTERNS)
            inner = masks(shape, 28)[1] > 0.5
            assert 0.15 < (np.abs(plain - striped).max(-1) > 60)[inner].mean() < 0.6, (colour, shape)
