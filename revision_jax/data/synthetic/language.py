"""Putting questions and pictures into varied English. No synonym stands for two attributes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from revision_jax.data.synthetic.world import COLOURS, DIRECTIONS, PAIRS, PATTERNS, RELATIONS, SIZES, Dice, Drawn, Look, Query, Subject

# the first word of each is the plain one
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
COLOUR_WORDS = {
    "red": ("red", "scarlet"), "green": ("green", "emerald"), "blue": ("blue",), "yellow": ("yellow",), "magenta": ("magenta", "pink"),
    "cyan": ("cyan", "turquoise"), "white": ("white",), "black": ("black",),
}  # fmt: skip
SHAPE_WORDS = {
    "circle": ("circle", "disc"), "square": ("square", "box"), "triangle": ("triangle",), "ring": ("ring", "hoop"), "star": ("star",),
    "cross": ("cross", "plus"), "crescent": ("crescent", "sickle"), "hourglass": ("hourglass", "sandglass"),
}  # fmt: skip
PATTERN_BEFORE = {"plain": ("plain", "unstriped"), "striped": ("striped", "stripy")}
PATTERN_AFTER = {"plain": ("without stripes", "with no stripes"), "striped": ("with stripes", "with stripes on it")}
HERE = ("", "appears", "is shown", "can be seen", "is there", "is visible")
SIDEWAYS = ("moves", "goes", "drifts", "slides", "travels", "glides")
WAYS = {
    "left": tuple(f"{verb} {way}" for verb in SIDEWAYS for way in ("left", "to the left", "leftwards")),
    "right": tuple(f"{verb} {way}" for verb in SIDEWAYS for way in ("right", "to the right", "rightwards")),
    "up": (*(f"{verb} {way}" for verb in SIDEWAYS for way in ("up", "upwards")), "rises", "climbs", "moves to the top"),
    "down": (*(f"{verb} {way}" for verb in SIDEWAYS for way in ("down", "downwards")), "sinks", "falls", "descends", "moves to the bottom"),
}
WAYS_FIRST = {"left": ("to the left", "leftwards"), "right": ("to the right", "rightwards"), "up": ("up", "upwards"), "down": ("down", "downwards")}
MOVING = {
    "left": ("moving left", "moving to the left", "drifting left"), "right": ("moving right", "moving to the right", "drifting right"),
    "up": ("moving up", "moving upwards", "rising"), "down": ("moving down", "moving downwards", "sinking"),
}  # fmt: skip
TURNS = ("turns", "becomes", "changes to", "changes its colour to")
TURNING = ("that turns", "that becomes", "turning", "becoming", "which turns")
PASS = ("passes", "goes", "slides", "travels", "glides")
PASSING = ("passing", "going", "sliding", "that passes", "that goes")
SIDE = {"behind": ("behind",), "front": ("in front of",)}
_FREQUENT = 0.55  # how often the plain word is taken where there are several


def _word(words: Sequence[str], dice: Dice) -> str:
    return words[0] if len(words) == 1 or dice.chance(_FREQUENT) else dice.pick(words[1:])


def noun_phrase(look: Look, dice: Dice, article: str = "a") -> str:
    """A subject in words, such as "a small red striped ring" or "a hoop with stripes, small and red"."""
    colour, shape = _word(COLOUR_WORDS[look.colour], dice), _word(SHAPE_WORDS[look.shape], dice)
    size = _word(SIZE_WORDS[look.size], dice) if look.size else ""
    before, after = "", ""
    if look.pattern:
        if dice.chance(0.7):
            before = _word(PATTERN_BEFORE[look.pattern], dice)
        else:
            after = _word(PATTERN_AFTER[look.pattern], dice)
    order = dice.real()
    if order < 0.07 and size:  # "something small and red, a ring"
        words = f"something {size} and {colour} , {_indefinite(' '.join(filter(None, (before, shape))))} {after} ,"
        after = ""
    elif order < 0.15 and (size or before):  # "a ring , small and red ,"
        qualities = [word for word in (size, before, colour) if word]
        words = f"{_indefinite(shape)} , {' and '.join(qualities) if len(qualities) < 3 else f'{qualities[0]} , {qualities[1]} and {qualities[2]}'} {after} ,"
        after = ""
    else:
        adjectives = [size, before, colour] if dice.chance(0.5) else [size, colour, before]
        words = " ".join(filter(None, (*adjectives, shape)))
        words = f"{article} {words}" if article == "the" else _indefinite(words)
    return f"{words} {after}".strip()


def _indefinite(words: str) -> str:
    return f"{'an' if words.startswith(('unstriped', 'emerald', 'hourglass')) else 'a'} {words}"


def phrase(query: Query, dice: Dice) -> str:
    """The question in English: lower case, without a final period."""
    subject = noun_phrase(query.look, dice, "the" if dice.chance(0.15) else "a")
    if query.motion:
        order = dice.real()
        if order < 0.6:
            words = f"{subject} {dice.pick(WAYS[query.motion])}"
        elif order < 0.8:
            words = f"{dice.pick(WAYS_FIRST[query.motion])} {dice.pick(SIDEWAYS)} {subject}"
        else:
            words = f"{subject} {dice.pick(MOVING[query.motion])}"
    elif query.to_colour:
        words = f"{subject} {_word(TURNS, dice) if dice.chance(0.65) else dice.pick(TURNING)} {_word(COLOUR_WORDS[query.to_colour], dice)}"
    elif query.relation:
        other, side = noun_phrase(query.other, dice, "the" if dice.chance(0.15) else "a"), dice.pick(SIDE[query.relation])
        order = dice.real()
        if order < 0.6:
            words = f"{subject} {_word(PASS, dice)} {side} {other}"
        elif order < 0.8:
            words = f"{side} {other} {_word(PASS, dice)} {subject}"
        else:
            words = f"{subject} {_word(PASSING, dice)} {side} {other}"
    else:
        words = f"{subject} {dice.pick(HERE)}"
    return re.sub(r"\s+", " ", words).replace(" ,", ",").strip(" ,")


def caption(objects: Sequence[Drawn], dice: Dice) -> str:
    """A picture in words, such as "a small red ring and a large blue striped star ."; in any order, "nothing ." for an empty picture."""
    pairs = {index: item.over for index, item in enumerate(objects) if item.over is not None}
    told = set(pairs) | set(pairs.values())
    parts = []
    for upper, lower in pairs.items():
        first, second, side = (lower, upper, "behind") if dice.chance(0.5) else (upper, lower, "in front of")
        parts.append(f"{_plain(objects[first].subject)} {side} {_plain(objects[second].subject)}")
    parts += [_plain(item.subject) for index, item in enumerate(objects) if index not in told]
    return " and ".join(dice.shuffled(parts) or ["nothing"]) + " ."


def _plain(subject: Subject) -> str:
    return _indefinite(" ".join(filter(None, (subject.size, subject.colour, "striped" if subject.pattern == "striped" else "", subject.shape))))


def all_words() -> tuple[str, ...]:
    """Every word and mark that `phrase` and `caption` can write, sorted; fewer than 250."""
    texts = ["a an the and , . something nothing", *HERE, *SIDEWAYS, *TURNS, *TURNING, *PASS, *PASSING]
    for table in (SIZE_WORDS, COLOUR_WORDS, SHAPE_WORDS, PATTERN_BEFORE, PATTERN_AFTER, WAYS, WAYS_FIRST, MOVING, SIDE):
        texts += [text for words in table.values() for text in words]
    return tuple(sorted({word for text in texts for word in text.split()}))


def vocabulary_sentences(seed: int, count: int) -> list[str]:
    """Sentences to build a tokenizer from: `count` random questions, and at the end one line with every word there is."""
    dice = Dice("vocabulary", seed)
    return [phrase(random_query(dice), dice) for _ in range(count)] + [" ".join(all_words())]


def random_look(dice: Dice) -> Look:
    """A look of the pairs that training may show; size and pattern are each named half the time."""
    colour, shape = dice.pick(PAIRS)
    return Look(colour, shape, dice.pick(SIZES) if dice.chance(0.5) else None, dice.pick(PATTERNS) if dice.chance(0.5) else None)


def random_query(dice: Dice) -> Query:
    """A question about anything that training may ask for."""
    look, form = random_look(dice), dice.weighted({"static": 0.4, "motion": 0.25, "change": 0.15, "relation": 0.2})
    if form == "motion":
        return Query(look, motion=dice.pick(DIRECTIONS))
    if form == "change":
        return Query(look, to_colour=dice.pick([colour for colour in COLOURS if colour != look.colour and (colour, look.shape) in PAIRS]))
    if form == "relation":
        return Query(look, relation=dice.pick(RELATIONS), other=random_look(dice))
    return Query(look)
