"""The whole of VideoLLaMA3: encoder, projector and Qwen2 decoder, by transformers' names and by those of its own repository, both ways.

    part        transformers (video_llama_3)      own repository (videollama3)                                     here
    encoder     model.vision_model.               model.vision_encoder.  (in training: .vision_encoder. once more)  params/vision or params/patch_vision
    projector   model.projector.readout.{0,2}     model.mm_projector.readout.{0,2}                                 adapter/<level>, an AdapterConfig(kind="mlp")
    decoder     model.language_model., lm_head    model., lm_head                                                  params/decoder

The level is the model's one patch level; a config without levels gets one called "patch".

Sources: transformers' VideoLlama3ForConditionalGeneration; github.com/DAMO-NLP-SG/VideoLLaMA3 (model_type "videollama3_qwen2").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from revision_jax.config import AdapterConfig, ConfigError, DecoderConfig, ExperimentConfig, LevelConfig, LoraConfig, VisionConfig
from revision_jax.convert import llama, navit, towers
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Ignore, Rule
from revision_jax.convert.source import Source
from revision_jax.errors import UserError

LEVEL = "patch"  # what the level is called where the config has none
IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"  # 151655 and 151656 in the released vocabulary
OWN_TOKEN = "<image>"  # the own repository's, for images and videos
TOKEN_IDS = {"image_token_id": 151655, "video_token_id": 151656}


class Names(NamedTuple):
    """What the two families call the parts."""

    vision: str
    projector: str
    decoder: str


TRANSFORMERS = Names("model.vision_model.", "model.projector", "model.language_model")
OWN = Names("model.vision_encoder.", "model.mm_projector", "model")


def patch_level(config: ExperimentConfig, name: str = "") -> LevelConfig:
    """The level with VideoLLaMA3's projector: the one called `name`, or the only one of kind "patch". Raises UserError."""
    found = [level for level in config.grounding.levels if (level.name == name if name else level.kind == "patch")]
    if len(found) != 1 or found[0].adapter.kind != "mlp":
        there = ", ".join(f"{level.name} ({level.kind}, adapter {level.adapter.kind})" for level in config.grounding.levels) or "none"
        raise UserError(f"grounding.levels: VideoLLaMA3's projector needs one level {name or 'of kind patch'} with an adapter of kind mlp; there are {there}")
    return found[0]


def _rules(names: Names) -> Callable[[ExperimentConfig, str], Sequence[Rule]]:
    def rules(config: ExperimentConfig, level: str) -> Sequence[Rule]:
        readout = f"adapter/{patch_level(config, level).name}/readout"
        return (
            *navit.vision_rules(f"params/{config.patch_encoder}", names.vision, wrapped=names is OWN),
            # The projector keeps its original layout, [out, in].
            *(Rule(f"{names.projector}.readout.{part}.{kind}", f"{readout}/{part}/{kind}") for part in "02" for kind in ("weight", "bias")),
            *llama.decoder_rules(config.decoder, names.decoder),
        )

    return rules


def _prefixes(config: ExperimentConfig, level: str) -> Sequence[str]:
    return f"params/{config.patch_encoder}", f"adapter/{patch_level(config, level).name}", "params/decoder"


def _ignores(names: Names) -> Callable[[ExperimentConfig, str], Sequence[Ignore]]:
    return lambda config, level: (*llama.decoder_ignores(names.decoder), *towers.POSITION_IDS)


# -------------------------------------------------------------------------------------------------------------------------- config


def _put(config: ExperimentConfig, vision: VisionConfig, decoder: DecoderConfig, name: str) -> ExperimentConfig:
    """The parts in their places, the patch level's adapter with the encoder's width."""
    adapter = AdapterConfig(kind="mlp", width=vision.output)
    levels = config.grounding.levels
    chosen = [level for level in levels if (level.name == name if name else level.kind == "patch")]
    if not chosen:
        # As the model is used: 180 frames at one a second, and at most as many tokens as one sample may have. Windows of a longer film overlap by half.
        fresh = LevelConfig(name=name or LEVEL, kind="patch", span_s=180.0, stride_s=90.0, tokens=180, batch=1, budget=16384, adapter=adapter)
        if not levels:
            decoder = dataclasses.replace(decoder, lora=LoraConfig(rank=0))  # a model of this alone has no LoRA
        levels, chosen = (*levels, fresh), [fresh]
    levels = tuple(dataclasses.replace(level, adapter=adapter) if level in chosen[:1] else level for level in levels)
    # All at once, since the parts are checked against each other.
    parts = {"patch_vision": vision} if config.patch_vision is not None else {"vision": vision, "text": None}
    return dataclasses.replace(config, **parts, decoder=decoder, grounding=dataclasses.replace(config.grounding, levels=levels))


