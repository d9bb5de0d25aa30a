"""tokenizer.model -> tokenizer.json: the same pieces as the algorithm of sentencepiece, written out here, gives."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest

from revision_jax.convert.sentencepiece import SPACE, to_json
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces: list[tuple[str, float, int]], kind: int = 2, prefix: int = 1) -> bytes:
    data = b"".join(field(1, field(1, text.encode()) + field(2, score) + (b"" if type_ == 1 else field(3, type_))) for text, score, type_ in pieces)
    return data + field(2, field(3, kind) + field(35, 1)) + field(3, field(3, prefix) + field(2, b"x"))


LETTERS = "abcdehinorst" + SPACE + "é"
WORDS = ["he", "th", "the", "in", SPACE + "t", SPACE + "the", "er", "on", "re", "ing", SPACE + "a", "st", "est", "rest", SPACE + "re", "ne", "hen"]
PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{i:02X}>", 0.0, 6) for i in range(256)), ("g", -900.0, 1)]
PIECES += [(word, -float(i), 1) for i, word in enumerate(dict.fromkeys(WORDS))] + [(letter, -1000.0 - i, 1) for i, letter in enumerate(LETTERS)]


def merged(text: str) -> list[int]:
    """Sentencepiece's BPE: the neighbours whose joined piece has the best score become one, the leftmost of equals, until none are left."""
    ids = {piece: i for i, (piece, _, _) in enumerate(PIECES)}
    score = {piece: score for piece, score, type_ in PIECES if type_ == 1}
    symbols = list(SPACE + text.replace(" ", SPACE))
    while True:
        pairs = [(score[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in score]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [i for symbol in symbols for i in ([ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()])]


def test_the_same_pieces(tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model(PIECES))
    tokenizer = Tokenizer.parse(to_json(file))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.vocab_size) == (1, 2, 0, len(PIECES))
    random = np.random.default_rng(0)
    texts = ["the rest in the est", "there", "é q 日"] + ["".join(random.choice(list("abcdehinorstg  "), 24)) for _ in range(40)]
    for text in texts:
        assert tokenizer.encode(text) == merged(text), text
        assert tokenizer.decode(merged(text)) == text


def test_without_a_space_in_front(tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model(PIECES, prefix=0))
    assert Tokenizer.parse(to_json(file)).encode("the") == [[piece for piece, _, _ in PIECES].index("the")]


@pytest.mark.parametrize("data", [b"", b"\x0a", b"not a model", model(PIECES)[:300], model(PIECES, kind=1)])
def test_what_is_none(tmp_path, data):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"tokenizer\.model: "):
        to_json(file)
