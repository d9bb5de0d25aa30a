"""Single pictures of the world with captions, for pre-training the image and text encoders.

Pictures are drawn by the same code as the videos and go through JPEG, which blurs and blocks as a codec does. Everything is a function of the seed.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Int8, UInt8
from PIL import Image

from revision_jax.data.synthetic.language import COLOUR_WORDS, PATTERN_BEFORE, SHAPE_WORDS, SIDE, SIZE_WORDS, caption, phrase, random_query
from revision_jax.data.synthetic.render import draw
from revision_jax.data.synthetic.scenery import LIGHT, contrasted, light_table, texture, tinted
from revision_jax.data.synthetic.script import can_pass, passing_offset
from revision_jax.data.synthetic.shapes import diameter_and_tint
from revision_jax.data.synthetic.style import PALETTES
from revision_jax.data.synthetic.world import COLOURS, DIRECTIONS, FRAME, PAIRS, PATTERNS, RELATIONS, SHAPES, SIZES, Dice, Drawn, Look, Query, Subject, shows

GROUNDS = 96  # textures that stills share; their seeds lie outside those of any video's grounds
_QUALITY = (35, 90)  # of JPEG
# A varied picture.
VARIED = 0.5  # how far it goes towards the coloured grounds and the palettes of `style`, at most: a film that goes all the way is still unlike it
_CONTRAST = (-1.0, 1.0)  # of its ground, powers of two
_VARIED_QUALITY = (15, 90)
_COUNTS = {0: 0.04, 1: 0.20, 2: 0.20, 3: 0.08, "pair": 0.48}  # subjects of a picture; pair: one covers the other


@lru_cache(maxsize=GROUNDS)
def _ground(number: int) -> UInt8[np.ndarray, "h w 3"]:
    return texture(2**31 + number)


def still(seed: int) -> tuple[UInt8[np.ndarray, "160 160 3"], tuple[Drawn, ...]]:
    """A random scene and what stands in it, back to front. Takes about a millisecond once the grounds are made."""
    return _still("still", seed)


def portrait(seed: int, subject: Subject) -> tuple[UInt8[np.ndarray, "160 160 3"], tuple[Drawn, ...]]:
    """A still of one subject alone."""
    return _still("portrait", seed, alone=subject)


def _still(*key: object, alone: Subject | None = None, varied: float = 0.0) -> tuple[np.ndarray, tuple[Drawn, ...]]:
    """varied: the chance that it looks a little otherwise; what stands in it, and where, stays."""
    dice, otherwise = Dice(*key), Dice("varied", *key)
    palette, quality = 0.0, _QUALITY
    ground = _ground(dice.integer(0, GROUNDS - 1))
    x, y = dice.integer(0, ground.shape[1] - FRAME), dice.integer(0, ground.shape[0] - FRAME)
    ground = ground[y : y + FRAME, x : x + FRAME]
    light = dice.integer(*LIGHT)
    ground = ground[:, ::-1] if dice.chance(0.5) else ground
    if otherwise.chance(varied):
        ground = tinted(contrasted(ground, 2 ** otherwise.real(*_CONTRAST)), otherwise, otherwise.real(0, VARIED))
        palette = VARIED * otherwise.real(PALETTES["deep"], PALETTES["pale"])
        quality = _VARIED_QUALITY
    image = light_table(light)[ground]
    drawn = _scene(dice) if alone is None else _alone(alone, dice)
    draw(image, drawn, light, palette)
    return _codec(image, dice.integer(*quality), dice.chance(0.8)), drawn


def _codec(image: np.ndarray, quality: int, subsample: bool) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    return np.array(Image.open(buffer))


def _subject(dice: Dice) -> Subject:
    colour, shape = dice.pick(PAIRS)
    return Subject(dice.pick(SIZES), dice.pick(PATTERNS), colour, shape)


def _alone(subject: Subject, dice: Dice) -> tuple[Drawn, ...]:
    diameter, tint = diameter_and_tint(subject, dice)
    low, high = diameter // 2 + 2, FRAME - diameter + diameter // 2 - 2
    return (Drawn(subject, diameter, tint, dice.integer(low, high), dice.integer(low, high), None, (0, 0)),)


def _scene(dice: Dice) -> tuple[Drawn, ...]:
    count = dice.weighted(_COUNTS)
    result: list[Drawn] = []
    if count == "pair":
        result += _pair(dice)
        count = 3 if dice.chance(0.3) else 2
    while len(result) < count:
        subject = _subject(dice)
        if result and dice.chance(0.3):  # neighbours, so that attributes must be told apart within one picture
            subject = replace(result[0].subject, **dict([dice.pick((("size", subject.size), ("pattern", subject.pattern), ("shape", subject.shape)))]))
            if subject.pair not in PAIRS:
                continue
        diameter, tint = diameter_and_tint(subject, dice)
        low, high = diameter // 2 + 2, FRAME - diameter + diameter // 2 - 2
        for _ in range(20):
            x, y = dice.integer(low, high), dice.integer(low, high)
            if all(max(abs(x - item.x), abs(y - item.y)) > (diameter + item.diameter) / 2 + 3 for item in result):
                result.append(Drawn(subject, diameter, tint, x, y, None, (len(result), 0)))
                break
        else:
            count -= 1  # no room for another
    return tuple(result)


def _pair(dice: Dice) -> list[Drawn]:
    """Two subjects, one partly over the other, as they stand when one passes the other in a video."""
    while True:
        lower, upper = _subject(dice), _subject(dice)
        if not can_pass(upper, lower):
            continue
        (a, tint_a), (b, tint_b) = diameter_and_tint(lower, dice), diameter_and_tint(upper, dice)
        along, horizontal = dice.integer(-8, 8), dice.chance(0.5)
        aside = passing_offset((upper.shape, b), (lower.shape, a), "front", horizontal, [along], dice)
        if aside is None:
            continue
        dx, dy = (along, aside) if horizontal else (aside, along)
        reach_x, reach_y = a // 2 + b + abs(dx), a // 2 + b + abs(dy)
        x, y = (dice.integer(min(reach // 2 + 16, 80), max(FRAME - reach // 2 - 16, 80)) for reach in (reach_x, reach_y))
        x = max(a // 2 + 2, b // 2 + 2 - dx, min(x, FRAME - 2 - (a + 1) // 2, FRAME - 2 - (b + 1) // 2 - dx))
        y = max(a // 2 + 2, b // 2 + 2 - dy, min(y, FRAME - 2 - (a + 1) // 2, FRAME - 2 - (b + 1) // 2 - dy))
        return [Drawn(lower, a, tint_a, x, y, None, (0, 1)), Drawn(upper, b, tint_b, x + dx, y + dy, 0, (0, 0))]


# ------------------------------------------------------------------------------------------------------------------------- captions


def _look(subject: Subject, dice: Dice, named: float = 0.5) -> Look:
    return Look(subject.colour, subject.shape, subject.size if dice.chance(named) else None, subject.pattern if dice.chance(named) else None)


def _dress(look: Look, dice: Dice) -> Query:
    """The look alone, or as part of a question about motion or change, which a single picture can't deny."""
    form = dice.real()
    if form < 0.3:
        return Query(look, motion=dice.pick(DIRECTIONS))
    if form < 0.45:
        colour = dice.pick([colour for colour in COLOURS if colour != look.colour and (colour, look.shape) in PAIRS])
        return Query(look, to_colour=colour) if dice.chance(0.5) else Query(replace(look, colour=colour), to_colour=look.colour)
    return Query(look)


