"""Random features with planted events, in the files that MAD's owners give out: the whole path from their download to a table, without their download.

    annotations/MAD_{train,val,test}.json       {query id: {movie, sentence, timestamps, ext_timestamps, movie_duration}}
    CLIP_L14_frames_features_5fps.h5            a movie: float16 [T D], five frames a second
    CLIP_L14_language_tokens_features.h5        a query id: float16 [S D], one row a token
    CLIP_L14_text_features/                     the same as LMDB of npz {token_features [S D], cls_features [D]}, as ReVisionLLM's pipeline reads them

Every sentence names a subject, what it does, and an object. Each of these words has a direction in the features' space, the same in all films and all
sentences. While an event lasts, its words' directions stand in the frames; the tokens of a sentence, and its vector, hold them too. So frame retrieval can
find every event, and a model can learn what words look like. All else is noise: nothing here says how a model does on films.

h5py and lmdb are optional (`pip install "revision-jax[features]"`). Source of names and layouts: github.com/Soldelli/MAD, doc/README.md.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from revision_jax.data.feature_sources import ROWS, optional
from revision_jax.errors import UserError
from revision_jax.files import new_folder

ANNOTATIONS, FRAMES, TOKENS, TEXTS = (
    "annotations", "CLIP_L14_frames_features_5fps.h5", "CLIP_L14_language_tokens_features.h5", "CLIP_L14_text_features",
)  # fmt: skip
RATE = 5  # frames a second
SUBJECTS = ("driver", "nurse", "soldier", "child", "waiter", "pilot", "singer", "farmer", "guard", "painter", "doctor", "teacher")
ACTIONS = ("opens", "drops", "hides", "cleans", "breaks", "throws", "carries", "finds", "burns", "paints", "kicks", "lifts")
OBJECTS = ("door", "letter", "lamp", "chair", "bottle", "mirror", "phone", "coat", "box", "book", "wheel", "clock")
SENTENCES = len(SUBJECTS) * len(ACTIONS) * len(OBJECTS)  # that a film can have, each once
LENGTH_S, SPREAD, SHORTEST_S = 4.0, 0.4, 1.0  # of an event: median, sigma of its logarithm, least. MAD's are 4.1 s on average
EVENT, FILM, SHOT, NOISE = 6.0, 6.0, 4.0, 3.0  # norms of what is added up in a frame
SHOT_S = 20  # a shot's share of the frames stays as long
HELD_OUT = 0.1  # of the questions for validation, and as many for test


@dataclass(frozen=True)
class Event:
    """Something that happens once in a film, and the words of its sentence."""

    query_id: str
    words: tuple[str, str, str]
    start_s: float
    end_s: float

    @property
    def sentence(self) -> str:
        """As MAD's are: a capital and a period."""
        subject, action, thing = self.words
        return f"The {subject} {action} the {thing}."


@dataclass(frozen=True)
class Movie:
    name: str
    split: str  # train | val | test
    duration_s: float
    events: tuple[Event, ...]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Its annotations in the owners' layout."""
        return {
            event.query_id: {
                "movie": self.name, "sentence": event.sentence, "timestamps": [event.start_s, event.end_s],
                "ext_timestamps": [max(0.0, event.start_s - 1), min(self.duration_s, event.end_s + 1)], "movie_duration": self.duration_s,
            }
            for event in self.events
        }  # fmt: skip


