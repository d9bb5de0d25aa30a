"""The logical axes of every parameter: one table from names to axes, `Rules` says where they go.

A pattern is a name with `*` for any one key, `a|b` for either, and shell wildcards inside a key. Every parameter of the model matches
exactly one entry; a name that none or several match raises, so a new parameter cannot slip through unsharded.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase

from revision_jax.config import ConfigError

Names = tuple[str | None, ...]

# Adapters keep the released files' layout, weight [out, in]; their widths are small beside the decoder's.
TABLE: dict[str, Names] = {
    # the ViT and the text tower
    "params/vision|patch_vision/patch_embed/kernel": ("patch", "embed"),
    "params/vision|patch_vision/patch_embed/bias": ("norm",),
    "params/vision|patch_vision/position": ("patch", "embed"),
    "params/vision|patch_vision/class_token|class_position": ("norm",),
    "params/vision|patch_vision/pool/probe": ("norm",),
    "params/vision|patch_vision/pool/q|k|v/kernel": ("embed", "heads"),
    "params/vision|patch_vision/pool/q|k|v/bias": ("heads",),
    "params/vision|patch_vision/pool/out/kernel": ("heads", "embed"),
    "params/vision|patch_vision/pool/out/bias": ("norm",),
    "params/vision|patch_vision/pool/mlp/fc1/kernel": ("embed", "mlp"),
    "params/vision|patch_vision/pool/mlp/fc1/bias": ("mlp",),
    "params/vision|patch_vision/pool/mlp/fc2/kernel": ("mlp", "embed"),
    "params/vision|patch_vision/pool/mlp/fc2/bias": ("norm",),
    "params/vision|patch_vision/pool/norm/scale|bias": ("norm",),
    "params/text/embedding": ("vocab", "embed"),
    "params/text/position": ("patch", "embed"),
    "params/text/projection|phrase_projection|motion_projection/kernel": ("embed", None),
    "params/text/projection|phrase_projection|motion_projection/bias": (None,),
    "params/vision|patch_vision|text/blocks_*/attention/q|k|v/kernel": ("embed", "heads"),
    "params/vision|patch_vision|text/blocks_*/attention/q|k|v/bias": ("heads",),
    "params/vision|patch_vision|text/blocks_*/attention/out/kernel": ("heads", "embed"),
    "params/vision|patch_vision|text/blocks_*/attention/out/bias": ("norm",),
    "params/vision|patch_vision|text/blocks_*/mlp/fc1/kernel": ("embed", "mlp"),
    "params/vision|patch_vision|text/blocks_*/mlp/fc1/bias": ("mlp",),
    "params/vision|patch_vision|text/blocks_*/mlp/fc2/kernel": ("mlp", "embed"),
    "params/vision|patch_vision|text/blocks_*/mlp/fc2/bias": ("norm",),
    "params/vision|patch_vision|text/blocks_*/norm1|norm2/scale|bias": ("norm",),
    "params/vision|patch_vision|text/pre_norm|post_norm/scale|bias": ("norm",),
    # the aligned space and the similarity in it
    "params/projection/kernel": ("embed", None),
    "params/similarity/scale|bias": (),
    # the decoder, its layers stacked on the first axis
    "params/decoder/embed/embedding": ("vocab", "embed"),
    "params/decoder/head/kernel": ("embed", "vocab"),
    "params/decoder/norm/scale": ("norm",),
    "params/decoder/layers/attention_norm|mlp_norm/scale": ("layers", "norm"),
    "params/decoder/layers/attention/q/kernel": ("layers", "embed", "heads"),
    "params/decoder/layers/attention/k|v/kernel": ("layers", "embed", "kv_heads"),
    "params/decoder/layers/attention/o/kernel": ("layers", "heads", "embed"),
    "params/decoder/layers/attention/q/bias": ("layers", "heads"),
    "params/decoder/layers/attention/k|v/bias": ("layers", "kv_heads"),
    "params/decoder/layers/mlp/gate|up/kernel": ("layers", "embed", "mlp"),
    "params/decoder/layers/mlp/down/kernel": ("layers", "mlp", "embed"),
    # scales of int8 matrices (`models/quantize.py`)
    "params/decoder/layers/attention/q/scale": ("layers", "heads"),
    "params/decoder/layers/attention/k|v/scale": ("layers", "kv_heads"),
    "params/decoder/layers/attention/o/scale": ("layers", "norm"),
    "params/decoder/layers/mlp/gate|up/scale": ("layers", "mlp"),
    "params/decoder/layers/mlp/down/scale": ("layers", "norm"),
    # LoRA: a [in, rank], b [rank, out]
    "lora/*/layers/attention/q|k|v/a": ("layers", "embed", "rank"),
    "lora/*/layers/attention/o/a": ("layers", "heads", "rank"),
    "lora/*/layers/attention/q/b": ("layers", "rank", "heads"),
    "lora/*/layers/attention/k|v/b": ("layers", "rank", "kv_heads"),
    "lora/*/layers/attention/o/b": ("layers", "rank", "embed"),
    "lora/*/layers/mlp/gate|up/a": ("layers", "embed", "rank"),
    "lora/*/layers/mlp/down/a": ("layers", "mlp", "rank"),
    "lora/*/layers/mlp/gate|up/b": ("layers", "rank", "mlp"),
    "lora/*/layers/mlp/down/b": ("layers", "rank", "embed"),
    "lora/*/layers/signal_scale": ("layers", None, None),  # a scale per layer, head and channel: a few numbers
    "lora/*/summary_projection/kernel": (None, "embed"),
    "lora/*/cues/fc1/kernel": (None, "embed"),
    "lora/*/cues/fc2/kernel": ("embed", None),
    "lora/*/cues/fc1|fc2/bias": ("norm",),
    # adapters
    "adapter/*/mm_projector|text_mm_projector/weight": (None, "embed"),
    "adapter/*/mm_projector|text_mm_projector/bias": ("norm",),
    "adapter/*/alternate_layer_norm/weight|bias": ("norm",),
    "adapter/*/readout/*/weight": (None, "embed"),
    "adapter/*/readout/*/bias": ("norm",),
    "adapter/*/global_rep_token|global_rep_pos": ("norm",),
    "adapter/*/t2v_encoder|encoder/layers/*/self_attn/in_proj_weight": (None, "embed"),  # q, k, v on top of each other
    "adapter/*/t2v_encoder|encoder/layers/*/self_attn/in_proj_bias": (None,),
    "adapter/*/t2v_encoder|encoder/layers/*/self_attn/out_proj/weight": (None, "embed"),
    "adapter/*/t2v_encoder|encoder/layers/*/self_attn/out_proj/bias": ("norm",),
    "adapter/*/t2v_encoder|encoder/layers/*/linear1/weight": ("mlp", "embed"),
    "adapter/*/t2v_encoder|encoder/layers/*/linear1/bias": ("mlp",),
    "adapter/*/t2v_encoder|encoder/layers/*/linear2/weight": ("embed", "mlp"),
    "adapter/*/t2v_encoder|encoder/layers/*/linear2/bias": ("norm",),
    "adapter/*/t2v_encoder|encoder/layers/*/norm1|norm2/weight|bias": ("norm",),
}


def matches(pattern: str, name: str) -> bool:
    """Whether a parameter's name fits a pattern of the table, key by key.

    "params/vision|patch_vision|text/blocks_*/mlp" fits "params/text/blocks_3/mlp", not "params/text/blocks_3/mlp/fc1".
    """
    wanted, keys = pattern.split("/"), name.split("/")
    return len(wanted) == len(keys) and all(any(fnmatchcase(key, choice) for choice in want.split("|")) for want, key in zip(wanted, keys, strict=True))


@functools.cache
def axes_of(name: str, shape: tuple[int, ...]) -> Names:
    """The logical axes of the parameter `name`, one per dimension of `shape`. Raises ConfigError unless exactly one entry fits."""
    fitting = [pattern for pattern in TABLE if matches(pattern, name)]
    if len(fitting) != 1:
        raise ConfigError(f"sharding: {name} matches {' and '.join(fitting) or 'no entry'} of sharding/parameters.py, must match exactly one")
    axes = TABLE[fitting[0]]
    if len(axes) != len(shape):
        raise ConfigError(f"sharding: {name} has shape {shape}, its entry {fitting[0]} the axes ({', '.join(map(str, axes))})")
    return axes
