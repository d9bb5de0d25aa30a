"""Weights of transformers' LlamaForCausalLM and Qwen2ForCausalLM as this project's decoder parameters, for parity tests.

torch keeps a linear layer [out, in], this project [in, out], and stacks the layers.
"""

from __future__ import annotations

import numpy as np

# ours, under "layers" -> theirs, under model.layers.<i>
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention/{x}": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"mlp/{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def decoder_params(weights: dict[str, np.ndarray], layers: int, tied: bool) -> dict:
    """The decoder's "params" from a torch state dict given as NumPy arrays. Fails if a weight is left over."""
    left = dict(weights)

    def stacked(name: str) -> np.ndarray:
        return np.stack([left.pop(f"model.layers.{i}.{name}") for i in range(layers)])

    tree: dict = {}
    for ours, theirs in LAYER_NAMES.items():
        *parents, last = ours.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if "norm" in last:
            node[last] = {"scale": stacked(f"{theirs}.weight")}
            continue
        node[last] = {"kernel": np.swapaxes(stacked(f"{theirs}.weight"), 1, 2)}
        if f"model.layers.0.{theirs}.bias" in left:
            node[last]["bias"] = stacked(f"{theirs}.bias")
    params = {"embed": {"embedding": left.pop("model.embed_tokens.weight")}, "layers": tree, "norm": {"scale": left.pop("model.norm.weight")}}
    head = left.pop("lm_head.weight", None)
    if not tied:
        params["head"] = {"kernel": head.T}
    assert not left, f"weights not mapped: {sorted(left)}"
    return params
