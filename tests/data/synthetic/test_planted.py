"""The planted set: the owners' layout, events where the annotations say, the same for a seed."""

import json

import h5py
import numpy as np
import pytest

from revision_jax.data.datasets.build import build, examples
from revision_jax.data.feature_sources import open_source
from revision_jax.data.synthetic import planted
from revision_jax.errors import UserError

SMALL = {"films": 4, "minutes": 3.0, "questions": 60, "width": 384}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("planted") / "set"
    return out, planted.write(out, **SMALL)


def rows(out):
    return {split: json.loads((out / planted.ANNOTATIONS / f"MAD_{split}.json").read_text()) for split in ("train", "val", "test")}


def test_the_builder_reads_it_and_leaves_nothing_out(written, tmp_path):
    out, movies = written
    built = build("mad", out, tmp_path)
    assert built.counts == {"train": {"kept": 48}, "validation": {"kept": 6}, "test": {"kept": 6}}
    assert [movie.split for movie in movies] == ["train", "train", "val", "test"]
    first = next(examples(built, "test"))
    event = movies[3].events[0]
    assert first.query == event.sentence.lower().rstrip(".") and first.spans[0] == pytest.approx((event.start_s, event.end_s), abs=1e-3)


def test_events_of_a_film_lie_apart_inside_of_it_and_have_sentences_of_their_own(written):
    for movie in written[1]:
        assert len({event.words for event in movie.events}) == len(movie.events)
        for before, event in zip((None, *movie.events), movie.events, strict=False):
            assert event.end_s - event.start_s >= planted.SHORTEST_S - 0.002 and event.start_s >= 0 and event.end_s <= movie.duration_s
            assert before is None or before.end_s <= event.start_s
    ids = [event.query_id for movie in written[1] for event in movie.events]
    assert len(set(ids)) == len(ids) == 60


def test_frames_and_sentences_share_a_direction_while_an_event_lasts_and_only_then(written):
    out, movies = written
    texts = open_source(out / planted.TEXTS)
    with h5py.File(out / planted.FRAMES) as frames, h5py.File(out / planted.TOKENS) as tokens:
        for movie in movies:
            film = np.asarray(frames[movie.name], np.float32)
            assert frames[movie.name].dtype == np.float16 and film.shape == (round(movie.duration_s * planted.RATE), SMALL["width"])
            film /= np.linalg.norm(film, axis=1, keepdims=True)
            times = np.arange(len(film)) / planted.RATE
            for event in movie.events:
                with texts.open(event.query_id) as arrays:
                    said = arrays["token_features"].all()
                    vector = arrays["cls_features"].all().astype(np.float32)
                assert np.array_equal(said, tokens[event.query_id]) and said.shape == (8, SMALL["width"])
                inside = (times >= event.start_s) & (times < event.end_s)
                likeness = film @ (vector / np.linalg.norm(vector))
                assert likeness[inside].min() > likeness[~inside].max()
                assert said.astype(np.float32).sum(0) @ vector > 0.5 * np.linalg.norm(said.astype(np.float32).sum(0)) * np.linalg.norm(vector)


def test_a_seed_gives_the_same_set(written, tmp_path):
    planted.write(tmp_path / "again", **SMALL)
    planted.write(tmp_path / "other", **SMALL, seed=1)
    assert rows(tmp_path / "again") == rows(written[0]) != rows(tmp_path / "other")
    name = written[1][0].name
    films = []
    for out in (written[0], tmp_path / "again", tmp_path / "other"):
        with h5py.File(out / planted.FRAMES) as file:
            films.append(file[name][:])
    assert np.array_equal(films[0], films[1]) and not np.array_equal(films[0], films[2])


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"films": 2}, "--films: must be at least 3"), ({"questions": 2}, "--questions: must be 1 to 1728"), ({"questions": 5000}, "--questions: must be"),
        ({"minutes": 0.5}, "--minutes: must be 0.8 "), ({"minutes": float("nan")}, "--minutes"), ({"minutes": 1e6}, "--minutes"), ({"width": 0}, "--width"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_go_together_are_told(tmp_path, numbers, says):
    with pytest.raises(UserError, match=says):
        planted.write(tmp_path / "out", **{**SMALL, **numbers})
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_stays(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        planted.write(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