def _positive(drawn: tuple[Drawn, ...], dice: Dice) -> Query:
    tops = [item for item in drawn if item.over is not None]
    if tops and dice.chance(0.55):
        upper = dice.pick(tops)
        lower = drawn[upper.over]
        over = Query(_look(upper.subject, dice, 0.35), relation="front", other=_look(lower.subject, dice, 0.35))
        return over if dice.chance(0.5) else over.converse
    return _dress(_look(dice.pick(drawn).subject, dice), dice)


def _swapped(value: str, choices: tuple[str, ...], dice: Dice) -> str:
    return dice.pick([choice for choice in choices if choice != value])


def swap_look(look: Look, dice: Dice) -> Look:
    """The look with one of its named attributes changed, within the pairs that training may show."""
    choices = {"size": SIZES, "pattern": PATTERNS, "colour": COLOURS, "shape": SHAPES}
    while True:
        name = dice.pick([name for name in choices if getattr(look, name) is not None])
        other = replace(look, **{name: _swapped(getattr(look, name), choices[name], dice)})
        if (other.colour, other.shape) in PAIRS:
            return other


def _negative(drawn: tuple[Drawn, ...], dice: Dice) -> Query:
    """A question one attribute away from something in the picture that the picture does not answer."""
    for _ in range(24):
        if not drawn:
            query = random_query(dice)
        elif any(item.over is not None for item in drawn) and dice.chance(0.55):
            upper = dice.pick([item for item in drawn if item.over is not None])
            query = Query(_look(upper.subject, dice, 0.35), relation="front", other=_look(drawn[upper.over].subject, dice, 0.35))
            query = query if dice.chance(0.5) else query.converse
            if dice.chance(0.5):
                query = replace(query, relation=_swapped(query.relation, RELATIONS, dice))
            elif dice.chance(0.5):
                query = replace(query, other=swap_look(query.other, dice))
            else:
                query = replace(query, look=swap_look(query.look, dice))
        elif len(drawn) > 1 and dice.chance(0.1):  # both there, but apart
            first, second = dice.shuffled(drawn)[:2]
            query = Query(_look(first.subject, dice, 0.35), relation=dice.pick(RELATIONS), other=_look(second.subject, dice, 0.35))
        else:
            # all attributes named, or nothing but colour and shape: both are asked for
            query = _dress(swap_look(_look(dice.pick(drawn).subject, dice, 0.65), dice), dice)
        if not shows(query, drawn):
            return query
    while True:
        query = random_query(dice)
        if not shows(query, drawn):
            return query


