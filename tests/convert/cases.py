"""Models of transformers, from committed arrays or live torch, as sources for the formats; and their state here."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from revision_jax.config import ExperimentConfig, VisionConfig
from revision_jax.convert.formats import named
from revision_jax.convert.load import load_state
from revision_jax.convert.source import ArraySource
from revision_jax.data import frames as host_frames
from revision_jax.models.vision import VisionTransformer
from tests.golden import make_convert as golden

SOURCES = ["golden", pytest.param("torch", marks=pytest.mark.torch)]


def need_torch() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@functools.cache
def case(source: str, name: str) -> dict[str, np.ndarray]:
    """A model's weights, config, inputs and outputs: the committed ones, or torch's with another seed."""
    if source == "torch":
        need_torch()
    return golden.load(name) if source == "golden" else golden.MAKERS[name](seed=7)


def source_of(arrays: dict[str, np.ndarray]) -> ArraySource:
    """The weights as a checkpoint of float32, with its config.json."""
    weights = {key.removeprefix("weights/"): value.astype(np.float32) for key, value in arrays.items() if key.startswith("weights/")}
    return ArraySource(weights, json.loads(str(arrays["config"])))


def converted(format_name: str, source: ArraySource, base: ExperimentConfig | None = None) -> tuple[ExperimentConfig, dict]:
    """(config, state) of what the format fills."""
    form = named(format_name)
    config = form.config(source, base or ExperimentConfig(), "")
    return config, jax.tree.map(jnp.asarray, load_state([form.plan(source, config)]))


@functools.cache
def encoder(config: VisionConfig):
    return jax.jit(VisionTransformer(config).apply)


def encode(config: VisionConfig, params: dict, patches: np.ndarray, rows: np.ndarray, columns: np.ndarray, valid: np.ndarray) -> dict:
    return encoder(config)({"params": params}, *map(jnp.asarray, (patches, rows, columns, valid)))


def learned_inputs(images: np.ndarray, patch: int) -> tuple[np.ndarray, ...]:
    """Channel-first pixels [B 3 h w] as (patches, rows, columns, valid) without merging."""
    patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
    rows, columns = (np.tile(x, (len(images), 1)) for x in host_frames.positions((images.shape[2] // patch, images.shape[3] // patch), 1))
    return patches, rows, columns, np.ones(rows.shape, bool)
