"""Stills: deterministic, clean of held-out pairs, and every label exact."""

from dataclasses import replace

import numpy as np
import pytest

from revision_jax.data.synthetic.scenery import texture, tinted
from revision_jax.data.synthetic.stills import judge, judge_phrases, single_words, still, still_batch, still_queries, travels
from revision_jax.data.synthetic.world import FRAME, HELD_OUT, Dice, Drawn, Look, Query, Subject, shows


def test_still_is_a_function_of_its_seed():
    first, second = still(5), still(5)
    assert first[0].dtype == np.uint8 and first[0].shape == (FRAME, FRAME, 3)
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]
    assert not np.array_equal(first[0], still(6)[0])


def test_scenes_hold_up_to_three_subjects_inside_the_frame():
    scenes = [still(seed)[1] for seed in range(120)]
    assert {len(scene) for scene in scenes} == {0, 1, 2, 3}
    assert any(item.over is not None for scene in scenes for item in scene)
    for item in (item for scene in scenes for item in scene):
        assert item.subject.pair not in HELD_OUT
        assert item.diameter / 2 <= min(item.x, item.y) and max(item.x, item.y) <= FRAME - item.diameter / 2


def test_labels_are_the_predicate_for_every_pair_and_half_of_the_own_captions_hold():
    scenes = [still(seed)[1] for seed in range(60)]
    queries = [query for number, scene in enumerate(scenes) for query in still_queries(scene, 6, Dice("test", number))]
    labels = judge(scenes, queries)
    expected = np.array([[shows(query, scene) for query in queries] for scene in scenes])
    assert np.array_equal(labels, expected)
    own = np.concatenate([labels[i, 6 * i : 6 * i + 6] for i, scene in enumerate(scenes) if scene])
    assert 0.45 <= own.mean() <= 0.55
    forms = {query.form for query in queries}
    assert forms == {"static", "motion", "change", "relation"}
    assert not any(set(query.pairs) & HELD_OUT for query in queries)
    assert expected[:, [query.form == "relation" for query in queries]].any()


def test_phrase_labels_are_the_predicate_of_each_thing_that_a_question_speaks_of():
    scenes = [still(seed)[1] for seed in range(40)]
    queries = [query for number, scene in enumerate(scenes) for query in still_queries(scene, 6, Dice("test", number))]

    def second(query):
        if query.to_colour:
            return replace(query.look, colour=query.to_colour)
        return query.other or query.look

    def in_part(look, front):
        def held(query, scene):
            if query.relation is None:
                return shows(Query(look(query)), scene)
            tops = [item for item in scene if item.over is not None]
            there = tops if (query.relation == "front") == front else [scene[item.over] for item in tops]
            return any(look(query).fits(item.subject) for item in there)

        return held

    labels = judge_phrases(scenes, queries)
    for row, look in enumerate((lambda query: query.look, second)):
        assert np.array_equal(labels[row], np.array([[shows(Query(look(query)), scene) for query in queries] for scene in scenes]))
        held = in_part(look, front=row == 0)
        assert np.array_equal(labels[2 + row], np.array([[held(query, scene) for query in queries] for scene in scenes]))
    change, holds = np.array([query.form == "change" for query in queries]), judge(scenes, queries)
    assert (labels.all(0) | ~holds | change).all()  # a change holds before or after it
    relation = np.array([query.form == "relation" for query in queries])
    assert (labels[0] & labels[1] & ~labels[2])[:, relation].any(), "both are there, the other way round"


def test_tags_of_a_covering_pair_say_which_covers_which():
    scene = (_drawn("red", "ring", None), _drawn("blue", "square", 0))
    captions, labels = single_words([scene, scene[:1]], Dice("tags"))
    held = {caption: tuple(holds) for caption, holds in zip(captions, labels.T.tolist(), strict=True)}
    assert len(captions) == 40 == len(held)
    for caption, holds in held.items():
        if "something" not in caption.split()[2:]:
            continue
        lower = any(word in caption for word in ("red", "scarlet", "ring", "hoop"))
        upper = any(word in caption for word in ("blue", "square", "box"))
        if lower or upper:
            assert holds == ((upper and "in front of" in caption) or (lower and "behind" in caption), False), caption


def _drawn(colour, shape, over):
    return Drawn(Subject("large", "plain", colour, shape), 40, (0, 0, 0), 80, 80, over)


def test_travels_are_the_ways_that_questions_say():
    look = Look("red", "ring", None, None)
    said = travels([Query(look, motion=way) for way in ("left", "right", "up", "down")] + [Query(look), Query(look, to_colour="blue")])
    assert said.tolist() == [[0, -1], [0, 1], [-1, 0], [1, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_still_batch(seed):
    batch = still_batch(seed, 7, 3)
    assert batch["images"].shape == (7, FRAME, FRAME, 3) and batch["labels"].shape == (7, 21) and batch["labels"].dtype == bool
    assert batch["phrase_labels"].shape == (7, 4, 21) and batch["travels"].shape == (21, 2)
    assert len(batch["captions"]) == 21 and len(batch["full_captions"]) == 7
    again = still_batch(seed, 7, 3)
    assert np.array_equal(batch["images"], again["images"]) and batch["captions"] == again["captions"] and np.array_equal(batch["labels"], again["labels"])
    assert still_batch(seed + 10, 7, 3)["captions"] != batch["captions"]


def test_varied_pictures_show_the_same_a_little_otherwise():
    plain, some, all_ = (still_batch(3, 24, 2, share) for share in (0.0, 0.5, 1.0))
    assert plain["captions"] == some["captions"] == all_["captions"] and np.array_equal(plain["labels"], all_["labels"])
    differs = lambda batch: [not np.array_equal(a, b) for a, b in zip(plain["images"], batch["images"], strict=True)]
    assert all(differs(all_)) and 4 <= sum(differs(some)) <= 20
    apart = np.abs(plain["images"].astype(int) - all_["images"]).mean((1, 2, 3))
    assert apart.mean() > 3 and apart.max() < 20  # the coloured grounds of `style` alone are twice as far away


def test_a_ground_is_tinted_as_strongly_as_asked():
    ground = texture(5)
    spread = [np.ptp(tinted(ground, Dice("tint", 1), strength).astype(float), axis=-1).mean() for strength in (0.0, 0.25, 0.5, 1.0)]
    assert np.array_equal(tinted(ground, Dice("tint", 1), 0.0), ground) and spread == sorted(spread)
    assert np.array_equal(tinted(ground, Dice("coloured", 5)), texture(5, grounds="coloured"))
