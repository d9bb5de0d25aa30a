"""Weights of 8 bits for a decoder that is not trained: a matrix as {"kernel": int8 [.. in out], "scale": float32 [.. out]}, kernel * scale the weight.

Symmetric, a scale for each output channel, so that a product is taken with the integers and scaled afterwards (`layers.LoraLinear`): no float matrix is
kept, and activations are not rounded. Only the layers' matrices are quantised, 96 % of a 7B; embedding, head, norms and biases stay. LoRA pairs lie beside the
matrix as ever, gradients flow through it to what is before.

Source: LLM.int8() (arXiv 2208.07339) without its outliers, which activations have and weights have not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8

from revision_jax import paths

AnyArray = Array | np.ndarray
MOST = 127  # -128 is left out, so that the range is symmetric
DECODER = "params/decoder"
STACKS = f"{DECODER}/layers"  # where a state holds the layers, each leaf a stack of them


def quantized(kernel: Float[Array, "*L in out"]) -> tuple[Int8[Array, "*L in out"], Float32[Array, "*L out"]]:
    """(int8 kernel, scale): kernel is about int8 * scale, at most half a scale off. A channel of zeros has scale 1."""
    wide = kernel.astype(jnp.float32)
    largest = jnp.abs(wide).max(-2)
    scale = jnp.where(largest > 0, largest / MOST, 1.0)
    return jnp.round(wide / scale[..., None, :]).astype(jnp.int8), scale


def dequantized(kernel: Int8[AnyArray, "*L in out"], scale: Float32[AnyArray, "*L out"]) -> Float32[AnyArray, "*L in out"]:
    """The weight that an int8 kernel stands for. NumPy arrays give NumPy arrays."""
    return kernel.astype("float32") * scale[..., None, :]


def is_quantized(node: Mapping[str, Any]) -> bool:
    """Whether a layer's dict of parameters holds an int8 kernel."""
    return "kernel" in node and "scale" in node and node["kernel"].dtype == jnp.int8


def quantize_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's "params" with the matrices of its layers quantised; those that are already stay as they are. Works under jit and `jax.eval_shape`."""

    def walk(node: Mapping[str, Any]) -> dict[str, Any]:
        if "kernel" in node and not is_quantized(node):
            node = {**node, **dict(zip(("kernel", "scale"), quantized(node["kernel"]), strict=True))}
        return {name: walk(inner) if isinstance(inner, Mapping) else inner for name, inner in node.items()}

    return {**params, "layers": walk(params["layers"])}


def quantize_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with its decoder quantised."""
    return {**state, "params": {**state["params"], "decoder": quantize_layers(state["params"]["decoder"])}}


def quantized_leaf(name: str, leaf: jax.Array, shardings: Mapping[str, Any]) -> dict[str, jax.Array]:
    """A leaf of a state by its path, as it is, or as an int8 kernel and its scale where `shardings` (by path) has one for it."""
    scale = scale_name(name)
    if scale not in shardings:
        return {name: leaf}
    return dict(zip((name, scale), jax.jit(quantized, out_shardings=(shardings[name], shardings[scale]))(leaf), strict=True))


def scale_name(kernel: str) -> str:
    """What the scale of a kernel is called, by its path; "" for another parameter, and for one that is not of a decoder's layers."""
    return kernel.removesuffix("kernel") + "scale" if kernel.endswith("/kernel") and paths.under(kernel, STACKS) else ""
