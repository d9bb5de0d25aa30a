"""The automaton accepts exactly the allowed answers, for word and for digit tokenizers; parsing is tolerant of free text and of nothing else."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError, ExperimentConfig, PromptConfig
from revision_jax.data.prompts import answer_text
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.grounding import prompt
from tests.real_tokenizers import byte_level, sentencepiece_like

RELEASED = PromptConfig(answer="From {start} to {end}.", absent="Not Present", digits=2)


def digit_tokenizer() -> Tokenizer:
    """Numbers as digits, the word before them with its blank: like LLaMA's and Qwen's."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocab = {token: i for i, token in enumerate([*special, *"0123456789", ".", "From", "to", "Not", "Present", "from", "not", "present"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    pre = tokenizers.pre_tokenizers
    inner.pre_tokenizer = pre.Sequence([pre.WhitespaceSplit(), pre.Punctuation("isolated"), pre.Digits(individual_digits=True)])
    inner.add_special_tokens(special)
    return Tokenizer(inner)


FRAMES = PromptConfig(answer="From {start} to {end}.", absent="Not Present", digits=2, end="instant")
GROUPS = PromptConfig(answer="From {start} to {end}.", absent="Not Present", end="exclusive")
REAL = {"sentencepiece": sentencepiece_like, "byte-level": byte_level}


@pytest.mark.parametrize("which", REAL)
def test_an_answer_may_name_one_number_alone(which):
    tok, given = Tokenizer(REAL[which]()), PromptConfig(answer="In video {start}", absent="Not Present", end="single")
    grammar = prompt.span_grammar(tok, given, 100)
    for limit in (3, 100):
        assert language(grammar, limit) == {(*tok.encode(f"In video {n}"), tok.eos) for n in range(limit)} | {(*tok.encode("Not Present"), tok.eos)}
    assert prompt.parse(given, "In video 42") == ("span", 42, 42) and prompt.parse(given, "Not Present") == "absent"
    with pytest.raises(ConfigError, match=r"must not contain \{end\}"):
        PromptConfig(end="single")
    with pytest.raises(ConfigError, match=r"must contain \{start\} and \{end\}"):
        PromptConfig(answer="In video {start}")


@pytest.mark.parametrize("which", REAL)
def test_tokenizers_are_what_they_stand_for(which):
    tok = Tokenizer(REAL[which]())
    text = "From 120 to 7. caf\u00e9 \u96ea"
    assert tok.decode(tok.encode(text)) == text
    assert tok.unk not in tok.encode(text)  # an unknown character is bytes
    assert sum(tok.token(i).isdigit() for i in tok.encode("1207")) == 4  # digits stand alone
    if which == "sentencepiece":
        assert [tok.token(i) for i in tok.encode("From 12")] == ["\u2581From", "\u2581", "1", "2"]


