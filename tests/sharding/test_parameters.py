"""Every parameter of every kind of model has exactly one entry of logical axes."""

import dataclasses

import jax
import pytest

from configs.tiny import get_config
from revision_jax import paths
from revision_jax.config import ConfigError
from revision_jax.models.quantize import quantize_state
from revision_jax.models.revision import abstract_state
from revision_jax.sharding.mesh import make_mesh
from revision_jax.sharding.parameters import TABLE, axes_of, matches
from revision_jax.sharding.rules import LOGICAL, Rules, tree_shardings


def variants():
    tiny = get_config()
    yield "tiny", tiny
    clip = dataclasses.replace(tiny.vision, position="learned", class_token=True, pool="cls", pre_norm=True)
    llama = dataclasses.replace(tiny.decoder, qkv_bias=False, tie_embeddings=False)
    yield "clip and llama", dataclasses.replace(tiny, vision=clip, decoder=llama)
    yield "motion", dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, motion=True))
    dense = tiny.grounding.level("dense")
    levels = (dataclasses.replace(dense, adapter=dataclasses.replace(dense.adapter, norm="applied")),)
    yield "alternate", dataclasses.replace(tiny, grounding=dataclasses.replace(tiny.grounding, levels=levels), train=type(tiny.train)())
    yield "siglip", dataclasses.replace(tiny, vision=dataclasses.replace(tiny.vision, pool="attention"))


@pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in variants()])
def test_every_parameter_has_one_entry(config):
    state = abstract_state(config)
    for name, leaf in paths.flatten(state).items():
        axes = axes_of(name, leaf.shape)
        assert len(axes) == leaf.ndim
        assert all(axis is None or axis in LOGICAL for axis in axes), name
    tree_shardings(state, make_mesh(config.mesh, jax.devices()[:1]), Rules())


def test_every_entry_is_used_by_some_model():
    names = {name for _, config in variants() for name in paths.flatten(jax.eval_shape(quantize_state, abstract_state(config)))}
    names |= {name for _, config in variants() for name in paths.flatten(abstract_state(config))}
    assert [pattern for pattern in TABLE if not any(matches(pattern, name) for name in names)] == []


def test_unknown_name_and_wrong_rank_raise():
    with pytest.raises(ConfigError, match=r"params/decoder/router/kernel matches no entry"):
        axes_of("params/decoder/router/kernel", (4, 4))
    with pytest.raises(ConfigError, match="has shape"):
        axes_of("params/projection/kernel", (4,))
