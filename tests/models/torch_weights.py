"""Weights of transformers' VideoLLaMA3, CLIP and SigLIP towers, each alone, as this project's parameter trees: by the rules of their formats.

A state dict is given as NumPy arrays; every function fails if a weight is left over or missing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from revision_jax.config import ExperimentConfig, TextConfig, VisionConfig
from revision_jax.convert import clip, navit, siglip, towers
from revision_jax.convert.formats import target
from revision_jax.convert.load import load_state
from revision_jax.convert.plan import make_plan
from revision_jax.convert.source import ArraySource


def _tower(name: str, rules, config: ExperimentConfig, weights: dict[str, np.ndarray], prefix: str, outside: str = "") -> dict:
    """{"params": ...} of params/<name>. In the whole model a tower's names begin with the prefix, but for the weight `outside` of it."""
    source = ArraySource(weights).renamed(lambda key: key if key == outside or key.startswith(prefix) else prefix + key)
    rules = [rule for rule in rules if rule.target.startswith(f"params/{name}/")]
    state = load_state([make_plan(rules, towers.POSITION_IDS, source, target(config, (f"params/{name}",)), "float32")])
    return {"params": jax.tree.map(jnp.asarray, state["params"][name])}


def videollama3_vision(weights: dict[str, np.ndarray], config: VisionConfig) -> dict:
    return _tower("vision", navit.vision_rules("params/vision"), ExperimentConfig(vision=config), weights, "")


def clip_vision(weights: dict[str, np.ndarray], config: VisionConfig) -> dict:
    config = ExperimentConfig(vision=config)
    return _tower("vision", clip.FORMAT.rules(config, ""), config, weights, clip.VISION)


def siglip_vision(weights: dict[str, np.ndarray], config: VisionConfig) -> dict:
    config = ExperimentConfig(vision=config)
    return _tower("vision", siglip.FORMAT.rules(config, ""), config, weights, siglip.VISION)


def clip_text(weights: dict[str, np.ndarray], config: TextConfig) -> dict:
    config = ExperimentConfig(text=config)
    return _tower("text", clip.FORMAT.rules(config, ""), config, weights, clip.TEXT, "text_projection.weight")


def siglip_text(weights: dict[str, np.ndarray], config: TextConfig) -> dict:
    config = ExperimentConfig(text=config)
    return _tower("text", siglip.FORMAT.rules(config, ""), config, weights, siglip.TEXT)
