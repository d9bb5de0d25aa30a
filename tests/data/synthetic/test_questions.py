"""The exam: kinds are what they say, annotations are complete, near-misses are exactly one attribute away."""

from collections import Counter
from dataclasses import replace

import pytest

from revision_jax.data.synthetic.exhaustive import Observer, disagreements, runs
from revision_jax.data.synthetic.questions import MOST_MOMENTS, SWAPS, ask, closest, default_count, manifest_hash
from revision_jax.data.synthetic.script import make_script, split_script
from revision_jax.data.synthetic.world import COLOURS, DIRECTIONS, HELD_OUT, PATTERNS, RELATIONS, SHAPES, SIZES, moments

VIDEOS = [*(split_script("test", index) for index in range(4)), split_script("composition", 1), make_script(3, 60), make_script(4, 700, 2)]
EXAMS = [(script, ask(script)) for script in VIDEOS]
HOURS = EXAMS[:5]


def neighbours(query):
    """Every question that differs in one attribute (a motion or a change may also be dropped)."""
    choices = {"size": SIZES, "pattern": PATTERNS, "colour": COLOURS, "shape": SHAPES}
    for part in ("look", "other"):
        look = getattr(query, part)
        for name, values in choices.items() if look else ():
            if getattr(look, name) is not None:
                yield from (replace(query, **{part: replace(look, **{name: value})}) for value in values if value != getattr(look, name))
    for name, values in {"motion": (None, *DIRECTIONS), "to_colour": (None, *COLOURS), "relation": RELATIONS}.items():
        if getattr(query, name) is not None:
            yield from (replace(query, **{name: value}) for value in values if value != getattr(query, name))


@pytest.mark.parametrize("script, questions", EXAMS)
def test_an_independent_observer_finds_the_same_moments(script, questions):
    assert disagreements(script, questions) == []


def test_the_observer_notices_wrong_annotations():
    script, questions = EXAMS[0]
    present = next(question for question in questions if question.kind == "several")
    absent = next(question for question in questions if question.kind == "absent")
    wrong = [
        replace(present, moments=present.moments[1:]),
        replace(present, moments=((present.moments[0][0] + 1, present.moments[0][1]), *present.moments[1:])),
        replace(absent, moments=((10, 20),)),
        replace(absent, query=present.query),
    ]
    assert len(disagreements(script, wrong)) == len(wrong)


def test_the_observer_agrees_on_every_kind_of_question_about_everything():
    script = split_script("train", 5, 900)
    questions = ask(script, 60, seed=1)
    assert {question.query.form for question in questions} == {"static", "motion", "change", "relation"}
    observer = Observer(script)
    for query in {neighbour for question in questions[:20] for neighbour in neighbours(question.query)}:
        assert runs(observer.frames(query), script.fps) == moments(query, script.events, script.fps), query


@pytest.mark.parametrize("script, questions", EXAMS)
def test_kinds_are_what_they_say(script, questions):
    for question in questions:
        if question.kind == "one":
            assert len(question.moments) == 1
        elif question.kind == "several":
            assert 2 <= len(question.moments) <= MOST_MOMENTS
        else:
            assert question.moments == ()
            near = any(moments(neighbour, script.events, script.fps) for neighbour in neighbours(question.query))
            assert near == (question.kind == "near_miss")
            assert (closest(question.query, script.events) == 1) == (question.kind == "near_miss")
        assert (question.swapped in SWAPS) == (question.kind == "near_miss")
        for start, end in question.moments:
            assert 0 <= start < end <= script.frames


@pytest.mark.parametrize("script, questions", HOURS)
def test_kinds_are_balanced(script, questions):
    assert len(questions) == default_count(3600) == 24
    assert Counter(question.kind for question in questions) == {"one": 8, "several": 4, "absent": 6, "near_miss": 6}
    assert len({question.query for question in questions}) == len({question.query_id for question in questions}) == 24


def test_near_misses_swap_every_attribute_about_as_often():
    swaps = Counter(question.swapped for index in range(6) for question in ask(split_script("train", index), 40) if question.kind == "near_miss")
    assert set(swaps) == set(SWAPS) and max(swaps.values()) <= 2 * min(swaps.values())


def test_wording_does_not_tell_whether_there_is_an_answer():
    present, absent = Counter(), Counter()
    for index in range(12):
        for question in ask(split_script("train", index), 40):
            (present if question.moments else absent)[question.query.form] += 1
    for form in present:
        assert abs(present[form] / present.total() - absent[form] / absent.total()) < 0.1, (form, present, absent)


def test_composition_asks_about_held_out_pairs_and_nothing_else_does():
    for script, questions in EXAMS:
        for question in questions:
            assert bool(set(question.query.pairs) & HELD_OUT) == (script is VIDEOS[4])


def test_questions_are_a_function_of_script_count_and_seed():
    script = VIDEOS[1]
    assert ask(script) == EXAMS[1][1]
    assert ask(script, seed=1) != EXAMS[1][1]
    assert manifest_hash("validation", 2, 600) == manifest_hash("validation", 2, 600)
    assert manifest_hash("validation", 2, 600) != manifest_hash("validation", 2, 601)


def test_the_frozen_test_manifest():
    """The exam of world version 1. A change here is a new WORLD_VERSION, and results are reported for both."""
    assert manifest_hash("test", 3) == "8f47bc54ff4454465d88bf37438fd13c00d86d851499677bed63968b2a6a3e30"
