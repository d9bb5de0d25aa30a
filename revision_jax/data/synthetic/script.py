"""Inventing what happens in a video: a script is a function of (seed, duration, frame rate) and nothing else."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace

from revision_jax.data.synthetic.shapes import diameter_and_tint, overlap
from revision_jax.data.synthetic.world import (
    COLOURS,
    DIRECTIONS,
    FRAME,
    HELD_OUT,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLIT_DURATION_S,
    Body,
    Dice,
    Drawn,
    Event,
    Subject,
    split_of,
    split_seed,
)
from revision_jax.errors import UserError

EVENTS_AN_HOUR = 80
SHORTEST_S, LONGEST_S = 3.0, 90.0
CHANGE_SHORTEST_S, RELATION_SHORTEST_S = 9.0, 6.0
DURATION_S = (60.0, 12 * 3600.0)
FPS = (1, 30)
KINDS = {"single": 0.65, "change": 0.15, "relation": 0.20}
TOGETHER = 3  # events visible at one time, at most
BORDER, APART = 2, 4  # pixels between a subject and the frame's edge; between subjects of different events
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Script:
    seed: int
    fps: int
    frames: int
    events: tuple[Event, ...]  # by start

    @property
    def duration_s(self) -> float:
        return self.frames / self.fps

    def drawn(self, frame: int, active: list[int] | None = None) -> tuple[Drawn, ...]:
        """What stands in the picture at a frame, back to front. `active`: numbers of the events to look at (all by default)."""
        result: list[Drawn] = []
        for number in range(len(self.events)) if active is None else active:
            event = self.events[number]
            if event.start <= frame < event.end:
                result.extend(_place(event, number, frame, len(result)))
        return tuple(result)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def _place(event: Event, number: int, frame: int, before: int) -> list[Drawn]:
    share = (frame - event.start) / max(1, event.end - 1 - event.start)
    body = _stand(event.body, share, (number, 0))
    if event.kind == "change" and frame >= event.change:
        body = replace(body, subject=replace(body.subject, colour=event.to_colour))
    if event.other is None:
        return [body]
    other = _stand(event.other, share, (number, 1))
    lower, upper = (body, other) if event.relation == "behind" else (other, body)
    covered, _ = overlap((upper.subject.shape, upper.diameter), (lower.subject.shape, lower.diameter), upper.x - lower.x, upper.y - lower.y)
    return [lower, replace(upper, over=before if covered > 0 else None)]


def _stand(body: Body, share: float, key: tuple[int, int]) -> Drawn:
    x, y = (math.floor(a + (b - a) * share + 0.5) for a, b in zip(body.begin, body.finish, strict=True))
    return Drawn(body.subject, body.diameter, body.tint, x, y, None, key)


# ---------------------------------------------------------------------------------------------------------------------- generation


def make_script(seed: int, duration_s: float, fps: float = 5) -> Script:
    """The script of one video. Raises UserError for a duration, frame rate or seed out of range."""
    if not DURATION_S[0] <= duration_s <= DURATION_S[1]:
        raise UserError(f"duration: must lie between {DURATION_S[0]:.0f} and {DURATION_S[1]:.0f} seconds, is {duration_s:g}")
    if fps != int(fps) or not FPS[0] <= fps <= FPS[1]:
        raise UserError(f"fps: must be a whole number in {FPS[0]}..{FPS[1]}, is {fps:g}")
    fps, frames = int(fps), round(duration_s * int(fps))
    composition = split_of(seed) == "composition"
    dice = Dice("script", seed, frames, fps)
    cast = _Cast(dice, composition)
    wanted = max(4, round(EVENTS_AN_HOUR * frames / fps / 3600))
    kinds = _kinds(wanted, dice)
    events: list[Event] = []
    for kind in kinds:
        for _ in range(400):
            event = _invent(kind, cast, events, frames, fps, dice)
            if event is not None and _has_room(event, events):
                events.append(event)
                break
        else:
            raise AssertionError(f"no room for an event in script {seed}")
    return Script(seed, fps, frames, tuple(sorted(events, key=lambda event: (event.start, event.end, event.body.begin))))


def split_script(split: str, index: int, duration_s: float | None = None, fps: int = 5) -> Script:
    """The script of a split's video number `index`; an hour long (the length split: three hours) unless told otherwise."""
    return make_script(split_seed(split, index), SPLIT_DURATION_S.get(split, 3600.0) if duration_s is None else duration_s, fps)


