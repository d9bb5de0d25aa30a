"""A tokenizer for models whose own is not at hand: a plan needs lengths, not words.

Words of the prompts, one token each; numbers digit by digit, as LLaMA's and Qwen's do it, or one token each where `decoder.time="token"` needs that. What is
counted with it is the text in front of the visual tokens, which a real tokenizer may cut a few tokens longer or shorter.
"""

from __future__ import annotations

import itertools

import tokenizers
from tokenizers import models, pre_tokenizers

from revision_jax.config import ExperimentConfig, PromptConfig
from revision_jax.data.tokenizer import Tokenizer, build_word_tokenizer

DIGITS = tuple("0123456789")


def stand_in(config: ExperimentConfig) -> Tokenizer:
    """A tokenizer that can write every prompt and answer of a config's levels, in at most `decoder.vocab` tokens."""
    prompts = [level.prompt for level in config.grounding.levels] + [stage.prompt for stage in config.train.stages if stage.prompt is not None]
    texts = [text for prompt in prompts for text in prompt_texts(prompt)]
    if config.decoder.time == "token":
        numbers = max((level.tokens for level in config.grounding.levels), default=1)
        return build_word_tokenizer(texts, numbers=numbers, vocab_size=config.decoder.vocab)
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)]
    )
    words = dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    tokens = itertools.islice(dict.fromkeys(("<unk>", "<s>", "</s>", *DIGITS, *words)), config.decoder.vocab)
    inner = tokenizers.Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = splitter
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(inner)


def prompt_texts(prompt: PromptConfig) -> tuple[str, ...]:
    """All that a level says itself, with a number in the places of numbers."""
    texts = (prompt.before, prompt.after, prompt.answer, prompt.absent, prompt.yes, prompt.no, prompt.presence)
    return tuple(text.replace("{query}", " ").replace("{start}", "0").replace("{end}", "0") for text in texts)
