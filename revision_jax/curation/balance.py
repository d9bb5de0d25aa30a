"""Categories of equal standing: images are clustered by their features, and a cluster that holds more than its share loses some.

k-means alone does not do: it puts its centres where the images are many, so that the commonest thing in the world gets many small clusters and none of them
is too large. So its centres, a few for each category, are joined by complete linkage, which makes categories of like width whatever their number of images;
then their sizes say how common they are. (Vo et al., arXiv 2405.15613, cluster the centres by k-means again. Among 2,396 stills, 482 of which showed one
thing, that left the largest of 48 categories at 2.5 times the mean; complete linkage, at 8 times.)

What all images share is taken off first, their mean: encoders put all pictures into one narrow cone, in which everything that is not the commonest thing looks
alike. (Of 2,500 stills, 500 of one thing, 726 went without it, 51 % of them that thing; 284 and 89 % with it.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Num
from scipy.cluster.hierarchy import fcluster, linkage

from revision_jax.curation.config import BalanceConfig
from revision_jax.curation.duplicates import import_faiss, unit_features

FINE = 8  # k-means clusters of one category, on the average
MOST = 8192  # of them in all: linkage needs the square of that
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
    count = min(config.categories or max(1, round(math.sqrt(size))), size)
    features = unit_features(vectors)
    features -= features.mean(0, dtype=np.float64)  # in place, of millions of images; and these many float32 would not add up
    features = unit_features(features)
    centres, fine = _clusters(features, max(count, min(size // 4, FINE * count, MOST)), config.seed)
    if count == 1 or len(centres) == 1:
        return np.zeros(size, np.int64)
    joined = fcluster(linkage(unit_features(centres).astype(np.float64), "complete"), count, "maxclust")
    return joined.astype(np.int64)[fine] - 1


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