def _kinds(count: int, dice: Dice) -> list[str]:
    kinds = [kind for kind, share in KINDS.items() for _ in range(int(share * count))]
    while len(kinds) < count:
        kinds.append(dice.weighted(KINDS))
    return dice.shuffled(kinds)


class _Cast:
    """Who may play: six of the colours and six of the shapes, so that every video lacks some altogether."""

    def __init__(self, dice: Dice, composition: bool):
        self.composition = composition
        self.held_out = dice.shuffled(sorted(HELD_OUT))[:4] if composition else []
        colours = [colour for colour, _ in self.held_out]
        shapes = [shape for _, shape in self.held_out]
        self.colours = (colours + [colour for colour in dice.shuffled(COLOURS) if colour not in colours])[:6]
        self.shapes = (shapes + [shape for shape in dice.shuffled(SHAPES) if shape not in shapes])[:6]

    def allows(self, colour: str, shape: str) -> bool:
        return self.composition or (colour, shape) not in HELD_OUT

    def subject(self, dice: Dice) -> Subject:
        while True:
            colour, shape = dice.pick(self.held_out) if self.held_out and dice.chance(0.5) else (dice.pick(self.colours), dice.pick(self.shapes))
            if self.allows(colour, shape):
                return Subject(dice.pick(SIZES), dice.pick(PATTERNS), colour, shape)

    def neighbour(self, subject: Subject, dice: Dice) -> Subject:
        """A subject that differs in exactly one attribute."""
        choices = {"size": SIZES, "pattern": PATTERNS, "colour": self.colours, "shape": self.shapes}
        while True:
            name = dice.pick(tuple(choices))
            other = replace(subject, **{name: dice.pick(choices[name])})
            if other != subject and self.allows(*other.pair):
                return other


def _invent(kind: str, cast: _Cast, events: list[Event], frames: int, fps: int, dice: Dice) -> Event | None:
    shortest = {"single": SHORTEST_S, "change": CHANGE_SHORTEST_S, "relation": RELATION_SHORTEST_S}[kind]
    longest = min(LONGEST_S, frames / fps / 2)
    length = max(1, round(shortest * math.exp(dice.real() * math.log(longest / shortest)) * fps))
    start = dice.integer(0, frames - length)
    end = start + length
    # a third of the events resemble an earlier one: twins make questions with several moments, neighbours make near-misses
    same = [event for event in events if event.kind == kind]
    model, resemblance = (dice.pick(same), dice.real()) if same else (None, 1.0)
    subject = cast.subject(dice) if resemblance > 0.35 else model.body.subject if resemblance < 0.15 else cast.neighbour(model.body.subject, dice)
    twin = model if resemblance < 0.35 else None
    if kind == "relation":
        return _relation(subject, twin, cast, start, end, dice)
    motion = "none" if kind == "change" or dice.chance(0.3) else dice.pick(DIRECTIONS)
    if kind == "single" and twin is not None and dice.chance(0.7):
        motion = twin.motion
    diameter, tint = diameter_and_tint(subject, dice)
    way = _way(diameter, motion, dice)
    if way is None:
        return None
    body = Body(subject, diameter, tint, *way)
    if kind == "single":
        return Event("single", start, end, body, motion)
    to_colour = twin.to_colour if twin is not None and dice.chance(0.7) else dice.pick(cast.colours)
    if to_colour == subject.colour or not cast.allows(to_colour, subject.shape):
        return None
    return Event("change", start, end, body, to_colour=to_colour, change=start + round(length * dice.real(0.35, 0.65)))


def _way(diameter: int, motion: str, dice: Dice) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Where a subject's centre begins and finishes: steady travel of 50 to 100 pixels inside the frame."""
    low, high = diameter // 2 + BORDER, FRAME - diameter + diameter // 2 - BORDER
    if motion == "none":
        place = dice.integer(low, high), dice.integer(low, high)
        return place, place
    travel = dice.integer(50, min(100, high - low))
    along, across = dice.integer(low, high - travel), dice.integer(low, high)
    dx, dy = _STEPS[motion]
    first, last = (along, along + travel) if dx + dy > 0 else (along + travel, along)
    return ((first, across), (last, across)) if dx else ((across, first), (across, last))


