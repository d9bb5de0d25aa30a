"""What the rendered world is made of: attributes, events, and the predicate that says what a question means.

The whole project's exam rests on this file, so it knows no pixels and no words: `script.py` invents events, `render.py` draws them,
`language.py` puts questions into English, `questions.py` sets the exam, `exhaustive.py` proves it complete.

Times are frame numbers, half-open: an event with `start=10, end=25` is drawn on frames 10..24 and its moment is [10/fps, 25/fps] seconds.
Positions and diameters are whole pixels of a frame of `FRAME` x `FRAME` (a larger video scales them).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from revision_jax.errors import UserError

WORLD_VERSION = 1  # a changed world is a new version; results of different versions are never compared
FRAME = 160  # pixels

SIZES = ("small", "large")
PATTERNS = ("plain", "striped")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan", "white", "black")
SHAPES = ("circle", "square", "triangle", "ring", "star", "cross", "crescent", "hourglass")
DIRECTIONS = ("left", "right", "up", "down")
MOTIONS = ("none", *DIRECTIONS)  # "none" is never asked for
RELATIONS = ("behind", "front")

# (colour, shape) pairs that no split but "composition" ever shows or asks for; every colour and every shape is well represented without them
HELD_OUT = frozenset({("red", "star"), ("green", "cross"), ("blue", "hourglass"), ("yellow", "ring"), ("magenta", "crescent"), ("cyan", "triangle")})
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT)

MERGE_GAP_S = 1.0  # moments of one question closer than this are one moment

T = TypeVar("T")


class Dice:
    """Seeded chance from `random.Random.random` alone, whose stream Python promises to keep: the exam must not move with a library's version."""

    def __init__(self, *key: object):
        self._random = random.Random("/".join(str(part) for part in (WORLD_VERSION, *key))).random

    def real(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self._random()

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""
        return low + int((high - low + 1) * self._random())

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[int(len(items) * self._random())]

    def weighted(self, weights: dict[T, float]) -> T:
        point = self._random() * sum(weights.values())
        for item, weight in weights.items():
            point -= weight
            if point < 0:
                return item
        return next(reversed(weights))

    def shuffled(self, items: Sequence[T]) -> list[T]:
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = int((i + 1) * self._random())
            result[i], result[j] = result[j], result[i]
        return result


# ------------------------------------------------------------------------------------------------------------------- what is there


@dataclass(frozen=True)
class Subject:
    size: str
    pattern: str
    colour: str
    shape: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Body:
    """A subject as it is drawn: pixels of a 160 x 160 frame, its colour's tint, and the centre's way over the event."""

    subject: Subject
    diameter: int
    tint: tuple[int, int, int]
    begin: tuple[int, int]  # (x, y) on the event's first frame
    finish: tuple[int, int]  # (x, y) on its last


@dataclass(frozen=True)
class Event:
    """kind: single (with or without motion) | change (the colour turns at frame `change`) | relation (the body passes `other`)."""

    kind: str
    start: int
    end: int
    body: Body
    motion: str = "none"
    to_colour: str | None = None
    change: int | None = None
    relation: str | None = None
    other: Body | None = None

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """Every subject of the event with the frames on which it looks so; the body's first."""
        subject = self.body.subject
        if self.kind == "change":
            return Track(subject, self.start, self.change), Track(replace(subject, colour=self.to_colour), self.change, self.end)
        first = Track(subject, self.start, self.end, self.motion)
        return (first,) if self.other is None else (first, Track(self.other.subject, self.start, self.end))


@dataclass(frozen=True)
class Track:
    subject: Subject
    start: int
    end: int
    motion: str = "none"


@dataclass(frozen=True)
class Drawn:
    """One subject as it stands in one picture. `over` is the place, in the tuple of drawn subjects, of the one that it partly covers."""

    subject: Subject
    diameter: int
    tint: tuple[int, int, int]
    x: int
    y: int
    over: int | None = None
    key: tuple[int, int] = (0, 0)  # (number of the event, 0 its body | 1 the other)


# ------------------------------------------------------------------------------------------------------------------ what is asked for


@dataclass(frozen=True)
class Look:
    """What a question says of one subject; None = it does not say."""

    colour: str
    shape: str
    size: str | None = None
    pattern: str | None = None

    def fits(self, subject: Subject) -> bool:
        return (
            self.colour == subject.colour and self.shape == subject.shape and self.size in (None, subject.size) and self.pattern in (None, subject.pattern)
        )

    def misses(self, subject: Subject) -> int:
        """How many of the named attributes the subject does not have."""
        misses = (self.colour != subject.colour) + (self.shape != subject.shape)
        return misses + (self.size not in (None, subject.size)) + (self.pattern not in (None, subject.pattern))

    @property
    def named(self) -> int:
        return 2 + (self.size is not None) + (self.pattern is not None)


@dataclass(frozen=True)
class Query:
    """A question's meaning. At most one of `motion`, `to_colour`, `relation` is set; `other` goes with `relation`."""

    look: Look
    motion: str | None = None
    to_colour: str | None = None
    relation: str | None = None
    other: Look | None = None

    def __post_init__(self):
        assert sum(part is not None for part in (self.motion, self.to_colour, self.relation)) <= 1, self
        assert self.motion != "none" and (self.other is None) == (self.relation is None), self

    @property
    def form(self) -> str:
        return "motion" if self.motion else "change" if self.to_colour else "relation" if self.relation else "static"

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The (colour, shape) pairs that the question speaks of."""
        look, pairs = self.look, [(self.look.colour, self.look.shape)]
        if self.to_colour:
            pairs.append((self.to_colour, look.shape))
        if self.other:
            pairs.append((self.other.colour, self.other.shape))
        return tuple(pairs)

    @property
    def converse(self) -> Query | None:
        """Of "A passes behind B", "B passes in front of A": the same picture, told of the other subject."""
        if self.relation is None:
            return None
        return replace(self, look=self.other, other=self.look, relation="front" if self.relation == "behind" else "behind")


def matches(query: Query, event: Event) -> list[tuple[int, int]]:
    """Frame intervals [start, end) of the event that answer the question; empty = it does not match.

    A question about looks alone holds as long as the subject looks so: on a changing subject that is a part of the event, and both subjects of a
    relation count for themselves. Questions about motion, change or relation hold for the whole event.
    """
    if query.relation is not None:
        fits = event.kind == "relation" and event.relation == query.relation and query.look.fits(event.body.subject) and query.other.fits(event.other.subject)
        return [(event.start, event.end)] if fits else []
    if query.to_colour is not None:
        fits = event.kind == "change" and event.to_colour == query.to_colour and query.look.fits(event.body.subject)
        return [(event.start, event.end)] if fits else []
    return [(track.start, track.end) for track in event.tracks if query.motion in (None, track.motion) and query.look.fits(track.subject)]


def distance(query: Query, event: Event) -> int:
    """How many of the question's attributes would have to change for the event to match; 0 = it matches.

    Attributes are size, pattern, colour, shape, motion, to-colour, relation, and the four of the other subject. What the event lacks altogether
    (a motion, a change, a relation and its other subject) counts each attribute that the question names there.
    """
    best = 99
    for number, track in enumerate(event.tracks):
        misses = query.look.misses(track.subject) + (query.motion is not None and query.motion != track.motion)
        if query.to_colour is not None:
            misses += not (event.kind == "change" and number == 0 and event.to_colour == query.to_colour)
        if query.relation is not None:
            if event.kind == "relation" and number == 0:
                misses += (event.relation != query.relation) + query.other.misses(event.other.subject)
            else:
                misses += 1 + query.other.named
        best = min(best, misses)
    return best


def moments(query: Query, events: Sequence[Event], fps: float) -> list[tuple[int, int]]:
    """All frame intervals [start, end) that answer the question, in order; those less than a second apart are one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(interval for event in events for interval in matches(query, event)):
        if merged and start - merged[-1][1] < MERGE_GAP_S * fps:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def shows(query: Query, drawn: Sequence[Drawn]) -> bool:
    """Does a single picture show what the question says, as far as one picture can? Motion is not judged, a change holds before and after it,
    a relation needs both subjects with one covering the other (who of them moves is not judged)."""
    if query.relation is not None:
        for upper in drawn:
            if upper.over is not None:
                lower = drawn[upper.over]
                body, other = (lower, upper) if query.relation == "behind" else (upper, lower)
                if query.look.fits(body.subject) and query.other.fits(other.subject):
                    return True
        return False
    looks = [query.look] if query.to_colour is None else [query.look, replace(query.look, colour=query.to_colour)]
    return any(look.fits(item.subject) for look in looks for item in drawn)


# ------------------------------------------------------------------------------------------------------------------------- splits

USER_SEEDS = 1_000_000  # 0 .. 999,999 belong to the person at the command line
SPLIT_WIDTH = 10_000_000
SPLITS = {"train": 1, "validation": 2, "test": 3, "composition": 4, "length": 5}
SPLIT_DURATION_S = {"length": 3 * 3600.0}  # others: an hour, unless told


def split_range(split: str) -> range:
    """The seeds of a split; ranges of different splits, and the user's seeds, are disjoint."""
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    return range(SPLITS[split] * SPLIT_WIDTH, (SPLITS[split] + 1) * SPLIT_WIDTH)


def split_seed(split: str, index: int) -> int:
    """The seed of the split's video number `index`."""
    seeds = split_range(split)
    if not 0 <= index < len(seeds):
        raise UserError(f"index: must lie in 0..{len(seeds) - 1}, is {index}")
    return seeds[index]


def split_of(seed: int) -> str:
    """Which split a seed belongs to; "user" for 0 .. 999,999."""
    if 0 <= seed < USER_SEEDS:
        return "user"
    for split in SPLITS:
        if seed in split_range(split):
            return split
    raise UserError(f"seed: must lie in 0..{USER_SEEDS - 1} (or come from a split), is {seed}")
