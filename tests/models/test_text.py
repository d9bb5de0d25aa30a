"""The text tower against transformers' CLIP and SigLIP, and its pads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ConfigError, TextConfig
from revision_jax.models.text import TextTower
from tests.golden import make_vision as golden
from tests.models import torch_weights
from tests.models.test_vision import SOURCES, assert_close, case, jitted

BASE = {"vocab": golden.VOCAB, "width": 16, "layers": 2, "heads": 2, "mlp": 24, "max_len": golden.LENGTH}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("garbage", [golden.EOS, 5, 10_000])
def test_clip_equals_transformers(source, garbage):
    weights, data = case(source, "clip_text")
    config = TextConfig(**BASE, projection=12, causal=True, pool="eos", activation="quick_gelu", norm_eps=1e-5)
    mask = np.arange(golden.LENGTH) < data["lengths"][:, None]
    out = jitted(TextTower(config))[0](torch_weights.clip_text(weights, config), jnp.asarray(np.where(mask, data["ids"], garbage)), jnp.asarray(mask))
    assert_close(np.asarray(out["tokens"])[mask], data["tokens"][mask])
    assert_close(out["vector"], data["vector"])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("garbage", [1, 5, 10_000])
def test_siglip_equals_transformers(source, garbage):
    """SigLIP attends to its padding: pads become the pad token whatever they hold."""
    weights, data = case(source, "siglip_text")
    config = TextConfig(**BASE, projection=16, causal=False, pool="last", activation="gelu_tanh", norm_eps=1e-6, pad_id=1)
    mask = np.arange(golden.LENGTH) < data["lengths"][:, None]
    out = jitted(TextTower(config))[0](torch_weights.siglip_text(weights, config), jnp.asarray(np.where(mask, data["ids"], garbage)), jnp.asarray(mask))
    assert_close(np.asarray(out["tokens"])[mask], data["tokens"][mask])
    assert_close(out["vector"], data["vector"])


@pytest.mark.parametrize("pool", ["eos", "mean", "last"])
@pytest.mark.parametrize("causal", [True, False])
def test_pads_change_nothing(pool, causal):
    config = TextConfig(**{**BASE, "layers": 1}, projection=12, causal=causal, pool=pool, phrases=2)
    apply, init = jitted(TextTower(config))
    mask = jnp.asarray(np.arange(9) < np.array([[4], [9], [1]]))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (3, 9)))
    variables = init(jax.random.key(0), ids, mask)
    reference = apply(variables, ids, mask)
    changed = apply(variables, jnp.where(mask, ids, 99_999), mask)
    np.testing.assert_array_equal(changed["vector"], reference["vector"])
    np.testing.assert_array_equal(changed["tokens"], reference["tokens"])
    np.testing.assert_array_equal(changed["phrases"], reference["phrases"])
    assert reference["phrases"].shape == (3, 2, 12)
    assert (np.asarray(reference["tokens"])[~np.asarray(mask)] == 0).all()
    other = apply(variables, ids.at[:, 0].set((ids[:, 0] + 1) % 40), mask)
    assert (np.abs(other["vector"] - reference["vector"]).max(-1) > 1e-5).all()


def test_a_shorter_bucket_gives_the_same_vector():
    apply, init = jitted(TextTower(TextConfig(**BASE, projection=12)))
    ids, mask = jnp.asarray([[3, 4, 5, 0, 0, 0]]), jnp.asarray([[True, True, True, False, False, False]])
    variables = init(jax.random.key(0), ids, mask)
    np.testing.assert_allclose(apply(variables, ids[:, :3], mask[:, :3])["vector"], apply(variables, ids, mask)["vector"], atol=1e-6)


def test_too_long_a_query_names_the_field():
    with pytest.raises(ConfigError, match=r"text\.max_len: a query of 10 positions"):
        TextTower(TextConfig(**BASE, projection=12)).init(jax.random.key(0), jnp.zeros((1, 10), int), jnp.ones((1, 10), bool))