def still_queries(drawn: tuple[Drawn, ...], count: int, dice: Dice) -> list[Query]:
    """`count` questions about one picture: half hold (all are negative where nothing is there), half are one attribute away."""
    positives = 0 if not drawn else count // 2 + (count % 2 and dice.chance(0.5))
    return dice.shuffled([_positive(drawn, dice) for _ in range(positives)] + [_negative(drawn, dice) for _ in range(count - positives)])


def still_batch(seed: int, batch: int, captions_per_image: int, varied: float = 0.0) -> dict:
    """A batch of pictures, and of captions each of which is judged against every picture.

    seed: any whole number; pictures of different seeds are independent. varied: share of the pictures whose ground, palette and compression differ a little
    (`VARIED`) from those of the films. Returns
    {"images": uint8 [B 160 160 3], "captions": list of B*C str (C for each image, in order), "labels": bool [B B*C] (does image b show what caption
    j says, as far as a single picture can tell), "phrase_labels": bool [B 4 B*C] as `judge_phrases`, "full_captions": list of B str, such as
    "a small red ring and a large blue striped star .", "travels": float32 [B*C 2] as `travels`, "tags", "tag_labels": bool [B A] as `single_words`}.
    """
    images, scenes, queries, captions, full = [], [], [], [], []
    for number in range(batch):
        image, drawn = _still("batch", seed, number, varied=varied)
        dice = Dice("captions", seed, number)
        asked = still_queries(drawn, captions_per_image, dice)
        images.append(image)
        scenes.append(drawn)
        queries += asked
        captions += [phrase(query, dice) for query in asked]
        full.append(caption(drawn, dice))
    tags, tag_labels = single_words(scenes, Dice("tags", seed))
    return {
        "images": np.stack(images), "captions": captions, "labels": judge(scenes, queries), "phrase_labels": judge_phrases(scenes, queries).swapaxes(0, 1),
        "full_captions": full, "travels": travels(queries), "tags": tags, "tag_labels": tag_labels,
    }  # fmt: skip


def single_words(scenes: list[tuple[Drawn, ...]], dice: Dice) -> tuple[list[str], Bool[np.ndarray, "B A"]]:
    """Captions of one attribute each ("something red", "a hoop"), all twenty of them, then the same twenty of a thing that covers another or is covered
    ("something red in front of something", "a hoop behind something", by chance), and which pictures each holds for.

    They are to whole captions what tags are to alt texts: the words are learnt in a few hundred steps, and conjunctions can build on them.
    """
    captions, labels, parts, part_labels = [], [], [], []
    for kind, words in (("colour", COLOUR_WORDS), ("shape", SHAPE_WORDS), ("size", SIZE_WORDS), ("pattern", PATTERN_BEFORE)):
        for value, synonyms in words.items():
            word, relation = dice.pick(synonyms), dice.pick(RELATIONS)
            captions.append(f"a {word}" if kind == "shape" else f"something {word}")
            parts.append(f"{captions[-1]} {dice.pick(SIDE[relation])} something")
            has = [[getattr(item.subject, kind) == value for item in drawn] for drawn in scenes]
            labels.append([any(values) for values in has])
            part_labels.append([any(values[place] for place in places_of(drawn, relation)) for values, drawn in zip(has, scenes, strict=True)])
    return captions + parts, np.array(labels + part_labels).T


