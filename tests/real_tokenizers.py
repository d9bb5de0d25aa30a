"""Tiny tokenizers that behave as LLaMA's, Qwen's and CLIP's do."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

LINES = (
    "A chat between a curious user and an assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: During which frames can we see a red ring? ASSISTANT: From 12 to 345.",
    "During which video can we see a blue square? Not Present",
    "From 6789 to 0.",
)


def sentencepiece_like(lines: Sequence[str] = LINES, vocab_size: int = 330) -> tokenizers.Tokenizer:
    """As LLaMA's: a blank is put in front and blanks are "\u2581", digits stand alone, unknown characters become bytes."""
    special = ["<unk>", "<s>", "</s>"]
    normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    # Merges are learnt inside words, where a word holds the blank before it and a digit is a word; the tokenizer itself then splits nothing, as LLaMA's.
    learn = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    learn.normalizer = normalizer
    words = [pre_tokenizers.Split("\u2581", "merged_with_next"), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("isolated")]
    learn.pre_tokenizer = pre_tokenizers.Sequence(words)
    learn.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False))
    learnt = json.loads(learn.to_str())["model"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *(token for token in learnt["vocab"] if token not in special)]
    vocabulary, merges = {token: i for i, token in enumerate(pieces)}, [tuple(pair) for pair in learnt["merges"]]
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    inner.normalizer = normalizer
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    inner.add_special_tokens(special)
    return inner


def byte_level(special: tuple[str, ...] = ("<|endoftext|>", "<|im_end|>")) -> tokenizers.Tokenizer:
    """As Qwen's: bytes, blanks belong to the word behind them, digits stand alone. With CLIP's special tokens it serves as CLIP's."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=380, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False))
    return inner
