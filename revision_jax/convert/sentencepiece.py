"""LLaMA's and Vicuna's `tokenizer.model` (sentencepiece, BPE) as a `tokenizer.json`: they are released without one.

The file is a protocol buffer of a few fields, read here directly:

    1  pieces, each  1 text  2 score (float)  3 type (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte)
    2  trainer       3 model type (1 unigram, 2 BPE)
    3  normaliser    3 whether a space is put in front

BPE merges are not in it: two pieces merge where their joined text is a piece, best score first.

Sources: sentencepiece_model.proto of https://github.com/google/sentencepiece; the wire format, https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from revision_jax.errors import UserError

FILE = "tokenizer.model"
SPACE = "▁"
BPE = 2
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4


def to_json(path: str | Path) -> str:
    """The text of the `tokenizer.json` that does the same. Raises UserError for a file that is none, or is no BPE model."""
    path = Path(path)
    try:
        pieces, kind, prefix = _read(path.read_bytes())
    except (OSError, ValueError, IndexError, struct.error, KeyError) as error:
        raise UserError(f"{path}: not a sentencepiece model ({error})") from error
    if kind != BPE or not pieces:
        raise UserError(f"{path}: a sentencepiece model of type {kind} with {len(pieces)} pieces; only BPE models (type 2) can be used, or a tokenizer.json")
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": type_ != USER}
        for i, (text, _, type_) in enumerate(pieces) if type_ in (UNKNOWN, CONTROL, USER)
    ]  # fmt: skip
    unknown = next((text for text, _, type_ in pieces if type_ == UNKNOWN), None)
    front = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    back = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "pre_tokenizer": None, "post_processor": None,
        "normalizer": {"type": "Sequence", "normalizers": [*front, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, *back]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": _merges(pieces, vocab),
        },
    }, ensure_ascii=False)  # fmt: skip


def _merges(pieces: list[tuple[str, float, int]], vocab: dict[str, int]) -> list[list[str]]:
    """Pairs of pieces that make a piece: by the score of what they make, then by the parts' ids."""
    found = []
    for text, score, type_ in pieces:
        if type_ == NORMAL:
            splits = ((text[:i], text[i:]) for i in range(1, len(text)))
            found += [(-score, vocab[text], vocab[a], vocab[b], a, b) for a, b in splits if a in vocab and b in vocab]
    return [[a, b] for *_, a, b in sorted(found)]


def _read(data: bytes) -> tuple[list[tuple[str, float, int]], int, bool]:
    pieces, kind, prefix = [], 1, True
    for field, value in _fields(data):
        if field == 1:
            inner = dict(_fields(value))
            score = struct.unpack("<f", inner[2])[0] if 2 in inner else 0.0
            pieces.append((inner[1].decode("utf-8"), score, inner.get(3, NORMAL)))
        elif field == 2:
            kind = dict(_fields(value)).get(3, 1)
        elif field == 3:
            prefix = bool(dict(_fields(value)).get(3, 1))
    return pieces, kind, prefix


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message's fields: whole numbers as such, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at : at + size], at + size
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(data):
            raise ValueError("it is truncated")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