def places_of(drawn: tuple[Drawn, ...], relation: str) -> list[int]:
    """Which of the things drawn stand in front of another that they cover, or behind another that covers them."""
    tops = [place for place, item in enumerate(drawn) if item.over is not None]
    return tops if relation == "front" else [drawn[place].over for place in tops]


_WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0), None: (0, 0)}


def travels(queries: list[Query]) -> Float32[np.ndarray, "Q 2"]:
    """The way that each question says its subject moves, (rows, columns): up is (-1, 0); zeros for none."""
    return np.array([_WAYS[query.motion] for query in queries], np.float32)


_CODES = {name: code for names in (SIZES, PATTERNS, COLOURS, SHAPES) for code, name in enumerate(names)}


def _look_codes(looks: list[Look | Subject | None]) -> Int8[np.ndarray, "n 4"]:
    """Attributes as numbers; -1 = not named, -2 = there is no such subject."""
    rows = [(None,) * 4 if look is None else (look.size, look.pattern, look.colour, look.shape) for look in looks]
    return np.array([[-2] * 4 if row[3] is None else [_CODES.get(part, -1) for part in row] for row in rows], np.int8)


def _fits(asked: Int8[np.ndarray, "*a 4"], there: Int8[np.ndarray, "*b 4"]) -> np.ndarray:
    return ((asked == -1) | (asked == there)).all(-1)


def _first(drawn: tuple[Drawn, ...], relation: str) -> Subject | None:
    """A still has one pair at most."""
    return next((drawn[place].subject for place in places_of(drawn, relation)), None)


def judge(scenes: list[tuple[Drawn, ...]], queries: list[Query]) -> Bool[np.ndarray, "B Q"]:
    """`world.shows` for every picture and every question at once."""
    slots = max(1, max(len(drawn) for drawn in scenes))
    subjects = _look_codes([drawn[i].subject if i < len(drawn) else None for drawn in scenes for i in range(slots)]).reshape(len(scenes), slots, 4)
    above, below = (_look_codes([_first(drawn, part) for drawn in scenes]) for part in ("front", "behind"))
    look = _look_codes([query.look for query in queries])
    later = _look_codes([replace(query.look, colour=query.to_colour) if query.to_colour else query.look for query in queries])
    alone = (_fits(look, subjects[:, :, None]) | _fits(later, subjects[:, :, None])).any(1)
    upper_asked = _look_codes([query.other if query.relation == "behind" else query.look for query in queries])
    lower_asked = _look_codes([query.look if query.relation == "behind" else query.other for query in queries])
    together = _fits(upper_asked, above[:, None]) & _fits(lower_asked, below[:, None])
    return np.where(np.array([query.relation is not None for query in queries]), together, alone)


def judge_phrases(scenes: list[tuple[Drawn, ...]], queries: list[Query]) -> Bool[np.ndarray, "4 B Q"]:
    """Whether every picture shows the first thing that every question speaks of, and the second: the subject before and after its change, the subject
    and the other of a relation; of other questions both are the subject. Then the same two of a relation in their parts: does it show the one as it covers
    something, the other as something covers it (no more than one pair a picture is judged, as in `judge`)?"""
    slots = max(1, max(len(drawn) for drawn in scenes))
    subjects = _look_codes([drawn[i].subject if i < len(drawn) else None for drawn in scenes for i in range(slots)]).reshape(len(scenes), slots, 1, 4)
    parts = {part: [_first(drawn, part) for drawn in scenes] for part in RELATIONS}

    def seen(looks: list[Look]) -> np.ndarray:
        return _fits(_look_codes(looks), subjects).any(1)

    def in_part(looks: list[Look], relations: list[str | None]) -> np.ndarray:
        plays = {part: _fits(_look_codes(looks), _look_codes(there)[:, None]) for part, there in parts.items()}
        asked = np.array([relation or "" for relation in relations])
        return np.select([asked == part for part in RELATIONS], [plays[part] for part in RELATIONS], seen(looks))

    first = [query.look for query in queries]
    second = [query.other or (replace(query.look, colour=query.to_colour) if query.to_colour else query.look) for query in queries]
    relations = [query.relation for query in queries]
    converse = [relation and next(other for other in RELATIONS if other != relation) for relation in relations]
    return np.stack([seen(first), seen(second), in_part(first, relations), in_part(second, converse)])
