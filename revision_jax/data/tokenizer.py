"""Text to ids and back: a thin wrap of any `tokenizer.json`, and the builder of the tiny model's word-level one.

Nothing is downloaded; a tokenizer is a file. LLaMA's, Qwen's and CLIP's files load the same way: their start, end, pad and unknown tokens are
found by name, or taken from a `tokenizer_config.json` beside the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int

from revision_jax.errors import UserError

FILE = "tokenizer.json"
# Names by role, in order of preference; the first one present in the vocabulary is taken.
NAMES = {
    "bos": ("<bos>", "<s>", "<|startoftext|>", "<|begin_of_text|>"),
    "eos": ("<eos>", "</s>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "<|endoftext|>", "<unk>"),
    "unk": ("<unk>", "<|endoftext|>"),
}
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")  # of the word tokenizer, ids 0 to 3


class Tokenizer:
    """Wraps `tokenizers.Tokenizer`. Adds no special tokens by itself: `data/prompts.py` places them. Safe to share between threads, and picklable.

    `bos`, `eos`, `pad`, `unk` are ids; `bos` and `unk` are None where a vocabulary has none (Qwen), `pad` falls back to `eos`.
    """

    def __init__(self, inner: tokenizers.Tokenizer, roles: dict[str, str] | None = None):
        self._inner = inner
        self._inner.no_padding()
        self._inner.no_truncation()
        roles = roles or {}
        found: dict[str, int | None] = {}
        for role, names in NAMES.items():
            names = (roles[role],) if role in roles else names
            found[role] = next((i for i in map(inner.token_to_id, names) if i is not None), None)
        if found["eos"] is None:
            raise UserError(f"{FILE}: no end token; one of {', '.join(NAMES['eos'])} or an eos_token in tokenizer_config.json is needed")
        self.bos: int | None = found["bos"]
        self.eos: int = found["eos"]
        self.pad: int = found["pad"] if found["pad"] is not None else found["eos"]
        self.unk: int | None = found["unk"]
        # Tokens with a meaning of their own, which no user text may contain.
        self.specials: tuple[str, ...] = tuple(token.content for token in inner.get_added_tokens_decoder().values() if token.special)

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` (`path` is the file or its directory). Raises UserError for a missing or unreadable file."""
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"{file}: no such file; a checkpoint holds its tokenizer as {FILE}")
        try:
            inner = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{file}: not a tokenizer ({' '.join(str(error).split())[:200]})") from None
        return Tokenizer(inner, _roles(file.parent / "tokenizer_config.json"))

    @staticmethod
    def parse(text: str) -> Tokenizer:
        """A tokenizer from the text of a `tokenizer.json`. Raises UserError for what is none."""
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{FILE}: not a tokenizer ({' '.join(str(error).split())[:200]})") from None
        return Tokenizer(inner)

    def has(self, token: str) -> bool:
        """Whether the vocabulary holds `token` as one token."""
        return self._inner.token_to_id(token) is not None

    def save(self, directory: str | Path) -> Path:
        """Writes `tokenizer.json` into `directory` and returns its path. Raises OSError where that cannot be written."""
        file = Path(directory) / FILE
        file.write_text(self._inner.to_str(pretty=True), encoding="utf-8")
        return file

    def text(self) -> str:
        """All of it, as `tokenizer.json` holds it: tells one tokenizer from another."""
        return self._inner.to_str()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special tokens added."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int] | Int[np.ndarray, "S"]) -> str:
        """Text of `ids`; special tokens are left out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def id(self, token: str) -> int:
        """Id of one whole token. Raises KeyError if the vocabulary lacks it."""
        found = self._inner.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return found

    def token(self, index: int | np.integer) -> str:
        """The token of an id. Raises KeyError if there is none."""
        found = self._inner.id_to_token(int(index))
        if found is None:
            raise KeyError(index)
        return found

    @property
    def vocab_size(self) -> int:
        """Number of ids in use; a model's `vocab` must be at least this."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def identity(self) -> str:
        """A hash of all that decides which ids a text gets, and of the roles."""
        roles = (self.bos, self.eos, self.pad, self.unk)
        return hashlib.blake2b(f"{roles}{self._inner.to_str()}".encode(), digest_size=20).hexdigest()


def _roles(config_file: Path) -> dict[str, str]:
    """Role names given by a Hugging Face `tokenizer_config.json`; empty where there is none."""
    if not config_file.is_file():
        return {}
    try:
        values = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{config_file}: not valid JSON") from None
    roles = {}
    for role in NAMES:
        name = values.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if name:
            roles[role] = name
    return roles


def build_word_tokenizer(sentences: Iterable[str], numbers: int = 256, vocab_size: int = 512) -> Tokenizer:
    """A word-level tokenizer: lower case, punctuation split off, numbers 0 .. numbers-1 one token each.

    Ids: <pad> <bos> <eos> <unk>, then the numbers in order (contiguous, so that number k is `id("0") + k`), then the words of `sentences` by falling
    frequency (ties by alphabet: the same sentences give the same file). Words beyond `vocab_size` and unknown words map to <unk>.
    Raises ValueError if `vocab_size` cannot hold the special tokens and the numbers.
    """
    fixed = len(SPECIAL) + numbers
    if vocab_size < fixed:
        raise ValueError(f"vocab_size {vocab_size} cannot hold {len(SPECIAL)} special tokens and {numbers} numbers")
    normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()])
    splitter = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Punctuation("isolated")])
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence)))
    vocab = {token: index for index, token in enumerate((*SPECIAL, *map(str, range(numbers))))}
    words = sorted((word for word in counts if word not in vocab), key=lambda word: (-counts[word], word))
    for word in words[: vocab_size - fixed]:
        vocab[word] = len(vocab)
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = splitter
    inner.add_special_tokens(list(SPECIAL))
    return Tokenizer(inner)
