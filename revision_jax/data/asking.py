"""What can be asked about a film in training: the questions of its annotations, or new ones invented from the script of a rendered world.

A `Listed` film has the questions it came with. A `Scripted` film has no end of them: any attributes of any event, in any wording, with moments that
are exact because the script says all that happens; and of any question, of this film or another, it knows whether and when it is answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from revision_jax.data.prompts import clean_query
from revision_jax.data.synthetic import language, world
from revision_jax.data.synthetic.questions import MOST_MOMENTS
from revision_jax.data.synthetic.script import Script, can_pass
from revision_jax.data.windows import Moment

FORMS = {"static": 0.28, "motion": 0.27, "change": 0.20, "relation": 0.25}  # of questions invented about something that happens; as in the exam
NAMED = 0.6  # how often size and pattern are named; half as often for each subject of a relation
TRIES = 20


@dataclass(frozen=True)
class TrainQuestion:
    """A question with all of its moments in its film, in seconds; none = it does not happen there."""

    query: str
    moments: tuple[Moment, ...] = ()
    kind: str = "one"  # one | several | absent | near_miss
    variants: tuple[str, ...] = ()  # other wordings
    meaning: world.Query | None = field(default=None, compare=False)  # of an invented question


@runtime_checkable
class Questions(Protocol):
    """What one film can be asked. Every method is a pure function of its arguments."""

    weight: float  # how often the film is chosen, beside others; 0 = it has no question with a moment
    answered: tuple[TrainQuestion, ...] | None  # the questions with a moment; None where there is no end of them

    def present(self, rng: np.random.Generator) -> TrainQuestion:
        """A question with at least one moment."""

    def swapped(self, rng: np.random.Generator, question: TrainQuestion) -> TrainQuestion | None:
        """A question that differs from one of this film in one attribute; it may have moments of its own. None if there is none."""

    def moments(self, question: TrainQuestion) -> tuple[Moment, ...]:
        """When a question, of this film or another, is answered here."""

    def taken(self, question: TrainQuestion) -> tuple[Moment, ...]:
        """Where a window can't be a negative for it: its moments, and what comes too close to them to be called absent."""


class Listed:
    """A film with annotations. A question of another film counts as absent here unless the same words are listed, as is usual for such datasets."""

    def __init__(self, questions: tuple[TrainQuestion, ...]):
        self.answered = tuple(question for question in questions if question.moments)
        self._absent = [question for question in questions if not question.moments]
        self._moments = {clean_query(text): question.moments for question in questions for text in (question.query, *question.variants)}
        self.weight = float(len(self.answered))

    def present(self, rng: np.random.Generator) -> TrainQuestion:
        return worded(rng, self.answered[rng.integers(len(self.answered))])

    def swapped(self, rng: np.random.Generator, question: TrainQuestion) -> TrainQuestion | None:
        return worded(rng, self._absent[rng.integers(len(self._absent))]) if self._absent else None

    def moments(self, question: TrainQuestion) -> tuple[Moment, ...]:
        return self._moments.get(clean_query(question.query), ())

    taken = moments


def worded(rng: np.random.Generator, question: TrainQuestion) -> TrainQuestion:
    """The question in one of its wordings."""
    if not question.variants:
        return question
    texts = (question.query, *question.variants)
    return replace(question, query=texts[rng.integers(len(texts))])


