"""The predicate: what a question means, how far an event is from it, and that splits cannot meet."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.data.synthetic.world import (
    COLOURS,
    DIRECTIONS,
    HELD_OUT,
    PAIRS,
    PATTERNS,
    SHAPES,
    SIZES,
    SPLITS,
    USER_SEEDS,
    Body,
    Dice,
    Drawn,
    Event,
    Look,
    Query,
    Subject,
    distance,
    matches,
    moments,
    shows,
    split_of,
    split_range,
    split_seed,
)
from revision_jax.errors import UserError

RED_RING = Subject("small", "striped", "red", "ring")
BLUE_SQUARE = Subject("large", "plain", "blue", "square")


def body(subject):
    return Body(subject, 28, (0, 0, 0), (20, 20), (80, 20))


SINGLE = Event("single", 10, 60, body(RED_RING), motion="right")
CHANGE = Event("change", 100, 200, body(RED_RING), to_colour="green", change=140)
RELATION = Event("relation", 300, 400, body(RED_RING), motion="left", relation="behind", other=body(BLUE_SQUARE))


def test_there_are_more_than_a_thousand_describable_combinations():
    static = len(PAIRS) * len(SIZES) * len(PATTERNS)
    assert static * (1 + len(DIRECTIONS)) >= 1000
    assert len(COLOURS) * len(SHAPES) * len(SIZES) * len(PATTERNS) == 256
    assert len(HELD_OUT) + len(PAIRS) == 64


@pytest.mark.parametrize(
    "query, event, expected",
    [
        (Query(Look("red", "ring")), SINGLE, [(10, 60)]),
        (Query(Look("red", "ring", "small", "striped")), SINGLE, [(10, 60)]),
        (Query(Look("red", "ring", "large")), SINGLE, []),
        (Query(Look("red", "ring", pattern="plain")), SINGLE, []),
        (Query(Look("red", "ring"), motion="right"), SINGLE, [(10, 60)]),
        (Query(Look("red", "ring"), motion="left"), SINGLE, []),
        (Query(Look("red", "ring")), CHANGE, [(100, 140)]),
        (Query(Look("green", "ring")), CHANGE, [(140, 200)]),
        (Query(Look("red", "ring"), to_colour="green"), CHANGE, [(100, 200)]),
        (Query(Look("green", "ring"), to_colour="red"), CHANGE, []),
        (Query(Look("red", "ring"), to_colour="green"), SINGLE, []),
        (Query(Look("red", "ring")), RELATION, [(300, 400)]),
        (Query(Look("blue", "square")), RELATION, [(300, 400)]),
        (Query(Look("red", "ring"), motion="left"), RELATION, [(300, 400)]),
        (Query(Look("blue", "square"), motion="left"), RELATION, []),
        (Query(Look("red", "ring"), relation="behind", other=Look("blue", "square")), RELATION, [(300, 400)]),
        (Query(Look("red", "ring"), relation="front", other=Look("blue", "square")), RELATION, []),
        (Query(Look("blue", "square"), relation="front", other=Look("red", "ring")), RELATION, []),
        (Query(Look("red", "ring"), relation="behind", other=Look("blue", "square", "small")), RELATION, []),
    ],
)
def test_matches(query, event, expected):
    assert matches(query, event) == expected
    assert (distance(query, event) == 0) == bool(expected)


@pytest.mark.parametrize(
    "query, event, expected",
    [
        (Query(Look("green", "ring", "large")), SINGLE, 2),
        (Query(Look("green", "star", "large", "plain"), motion="up"), SINGLE, 5),
        (Query(Look("red", "ring"), to_colour="green"), SINGLE, 1),
        (Query(Look("red", "ring"), to_colour="blue"), CHANGE, 1),
        (Query(Look("green", "ring"), to_colour="red"), CHANGE, 1),
        (Query(Look("red", "ring"), motion="up"), CHANGE, 1),
        (Query(Look("red", "ring"), relation="behind", other=Look("blue", "square")), SINGLE, 3),
        (Query(Look("red", "ring"), relation="front", other=Look("blue", "circle")), RELATION, 2),
    ],
)
def test_distance_counts_attributes(query, event, expected):
    assert distance(query, event) == expected


def test_moments_closer_than_a_second_are_one():
    at = [replace(SINGLE, start=start, end=end) for start, end in ((50, 60), (10, 20), (24, 40), (45, 48), (30, 33))]
    assert moments(Query(Look("red", "ring")), at, 5) == [(10, 40), (45, 60)]  # 20..24 is 0.8 s, 40..45 a whole second
    assert moments(Query(Look("red", "ring")), at, 4) == [(10, 20), (24, 40), (45, 60)]


def test_shows_judges_what_one_picture_can_tell():
    ring, square = Drawn(RED_RING, 28, (0, 0, 0), 40, 40), Drawn(BLUE_SQUARE, 52, (0, 0, 0), 60, 40, over=0)
    together, apart = (ring, square), (ring, replace(square, over=None))
    red, blue = Look("red", "ring"), Look("blue", "square")
    assert shows(Query(red, motion="up"), apart) and not shows(Query(Look("red", "square")), apart)
    assert shows(Query(red, to_colour="green"), apart) and shows(Query(Look("green", "ring"), to_colour="red"), apart)
    assert not shows(Query(Look("green", "ring"), to_colour="blue"), apart)
    assert shows(Query(red, relation="behind", other=blue), together) and shows(Query(blue, relation="front", other=red), together)
    assert not shows(Query(red, relation="front", other=blue), together) and not shows(Query(red, relation="behind", other=blue), apart)


def test_splits_and_user_seeds_cannot_meet():
    ranges = [range(USER_SEEDS), *(split_range(split) for split in SPLITS)]
    for first, second in itertools.combinations(ranges, 2):
        assert max(first.start, second.start) >= min(first.stop, second.stop)
    for split in SPLITS:
        assert split_of(split_seed(split, 0)) == split_of(split_seed(split, len(split_range(split)) - 1)) == split
    assert split_of(0) == split_of(USER_SEEDS - 1) == "user"


CALLS = [(split_range, "exam"), (split_of, -1), (split_of, USER_SEEDS), (partial(split_seed, "test"), -1), (partial(split_seed, "test"), 10**7)]


@pytest.mark.parametrize("call, argument", CALLS)
def test_seeds_out_of_range_are_refused_in_one_line(call, argument):
    with pytest.raises(UserError) as caught:
        call(argument)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 10**9), st.integers(-5, 5), st.integers(0, 9))
def test_dice_stay_in_their_bounds(seed, low, width):
    dice = Dice(seed)
    assert all(low <= dice.integer(low, low + width) <= low + width for _ in range(20))
    assert sorted(dice.shuffled(range(7))) == list(range(7))
    assert dice.weighted({"a": 0.0, "b": 1.0}) == "b"


def test_dice_stream_is_frozen():
    dice = Dice("frozen", 1)
    assert [dice.integer(0, 999) for _ in range(5)] == [477, 390, 231, 920, 787]
