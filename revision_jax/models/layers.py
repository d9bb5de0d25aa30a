"""Norms, MLPs and the linear layer that can carry LoRA.

Weights are stored [in, out]. Parameters keep their stored dtype; a product is computed in the dtype of its input, statistics in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from revision_jax.config import ConfigError, LoraConfig

# What an activation is called in configs. CLIP: quick_gelu. SigLIP, VideoLLaMA3's encoder: gelu_tanh. VideoLLaMA3's projector: gelu (erf).
ACTIVATIONS: dict[str, Callable] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


def activate(x: Float[Array, "*shape"], name: str) -> Float[Array, "*shape"]:
    """Applies the activation called `name`; raises ConfigError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation: {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](x)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis; statistics in float32, result in the dtype of x."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis; statistics in float32, result in the dtype of x (LLaMA, Qwen2)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype)


class LoraLinear(nn.Module):
    """x W + b, plus scale * dropout(x) a b' where the collection "lora" holds `a` and `b` for this layer.

    W and its bias live in the collection "params" (`kernel` [in, out], `bias`; `scale` [out] beside a kernel of int8, see `quantize.py`). With `lora`
    given, `init` also makes the collection "lora" (it needs an rng stream "lora"): `a` [in, rank] normal, `b` [rank, out] zeros, so that a fresh LoRA
    changes nothing. Applied without that collection the layer is the plain linear one. Dropout needs the rng stream "dropout" and acts only where
    `deterministic` is false.
    """

    features: int
    use_bias: bool = False
    lora: LoraConfig | None = None
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*B in"], deterministic: bool = True) -> Float[Array, "*B out"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if self.has_variable("params", "scale"):
            product = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
            out = (product * self.get_variable("params", "scale")).astype(x.dtype)
        else:
            out = x @ kernel.astype(x.dtype)
        if self.use_bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        # A collection that is not passed at apply means: this layer has no LoRA today.
        if self.lora is not None and self.lora.rank > 0 and (self.is_initializing() or self.has_variable("lora", "a")):
            down = self.variable("lora", "a", self._down, x.shape[-1]).value
            up = self.variable("lora", "b", jnp.zeros, (self.lora.rank, self.features)).value
            if self.lora.dropout > 0 and not deterministic:
                x = nn.Dropout(self.lora.dropout, deterministic=False)(x)
            out = out + _widen(x @ down.astype(x.dtype), up.astype(x.dtype) * self.lora.scale)
        return out

    def _down(self, width: int):
        return nn.initializers.normal(width**-0.5)(self.make_rng("lora"), (width, self.lora.rank))


@jax.custom_vjp
def _widen(narrow: Float[Array, "*B rank"], up: Float[Array, "rank out"]) -> Float[Array, "*B out"]:
    """narrow up, whose gradient for `up` is summed over the rows as they lie. Autodiff transposes it instead, and XLA on a CPU then works out all that leads
    to the gradient column by column: a tiny decoder's step takes 1.7 times as long."""
    return narrow @ up


def _widen_forward(narrow: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return narrow @ up, (narrow, up)


def _widen_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    narrow, up = kept
    return gradient @ up.T, jnp.einsum("...r,...o->ro", narrow, gradient)


_widen.defvjp(_widen_forward, _widen_backward)


class Mlp(nn.Module):
    """fc2(activation(fc1(x))), both with biases: `hidden` channels inside, the width of x outside (or `features`)."""

    hidden: int
    activation: str = "gelu_tanh"
    features: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        inner = activate(LoraLinear(self.hidden, use_bias=True, name="fc1")(x), self.activation)
        return LoraLinear(self.features or x.shape[-1], use_bias=True, name="fc2")(inner)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)) without biases (SwiGLU, Shazeer 2020), each of the three with LoRA if given."""

    hidden: int
    lora: LoraConfig | None = None
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"], deterministic: bool = True) -> Float[Array, "*B D"]:
        def linear(name: str, features: int) -> LoraLinear:
            return LoraLinear(features, lora=self.lora, kernel_init=self.kernel_init, name=name)

        gate = linear("gate", self.hidden)(x, deterministic)
        up = linear("up", self.hidden)(x, deterministic)
        return linear("down", x.shape[-1])(jax.nn.silu(gate) * up, deterministic)