class Scripted:
    """A film of the rendered world."""

    answered = None

    def __init__(self, script: Script):
        self.script = script
        self.weight = float(len(script.events))
        # A question names a colour and a shape: only the events that ever show this pair can answer it.
        self._by_pair: dict[tuple[str, str], list[world.Event]] = {}
        for event in script.events:
            for pair in {track.subject.pair for track in event.tracks}:
                self._by_pair.setdefault(pair, []).append(event)
        self._by_form = {
            "static": list(script.events),
            "motion": [event for event in script.events if event.kind != "change" and event.motion != "none"],
            "change": [event for event in script.events if event.kind == "change"],
            "relation": [event for event in script.events if event.kind == "relation"],
        }

    def present(self, rng: np.random.Generator) -> TrainQuestion:
        dice = _dice(rng)
        forms = {form: share for form, share in FORMS.items() if self._by_form[form]}
        for _ in range(TRIES):
            query = self._about(self._by_form, dice.weighted(forms), dice)
            found = self._seconds(query)
            if 0 < len(found) <= MOST_MOMENTS:
                break
        return TrainQuestion(language.phrase(query, dice), found, "one" if len(found) == 1 else "several", meaning=query)

    def _about(self, events: dict[str, list[world.Event]], form: str, dice: world.Dice) -> world.Query:
        event = dice.pick(events[form])
        if form == "static":
            return world.Query(_look(dice.pick(list(event.tracks)).subject, NAMED, dice))
        if form == "relation":
            return world.Query(_look(event.body.subject, NAMED / 2, dice), relation=event.relation, other=_look(event.other.subject, NAMED / 2, dice))
        look = _look(event.body.subject, NAMED, dice)
        return world.Query(look, motion=event.motion) if form == "motion" else world.Query(look, to_colour=event.to_colour)

    def swapped(self, rng: np.random.Generator, question: TrainQuestion) -> TrainQuestion | None:
        if question.meaning is None:
            return None
        dice = _dice(rng)
        query = swap(question.meaning, dice)
        if query is None:
            return None
        found = self._seconds(query)
        return TrainQuestion(language.phrase(query, dice), found, ("near_miss", "one", "several")[min(len(found), 2)], meaning=query)

    def moments(self, question: TrainQuestion) -> tuple[Moment, ...]:
        return () if question.meaning is None else self._seconds(question.meaning)

    def taken(self, question: TrainQuestion) -> tuple[Moment, ...]:
        """Also where it is told backwards: "B passes in front of A" while A passes behind B is false, but no fair negative."""
        found = self.moments(question)
        converse = question.meaning.converse if question.meaning is not None else None
        return found + self._seconds(converse) if converse is not None else found

    def _seconds(self, query: world.Query) -> tuple[Moment, ...]:
        events = self._by_pair.get((query.look.colour, query.look.shape), [])
        fps = self.script.fps
        return tuple((start / fps, end / fps) for start, end in world.moments(query, events, fps))


def swap(query: world.Query, dice: world.Dice) -> world.Query | None:
    """The question with one of its attributes changed, within what training may ask; None if the chance came out at something impossible.

    What a still picture can't tell (motion, change, relation) is swapped twice as often as each attribute of the look.
    """
    places: list[tuple[str, str]] = []
    for part in ("look", "other"):
        look = getattr(query, part)
        if look is not None:
            places += [(part, name) for name in ("size", "pattern", "colour", "shape") if getattr(look, name) is not None]
    places += 2 * [("", name) for name in ("motion", "to_colour", "relation") if getattr(query, name) is not None]
    part, name = dice.pick(places)
    choices = {
        "size": world.SIZES, "pattern": world.PATTERNS, "colour": world.COLOURS, "shape": world.SHAPES,
        "motion": world.DIRECTIONS, "to_colour": world.COLOURS, "relation": world.RELATIONS,
    }[name]  # fmt: skip
    owner = getattr(query, part) if part else query
    changed = replace(owner, **{name: dice.pick([choice for choice in choices if choice != getattr(owner, name)])})
    new = replace(query, **{part: changed}) if part else changed
    if new.to_colour == new.look.colour or any(pair not in world.PAIRS for pair in new.pairs) or (new.other is not None and not _can_meet(new)):
        return None
    return new


def _can_meet(query: world.Query) -> bool:
    """Could the world show these two in a relation? A question about what never happens would give itself away."""
    first, second = (world.Subject(look.size or "small", "plain", look.colour, look.shape) for look in (query.look, query.other))
    return can_pass(first, second)


def _look(subject: world.Subject, named: float, dice: world.Dice) -> world.Look:
    return world.Look(subject.colour, subject.shape, subject.size if dice.chance(named) else None, subject.pattern if dice.chance(named) else None)


def _dice(rng: np.random.Generator) -> world.Dice:
    return world.Dice("train", int(rng.integers(2**62)))
