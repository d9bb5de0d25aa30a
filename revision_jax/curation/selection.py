"""What all images decide together: near-duplicates go, then what a category has too much of. Worked out once and kept, until images or thresholds change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from revision_jax.claims import claim
from revision_jax.curation.balance import excess
from revision_jax.curation.config import CurationConfig
from revision_jax.curation.curator import Drop, Standing
from revision_jax.curation.duplicates import near_duplicates
from revision_jax.files import write_text

KEPT = "selection.json"


def select(standing: Sequence[Standing], config: CurationConfig, work: Path, identity: str) -> list[Drop]:
    """Who goes: near-duplicates of a larger image (of equal ones, of one that fits its caption better), then the excess of categories.

    identity: of the towers that made the features. Kept in `work`. Raises UserError without faiss. Memory: features as float32, twice.
    """
    about = [identity, asdict(config.duplicates), asdict(config.balance), [[one.item.id, one.content, one.similarity] for one in standing]]
    key = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
    with claim(work / KEPT, wait=True):
        try:
            kept = json.loads((work / KEPT).read_text(encoding="utf-8"))
            if kept["key"] == key:
                return [Drop(**row) for row in kept["dropped"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there yet, or of another program
        dropped = _selected(standing, config)
        write_text(work / KEPT, json.dumps({"key": key, "dropped": [drop.to_json() for drop in dropped]}) + "\n")
    return dropped


def _selected(standing: Sequence[Standing], config: CurationConfig) -> list[Drop]:
    if not standing:
        return []
    vectors, thumbs = np.stack([one.features["frame"] for one in standing]), np.stack([one.thumb for one in standing])
    order = sorted(range(len(standing)), key=lambda row: (-standing[row].pixels, -(standing[row].similarity or 0.0), standing[row].item.id))
    dropped = []
    gone = near_duplicates(vectors, thumbs, order, config.duplicates)
    for one in gone:
        item, stays = standing[one.row].item, standing[one.of].item
        note = f"correlation of the thumbnails {one.picture:.3f}"
        dropped.append(Drop(item.id, item.image, "duplicate", "duplicate", one.features, config.duplicates.features, of=stays.id, note=note))
    left = np.setdiff1d(np.arange(len(standing)), [one.row for one in gone])
    for one in excess([standing[row].item.id for row in left], vectors[left], config.balance):
        item = standing[left[one.row]].item
        dropped.append(Drop(item.id, item.image, "balance", "balance", one.size, one.cap, note=f"category {one.category}"))
    return dropped
