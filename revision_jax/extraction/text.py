"""Queries to a store of text features: every query goes through the text tower once. What `video.py` is for videos."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig
from revision_jax.data.prompts import clean_query, encode_query
from revision_jax.data.text_features import TOKENS, TextFeatureStore, TextFeatureWriter
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.models import revision

BATCH = 64  # queries of one device call


def text_identity(config: ExperimentConfig, params: dict) -> str:
    """What made the features: a hash of the text tower's config and of its weights in float16. Raises ConfigError without a text tower."""
    if config.text is None:
        raise ConfigError("text: this model has no text tower")
    digest = hashlib.blake2b(json.dumps([dataclasses.asdict(config.text), config.grounding.query_len], sort_keys=True).encode(), digest_size=12)
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(params["text"]), key=lambda item: jax.tree_util.keystr(item[0])):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float16).tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _encode(config: ExperimentConfig) -> Callable[[dict, Any, Any], dict]:
    def encode(params: dict, ids: jax.Array, mask: jax.Array) -> dict:
        out = revision.encode_text(config, params, ids, mask)
        return {name: value.astype(jnp.float16) for name, value in out.items() if value is not None}

    return jax.jit(encode)


def extract_queries(config: ExperimentConfig, params: dict, tokenizer: Tokenizer, queries: Iterable[str], store: str | Path) -> TextFeatureStore:
    """Encodes queries into `store`, atomically: "tokens" [S D] of the real tokens, "vectors" [F E], and "motion" [2] of a tower that says it, float16.

    tokenizer: the text tower's. Each text once, under its `clean_query`; memory is one batch and the keys. Returns the opened store.
    Raises UserError for an empty or too long query, ConfigError without a text tower, StoreError where the store cannot be written.
    """
    identity, text = text_identity(config, params), config.text
    arrays = {"tokens": ((TOKENS, text.width), "float16"), "vectors": ((1 + text.phrases, text.projection), "float16")}
    if text.motion:
        arrays["motion"] = ((2,), "float16")
    with TextFeatureWriter(store, identity, arrays) as writer:
        batch: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for query in map(clean_query, queries):
            if query not in writer:
                batch[query] = encode_query(tokenizer, query, config.grounding.query_len, text.suffix)
            if len(batch) == BATCH:
                _write(config, params, writer, batch)
                batch = {}
        if batch:
            _write(config, params, writer, batch)
    return TextFeatureStore(store)


def _write(config: ExperimentConfig, params: dict, writer: TextFeatureWriter, batch: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    ids, mask = (np.zeros((BATCH, config.grounding.query_len), dtype) for dtype in (np.int32, bool))
    for row, (query_ids, query_mask) in enumerate(batch.values()):
        ids[row], mask[row] = query_ids, query_mask
    mask[len(batch) :, 0] = True  # a row without a token would have nothing to attend to
    out = {name: np.asarray(value) for name, value in _encode(config)({"text": params["text"]}, ids, mask).items()}
    for row, query in enumerate(batch):
        writer.add(query, {name: value[row, : mask[row].sum()] if name == "tokens" else value[row] for name, value in out.items()})
