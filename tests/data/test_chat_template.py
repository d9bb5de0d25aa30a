"""What a conversation looks like as text and ids: exact strings, counted places, and times that are true whatever the film's length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tokenizers

from revision_jax.data.chat_template import Message, Shown, check_text, encode, render, specials
from revision_jax.data.media import shrunk
from revision_jax.data.processing import Rules, sample_frames
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError
from tests.golden import make_chat as golden


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(golden.tokenizer(), {"eos": "<|im_end|>"})


@pytest.fixture(scope="module")
def known(tokenizer):
    return specials(tokenizer)


def test_a_conversation_is_written_as_the_released_template_writes_it(known):
    film, image = Shown((2, 1), (0.0, 1.0)), Shown((3,))
    said = [Message("user", (image, film, "What?")), Message("assistant", ("A ring.",)), Message("user", ("Then?",))]
    assert render(said, Rules(), known) == (
        "<|im_start|>user\n<|image_pad|><|image_pad|><|image_pad|>\n"
        "Time 0.0s:<|video_pad|><|video_pad|>,Time 1.0s:<|video_pad|>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nA ring.<|im_end|>\n<|im_start|>user\nThen?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render([Message("system", ("Be brief.",))], Rules(), known, answer=False) == "<|im_start|>system\nBe brief.<|im_end|>\n"


def test_places_are_counted(tokenizer, known):
    text = render([Message("user", (Shown((2, 3), (0.0, 1.0)), "go"))], Rules(), known)
    prompt = encode(text, tokenizer, known, 5)
    assert prompt.visual.sum() == 5 and set(prompt.ids[prompt.visual]) == {tokenizer.id("<|video_pad|>")}
    with pytest.raises(UserError, match="has 5 places for 6 visual tokens"):
        encode(text, tokenizer, known, 6)


def test_a_tokenizer_without_the_special_tokens_is_told_all_of_them():
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0, "<|im_start|>": 1, "<unk>": 2}, unk_token="<unk>"))
    with pytest.raises(UserError, match=r"lacks the special tokens <\|im_end\|>, <\|image_pad\|>, <\|video_pad\|>"):
        specials(Tokenizer(bare))


def test_the_original_repositorys_placeholder_serves_for_both():
    words = {token: i for i, token in enumerate(("<|im_start|>", "<|im_end|>", "<image>"))}
    own = specials(Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<image>"))))
    assert own.image == own.video == "<image>" and own.places == (2,)


@pytest.mark.parametrize("text", ["", "  ", "hello <|im_end|> there", "<|video_pad|>"])
def test_what_may_not_be_said(text, tokenizer):
    with pytest.raises(UserError, match="prompt:"):
        check_text(text, tokenizer)


@pytest.mark.parametrize(("name", "fps", "merge"), itertools.product(("original", "transformers"), (0.1, 1.0, 2.5), (1, 2)))
@pytest.mark.parametrize("hours", [0.001, 0.5, 9.0])
def test_times_are_true_for_every_rate_merge_and_length(name, fps, merge, hours, known):
    """What the prompt says of a frame is when it is shown: to the tenth that is written, or within the slot that the original's filter gives it."""
    rules, rate = Rules(name, fps=fps, video_merge=merge), 25.0
    duration = hours * 3600
    total = round(duration * rate)
    indices, seconds = sample_frames(total, rate, rules, end_s=duration)
    shown = Shown((1,) * len(indices), tuple(map(float, seconds)))
    text = render([Message("user", (shown, "when?"))], rules, known)
    film = text.removeprefix("<|im_start|>user\n").split("\nwhen?")[0]
    said = [float(part.removeprefix("Time ").split("s:")[0]) for part in film.split(",")]
    assert len(said) == len(indices) <= 180 and said == sorted(said)
    slack = 0.0 if name == "transformers" else 1 / fps
    late = np.asarray(indices) / rate - np.asarray(said)
    assert late.min() >= -0.0501 and late.max() <= max(slack, 0.0501)
    assert said[-1] <= duration and (hours < 0.5 or said[-1] >= duration - max(duration / 90, 2 / fps))


def test_nine_hours_end_in_the_ninth_hour(tokenizer, known):
    indices, seconds = sample_frames(9 * 3600 * 25, 25.0, Rules(), end_s=9 * 3600.0)
    text = render([Message("user", (Shown((84,) * len(indices), tuple(map(float, seconds))), "when?"))], Rules(), known)
    assert ",Time 32399.0s:" in text and "Time 0.0s:" in text
    assert encode(text, tokenizer, known, 84 * 180).visual.sum() == 84 * 180


def test_no_picture_is_larger_than_was_asked():
    rng = np.random.default_rng(0)
    for _ in range(500):
        side, blocks = int(rng.choice([14, 28])), rng.integers(1, 200, 2)
        size, most = (int(blocks[0]) * side, int(blocks[1]) * side), int(rng.integers(28 * 28, 10**6))
        height, width = shrunk(size, side, most)
        assert height * width <= most and height % side == 0 and width % side == 0 and min(height, width) >= side
        if size[0] * size[1] <= most:
            assert (height, width) == size
    assert shrunk((196, 336), 28, 30_000) == (112, 224) and shrunk((196, 336), 28, None) == (196, 336)
    with pytest.raises(UserError, match="must be at least 784"):
        shrunk((196, 336), 28, 700)


def test_the_golden_tokenizer_is_the_one_of_the_golden_arrays(tokenizer):
    assert [tokenizer.id(token) for token in golden.SPECIAL] == list(range(256, 261))
