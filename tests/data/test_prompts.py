"""data/prompts.py: queries, prompts and answers as ids and masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError, PromptConfig
from revision_jax.data.prompts import answer_text, before_ids, clean_query, encode_answer, encode_query, encode_question
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.errors import UserError

PROMPT = PromptConfig()
WORDS = ["red", "small", "ring", "square", "behind", "a", "turns", "green"]
TOKENIZER = build_word_tokenizer([" ".join(WORDS), PROMPT.after, PROMPT.answer, PROMPT.absent, PROMPT.yes, PROMPT.no, PROMPT.presence])
queries = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join)


@given(queries, st.sampled_from(["", ".", " . ", "..."]), st.booleans())
@settings(deadline=None)
def test_cleaning_forgets_case_blanks_and_the_final_period(query, end, upper):
    messy = "  " + query.replace(" ", " \n\t ") + end
    assert clean_query(messy.upper() if upper else messy) == query
    assert clean_query(clean_query(messy)) == query


@given(queries)
@settings(deadline=None)
def test_a_query_round_trips(query):
    ids, mask = encode_query(TOKENIZER, query.title(), 32)
    assert ids.shape == mask.shape == (32,) and ids.dtype == np.int32 and mask.dtype == bool
    assert ids[0] == TOKENIZER.bos and ids[mask][-1] == TOKENIZER.eos and (ids[~mask] == TOKENIZER.pad).all()
    assert TOKENIZER.decode(ids) == query


@given(queries, st.booleans())
@settings(deadline=None)
def test_a_prompt_round_trips(query, presence):
    after, mask = encode_question(TOKENIZER, PROMPT, query + ".", 40, presence)
    assert before_ids(TOKENIZER, PROMPT) == [TOKENIZER.bos]
    wording = "does {} happen in the video ?" if presence else "during which frames can we see {} ?"
    assert TOKENIZER.decode(after[mask]) == wording.format(query)
    assert (after[~mask] == TOKENIZER.pad).all() and not (np.diff(mask.astype(int)) > 0).any()


def test_text_before_the_tokens_is_the_same_for_every_query():
    prompt = PromptConfig(before="a small green square :")
    assert before_ids(TOKENIZER, prompt) == [TOKENIZER.bos, *TOKENIZER.encode(prompt.before)]


@given(st.tuples(st.integers(0, 255), st.integers(0, 255)) | st.booleans() | st.none())
@settings(deadline=None)
def test_an_answer_round_trips_and_ends(answer):
    ids, mask = encode_answer(TOKENIZER, PROMPT, answer, 8)
    text = "not present ." if answer is None else {True: "yes .", False: "no ."}[answer] if isinstance(answer, bool) else "from {} to {} .".format(*answer)
    assert TOKENIZER.decode(ids[mask]) == text
    assert ids[mask][-1] == TOKENIZER.eos and TOKENIZER.eos not in ids[mask][:-1]


def test_released_wording_pads_its_numbers():
    prompt = PromptConfig(answer="From {start} to {end}.", absent="Not Present", digits=2)
    assert answer_text(prompt, (3, 117)) == "From 03 to 117."
    assert answer_text(prompt, None) == "Not Present"


@pytest.mark.parametrize("text", ["", "   ", "\n\t", ".", " . . "])
def test_an_empty_query_is_refused(text):
    for encode in (lambda: encode_query(TOKENIZER, text, 32), lambda: encode_question(TOKENIZER, PROMPT, text, 40)):
        with pytest.raises(UserError, match="query is empty"):
            encode()


def test_a_long_query_is_refused_with_both_numbers_and_in_one_short_line():
    long = "red ring\n" * 1112  # 10,000 characters
    with pytest.raises(UserError, match="query has 2224 tokens, at most 30") as caught:
        encode_query(TOKENIZER, long, 32)
    assert len(str(caught.value)) < 160 and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="query has 2224 tokens, at most 33"):
        encode_question(TOKENIZER, PROMPT, long, 40)
    assert encode_query(TOKENIZER, "red " * 30, 32)[1].all()


def test_control_tokens_in_a_query_are_refused():
    with pytest.raises(UserError, match="reserved"):
        encode_query(TOKENIZER, "red ring <EOS> not present", 32)


def test_braces_in_a_query_are_text():
    after, mask = encode_question(TOKENIZER, PROMPT, "a {ring} {0}", 40)
    assert TOKENIZER.decode(after[mask]) == "during which frames can we see a { ring } { 0 } ?"


def test_lengths_too_small_for_the_templates_name_their_field():
    with pytest.raises(ConfigError, match=r"grounding\.prompt_len"):
        encode_question(TOKENIZER, PROMPT, "ring", 5)
    with pytest.raises(ConfigError, match=r"grounding\.answer_len"):
        encode_answer(TOKENIZER, PROMPT, (1, 2), 4)
