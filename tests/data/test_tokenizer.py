"""data/tokenizer.py: the word-level tokenizer, and other people's tokenizer.json files."""

import json
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.data.tokenizer import Tokenizer, build_word_tokenizer
from revision_jax.errors import UserError

SENTENCES = ["A small red ring, passing behind a blue square.", "during which frames can we see the ring ?", "from to . not present"]


@pytest.fixture(scope="module")
def words():
    return build_word_tokenizer(SENTENCES)


@given(st.integers(0, 255))
@settings(deadline=None)
def test_a_number_is_one_token_and_numbers_are_contiguous(number):
    words = build_word_tokenizer(SENTENCES)
    assert words.encode(str(number)) == [words.id("0") + number]


def test_special_tokens_and_unknown_words(words):
    assert (words.pad, words.bos, words.eos, words.unk) == (0, 1, 2, 3)
    assert words.encode("zebra") == [words.unk]
    assert words.unk not in words.encode("Passing behind a RING.")
    assert words.decode([words.bos, *words.encode("From 12 to 31."), words.eos, words.pad]) == "from 12 to 31 ."


def test_sizes_are_kept_and_rare_words_go_first():
    small = build_word_tokenizer(["b b b a a c", "d"], numbers=4, vocab_size=10)
    assert small.vocab_size == 10
    assert [small.token(i) for i in (8, 9)] == ["b", "a"]
    assert small.encode("c d") == [small.unk] * 2
    with pytest.raises(ValueError, match="cannot hold"):
        build_word_tokenizer(SENTENCES, numbers=256, vocab_size=100)


def test_the_same_sentences_give_the_same_file(tmp_path, words):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    words.save(tmp_path / "one")
    build_word_tokenizer(reversed(SENTENCES)).save(tmp_path / "two")
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


def test_saved_and_pickled_tokenizers_agree(tmp_path, words):
    text = "a small red ring at 17 , behind"
    for other in (Tokenizer.load(words.save(tmp_path)), Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(words))):
        assert other.encode(text) == words.encode(text)
        assert (other.bos, other.eos, other.pad, other.unk, other.vocab_size) == (words.bos, words.eos, words.pad, words.unk, words.vocab_size)


def test_padding_and_template_of_a_foreign_file_are_not_applied(tmp_path):
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "ring": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<s>", "</s>", "<unk>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.enable_padding(length=8)
    inner.enable_truncation(max_length=2)
    inner.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("ring ring ring") == [3, 3, 3]
    assert (loaded.bos, loaded.eos, loaded.pad, loaded.unk) == (0, 1, 2, 2)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<unk>"}, "bos_token": None, "pad_token": "</s>"}))
    configured = Tokenizer.load(tmp_path)
    assert (configured.eos, configured.pad) == (2, 1)


def test_bad_files_are_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ not json")
    with pytest.raises(UserError, match="not a tokenizer") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