def _read(source: Source, settings: towers.Settings, vision: str, decoder: dict[str, Any], base: ExperimentConfig, level: str) -> ExperimentConfig:
    """Both parts' configs, with the findings of both in one error."""
    where = Path(source.path) / "config.json"
    encoder = navit.vision_config(settings.part(vision), source, base.encoder(base.patch_encoder))
    language = None
    try:
        language = llama.decoder_config(decoder, str(where), base.decoder)
    except UserError as error:
        settings.problems.append(str(error).removeprefix(f"{where}: "))
    settings.finish(where)
    assert encoder is not None and language is not None, "whatever could not be read is a problem"
    try:
        return _put(base, encoder, language, level)
    except ConfigError as error:
        raise UserError(f"{where}: {error}") from error


def _transformers_config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    settings = towers.Settings(source.config, "")
    settings.kind("video_llama_3")
    text = settings.part("text_config").values
    tied = bool(settings.values.get("tie_word_embeddings") or text.get("tie_word_embeddings"))  # either one ties
    # transformers leaves out what its Qwen2Config has as a default.
    text = {"model_type": "qwen2", "dtype": settings.values.get("dtype") or settings.values.get("torch_dtype"), **text, "tie_word_embeddings": tied}
    return _read(source, settings, "vision_config", text, base, level)


def _own_config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    settings = towers.Settings(source.config, "")
    settings.kind("videollama3_qwen2")
    settings.demand("mm_projector_type", "mlp2x_gelu", default="mlp2x_gelu")
    return _read(source, settings, "vision_encoder_config", {**settings.values, "model_type": "qwen2"}, base, level)


# -------------------------------------------------------------------------------------------------------------------------- export


def _transformers_external(config: ExperimentConfig, level: str) -> dict[str, Any]:
    vision = {"model_type": "video_llama_3_vision", **navit.external_vision(config.encoder(config.patch_encoder))}
    text = llama.external_config(_qwen2(config.decoder))
    return {
        "model_type": "video_llama_3", "architectures": ["VideoLlama3ForConditionalGeneration"], **TOKEN_IDS, "torch_dtype": config.decoder.dtype,
        "tie_word_embeddings": config.decoder.tie_embeddings, "vision_config": vision, "text_config": text,
    }  # fmt: skip


def _own_external(config: ExperimentConfig, level: str) -> dict[str, Any]:
    vision = {"model_type": "videollama3_vision_encoder", **navit.external_vision(config.encoder(config.patch_encoder))}
    return {
        **llama.external_config(_qwen2(config.decoder)), "model_type": "videollama3_qwen2", "architectures": ["Videollama3Qwen2ForCausalLM"],
        "mm_projector_type": "mlp2x_gelu", "use_token_compression": True, "vision_encoder": None, "vision_encoder_config": vision,
    }  # fmt: skip


def _qwen2(decoder: DecoderConfig) -> DecoderConfig:
    if not decoder.qkv_bias:
        raise UserError("export: VideoLLaMA3's decoder is a Qwen2, which has biases in q, k and v (decoder.qkv_bias)")
    return decoder


# -------------------------------------------------------------------------------------------------------------------------- formats

FORMAT = Format(
    name="video_llama_3",
    says="VideoLLaMA3 of transformers (2B, 7B), whole",
    detect=lambda source: source.config.get("model_type") == "video_llama_3",
    config=_transformers_config,
    rules=_rules(TRANSFORMERS),
    ignores=_ignores(TRANSFORMERS),
    prefixes=_prefixes,
    external=_transformers_external,
    special_tokens=lambda config: (IMAGE_TOKEN, VIDEO_TOKEN, "<|im_start|>", "<|im_end|>"),
    writable=True,
)

OWN_FORMAT = Format(
    name="videollama3",
    says="VideoLLaMA3 of its own repository (2B, 7B), whole",
    detect=lambda source: source.config.get("model_type") == "videollama3_qwen2",
    config=_own_config,
    rules=_rules(OWN),
    ignores=_ignores(OWN),
    prefixes=_prefixes,
    external=_own_external,
    special_tokens=lambda config: (OWN_TOKEN, "<|im_start|>", "<|im_end|>"),
    writable=True,
)
