"""Words: a small closed vocabulary in which no word stands for two attributes."""

import re

from revision_jax.data.synthetic import language
from revision_jax.data.synthetic.world import COLOURS, DIRECTIONS, PATTERNS, RELATIONS, SHAPES, SIZES, Dice, Drawn, Look, Query, Subject

FILL = {"with", "to", "the", "of", "in", "on", "it", "moves", "goes", "drifts", "slides", "travels", "glides", "moving", "drifting", "no", "stripes"}


def test_every_value_has_words_and_no_word_has_two_meanings():
    tables = [
        (language.SIZE_WORDS, SIZES), (language.COLOUR_WORDS, COLOURS), (language.SHAPE_WORDS, SHAPES), (language.PATTERN_BEFORE, PATTERNS),
        (language.WAYS, DIRECTIONS), (language.WAYS_FIRST, DIRECTIONS), (language.MOVING, DIRECTIONS), (language.SIDE, RELATIONS),
    ]  # fmt: skip
    meanings = {}
    for table, values in tables:
        assert set(table) == set(values)
        for value, texts in table.items():
            for word in {word for text in texts for word in text.split()} - FILL:
                meanings.setdefault(word, set()).add(value)
    assert all(len(values) == 1 for values in meanings.values()), {word: values for word, values in meanings.items() if len(values) > 1}


def test_vocabulary_is_closed_and_small():
    words = set(language.all_words())
    assert len(words) < 250
    sentences = language.vocabulary_sentences(3, 2000)
    used = {word for sentence in sentences[:-1] for word in re.findall(r"[a-z]+|[^\sa-z]", sentence)}
    assert used <= words and words - used <= {".", "nothing"}
    assert sentences == language.vocabulary_sentences(3, 2000) and set(sentences[-1].split()) == words


def test_what_a_question_names_can_be_read_back():
    """Reads each attribute's words out of the sentence again: nothing named is left out, nothing else is said."""

    def found(text, table):
        return {value for value, forms in table.items() for form in forms if re.search(rf"\b{re.escape(form)}\b", text)}

    dice = Dice("read back")
    for _ in range(1500):
        query = language.random_query(dice)
        text = language.phrase(query, dice)
        looks = [look for look in (query.look, query.other) if look]
        patterns = {value for value in PATTERNS for words in (language.PATTERN_BEFORE, language.PATTERN_AFTER) if value in found(text, {value: words[value]})}
        assert found(text, language.SIZE_WORDS) == {look.size for look in looks} - {None}, text
        assert found(text, language.COLOUR_WORDS) == ({look.colour for look in looks} | {query.to_colour}) - {None}, text
        assert found(text, language.SHAPE_WORDS) == {look.shape for look in looks}, text
        assert patterns == {look.pattern for look in looks} - {None}, text
        assert found(text, language.SIDE) == {query.relation} - {None}, text
        ways = {way: [word for texts in (language.WAYS[way], language.MOVING[way], language.WAYS_FIRST[way]) for word in texts] for way in DIRECTIONS}
        assert found(text, ways) == {query.motion} - {None}, text


def test_sentences_are_tidy_and_varied():
    dice = Dice("tidy")
    texts = {language.phrase(Query(Look("red", "ring", "small", "striped"), motion="left"), dice) for _ in range(300)}
    assert len(texts) > 100
    for text in texts:
        assert text == text.lower().strip(" ,.") and "  " not in text and " ," not in text and ",," not in text


def test_caption():
    ring, square = Subject("small", "striped", "red", "ring"), Subject("large", "plain", "blue", "square")
    items = (Drawn(ring, 28, (0, 0, 0), 40, 40), Drawn(square, 52, (0, 0, 0), 60, 40, over=0))
    captions = {language.caption(items, Dice(seed)) for seed in range(20)}
    assert captions == {"a small red striped ring behind a large blue square .", "a large blue square in front of a small red striped ring ."}
    assert language.caption((), Dice(0)) == "nothing ."
