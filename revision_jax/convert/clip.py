"""CLIP (such as ViT-L/14) of transformers: both towers with their projections, for ReVisionLLM's and MAD's features. Read only.

    params/vision        class token, norm before the blocks, quick-GELU; the frame vector is the normalised class token, not projected
    params/projection    image projection: frame vector times this = CLIP's image embedding
    params/text          token features after the last norm are not projected (ReVisionLLM reads those); the vector is CLIP's text embedding
    params/similarity    scale as released. CLIP was trained on a softmax over pairs and has no bias; a search needs odds for one pair, so here it is
                         -0.25 times the scale: a cosine of 0.25 means "as likely as not". That number is this project's choice, near where filters of
                         image-text pairs by CLIP L/14 cut; a calibration or training may move it

CLIP's patch convolution and text projection have no bias: ours are zero.

Source: transformers' CLIPModel; CLIP, arXiv 2103.00020.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, TextConfig
from revision_jax.convert import navit, towers
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Rule
from revision_jax.convert.positions import resized
from revision_jax.convert.siglip import grid_of, wanted_grid
from revision_jax.convert.source import Source
from revision_jax.convert.transforms import PATCH_KERNEL, TRANSPOSE, Transform
from revision_jax.data.processing import read_processors
from revision_jax.errors import UserError

VISION, TEXT = "vision_model.", "text_model."
EVEN_COSINE = 0.25  # the cosine at which a frame is as likely as not to show the query
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _one_way(name: str, forward) -> Transform:
    def backward(x: np.ndarray) -> np.ndarray:
        raise NotImplementedError("CLIP is only read")

    return Transform(name, forward, backward)


# A bias that CLIP lacks, made of the weight whose rows it would belong to.
ZEROS = _one_way("no bias, zeros", lambda weight: np.zeros(weight.shape[0], weight.dtype))
FIRST_ROW = _one_way("first row", lambda table: table[0])
EVEN_BIAS = _one_way("no bias, ours", lambda scale: np.asarray(-EVEN_COSINE * np.exp(np.asarray(scale, np.float32))).astype(scale.dtype))


def _rules(config: ExperimentConfig, level: str) -> Sequence[Rule]:
    vision, text, embeddings = "params/vision", "params/text", f"{VISION}embeddings."
    return (
        Rule(f"{embeddings}patch_embedding.weight", f"{vision}/patch_embed/kernel", PATCH_KERNEL),
        Rule(f"{embeddings}patch_embedding.weight", f"{vision}/patch_embed/bias", ZEROS),
        Rule(f"{embeddings}class_embedding", f"{vision}/class_token"),
        Rule(f"{embeddings}position_embedding.weight", f"{vision}/class_position", FIRST_ROW),
        Rule(f"{embeddings}position_embedding.weight", f"{vision}/position", resized(grid_of(config.vision), classes=1)),
        *towers.norm(f"{VISION}pre_layrnorm", f"{vision}/pre_norm"),  # their spelling
        *towers.blocks(VISION, vision),
        *towers.norm(f"{VISION}post_layernorm", f"{vision}/post_norm"),
        Rule("visual_projection.weight", "params/projection/kernel", TRANSPOSE),
        Rule(f"{TEXT}embeddings.token_embedding.weight", f"{text}/embedding"),
        Rule(f"{TEXT}embeddings.position_embedding.weight", f"{text}/position"),
        *towers.blocks(TEXT, text),
        *towers.norm(f"{TEXT}final_layer_norm", f"{text}/post_norm"),
        Rule("text_projection.weight", f"{text}/projection/kernel", TRANSPOSE),
        Rule("text_projection.weight", f"{text}/projection/bias", ZEROS),
        Rule("logit_scale", "params/similarity/scale"),
        Rule("logit_scale", "params/similarity/bias", EVEN_BIAS),
    )


def _tower(settings: towers.Settings, heads: int, width: int, mlp: int) -> dict[str, Any]:
    """What both towers have."""
    return {
        "width": settings.size("hidden_size", width), "layers": settings.size("num_hidden_layers", 12), "heads": settings.size("num_attention_heads", heads),
        "mlp": settings.size("intermediate_size", mlp), "norm_eps": settings.number("layer_norm_eps", 1e-5),
        "activation": settings.activation("hidden_act", "quick_gelu"),
    }  # fmt: skip


def _config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    where = Path(source.path) / "config.json"
    values = dict(source.config)
    for name in ("text_config", "vision_config"):  # files of old versions say it twice, and the second counts
        if isinstance(values.get(f"{name}_dict"), Mapping):
            values[name] = {**(values.get(name) or {}), **values[f"{name}_dict"]}
    settings = towers.Settings(values, "")
    settings.kind("clip")
    width = settings.size("projection_dim", 512)
    seeing, reading = settings.part("vision_config"), settings.part("text_config")
    seeing.demand("num_channels", 3, default=3)
    image, _ = read_processors(source.path if source.path.is_dir() else source.path.parent)
    patch = seeing.size("patch_size", 32)
    vision = {
        **_tower(seeing, heads=12, width=768, mlp=3072), "patch": patch, "position": "learned", "pool": "cls", "class_token": True, "pre_norm": True,
        "projection": width, **navit.pixel_statistics(image, MEAN, STD), **wanted_grid(base.vision, seeing.size("image_size", 224) // patch),
    }  # fmt: skip
    text = {
        **_tower(reading, heads=8, width=512, mlp=2048), "vocab": reading.size("vocab_size", 49408), "max_len": reading.size("max_position_embeddings", 77),
        "projection": width, "causal": True, "pool": "eos", "phrases": 0,
    }  # fmt: skip
    settings.finish(where)
    try:
        return dataclasses.replace(
            base, vision=dataclasses.replace(base.vision, **vision), text=dataclasses.replace(base.text or TextConfig(), **text)
        )
    except ConfigError as error:
        raise UserError(f"{where}: {error}") from error


FORMAT = Format(
    name="clip",
    says="CLIP (such as ViT-L/14), image and text",
    detect=lambda source: source.config.get("model_type") == "clip",
    config=_config,
    rules=_rules,
    prefixes=lambda config, level: ("params/vision", "params/text", "params/projection", "params/similarity"),
    ignores=lambda config, level: towers.POSITION_IDS,
)
