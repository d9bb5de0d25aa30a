"""Categories of equal standing: images are clustered by their features, and a cluster that holds more than its share loses some.

Clusters of clusters, not clusters: k-means puts its centres where the images are many, so that the commonest thing in the world gets many small clusters and
none of them is too large. The centres of a fine clustering lie more evenly; clustering those gives categories whose sizes say how common they are.
Source: Vo et al., "Automatic Data Curation for Self-Supervised Learning" (arXiv 2405.15613), two levels of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Num

from revision_jax.curation.config import BalanceConfig
from revision_jax.curation.duplicates import import_faiss, unit_features

FINE = 8  # clusters of one category, on the average
ITERATIONS = 20


class Excess(NamedTuple):
    """`row` is too much in its category of `size`, of which `cap` stay."""

    row: int
    category: int
    size: int
    cap: int


def categories(vectors: Num[np.ndarray, "n E"], config: BalanceConfig) -> Int64[np.ndarray, "n"]:
    """The category of each row, 0 <= c < number of categories; a function of the rows, their order and `config`. Raises UserError without faiss."""
    size = len(vectors)
    count = config.categories or max(1, round(math.sqrt(size) / 2))
    count = min(count, size)
    features = unit_features(vectors)
    centres, fine = _clusters(features, min(size, FINE * count), config.seed)
    _, coarse = _clusters(centres, count, config.seed)
    return coarse[fine]


def _clusters(features: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, Int64[np.ndarray, "n"]]:
    """(centres, cluster of each row) of k-means on the sphere."""
    faiss = import_faiss()
    features = np.ascontiguousarray(features, np.float32)
    options = {"niter": ITERATIONS, "seed": seed + 1, "spherical": True, "min_points_per_centroid": 1, "max_points_per_centroid": 1024}
    kmeans = faiss.Kmeans(features.shape[1], count, **options)
    kmeans.train(features)
    return kmeans.centroids, kmeans.index.search(features, 1)[1][:, 0]


def excess(ids: Sequence[str], vectors: Num[np.ndarray, "n E"], config: BalanceConfig) -> list[Excess]:
    """Which rows go, in order: of a category above `config.share` times the mean size all but so many. Who stays is drawn by a hash of its id."""
    if not config.share or not len(ids):
        return []
    category = categories(vectors, config)
    sizes = np.bincount(category)
    cap = math.ceil(config.share * len(ids) / np.count_nonzero(sizes))
    found = []
    for number in np.flatnonzero(sizes > cap):
        members = sorted(np.flatnonzero(category == number).tolist(), key=lambda row: _draw(ids[row], config.seed))
        found += [Excess(row, int(number), int(sizes[number]), cap) for row in members[cap:]]
    return sorted(found)


def _draw(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
