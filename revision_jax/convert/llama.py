"""Language models: LLaMA-2 / Vicuna and Qwen2 / Qwen2.5, as transformers stores them, both ways.

The rules take the names' prefixes and our path, so that a model that holds such a decoder (VideoLLaMA3) reuses them:

    decoder_rules(config, model="model.language_model")

Sources: transformers' LlamaForCausalLM and Qwen2ForCausalLM (names, shapes, config.json of versions 4 and 5).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from revision_jax.config import ConfigError, DecoderConfig, ExperimentConfig
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Ignore, Rule
from revision_jax.convert.source import Source
from revision_jax.convert.transforms import TRANSPOSE
from revision_jax.errors import UserError

ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")
REQUIRED = {"vocab_size": "vocab", "hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads", "intermediate_size": "mlp"}
ACTIVATIONS = ("float32", "bfloat16", "float16")


def module_names() -> dict[str, str]:
    """Our linear layer below "layers" -> theirs below "model.layers.<i>": also what a LoRA's target_modules mean."""
    return {**{f"attention/{x}": f"self_attn.{x}_proj" for x in ATTENTION}, **{f"mlp/{x}": f"mlp.{x}_proj" for x in MLP}}


def decoder_rules(config: DecoderConfig, model: str = "model", head: str = "lm_head", ours: str = "params/decoder") -> tuple[Rule, ...]:
    """Rules of a decoder whose tensors are `<model>.embed_tokens.weight`, `<model>.layers.<i>...`, `<model>.norm.weight` and `<head>.weight`.

    A tied model may hold its head all the same, equal to the embedding.
    """
    layer, stacked = model + ".layers.{i}.", ours + "/layers/"
    rules = [Rule(f"{model}.embed_tokens.weight", f"{ours}/embed/embedding"), Rule(f"{model}.norm.weight", f"{ours}/norm/scale")]
    if config.tie_embeddings:
        rules.append(Rule(f"{head}.weight", f"{ours}/embed/embedding", optional=True))
    else:
        rules.append(Rule(f"{head}.weight", f"{ours}/head/kernel", TRANSPOSE))
    rules.append(Rule(layer + "input_layernorm.weight", stacked + "attention_norm/scale[{i}]"))
    rules.append(Rule(layer + "post_attention_layernorm.weight", stacked + "mlp_norm/scale[{i}]"))
    for name, theirs in module_names().items():
        rules.append(Rule(f"{layer}{theirs}.weight", f"{stacked}{name}/kernel[{{i}}]", TRANSPOSE))
    if config.qkv_bias:
        rules += [Rule(f"{layer}self_attn.{x}_proj.bias", f"{stacked}attention/{x}/bias[{{i}}]") for x in "qkv"]
    return tuple(rules)


def decoder_ignores(model: str = "model") -> tuple[Ignore, ...]:
    """What old checkpoints hold beside the weights."""
    return (Ignore(f"{model}.layers.*.self_attn.rotary_emb.inv_freq", "computed from rope_theta"),)


def decoder_config(values: dict[str, Any], where: str, base: DecoderConfig | None = None, kinds: tuple[str, ...] = ("llama", "qwen2")) -> DecoderConfig:
    """The decoder that a config.json of a LLaMA or Qwen2 describes; what it does not speak of (LoRA, signal, scan, ...) is taken from `base`.

    Raises UserError with every finding: a missing number, another architecture, or a variant that this decoder is not (scaled RoPE, sliding windows,
    biases that only some models have, another activation).
    """
    base = base or DecoderConfig()
    kind = values.get("model_type")
    problems = [] if kind in kinds else [f"model_type is {kind!r}, must be {' or '.join(kinds)}"]
    for name in REQUIRED:
        if not isinstance(values.get(name), int) or values[name] <= 0:
            problems.append(f"{name} must be a positive whole number, is {values.get(name)!r}")
    rope = values.get("rope_parameters") or {}
    scaling = values.get("rope_scaling") or rope
    scaling = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else scaling
    if scaling != "default":
        problems.append(f"rope_scaling is {scaling!r}; only the default, unscaled RoPE is implemented")
    if values.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {values['hidden_act']!r}, must be silu")
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if values.get(name):
            problems.append(f"{name} is {values[name]!r}, must be false")
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}")
    dtype = str(values.get("dtype") or values.get("torch_dtype") or "float32").removeprefix("torch.")
    heads = values["num_attention_heads"]
    try:
        return dataclasses.replace(
            base,
            **{ours: values[theirs] for theirs, ours in REQUIRED.items()},
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            norm_eps=float(values.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0),
            qkv_bias=kind == "qwen2",
            tie_embeddings=bool(values.get("tie_word_embeddings", False)),
            dtype=dtype if dtype in ACTIVATIONS else "float32",
        )
    except ConfigError as error:
        raise UserError(f"{where}: {error}") from error


def external_config(config: DecoderConfig) -> dict[str, Any]:
    """The config.json that transformers (4 and 5) opens as this decoder."""
    kind, name, positions = ("qwen2", "Qwen2ForCausalLM", 32768) if config.qkv_bias else ("llama", "LlamaForCausalLM", 4096)
    return {
        "architectures": [name], "model_type": kind, **{theirs: getattr(config, ours) for theirs, ours in REQUIRED.items()},
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "hidden_act": "silu", "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta, "rope_scaling": None, "tie_word_embeddings": config.tie_embeddings, "max_position_embeddings": positions,
        "use_cache": True, "torch_dtype": config.dtype,
    }  # fmt: skip


def _format(kind: str, says: str, special: tuple[str, ...]) -> Format:
    def config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
        return dataclasses.replace(base, decoder=decoder_config(source.config, f"{source.path}/config.json", base.decoder, (kind,)))

    def external(config: ExperimentConfig, level: str) -> dict[str, Any]:
        values = external_config(config.decoder)
        if values["model_type"] != kind:
            raise UserError(f"target: the decoder is a {values['model_type']}, not a {kind} (decoder.qkv_bias is {config.decoder.qkv_bias})")
        return values

    return Format(
        name=kind,
        says=says,
        detect=lambda source: source.config.get("model_type") == kind and "model.embed_tokens.weight" in source.tensors,
        config=config,
        rules=lambda config, level: decoder_rules(config.decoder),
        ignores=lambda config, level: decoder_ignores(),
        prefixes=lambda config, level: ("params/decoder",),
        external=external,
        special_tokens=lambda config: special,
        writable=True,
    )


LLAMA = _format("llama", "LLaMA-2 and Vicuna of transformers", ("<s>", "</s>"))
QWEN2 = _format("qwen2", "Qwen2 and Qwen2.5 of transformers", ("<|endoftext|>",))