def write(
    out: str | Path, films: int = 3, minutes: float = 40.0, questions: int = 300, seed: int = 0, width: int = 768,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Movie]:
    """Writes the set of `films` movies of `minutes` each with `questions` in all to the folder `out`, complete or not at all; a seed gives the same set.

    One film is validation, one is test, each with a tenth of the questions; the others are for training. width: D. progress(movie, done, in all). Raises
    UserError for numbers that do not go together, a folder that is not empty, and without h5py or lmdb.
    """
    h5py, lmdb, out = optional("h5py"), optional("lmdb"), Path(out)
    movies = plan(films, minutes, questions, seed)
    if width < 1:
        raise UserError(f"--width: must be at least 1, is {width}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; give an empty or a new folder")
    directions = _directions(seed, width)
    with new_folder(out) as folder:
        (folder / ANNOTATIONS).mkdir()
        for split in ("train", "val", "test"):
            rows = {key: row for movie in movies if movie.split == split for key, row in movie.rows().items()}
            (folder / ANNOTATIONS / f"MAD_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
        with h5py.File(folder / FRAMES, "w") as file:
            for number, movie in enumerate(movies):
                if progress is not None:
                    progress(movie.name, number, len(movies))
                count = round(movie.duration_s * RATE)
                data = file.create_dataset(movie.name, (count, width), np.float16)
                for first in range(0, count, ROWS):
                    data[first : first + ROWS] = frames(movie, first, min(first + ROWS, count), directions, [seed, number])
        events = [event for movie in movies for event in movie.events]
        described = [(event.query_id, *_text(event, directions, [seed, len(movies) + number])) for number, event in enumerate(events)]
        with h5py.File(folder / TOKENS, "w") as file:
            for key, tokens, _ in described:
                file[key] = tokens
        size = 2 * sum(tokens.nbytes + vector.nbytes + 4096 for _, tokens, vector in described) + 2**20
        with lmdb.open(str(folder / TEXTS), map_size=size) as environment, environment.begin(write=True) as transaction:
            for key, tokens, vector in described:
                packed = io.BytesIO()
                np.savez(packed, token_features=tokens, cls_features=vector)
                transaction.put(key.encode(), packed.getvalue())
        (folder / TEXTS / "lock.mdb").unlink(missing_ok=True)
    return movies


def plan(films: int, minutes: float, questions: int, seed: int) -> list[Movie]:
    """The movies and what happens in them: events lie apart, one in each equal part of a film. Raises UserError for numbers that do not go together."""
    if films < 3:
        raise UserError(f"--films: must be at least 3 (training, validation, test), is {films}")
    held_out = max(1, round(HELD_OUT * questions))
    each = (questions - 2 * held_out) // (films - 2)
    if not 1 <= each <= SENTENCES or held_out > SENTENCES:
        raise UserError(f"--questions: must be 1 to {SENTENCES} a film; {questions} are {each} for a training film and {held_out} for the others")
    least = 2 * SHORTEST_S * max(each, held_out) / 60
    if not least <= minutes <= 720:
        raise UserError(f"--minutes: must be {least:g} (for so many questions) to 720, is {minutes:g}")
    combinations = list(itertools.product(SUBJECTS, ACTIONS, OBJECTS))
    movies, asked = [], 0
    for number in range(films):
        split = {films - 2: "val", films - 1: "test"}.get(number, "train")
        random, count = np.random.default_rng([seed, number, 1]), each if split == "train" else held_out
        part = minutes * 60 / count
        chosen = random.choice(len(combinations), count, replace=False)
        lengths = np.clip(LENGTH_S * np.exp(SPREAD * random.standard_normal(count)), SHORTEST_S, 0.8 * part)
        starts = (np.arange(count) + random.uniform(size=count) * (1 - lengths / part)) * part
        events = tuple(
            Event(str(asked + place), combinations[int(combination)], round(float(start), 3), round(float(start + length), 3))
            for place, (combination, start, length) in enumerate(zip(chosen, starts, lengths, strict=True))
        )
        asked += count
        movies.append(Movie(str(10001 + number), split, minutes * 60, events))
    return movies


def frames(movie: Movie, first: int, stop: int, directions: dict[str, np.ndarray], seed: list[int]) -> Float[np.ndarray, "T D"]:
    """Frames `first` .. `stop - 1` of a movie, not normalised: the film's own direction, the shot's, noise, and what happens. `first` begins a piece."""
    width = len(next(iter(directions.values())))
    unit = lambda *key: _unit(np.random.default_rng([*seed, *key]).standard_normal(width))
    times = np.arange(first, stop) / RATE
    shots = (times // SHOT_S).astype(int)
    values = FILM * unit(2) + SHOT * np.stack([unit(3, shot) for shot in range(shots[0], shots[-1] + 1)])[shots - shots[0]]
    values += NOISE / np.sqrt(width) * np.random.default_rng([*seed, 4, first]).standard_normal(values.shape)
    for event in movie.events:
        values[(times >= event.start_s) & (times < event.end_s)] += EVENT * _meaning(event, directions)
    return values.astype(np.float16)


def _text(event: Event, directions: dict[str, np.ndarray], seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens float16 [S D], vector float16 [D]) of a sentence: start, words, period, end. The vector is the sum of its three words' directions."""
    subject, action, thing = event.words
    width = len(directions[subject])
    words = ("", "the", subject, action, "the", thing, ".", "")
    noise = NOISE / np.sqrt(width) * np.random.default_rng([*seed, 5]).standard_normal((len(words), width))
    said = np.stack([EVENT * directions[word] if word in directions else np.zeros(width) for word in words])
    return (said + noise).astype(np.float16), (EVENT * _meaning(event, directions)).astype(np.float16)


def _directions(seed: int, width: int) -> dict[str, np.ndarray]:
    """A unit vector for each word that means something."""
    random = np.random.default_rng([seed, 0])
    return {word: _unit(random.standard_normal(width)) for word in (*SUBJECTS, *ACTIONS, *OBJECTS)}


def _meaning(event: Event, directions: dict[str, np.ndarray]) -> np.ndarray:
    return _unit(np.sum([directions[word] for word in event.words], axis=0))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
