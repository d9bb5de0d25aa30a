"""Parity at the released widths, one layer a tower (two of the encoder) and a vocabulary of 1,024: float32, and bfloat16 with what it costs.

Committed arrays always, torch itself on other weights where it is installed. Errors are max |a - b| / max |b|.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ExperimentConfig
from revision_jax.convert.source import ArraySource
from revision_jax.models import revision
from revision_jax.models.text import TextTower
from revision_jax.models.vision import merge_tokens, merge_valid
from tests.convert.cases import converted, encode, learned_inputs, need_torch
from tests.convert.test_llama import logits
from tests.convert.test_video_llama_3 import embeds_of, logits_of
from tests.golden import make_real_widths as golden
from tests.models.test_vision import bucket

pytestmark = pytest.mark.slow

FORMATS = {"navit": "navit", "clip": "clip", "siglip": "siglip", "llama2_7b": "llama", "qwen2.5_7b": "qwen2", "videollama3_2b": "video_llama_3"}
EXACT = {"navit": 1e-5, "clip": 1e-5, "siglip": 1e-5}  # features; logits 1e-4
# What bfloat16 costs, weights and activations, against float32 and against torch's bfloat16. One rounding is 0.4 %.
BFLOAT16 = {"navit": 2e-2, "clip": 2e-2, "siglip": 2e-2}  # features; logits 3e-2


@functools.lru_cache(maxsize=1)
def case(source: str, name: str) -> tuple[dict, dict, ExperimentConfig, dict]:
    """(what torch gives, what it was shown, our config, our state)."""
    seed = {"golden": 0, "torch": 1}[source]
    if source == "torch":
        need_torch()
    theirs = golden.load(name) if source == "golden" else golden.reference(name, seed)
    config, state = converted(FORMATS[name], ArraySource(golden.weights(json.loads(str(theirs["shapes"])), seed), json.loads(str(theirs["config"]))))
    return theirs, golden.inputs(name, seed), config, state


def outputs(name: str, config: ExperimentConfig, state: dict, shown: dict, dtype) -> dict[str, np.ndarray]:
    """What this project makes of it, by the names of the golden arrays."""
    params = state["params"]
    if name == "navit":
        patches, rows, columns, valid = bucket(shown["patches"], golden.GRIDS, 2, 72, np.nan)  # three sizes in one bucket, garbage in the pads
        tokens = encode(config.vision, params["vision"], patches.astype(dtype), rows, columns, valid)["tokens"]
        assert tokens.dtype == dtype
        return {"merged": merge_tokens(tokens, (6, 12), 2)[merge_valid(valid, 2)]}
    if name in ("clip", "siglip"):
        patches, *places = learned_inputs(shown["images"], 14)
        frame = jax.jit(revision.encode_frames, static_argnums=(0, 6))(config, params, jnp.asarray(patches, dtype), *places, (4, 4))["frame"]
        mask = np.arange(9) < shown["lengths"][:, None]
        words = jax.jit(TextTower(config.text).apply)({"params": params["text"]}, jnp.asarray(shown["ids"]), jnp.asarray(mask))
        assert words["tokens"].dtype == dtype
        return {"frame": frame, "vector": words["vector"], "tokens": words["tokens"][mask]}
    if name == "videollama3_2b":
        embeds = embeds_of(config, state, "both", {**shown, "patches": shown["patches"].astype(dtype)})
        return {"logits": logits_of(config, state, [embeds.astype(np.float32)])[0]}
    ids = jnp.asarray(shown["ids"])
    return {"logits": logits(config.decoder, params["decoder"], ids, jnp.arange(ids.shape[1])[None], jnp.ones(ids.shape, bool))}


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


CASES = [
    *(("golden", name) for name in FORMATS),
    # The decoders of 7B take half a minute each with torch beside them; live they are compared small.
    *(pytest.param("torch", name, marks=pytest.mark.torch) for name in FORMATS if not name.endswith("7b")),
]


@pytest.mark.parametrize(("source", "name"), CASES)
def test_it_equals_transformers(source, name):
    theirs, shown, config, state = case(source, name)
    for key, value in outputs(name, config, state, shown, jnp.float32).items():
        assert error(golden.sample(value), theirs[key]) < EXACT.get(name, 1e-4), key

    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, dtype="bfloat16"))
    for key, value in outputs(name, config, narrow, shown, jnp.bfloat16).items():
        ours, exact, torch = golden.sample(value), theirs[key], theirs[f"bfloat16/{key}"]
        tolerance = BFLOAT16.get(name, 3e-2)
        assert 0 < error(ours, exact) < tolerance and error(ours, torch) < tolerance, key
        assert error(ours, exact) < 1.5 * error(torch, exact), key  # no further from float32 than torch is