def _relation(subject: Subject, twin: Event | None, cast: _Cast, start: int, end: int, dice: Dice) -> Event | None:
    other = twin.other.subject if twin is not None and dice.chance(0.7) else cast.subject(dice)
    relation = twin.relation if twin is not None and dice.chance(0.7) else dice.pick(RELATIONS)
    if not can_pass(subject, other):
        return None
    motion = dice.pick(DIRECTIONS)
    (a, tint_a), (b, tint_b) = diameter_and_tint(subject, dice), diameter_and_tint(other, dice)
    travel = dice.integer(min(100, a + b + 6), 100)  # apart at both ends
    room = FRAME - 2 * BORDER
    if travel + a > room:
        return None
    dx, dy = _STEPS[motion]
    pair = (subject.shape, a), (other.shape, b)
    aside = passing_offset(*pair, relation, bool(dx), [round(k - travel / 2) for k in range(0, travel + 1, 3)], dice)
    if aside is None:
        return None
    # spans of the centres: along the way, and across it
    reach = travel / 2
    along = _span(dice, [(-reach, a), (reach, a), (0, b)])
    across = _span(dice, [(aside, a), (0, b)])
    if along is None or across is None:
        return None
    sign = dx + dy
    begin, finish = round(along - sign * reach), round(along + sign * reach)
    body = Body(subject, a, tint_a, *(((begin, across + aside), (finish, across + aside)) if dx else ((across + aside, begin), (across + aside, finish))))
    place = (along, across) if dx else (across, along)
    return Event("relation", start, end, body, motion, relation=relation, other=Body(other, b, tint_b, place, place))


def can_pass(subject: Subject, other: Subject) -> bool:
    """May these two be shown in a relation? Two large ones do not fit into the frame side by side; two of one colour would melt into each other."""
    return subject.colour != other.colour and not subject.size == other.size == "large"


def passing_offset(subject: tuple[str, int], other: tuple[str, int], relation: str, horizontal: bool, way: list[int], dice: Dice) -> int | None:
    """How far aside of the other's centre a subject's way lies so that one visibly covers the other, yet never hides it.

    subject, other: (shape, diameter); way: the subject's places along its way, pixels from the other's centre. None = no such way.
    """
    for share in dice.shuffled((-0.75, -0.6, -0.45, -0.3, 0.3, 0.45, 0.6, 0.75)):
        aside = round(share * (subject[1] + other[1]) / 2)
        sign, upper, lower = (-1, other, subject) if relation == "behind" else (1, subject, other)
        states = [overlap(upper, lower, *((sign * along, sign * aside) if horizontal else (sign * aside, sign * along))) for along in way]
        if max(covered for covered, _ in states) >= 0.25 and min(visible for _, visible in states) >= 0.45:
            return aside
    return None


def _span(dice: Dice, items: list[tuple[float, int]]) -> int | None:
    """A place for an origin such that subjects at (offset, diameter) from it stay inside the frame."""
    low = max(math.ceil(diameter / 2 + 1 - offset) for offset, diameter in items) + BORDER
    high = min(math.floor(FRAME - diameter / 2 - 1 - offset) for offset, diameter in items) - BORDER
    return dice.integer(low, high) if low <= high else None


def _box(event: Event) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of all that the event ever covers."""
    bodies = [event.body] + ([event.other] if event.other else [])
    xs = [(place[0] - body.diameter / 2, place[0] + body.diameter / 2) for body in bodies for place in (body.begin, body.finish)]
    ys = [(place[1] - body.diameter / 2, place[1] + body.diameter / 2) for body in bodies for place in (body.begin, body.finish)]
    return min(x for x, _ in xs), min(y for y, _ in ys), max(x for _, x in xs), max(y for _, y in ys)


def _has_room(event: Event, events: list[Event]) -> bool:
    meanwhile = [other for other in events if other.start <= event.end and event.start <= other.end]
    left, top, right, bottom = _box(event)
    for other in meanwhile:
        west, north, east, south = _box(other)
        if left < east + APART and west < right + APART and top < south + APART and north < bottom + APART:
            return False
    starts = [max(event.start, other.start) for other in meanwhile] + [event.start]
    return all(sum(other.start <= at <= other.end for other in meanwhile) < TOGETHER for at in starts)