@pytest.mark.parametrize("which", REAL)
@pytest.mark.parametrize(("given", "count"), [(FRAMES, 103), (GROUPS, 33)])
def test_the_automaton_works_with_real_tokenizers(which, given, count):
    """Several tokens a number, and a number's end is told by what follows it."""
    tok = Tokenizer(REAL[which]())
    grammar = prompt.span_grammar(tok, given, count)
    for limit in (1, count // 3):
        spans = {(*tok.encode(answer_text(given, (s, e))), tok.eos): (s, e) for s in range(limit) for e in range(s, limit)}
        allowed = language(grammar, limit)
        assert allowed == set(spans) | {(*tok.encode(given.absent), tok.eos)}
        assert all(prompt.parse_ids(tok, given, ids) == ("span", *span) for ids, span in spans.items())
    assert prompt.parse_ids(tok, given, [*tok.encode("Not Present"), tok.eos]) == "absent"
    assert len(grammar.next) < 2000


@pytest.mark.parametrize("which", REAL)
def test_an_answer_is_tokenised_as_it_was_in_training(which):
    """There the whole text behind the video was one string; here question and answer are encoded apart."""
    tok = Tokenizer(REAL[which]())
    asked = "\nDuring which frames can we see a red ring? ASSISTANT:"
    between = " " if which == "byte-level" else ""  # a sentencepiece puts the blank in front by itself
    for text in (answer_text(FRAMES, (5, 123)), answer_text(GROUPS, (0, 99)), "Not Present"):
        assert tok.encode(asked) + tok.encode(between + text) == tok.encode(f"{asked} {text}")


def test_what_the_numbers_name():
    assert answer_text(FRAMES, (5, 123)) == "From 05 to 123." and answer_text(GROUPS, (5, 5)) == "From 5 to 6."
    assert prompt.parse(GROUPS, "From 5 to 6.") == ("span", 5, 5) and prompt.parse(FRAMES, "From 05 to 05.") == ("span", 5, 5)
    assert prompt.parse(GROUPS, "From 5 to 5.") is None  # nothing lies between
    with pytest.raises(ConfigError, match=r"prompt\.end: 'open' is not one of inclusive, exclusive, instant"):
        ExperimentConfig.from_dict({"grounding": {"levels": [{"prompt": {"end": "open"}}]}})


def walk(grammar: prompt.Grammar, ids: list[int], count: int = 10**6) -> bool:
    """Whether the table accepts the ids for a window of `count` numbers."""
    state = 0
    for token in ids:
        columns = np.nonzero(grammar.token == token)[0]
        columns = columns[columns > 0]
        if not len(columns) or grammar.next[state, columns[0]] < 0 or grammar.least[state, columns[0]] >= count:
            return False
        state = grammar.next[state, columns[0]]
    return state == grammar.end


def language(grammar: prompt.Grammar, count: int) -> set[tuple[int, ...]]:
    """All answers that the table allows."""
    found, stack = set(), [(0, ())]
    while stack:
        state, path = stack.pop()
        if state == grammar.end:
            found.add(path)
            continue
        for column in np.nonzero((grammar.next[state] >= 0) & (grammar.least[state] < count))[0]:
            stack.append((int(grammar.next[state, column]), (*path, int(grammar.token[column]))))
    return found


@pytest.mark.parametrize("which", ["words", "digits"])
@pytest.mark.parametrize("count", [1, 13, 101])
def test_the_automaton_accepts_exactly_the_answers(which, count, tokenizer):
    tok, given = (tokenizer, PromptConfig()) if which == "words" else (digit_tokenizer(), RELEASED)
    grammar = prompt.span_grammar(tok, given, count)
    for limit in {1, max(count // 2, 1), count}:
        spans = {(*tok.encode(answer_text(given, (s, e))), tok.eos) for s in range(limit) for e in range(s, limit)}
        assert language(grammar, limit) == spans | {(*tok.encode(given.absent), tok.eos)}
    assert grammar.steps == max(map(len, language(grammar, count)))
    assert grammar.branch == 0 and grammar.absent.sum() == 1 and grammar.present.sum() == 1


@pytest.mark.parametrize("which", ["words", "digits", *REAL])
def test_a_round_is_a_choice_and_what_it_forces(which, tokenizer):
    """Every span is an opening, choices and what the table forces behind them; calls of `width` tokens at most read all of it before the last choice."""
    tok, given = {"words": (tokenizer, PromptConfig()), "digits": (digit_tokenizer(), RELEASED)}.get(which) or (Tokenizer(REAL[which]()), FRAMES)
    count = 112
    grammar = prompt.span_grammar(tok, given, count)
    reads, rounds = set(), set()
    for ids in (path for path in language(grammar, count) if tok.encode(given.absent)[0] != path[0]):
        state, at, made = grammar.first, len(grammar.opening), 0
        assert tuple(grammar.token[grammar.opening]) == ids[:at]
        while state != grammar.end:
            column = np.nonzero(grammar.token == ids[at])[0][-1]  # column 0 is padding
            state = grammar.next[state, column]
            forced = grammar.forced[state, : grammar.forced_count[state]]
            assert tuple(grammar.token[forced]) == ids[at + 1 : at + 1 + len(forced)]
            assert grammar.reads[state] == (0 if grammar.choice[state] == grammar.end else 1 + len(forced))
            reads.add(int(grammar.reads[state]))
            at, state, made = at + 1 + len(forced), grammar.choice[state], made + 1
        assert at == len(ids)
        rounds.add(made)
    assert max(reads) == grammar.width and max(rounds) == grammar.rounds
    assert grammar.slots == (grammar.rounds - 1) * grammar.width
    if which == "words":  # from | 3 to | 7 . <eos>
        assert grammar.rounds == 2 and grammar.width == 2 and grammar.slots == 2


def test_the_table_stays_small(tokenizer):
    words, digits = prompt.span_grammar(tokenizer, PromptConfig(), 250), prompt.span_grammar(digit_tokenizer(), RELEASED, 250)
    assert len(words.next) < 600 and len(digits.next) < 2000
    assert digits.bytes < 1 << 18


@given(start=st.integers(0, 119), end=st.integers(0, 119), count=st.integers(1, 120))
@settings(max_examples=100, deadline=None)
def test_walks(start, end, count):
    tok = digit_tokenizer()
    grammar = _cached(tok)
    ids = [*tok.encode(answer_text(RELEASED, (start, end))), tok.eos]
    assert walk(grammar, ids, count) == (start <= end < count)


_GRAMMARS = {}


def _cached(tok):
    return _GRAMMARS.setdefault("digits", prompt.span_grammar(tok, RELEASED, 120))


def test_states_know_when_the_start_is_settled(tokenizer):
    grammar = prompt.span_grammar(tokenizer, PromptConfig(), 20)
    state = 0
    settled = []
    for token in tokenizer.encode("from 3 to 7 ."):
        settled.append(bool(grammar.decided[state]))
        state = grammar.next[state, np.nonzero(grammar.token == token)[0][0]]
    assert settled == [False, False, True, True, True]


def test_presence(tokenizer):
    grammar = prompt.presence_grammar(tokenizer, PromptConfig())
    assert language(grammar, 1) == {(*tokenizer.encode("yes ."), tokenizer.eos), (*tokenizer.encode("no ."), tokenizer.eos)}
    assert grammar.token[grammar.present].tolist() == [tokenizer.id("yes")] and grammar.token[grammar.absent].tolist() == [tokenizer.id("no")]


def test_answers_that_cannot_be_told_apart_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"prompt\.absent"):
        prompt.span_grammar(tokenizer, PromptConfig(absent="from 0 to 0 ."), 4)
    with pytest.raises(ConfigError, match=r"numbers up to 299"):
        prompt.span_grammar(tokenizer, PromptConfig(), 300)  # the tokenizer knows 256


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("From 12 to 31.", ("span", 12, 31)),
        ("from 12 to 31 .", ("span", 12, 31)),
        ("  FROM 007 TO 9", ("span", 7, 9)),
        ("Sure. From 3 to 3.</s>", ("span", 3, 3)),
        ("from 9 to 3.", None),
        ("from nine to ten", None),
        ("from 3", None),
        ("Not Present", "absent"),
        ("not  present.", "absent"),
        ("", None),
        ("present", None),
    ],
)
def test_free_text_is_read_tolerantly(text, found):
    assert prompt.parse(RELEASED, text) == found


@given(text=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_reading_never_fails_and_never_turns_a_span_around(text):
    found = prompt.parse(RELEASED, text)
    assert found in (None, "absent") or found[1] <= found[2]


@given(start=st.integers(0, 249), length=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_what_is_written_can_be_read(start, length):
    for wording in (RELEASED, PromptConfig()):
        assert prompt.parse(wording, answer_text(wording, (start, start + length))) == ("span", start, start + length)
    assert prompt.parse(RELEASED, answer_text(RELEASED, None)) == "absent"


def test_ids_are_read_up_to_the_end_token(tokenizer):
    ids = [*tokenizer.encode("from 2 to 5 ."), tokenizer.eos, *tokenizer.encode("from 7 to 9 .")]
    assert prompt.parse_ids(tokenizer, PromptConfig(), ids) == ("span", 2, 5)
