"""Setting the exam: balanced questions about a script, each with all of its true moments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from revision_jax.data.synthetic.language import phrase
from revision_jax.data.synthetic.script import Script, can_pass, split_script
from revision_jax.data.synthetic.world import (
    COLOURS,
    DIRECTIONS,
    HELD_OUT,
    PAIRS,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    WORLD_VERSION,
    Dice,
    Event,
    Look,
    Query,
    Subject,
    distance,
    moments,
    split_of,
)

SHARES = {"one": 0.35, "several": 0.15, "absent": 0.25, "near_miss": 0.25}
MOST_MOMENTS = 5
SWAPS = ("size", "pattern", "colour", "shape", "motion", "to_colour", "relation")
# forms are dealt so that a question's wording says little about whether it has an answer: present ones as often as absent and near-miss together
_FORMS = {
    "present": {"static": 0.28, "motion": 0.27, "change": 0.20, "relation": 0.25},
    "absent": {"static": 0.12, "motion": 0.32, "change": 0.26, "relation": 0.30},
}
_TRIES = 300
QUESTIONS_AN_HOUR, FEWEST = 24, 6


@dataclass(frozen=True)
class Question:
    """moments: frames, half-open. swapped: of a near-miss, the attribute that was changed ("" otherwise)."""

    query_id: str
    text: str
    kind: str
    moments: tuple[tuple[int, int], ...]
    query: Query
    swapped: str = ""

    @property
    def tags(self) -> list[str]:
        """What kind of question it is, in words: its form, and what was swapped."""
        return [self.query.form, *([f"{self.swapped.replace('to_colour', 'new colour')} swapped"] if self.swapped else [])]

    def seconds(self, fps: float) -> list[list[float]]:
        return [[start / fps, end / fps] for start, end in self.moments]


def default_count(duration_s: float) -> int:
    return max(FEWEST, round(QUESTIONS_AN_HOUR * duration_s / 3600))


def ask(script: Script, count: int | None = None, seed: int = 0) -> list[Question]:
    """`count` questions (by default 24 an hour, at least 6), half of them with an answer; a function of (script, count, seed).

    one: exactly one moment. several: 2 to 5. absent: none, and at least two attributes away from every event. near_miss: none, but exactly one
    attribute away from some event. A kind that a short video cannot serve is replaced (several by one, absent by near_miss), never mislabelled.
    Questions of the composition split are all about held-out (colour, shape) pairs, those of the others never.
    """
    count = default_count(script.duration_s) if count is None else count
    setter = _Setter(script, Dice("questions", script.seed, script.frames, seed))
    asked: list[tuple[str, Query, str]] = []
    for kind in _deal(count, setter.dice):
        for instead in {"several": ("several", "one"), "absent": ("absent", "near_miss")}.get(kind, (kind,)):
            found = setter.find(instead)
            if found is not None:
                asked.append((instead, *found))
                break
    result = []
    for number, (kind, query, swapped) in enumerate(setter.dice.shuffled(asked)):
        wording = Dice("wording", script.seed, script.frames, seed, number)
        found = tuple(moments(query, script.events, script.fps))
        result.append(Question(f"{script.seed}-{seed}-{number:04d}", phrase(query, wording), kind, found, query, swapped))
    return result


def _deal(count: int, dice: Dice) -> list[str]:
    """Kinds in their shares, by largest remainder; which of equal remainders goes first is chance."""
    shares = {kind: share * count for kind, share in SHARES.items()}
    dealt = {kind: int(share) for kind, share in shares.items()}
    for kind in sorted(dice.shuffled(list(shares)), key=lambda kind: dealt[kind] - shares[kind])[: count - sum(dealt.values())]:
        dealt[kind] += 1
    return [kind for kind, number in dealt.items() for _ in range(number)]


class _Setter:
    """Draws questions of a wanted kind by rejection, never the same meaning twice."""

    def __init__(self, script: Script, dice: Dice):
        self.script, self.dice, self.asked = script, dice, set()
        self.composition = split_of(script.seed) == "composition"
        self.swaps: list[str] = []
        self.forms: dict[str, list[str]] = {}

    def find(self, kind: str) -> tuple[Query, str] | None:
        if kind == "near_miss":
            return self._near_miss()
        table = _FORMS["absent" if kind == "absent" else "present"]
        draw: Callable[[str], Query | None] = self._absent if kind == "absent" else self._present
        # the wanted form first, then the others, then any: an hour may lack, say, a static question that is two attributes away from everything
        wanted = self.dice.weighted(table)
        for form in [wanted, *self.dice.shuffled([form for form in table if form != wanted])]:
            for _ in range(_TRIES):
                query = draw(form)
                if query is not None and self._allowed(query) and self._is(kind, query):
                    self.asked.add(query)
                    return query, ""
        return None

    def _is(self, kind: str, query: Query) -> bool:
        if kind in ("absent", "near_miss"):  # a near-miss is at most one attribute away as it is made
            nearest = 2 if kind == "absent" else 1
            return all(distance(query, event) >= nearest for event in self.script.events) and not self._told_backwards(query)
        found = len(moments(query, self.script.events, self.script.fps))
        return found == 1 if kind == "one" else 2 <= found <= MOST_MOMENTS

    def _told_backwards(self, query: Query) -> bool:
        """"B passes in front of A" where A passes behind B: strictly false, but too fine a point to examine."""
        return query.converse is not None and bool(moments(query.converse, self.script.events, self.script.fps))

    def _allowed(self, query: Query) -> bool:
        if query in self.asked or (query.other is not None and not _possible(query.look, query.other)):
            return False
        held_out = [pair in HELD_OUT for pair in query.pairs]
        return any(held_out) if self.composition else not any(held_out)

    def _look(self, subject: Subject | Look, named: float) -> Look:
        size, pattern = (part if self.dice.chance(named) else None for part in (subject.size, subject.pattern))
        return Look(subject.colour, subject.shape, size, pattern)

    def _present(self, form: str, named: float = 0.6) -> Query | None:
        """A question that some event answers."""
        kinds = {"change": ("change",), "relation": ("relation",), "motion": ("single", "relation")}.get(form, ("single", "change", "relation"))
        events = [event for event in self.script.events if event.kind in kinds and (form != "motion" or event.motion != "none")]
        if not events:
            return None
        event = self.dice.pick(events)
        if form == "static":
            return Query(self._look(self.dice.pick(event.tracks).subject, named))
        if form == "relation":
            return Query(self._look(event.body.subject, named / 2), relation=event.relation, other=self._look(event.other.subject, named / 2))
        look = self._look(event.body.subject, named)
        return Query(look, motion=event.motion) if form == "motion" else Query(look, to_colour=event.to_colour)

    def _absent(self, form: str) -> Query | None:
        """Any question of the form; what it names is mostly drawn from what the video shows elsewhere, so that no word gives it away."""
        colour, shape = self.dice.pick(self._pairs())
        look = self._look(Look(colour, shape, self.dice.pick(SIZES), self.dice.pick(PATTERNS)), 0.6 if form != "relation" else 0.3)
        if form == "motion":
            return Query(look, motion=self.dice.pick(DIRECTIONS))
        if form == "change":
            return Query(look, to_colour=_another(colour, COLOURS, self.dice))
        if form == "relation":
            colour, shape = self.dice.pick(PAIRS)
            other = self._look(Look(colour, shape, self.dice.pick(SIZES), self.dice.pick(PATTERNS)), 0.3)
            return Query(look, relation=self.dice.pick(RELATIONS), other=other)
        return Query(look)

    def _pairs(self) -> Sequence[tuple[str, str]]:
        return sorted(HELD_OUT) if self.composition else PAIRS

    def _near_miss(self) -> tuple[Query, str] | None:
        """A present question with one attribute swapped; the attributes take turns."""
        if not self.swaps:
            self.swaps = self.dice.shuffled(SWAPS)
        for swap in [self.swaps.pop(), *self.dice.shuffled(SWAPS)]:
            form = {"motion": "motion", "to_colour": "change", "relation": "relation"}.get(swap)
            for _ in range(_TRIES):
                base = self._present(form or self.dice.weighted({"static": 0.7, "motion": 0.1, "change": 0.1, "relation": 0.1}), 0.75)
                query = base and self._swap(base, swap)
                if query is not None and self._allowed(query) and self._is("near_miss", query):
                    self.asked.add(query)
                    return query, swap
        return None

    def _swap(self, query: Query, name: str) -> Query | None:
        choices = {"size": SIZES, "pattern": PATTERNS, "colour": COLOURS, "shape": SHAPES, "motion": DIRECTIONS, "to_colour": COLOURS, "relation": RELATIONS}
        if name in ("size", "pattern", "colour", "shape"):
            part = "other" if query.other is not None and self.dice.chance(0.5) else "look"
            look = getattr(query, part)
            if getattr(look, name) is None:
                return None
            swapped = replace(query, **{part: replace(look, **{name: _another(getattr(look, name), choices[name], self.dice)})})
        else:
            swapped = replace(query, **{name: _another(getattr(query, name), choices[name], self.dice)})
        return None if swapped.to_colour == swapped.look.colour else swapped


def _another(value: str, choices: Sequence[str], dice: Dice) -> str:
    return dice.pick([choice for choice in choices if choice != value])


def _possible(look: Look, other: Look) -> bool:
    """Could the world show these two in a relation? What it never shows is no fair question."""
    sizes = [(a, b) for a in SIZES for b in SIZES if look.size in (None, a) and other.size in (None, b)]
    return any(can_pass(Subject(a, "plain", look.colour, look.shape), Subject(b, "plain", other.colour, other.shape)) for a, b in sizes)


def closest(query: Query, events: Sequence[Event]) -> int:
    """Attributes between the question and the event that comes nearest to answering it."""
    return min(distance(query, event) for event in events)


def manifest_hash(split: str, videos: int, duration_s: float | None = None, fps: int = 5) -> str:
    """SHA-256 of the scripts and questions of a split's first videos: what is frozen once results are published."""
    digest = hashlib.sha256(f"world {WORLD_VERSION} {split} {videos} {duration_s} {fps}\n".encode())
    for index in range(videos):
        script = split_script(split, index, duration_s, fps)
        asked = [[q.query_id, q.text, q.kind, q.moments] for q in ask(script)]
        digest.update(json.dumps([script.to_dict(), asked], sort_keys=True).encode())
    return digest.hexdigest()
