"""VL3-SigLIP-NaViT: VideoLLaMA3's vision encoder with 2-D RoPE, alone, by the names of its own repository and of transformers (they agree), both ways.

It fills the encoder of the patch level: `params/patch_vision` where the model has one of its own, otherwise `params/vision`.

Sources: the config and model files beside the released weights (model_type "videollama3_vision_encoder"), transformers' VideoLlama3VisionModel.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from revision_jax.config import ConfigError, ExperimentConfig, VisionConfig
from revision_jax.convert import towers
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Rule
from revision_jax.convert.source import Source
from revision_jax.data.processing import read_processors
from revision_jax.errors import UserError

MODEL_TYPES = ("videollama3_vision_encoder", "video_llama_3_vision")
WRAPPED = "vision_encoder."  # the training code keeps the encoder inside a module of this name


def vision_rules(ours: str, prefix: str = "", wrapped: bool = True) -> tuple[Rule, ...]:
    """Rules of the encoder whose tensors begin with `prefix`. wrapped: also read, and never written, are those of the training code."""
    rules = (
        *towers.patch_embedding(f"{prefix}embeddings.patch_embedding", f"{ours}/patch_embed"),
        *towers.blocks(prefix, ours),
        *towers.norm(f"{prefix}post_layernorm", f"{ours}/post_norm"),
    )
    return (*rules, *(rule._replace(optional=True) for rule in vision_rules(ours, prefix + WRAPPED, False))) if wrapped else rules


def patch_size(source: Source, name: str) -> int | None:
    """The side of the patches, as the tensor that embeds them says; None if it is not there or no kernel of 3 channels."""
    shape = next((info.shape for key, info in source.tensors.items() if key.endswith(name)), ())
    return shape[2] if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] else None


def vision_config(settings: towers.Settings, source: Source, base: VisionConfig) -> VisionConfig | None:
    """The encoder that a vision config describes; buckets and merge size are `base`'s. None where something is wrong (see `settings.problems`).

    The patch is taken from the file, or else from the weights: the config classes' default is 16, all released weights have 14. Mean and
    std come from the processor's file beside them, if there is one.
    """
    # Widths that nothing but a config can tell have the config class's defaults.
    width, heads = settings.size("hidden_size", 768), settings.size("num_attention_heads", 12)
    settings.demand("num_channels", 3, default=3)
    rope = settings.values.get("rope_parameters") or {}
    if rope.get("rope_type", "axial") not in ("axial", "default"):
        settings.problems.append(f"{settings.where}.rope_parameters.rope_type is {rope['rope_type']!r}, must be 'axial'")
    image, _ = read_processors(source.path if source.path.is_dir() else source.path.parent)
    patch = settings.size("patch_size", patch_size(source, "embeddings.patch_embedding.weight") or 16)
    if image.get("patch_size", patch) != patch:
        settings.problems.append(f"the processor's patch_size is {image['patch_size']}, the encoder's is {patch}")
    values: dict[str, Any] = {
        "width": width, "heads": heads, "layers": settings.size("num_hidden_layers", 12), "mlp": settings.size("intermediate_size", 3072), "patch": patch,
        "norm_eps": settings.number("layer_norm_eps", 1e-6), "activation": settings.activation("hidden_act", "gelu_pytorch_tanh"),
        "rope_theta": float(rope.get("rope_theta") or settings.number("rope_theta", 10000.0)), **pixel_statistics(image, (0.5,) * 3, (0.5,) * 3),
    }  # fmt: skip
    pool = base.pool if base.pool in ("mean", "none") else "none"  # no other was trained
    try:
        return dataclasses.replace(base, **values, position="rope2d", pool=pool, class_token=False, pre_norm=False, projection=0)
    except ConfigError as error:
        settings.problems.append(str(error))
        return None


def pixel_statistics(processor: dict, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """{"mean", "std"} of an image processor's settings, or else those given."""
    found = {}
    for name, key, usual in (("mean", "image_mean", mean), ("std", "image_std", std)):
        value = processor.get(key)
        found[name] = tuple(map(float, value)) if isinstance(value, list | tuple) and len(value) == 3 else usual
    return found


def placed(config: ExperimentConfig, vision: VisionConfig) -> ExperimentConfig:
    """`config` with VideoLLaMA3's encoder in it: for the patch level where that has its own, else as the only one, which has no text tower beside it."""
    if config.patch_vision is not None:
        return dataclasses.replace(config, patch_vision=vision)
    return dataclasses.replace(config, vision=vision, text=None)


def external_vision(vision: VisionConfig) -> dict[str, Any]:
    """The vision part of an external config.json."""
    if vision.position != "rope2d" or vision.class_token or vision.pre_norm or vision.projection:
        raise UserError("export: the encoder is not VideoLLaMA3's (2-D RoPE, no class token, no norm before the blocks, no projection)")
    return {
        "hidden_size": vision.width, "intermediate_size": vision.mlp, "num_hidden_layers": vision.layers, "num_attention_heads": vision.heads,
        "num_channels": 3, "patch_size": vision.patch, "hidden_act": towers.EXTERNAL_ACTIVATIONS[vision.activation],
        "layer_norm_eps": vision.norm_eps, "attention_dropout": 0.0,
    }  # fmt: skip


def _config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    settings = towers.Settings(source.config, "")
    settings.kind(*MODEL_TYPES)
    vision = vision_config(settings, source, base.encoder(base.patch_encoder))
    settings.finish(Path(source.path) / "config.json")
    return placed(base, vision)


def _external(config: ExperimentConfig, level: str) -> dict[str, Any]:
    vision = external_vision(config.encoder(config.patch_encoder))
    return {"model_type": MODEL_TYPES[0], "architectures": ["Videollama3VisionEncoderModel"], **vision}


FORMAT = Format(
    name="navit",
    says="VL3-SigLIP-NaViT: VideoLLaMA3's vision encoder alone",
    detect=lambda source: source.config.get("model_type") in MODEL_TYPES,
    config=_config,
    rules=lambda config, level: vision_rules(f"params/{config.patch_encoder}"),
    prefixes=lambda config, level: (f"params/{config.patch_encoder}",),
    ignores=lambda config, level: towers.POSITION_IDS,
    external=_external,
    writable=True,
)
