import dataclasses

import numpy as np
import pytest

from revision_jax.data.asking import Listed, Scripted, TrainQuestion, swap
from revision_jax.data.synthetic import world
from revision_jax.data.synthetic.script import split_script


@pytest.fixture(scope="module")
def films():
    return [Scripted(split_script("train", index, 1800.0)) for index in range(2)]


def exhaustive(script, query):
    return tuple((start / script.fps, end / script.fps) for start, end in world.moments(query, script.events, script.fps))


def test_invented_questions_have_all_their_moments(films):
    for seed in range(200):
        question = films[0].present(np.random.default_rng(seed))
        assert question.moments and question.moments == exhaustive(films[0].script, question.meaning)
        assert all(pair in world.PAIRS for pair in question.meaning.pairs)
        assert films[1].moments(question) == exhaustive(films[1].script, question.meaning)


def test_all_forms_are_asked(films):
    forms = {films[0].present(np.random.default_rng(seed)).meaning.form for seed in range(100)}
    assert forms == {"static", "motion", "change", "relation"}


def test_questions_are_a_function_of_the_generator_alone(films):
    again = Scripted(films[0].script)
    for seed in range(20):
        assert films[0].present(np.random.default_rng(seed)) == again.present(np.random.default_rng(seed))


def attributes(query):
    flat = dataclasses.asdict(query)
    for part in ("look", "other"):
        for name, value in (flat.pop(part) or {}).items():
            flat[f"{part}.{name}"] = value
    return flat


def test_a_swapped_question_differs_in_one_attribute_and_knows_its_moments(films):
    names = set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        question = films[0].present(rng)
        swapped = films[0].swapped(rng, question)
        if swapped is None:
            continue
        before, after = attributes(question.meaning), attributes(swapped.meaning)
        changed = [name for name in before if before[name] != after[name]]
        assert len(changed) == 1
        names.add(changed[0])
        assert swapped.moments == exhaustive(films[0].script, swapped.meaning)
        assert all(pair in world.PAIRS for pair in swapped.meaning.pairs)
    assert {"look.size", "look.pattern", "look.colour", "look.shape", "motion", "to_colour", "relation"} <= names


def test_a_swap_never_turns_a_colour_into_itself():
    query = world.Query(world.Look("red", "circle"), to_colour="blue")
    results = [swap(query, world.Dice(seed)) for seed in range(300)]
    assert all(result is None or result.to_colour != result.look.colour for result in results)
    assert any(result is None for result in results)


def test_what_is_told_backwards_is_no_negative(films):
    event = next(event for event in films[0].script.events if event.kind == "relation")
    look, other = (world.Look(body.subject.colour, body.subject.shape) for body in (event.body, event.other))
    backwards = TrainQuestion("backwards", meaning=world.Query(look, relation=event.relation, other=other).converse)
    moment = (event.start / 5, event.end / 5)
    assert any(start <= moment[0] and moment[1] <= end for start, end in films[0].taken(backwards))


def test_listed_questions():
    first = TrainQuestion("A dog runs.", ((1.0, 5.0),), variants=("the dog is running",))
    absent = TrainQuestion("a cat sleeps", (), "absent")
    film = Listed((first, absent))
    rng = np.random.default_rng(0)
    drawn = [film.present(rng) for _ in range(50)]
    assert {question.query for question in drawn} == {"A dog runs.", "the dog is running"}
    assert all(question.moments == first.moments for question in drawn)
    assert film.swapped(rng, first) == absent
    assert film.moments(TrainQuestion("a dog  runs")) == first.moments
    assert film.moments(TrainQuestion("a horse runs")) == ()
    assert Listed((first,)).swapped(rng, first) is None
    assert film.weight == 1.0
