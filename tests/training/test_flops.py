"""FLOPs by the trace, against products written down by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from revision_jax.models.decoder import Decoder
from revision_jax.training.flops import product_flops
from tests import tiny

X, W = jnp.zeros((8, 16)), jnp.zeros((16, 32))


def test_products_loops_and_branches():
    assert product_flops(jnp.matmul, X, W) == 2 * 8 * 16 * 32
    assert product_flops(lambda x: jax.lax.scan(lambda c, _: (c @ jnp.ones((16, 16)), None), x, None, length=5)[0], X) == 5 * 2 * 8 * 16 * 16
    once = 2 * 8 * 16 * 16
    assert product_flops(lambda x: jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ jnp.ones((16, 16)), x), X, loops=7) == 7 * once
    turn = lambda c: jax.lax.while_loop(lambda c: c.sum() < 0, lambda c: c @ jnp.ones((16, 16)), c)
    assert product_flops(lambda x: jax.lax.while_loop(lambda c: c.sum() < 1, turn, x), X, loops=7) == 7 * once
    assert product_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ jnp.ones((16, 16)), lambda x: x, x), X) == once
    assert product_flops(lambda x: jax.lax.conv(x[None, None], jnp.ones((3, 1, 2, 2)), (1, 1), "VALID"), X) == 2 * 3 * 7 * 15 * 4


def test_what_no_result_depends_on_is_not_counted():
    def unused(x, w):
        x @ w
        return x + 1

    assert product_flops(unused, X, W) == 0


def test_a_frozen_weight_has_two_products_and_a_trained_one_three():
    def loss(trained, frozen, x):
        return jnp.sum(jnp.tanh(x @ trained) @ frozen)

    frozen, forward = jnp.zeros((32, 4)), 2 * 8 * 16 * 32 + 2 * 8 * 32 * 4
    # forward, the gradient through `frozen`, the gradient of `trained`; none for `frozen` itself nor for x
    assert product_flops(jax.value_and_grad(loss), W, frozen, X) == forward + 2 * 8 * 32 * 4 + 2 * 8 * 16 * 32


@pytest.mark.parametrize("scan", [True, False])
def test_a_decoder_has_two_flops_for_each_weight_and_token_and_its_attention(scan):
    decoder = tiny.config().decoder
    config = dataclasses.replace(decoder, scan=scan, tie_embeddings=False, signal=dataclasses.replace(decoder.signal, enabled=False))
    batch, length = 2, 6
    shapes = jax.eval_shape(lambda: Decoder(config).init({"params": jax.random.key(0), "lora": jax.random.key(0)}, jnp.zeros((1, 1), jnp.int32),
                                                         method=Decoder.everything))
    found = product_flops(lambda params, ids: Decoder(config).apply({"params": params}, ids, method=Decoder.everything), shapes["params"],
                          jax.ShapeDtypeStruct((batch, length), jnp.int32))
    c = config
    weights = c.layers * (c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.mlp) + c.width * c.vocab
    attention = c.layers * 2 * batch * c.heads * length * length * c.head_dim
    assert found == 2 * batch * length * weights + 2 * attention
