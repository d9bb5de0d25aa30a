"""Recomputation by name: the same gradients from fewer live bytes, in the decoder's layers and the encoder's blocks; old configs' booleans."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ConfigError, DecoderConfig, ExperimentConfig, VisionConfig, override
from revision_jax.models.decoder import Decoder, init_decoder
from revision_jax.models.vision import VisionTransformer

DECODER = DecoderConfig(vocab=32, width=32, layers=4, heads=4, kv_heads=2, head_dim=8, mlp=64)
VISION = VisionConfig(width=32, layers=4, heads=4, mlp=64, patch=4, grids=((8, 8),))
POLICIES = ("none", "dots", "full")


def compiled(part, policy, scan=True):
    """(gradients, bytes of temporaries) of a scalar of all outputs."""
    if part == "decoder":
        config = dataclasses.replace(DECODER, remat=policy, scan=scan)
        params, ids = init_decoder(config, jax.random.key(0)), jax.random.randint(jax.random.key(1), (2, 64), 0, 32)
        out = lambda params: Decoder(config).apply(params, ids, method=Decoder.everything)
    else:
        patches, places = jax.random.normal(jax.random.key(1), (2, 64, 48)), jnp.broadcast_to(jnp.arange(64), (2, 64))
        inputs = (patches, places // 8, places % 8, jnp.ones((2, 64), bool))
        params = jax.jit(VisionTransformer(VISION).init)(jax.random.key(0), *inputs)
        out = lambda params: VisionTransformer(VISION, remat=policy).apply(params, *inputs)["tokens"]
    program = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(out(params))))).lower(params).compile()
    return program(params), program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("part, scan", [("decoder", True), ("decoder", False), ("vision", True)])
def test_the_same_gradients_from_fewer_bytes(part, scan):
    made = [compiled(part, policy, scan) for policy in POLICIES]
    for gradients, _ in made[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients, made[0][0])
    sizes = [size for _, size in made]
    if scan and part == "decoder":  # unrolled, the CPU's scheduler may find as good an order by itself
        assert sizes[2] < sizes[1] < sizes[0]


def test_older_configs_say_false_or_true():
    assert DecoderConfig().remat == DecoderConfig(remat=False).remat == "none" and DecoderConfig(remat=True).remat == "full"
    stored = ExperimentConfig().to_dict()
    for old, new in ((False, "none"), (True, "full"), ("dots", "dots")):
        stored["decoder"]["remat"] = old
        assert ExperimentConfig.from_dict(stored).decoder.remat == new
    assert override(ExperimentConfig(), ["decoder.remat=true"]).decoder.remat == "full"
    with pytest.raises(ConfigError, match=r"decoder\.remat: 'some' is not one of none, dots, full"):
        override(ExperimentConfig(), ["decoder.remat=some"])


@functools.cache
def _flops(policy):
    from revision_jax.training.flops import model_flops

    config = dataclasses.replace(ExperimentConfig(), decoder=dataclasses.replace(DECODER, remat=policy))
    ids = jnp.zeros((2, 8), jnp.int32)

    def make(config):
        return lambda state, batch, key: (jnp.sum(Decoder(config.decoder).apply(state, batch["ids"], method=Decoder.everything)), {})

    return model_flops(config, make, init_decoder(DECODER, jax.random.key(0)), {}, {"ids": ids})


def test_model_flops_do_not_count_what_is_computed_again():
    assert _flops("none") == _flops("dots") == _flops("full") > 0
