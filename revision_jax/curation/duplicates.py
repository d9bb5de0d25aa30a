"""Near-duplicates: nearest neighbours in the towers' features, which say what is shown, confirmed by thumbnails, which say that it is the same picture.

Features alone call two photographs of one thing duplicates, and the more so the fewer things a tower knows. A thumbnail's correlation is blind to another
encoding, to brightness and to a few per cent of cropping, and to little else. Both halves make one vector, so that neighbours are near in both.

Sources: VideoLLaMA3, section 3.1 (CLIP features, nearest neighbours); the greedy choice is that of SemDeDup (arXiv 2303.09540), but over all neighbours
and not within clusters. The index is faiss, the extra `curate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, Num, UInt8

from revision_jax.curation.config import DuplicateConfig
from revision_jax.errors import UserError

FLAT = 16.0  # a constant beside a thumbnail's values, in grey levels: it makes two pictures without contrast alike, and is nothing beside contrast


class Duplicate(NamedTuple):
    """`row` is a near-duplicate of `of`, which stays; `features` and `picture` say how near."""

    row: int
    of: int
    features: float
    picture: float


def import_faiss() -> ModuleType:
    """Raises UserError, in one line, where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError('faiss is not installed; pip install "revision-jax[curate]" brings it') from None
    return faiss


def unit_features(vectors: Num[np.ndarray, "n E"]) -> Float32[np.ndarray, "n E"]:
    """Unit length; a vector of zeros stays one."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def unit_thumbnails(thumbs: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n C"]:
    """Thumbnails whose inner product is their correlation: the mean taken off, unit length."""
    flat = thumbs.reshape(len(thumbs), math.prod(thumbs.shape[1:])).astype(np.float32)
    flat = np.concatenate([flat - flat.mean(1, keepdims=True), np.full((len(flat), 1), FLAT, np.float32)], 1)
    return unit_features(flat)


def near_duplicates(
    vectors: Num[np.ndarray, "n E"], thumbs: UInt8[np.ndarray, "n s s 3"], order: Sequence[int], config: DuplicateConfig
) -> list[Duplicate]:
    """Which rows go, and for whom. order: all rows, the better ones first: a row goes if an earlier one that stays is near enough.

    So no chain of small steps joins what is unlike. A row has `config.neighbours` neighbours at most; where more are alike, what is left is looked at again
    until nothing goes, and a row may have gone for one that goes later for a better one. Raises UserError without faiss.
    """
    features, pictures = unit_features(vectors), unit_thumbnails(thumbs)
    left = np.asarray(order, np.int64)
    found: list[Duplicate] = []
    while True:
        gone = _one_pass(features, pictures, left, config)
        if not gone:
            return found
        found += gone
        left = left[~np.isin(left, [one.row for one in gone])]


def _one_pass(features: np.ndarray, pictures: np.ndarray, left: Int64[np.ndarray, "n"], config: DuplicateConfig) -> list[Duplicate]:
    """Duplicates among the rows `left`, in the order in which they stand there."""
    if len(left) < 2:
        return []
    descriptors = features[left] if config.picture <= -1 else np.concatenate([features[left], pictures[left]], 1) * np.float32(0.5**0.5)
    near = neighbours(descriptors, min(config.neighbours + 1, len(left)), config)
    rows = np.repeat(np.arange(len(left)), near.shape[1])
    others = near.reshape(-1)
    real = (others >= 0) & (others != rows)
    first, second = np.minimum(rows, others)[real], np.maximum(rows, others)[real]
    pairs = np.unique(np.stack([second, first], 1), axis=0)  # sorted: each row's better neighbours, the best first
    alike = np.einsum("ne,ne->n", features[left[pairs[:, 0]]], features[left[pairs[:, 1]]])
    same = np.einsum("ne,ne->n", pictures[left[pairs[:, 0]]], pictures[left[pairs[:, 1]]])
    near_enough = (alike >= config.features) & ((same >= config.picture) | (config.picture <= -1))
    gone: dict[int, Duplicate] = {}
    for (row, better), feature, picture in zip(pairs[near_enough].tolist(), alike[near_enough], same[near_enough], strict=True):
        if row not in gone and better not in gone:
            gone[row] = Duplicate(int(left[row]), int(left[better]), float(feature), float(picture))
    return list(gone.values())


def neighbours(descriptors: Float[np.ndarray, "n E"], count: int, config: DuplicateConfig) -> Int64[np.ndarray, "n count"]:
    """The `count` nearest rows of each row by inner product, itself among them; -1 where an inverted file has no more."""
    faiss = import_faiss()
    descriptors = np.ascontiguousarray(descriptors, np.float32)
    size, width = descriptors.shape
    if size <= config.exact:
        index = faiss.IndexFlatIP(width)
    else:
        index = faiss.index_factory(width, f"IVF{round(4 * size**0.5)},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(descriptors)
        index.nprobe = config.probes
    index.add(descriptors)
    return index.search(descriptors, count)[1]
