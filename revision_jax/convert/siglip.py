"""SigLIP (so400m and its kin) of transformers: both towers, or the image tower as VideoLLaMA3's first training stage starts from it. Read only.

    siglip           params/vision (learned positions, attention pooling head), params/text, params/similarity (logit scale and bias)
    siglip_rope2d    the patch level's encoder: the image tower without its positions and its head, for 2-D RoPE

The checkpoint's grid of positions is kept, unless `base.vision` is a learned-position encoder already: then its grid is wanted, and the positions are
resized to it as transformers does (`interpolate_pos_encoding`).

Source: transformers' SiglipModel; SigLIP, arXiv 2303.15343.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from revision_jax.config import ConfigError, ExperimentConfig, TextConfig, VisionConfig
from revision_jax.convert import navit, towers
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Ignore, Rule
from revision_jax.convert.positions import resized
from revision_jax.convert.source import Source
from revision_jax.convert.transforms import RESHAPE, ROWS, SQUEEZE, TRANSPOSE
from revision_jax.data.processing import read_processors
from revision_jax.errors import UserError

VISION, TEXT = "vision_model.", "text_model."


def grid_of(vision: VisionConfig) -> tuple[int, int]:
    """(rows, columns) of the table of learned positions."""
    return max(rows for rows, _ in vision.grids), max(columns for _, columns in vision.grids)


def wanted_grid(base: VisionConfig, side: int) -> dict[str, Any]:
    """`grids` and `merge` for a square table of positions: `base`'s where it is an encoder with learned positions, else the table's own."""
    return {"grids": base.grids, "merge": base.merge} if base.position == "learned" else {"grids": ((side, side),), "merge": 1}


def _vision_rules(ours: str) -> tuple[Rule, ...]:
    return (
        *towers.patch_embedding(f"{VISION}embeddings.patch_embedding", f"{ours}/patch_embed"),
        *towers.blocks(VISION, ours),
        *towers.norm(f"{VISION}post_layernorm", f"{ours}/post_norm"),
    )


def _head_rules(vision: VisionConfig) -> tuple[Rule, ...]:
    head, ours = f"{VISION}head.", "params/vision/pool"
    rules = [Rule(f"{head}probe", f"{ours}/probe", SQUEEZE(0, 1))]
    for k, name in enumerate("qkv"):
        rules.append(Rule(f"{head}attention.in_proj_weight", f"{ours}/{name}/kernel", ROWS(k, 3, TRANSPOSE)))
        rules.append(Rule(f"{head}attention.in_proj_bias", f"{ours}/{name}/bias", ROWS(k, 3)))
    rules += towers.linear(f"{head}attention.out_proj", f"{ours}/out")
    return (*rules, *towers.norm(f"{head}layernorm", f"{ours}/norm"), *towers.mlp(f"{head}mlp", f"{ours}/mlp"))


def _rules(config: ExperimentConfig, level: str) -> Sequence[Rule]:
    ours = "params/text"
    return (
        *_vision_rules("params/vision"),
        Rule(f"{VISION}embeddings.position_embedding.weight", "params/vision/position", resized(grid_of(config.vision))),
        *_head_rules(config.vision),
        Rule(f"{TEXT}embeddings.token_embedding.weight", f"{ours}/embedding"),
        Rule(f"{TEXT}embeddings.position_embedding.weight", f"{ours}/position"),
        *towers.blocks(TEXT, ours),
        *towers.norm(f"{TEXT}final_layer_norm", f"{ours}/post_norm"),
        *towers.linear(f"{TEXT}head", f"{ours}/projection"),
        # Both keep the scale as its logarithm.
        Rule("logit_scale", "params/similarity/scale", RESHAPE((1,), ())),
        Rule("logit_bias", "params/similarity/bias", RESHAPE((1,), ())),
    )


# -------------------------------------------------------------------------------------------------------------------------- config


def _vision_values(settings: towers.Settings, source: Source) -> dict[str, Any]:
    settings.demand("num_channels", 3, default=3)
    image, _ = read_processors(source.path if source.path.is_dir() else source.path.parent)
    return {
        "width": settings.size("hidden_size", 768), "layers": settings.size("num_hidden_layers", 12), "heads": settings.size("num_attention_heads", 12),
        "mlp": settings.size("intermediate_size", 3072), "patch": settings.size("patch_size", 16), "norm_eps": settings.number("layer_norm_eps", 1e-6),
        "activation": settings.activation("hidden_act", "gelu_pytorch_tanh"), "class_token": False, "pre_norm": False, "projection": 0,
        **navit.pixel_statistics(image, (0.5,) * 3, (0.5,) * 3),
    }  # fmt: skip


def _text_config(settings: towers.Settings) -> dict[str, Any]:
    width = settings.size("hidden_size", 768)
    return {
        "vocab": settings.size("vocab_size", 32000), "width": width, "layers": settings.size("num_hidden_layers", 12),
        "heads": settings.size("num_attention_heads", 12), "mlp": settings.size("intermediate_size", 3072),
        "max_len": settings.size("max_position_embeddings", 64), "projection": settings.size("projection_size", width),
        "norm_eps": settings.number("layer_norm_eps", 1e-6), "activation": settings.activation("hidden_act", "gelu_pytorch_tanh"),
        "causal": False, "pool": "last", "pad_id": 1, "phrases": 0,
    }  # fmt: skip


def _config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    where = Path(source.path) / "config.json"
    settings = towers.Settings(source.config, "")
    settings.kind("siglip")
    vision, text = settings.part("vision_config"), settings.part("text_config")
    values, words = _vision_values(vision, source), _text_config(text)
    side = vision.size("image_size", 224) // values["patch"]
    if words["projection"] != values["width"]:
        settings.problems.append(f"text_config.projection_size is {words['projection']}, the image tower's width is {values['width']}: they must be comparable")
    settings.finish(where)
    try:
        encoder = dataclasses.replace(base.vision, **values, **wanted_grid(base.vision, side), position="learned", pool="attention")
        return dataclasses.replace(base, vision=encoder, text=dataclasses.replace(base.text or TextConfig(), **words))
    except ConfigError as error:
        raise UserError(f"{where}: {error}") from error


def _rope2d_config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    where = Path(source.path) / "config.json"
    settings = towers.Settings(source.config, "")
    settings.kind("siglip", "siglip_vision_model")
    # An image tower stored alone has its settings at the top.
    values = _vision_values(settings.part("vision_config") if settings.values.get("model_type") == "siglip" else settings, source)
    settings.finish(where)
    encoder = base.encoder(base.patch_encoder)
    pool = encoder.pool if encoder.pool in ("mean", "none") else "none"
    try:
        return navit.placed(base, dataclasses.replace(encoder, **values, position="rope2d", pool=pool))
    except ConfigError as error:
        raise UserError(f"{where}: {error}") from error


FORMAT = Format(
    name="siglip",
    says="SigLIP (such as so400m), image and text",
    detect=lambda source: source.config.get("model_type") == "siglip",
    config=_config,
    rules=_rules,
    prefixes=lambda config, level: ("params/vision", "params/text", "params/similarity"),
    ignores=lambda config, level: towers.POSITION_IDS,
)

ROPE2D = Format(
    name="siglip_rope2d",
    says="SigLIP's image tower for 2-D RoPE: where VideoLLaMA3's first stage starts",
    detect=lambda source: False,  # the same files as siglip: to be asked for
    config=_rope2d_config,
    rules=lambda config, level: _vision_rules(f"params/{config.patch_encoder}"),
    prefixes=lambda config, level: (f"params/{config.patch_encoder}",),
    ignores=lambda config, level: (
        *towers.POSITION_IDS,
        Ignore(f"{VISION}embeddings.position_embedding.weight", "2-D RoPE stands in their place"),
        Ignore(f"{VISION}head.*", "the encoder's tokens are used, not a pooled vector"),
        Ignore(f"{TEXT}*", "an encoder alone has no text tower"),
        Ignore("logit_*", "nothing to compare with"),
    ),
)
