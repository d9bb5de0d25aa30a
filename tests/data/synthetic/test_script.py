"""Scripts: enough events, none in another's way, every relation visible, held-out pairs held out."""

from collections import Counter

import pytest

from revision_jax.data.synthetic.script import TOGETHER, make_script, split_script
from revision_jax.data.synthetic.shapes import overlap
from revision_jax.data.synthetic.world import COLOURS, FRAME, HELD_OUT, MOTIONS, SHAPES
from revision_jax.errors import UserError

HOURS = [split_script("test", index) for index in range(3)] + [split_script("composition", 0)]


def pairs(script):
    return {track.subject.pair for event in script.events for track in event.tracks}


def test_script_is_a_function_of_its_arguments():
    assert make_script(7, 600) == make_script(7, 600)
    assert make_script(7, 600) != make_script(8, 600) and make_script(7, 600) != make_script(7, 601)


@pytest.mark.parametrize("script", HOURS)
def test_an_hour_holds_its_events(script):
    assert script.duration_s == 3600 and len(script.events) >= 60
    kinds = Counter(event.kind for event in script.events)
    assert kinds["single"] > 40 and kinds["change"] >= 10 and kinds["relation"] >= 14
    assert {event.motion for event in script.events} == set(MOTIONS)
    for event in script.events:
        assert 0 <= event.start < event.end <= script.frames
        assert 3 <= (event.end - event.start) / script.fps <= 90
        if event.kind == "change":
            assert 0.3 < (event.change - event.start) / (event.end - event.start) < 0.7
            assert event.to_colour != event.body.subject.colour


@pytest.mark.parametrize("script", HOURS[:2])
def test_subjects_stay_inside_and_apart_and_relations_can_be_seen(script):
    covered, visible, apart = {}, {}, {}
    for frame in range(0, script.frames):
        drawn = script.drawn(frame, [number for number, event in enumerate(script.events) if event.start <= frame < event.end])
        assert len({item.key[0] for item in drawn}) <= TOGETHER
        for index, item in enumerate(drawn):
            half = item.diameter / 2
            assert half <= item.x <= FRAME - half and half <= item.y <= FRAME - half
            for below in drawn[:index]:
                if below.key[0] != item.key[0]:
                    assert max(abs(item.x - below.x), abs(item.y - below.y)) > half + below.diameter / 2
                    continue
                share, left = overlap((item.subject.shape, item.diameter), (below.subject.shape, below.diameter), item.x - below.x, item.y - below.y)
                covered[item.key[0]] = max(share, covered.get(item.key[0], 0))
                visible[item.key[0]] = min(left, visible.get(item.key[0], 1))
                apart[item.key[0]] = apart.get(item.key[0], False) or share == 0
    relations = [number for number, event in enumerate(script.events) if event.kind == "relation"]
    assert set(covered) == set(relations)
    assert all(covered[number] >= 0.2 and visible[number] >= 0.4 for number in relations)
    assert all(apart[number] for number in relations)


def test_motion_travels_and_rest_rests():
    for script in HOURS:
        for event in script.events:
            (x0, y0), (x1, y1) = event.body.begin, event.body.finish
            expected = {"none": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[event.motion]
            assert ((x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)) == expected
            assert event.motion == "none" or 49 <= abs(x1 - x0) + abs(y1 - y0) <= 101


def test_held_out_pairs_occur_in_the_composition_split_alone():
    assert not any(pairs(script) & HELD_OUT for script in [*HOURS[:3], make_script(7, 3600), *(split_script("train", index) for index in range(10))])
    assert pairs(HOURS[3]) & HELD_OUT
    shown = set().union(*(pairs(split_script("train", index)) for index in range(10)))
    assert {colour for colour, _ in shown} == set(COLOURS) and {shape for _, shape in shown} == set(SHAPES)


def test_length_split_is_three_hours():
    assert split_script("length", 0).duration_s == 3 * 3600


@pytest.mark.parametrize("seed", range(12))
def test_short_videos_at_any_rate(seed):
    script = make_script(seed, 60 + seed * 7.3, 1 + 2 * seed)
    assert len(script.events) >= 4 and abs(script.duration_s - (60 + seed * 7.3)) <= 0.5 / script.fps + 1e-9


@pytest.mark.parametrize("arguments", [(7, 59.0), (7, 1e9), (-1, 60.0), (2_000_000, 60.0), (7, 60.0, 0), (7, 60.0, 31), (7, 60.0, 2.5)])
def test_bad_arguments_are_refused_in_one_line(arguments):
    with pytest.raises(UserError) as caught:
        make_script(*arguments)
    assert "\n" not in str(caught.value)
