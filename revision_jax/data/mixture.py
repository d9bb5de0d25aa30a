"""The order in which an epoch sees the conversations of several datasets, each as often as its weight says. A pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def epoch_order(members: Sequence[Int[np.ndarray, "_"]], weights: Sequence[float], seed: Sequence[int], epoch: int) -> Int[np.ndarray, " n"]:
    """All of an epoch's conversations, shuffled.

    members: of each dataset, its conversations' numbers. weights: how often an epoch sees a dataset: 2.5 is all of it twice and half of it again, 0.3 is
    another 30 % in each epoch (one conversation at least); up to 1 nothing is seen twice in an epoch. seed: of the stage.
    """
    parts = []
    for dataset, (own, weight) in enumerate(zip(members, weights, strict=True)):
        for turn in range(math.ceil(weight)):
            share = max(1, round(min(1.0, weight - turn) * len(own)))
            parts.append(own[np.random.default_rng([*seed, epoch, dataset + 1, turn + 1]).permutation(len(own))[:share]])
    order = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return order[np.random.default_rng([*seed, epoch]).permutation(len(order))]
