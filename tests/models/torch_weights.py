"""Weights of transformers' VideoLLaMA3, CLIP and SigLIP towers as this project's parameter trees, for parity tests.

A state dict is given as NumPy arrays; every function fails if a weight is left over. torch keeps a linear layer [out, in], this project [in, out].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


class _StateDict:
    def __init__(self, weights: dict[str, np.ndarray], prefix: str = ""):
        self.left = {name.removeprefix(prefix): value for name, value in weights.items() if not name.endswith("position_ids")}

    def linear(self, name: str) -> dict:
        kernel = self.left.pop(f"{name}.weight").T
        return {"kernel": kernel, "bias": self.left.pop(f"{name}.bias", np.zeros(kernel.shape[1], np.float32))}

    def norm(self, name: str) -> dict:
        return {"scale": self.left.pop(f"{name}.weight"), "bias": self.left.pop(f"{name}.bias")}

    def patch_embed(self, name: str) -> dict:
        kernel = self.left.pop(f"{name}.weight")  # [D, 3, p, p]: the order of a channel-first patch
        return {"kernel": kernel.reshape(len(kernel), -1).T, "bias": self.left.pop(f"{name}.bias", np.zeros(len(kernel), np.float32))}

    def blocks(self, layers: int) -> dict:
        tree = {}
        for i in range(layers):
            layer = f"encoder.layers.{i}"
            attention = {x: self.linear(f"{layer}.self_attn.{x}_proj") for x in "qkv"} | {"out": self.linear(f"{layer}.self_attn.out_proj")}
            tree[f"blocks_{i}"] = {
                "norm1": self.norm(f"{layer}.layer_norm1"),
                "norm2": self.norm(f"{layer}.layer_norm2"),
                "attention": attention,
                "mlp": {"fc1": self.linear(f"{layer}.mlp.fc1"), "fc2": self.linear(f"{layer}.mlp.fc2")},
            }
        return tree

    def finish(self, tree: dict) -> dict:
        assert not self.left, f"weights left over: {sorted(self.left)}"
        return {"params": jax.tree.map(jnp.asarray, tree)}


def videollama3_vision(weights: dict[str, np.ndarray], layers: int) -> dict:
    state = _StateDict(weights)
    return state.finish({"patch_embed": state.patch_embed("embeddings.patch_embedding"), **state.blocks(layers), "post_norm": state.norm("post_layernorm")})


def clip_vision(weights: dict[str, np.ndarray], layers: int) -> dict:
    state = _StateDict(weights, "vision_model.")
    position = state.left.pop("embeddings.position_embedding.weight")
    tree = {
        "patch_embed": state.patch_embed("embeddings.patch_embedding"),
        "class_token": state.left.pop("embeddings.class_embedding"),
        "class_position": position[0],
        "position": position[1:],
        "pre_norm": state.norm("pre_layrnorm"),
        **state.blocks(layers),
        "post_norm": state.norm("post_layernorm"),
    }
    return state.finish(tree)


def siglip_vision(weights: dict[str, np.ndarray], layers: int) -> dict:
    state = _StateDict(weights, "vision_model.")
    in_weight, in_bias = state.left.pop("head.attention.in_proj_weight"), state.left.pop("head.attention.in_proj_bias")
    head = {
        name: {"kernel": weight.T, "bias": bias}
        for name, weight, bias in zip("qkv", np.split(in_weight, 3), np.split(in_bias, 3), strict=True)
    }
    head |= {"probe": state.left.pop("head.probe").reshape(-1), "out": state.linear("head.attention.out_proj"), "norm": state.norm("head.layernorm")}
    head["mlp"] = {"fc1": state.linear("head.mlp.fc1"), "fc2": state.linear("head.mlp.fc2")}
    tree = {
        "patch_embed": state.patch_embed("embeddings.patch_embedding"),
        "position": state.left.pop("embeddings.position_embedding.weight"),
        **state.blocks(layers),
        "post_norm": state.norm("post_layernorm"),
        "pool": head,
    }
    return state.finish(tree)


def _text(weights: dict[str, np.ndarray], layers: int, head: str) -> dict:
    state = _StateDict(weights, "text_model.")
    tree = {
        "embedding": state.left.pop("embeddings.token_embedding.weight"),
        "position": state.left.pop("embeddings.position_embedding.weight"),
        **state.blocks(layers),
        "post_norm": state.norm("final_layer_norm"),
        "projection": state.linear(head),
    }
    return state.finish(tree)


def clip_text(weights: dict[str, np.ndarray], layers: int) -> dict:
    return _text(weights, layers, "text_projection")


def siglip_text(weights: dict[str, np.ndarray], layers: int) -> dict:
    return _text(weights, layers, "head")
