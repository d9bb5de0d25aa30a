"""SigLIP's format against transformers, and its image tower as the start of an encoder with 2-D RoPE."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ExperimentConfig, VisionConfig
from revision_jax.convert import siglip
from revision_jax.convert.formats import detect, named
from revision_jax.convert.source import ArraySource
from revision_jax.errors import UserError
from revision_jax.models import revision
from tests.convert.cases import SOURCES, case, converted, encode, learned_inputs, need_torch, source_of
from tests.convert.test_clip import check_towers
from tests.models.test_vision import assert_close


@pytest.mark.parametrize("source", SOURCES)
def test_features_equal_transformers(source):
    data = case(source, "siglip")
    config, state = converted("siglip", source_of(data))
    assert config.vision.pool == "attention" and config.text.pool == "last"
    check_towers(data, config, state, bias=False)
    expected = revision.abstract_state(config)["params"]
    for name in ("vision", "text", "similarity"):
        assert jax.tree.map(jnp.shape, state["params"][name]) == jax.tree.map(jnp.shape, expected[name])


@pytest.mark.torch
@pytest.mark.parametrize("grid", [(5, 4), (2, 3)])
def test_positions_are_resized_as_transformers_does(grid):
    need_torch()
    import torch
    from transformers import SiglipConfig, SiglipModel

    data = case("golden", "siglip")
    source = source_of(data)
    config, state = converted("siglip", source, ExperimentConfig(vision=VisionConfig(position="learned", grids=(grid,), merge=1)))
    model = SiglipModel(SiglipConfig(**json.loads(str(data["config"])))).eval()
    model.load_state_dict({name: torch.tensor(source.read(name)) for name in source.tensors}, strict=False)
    images = np.random.default_rng(0).normal(size=(2, 3, 4 * grid[0], 4 * grid[1])).astype(np.float32)
    with torch.no_grad():
        theirs = model.vision_model(torch.tensor(images), interpolate_pos_encoding=True)
    ours = encode(config.vision, state["params"]["vision"], *learned_inputs(images, 4))
    assert_close(ours["tokens"], theirs.last_hidden_state.numpy())
    assert_close(ours["frame"], theirs.pooler_output.numpy())


def test_the_first_stage_starts_from_its_blocks_alone():
    """2-D RoPE in the place of positions, no head, no text: and with every angle 0 it is SigLIP without positions."""
    source = source_of(case("golden", "siglip"))
    config, state = converted("siglip_rope2d", source)
    assert config.text is None and config.vision.position == "rope2d" and set(state["params"]) == {"vision"}
    params = state["params"]["vision"]
    assert "position" not in params and "pool" not in params
    weights = {name: source.read(name) for name in source.tensors}
    weights["vision_model.embeddings.position_embedding.weight"] *= 0
    learned_config, learned = converted("siglip", ArraySource(weights, source.config))
    inputs = learned_inputs(case("golden", "siglip")["images"], 4)
    tokens = encode(learned_config.vision, learned["params"]["vision"], *inputs)["tokens"]
    patches, rows, columns, valid = inputs
    assert_close(encode(config.vision, params, patches, 0 * rows, 0 * columns, valid)["tokens"], np.asarray(tokens))
    assert np.abs(encode(config.vision, params, *inputs)["tokens"] - tokens).max() > 1e-3


def test_the_first_stage_of_a_model_with_two_encoders():
    base = ExperimentConfig(patch_vision=VisionConfig(patch=4, grids=((4, 4),)))
    config, state = converted("siglip_rope2d", source_of(case("golden", "siglip")), base)
    assert set(state["params"]) == {"patch_vision"} and config.vision == base.vision and config.text == base.text
    assert config.patch_vision.width == 16 and config.patch_vision.grids == ((4, 4),)


def test_bad_checkpoints_name_everything():
    source = source_of(case("golden", "siglip"))
    assert detect(source) is named("siglip")
    config = json.loads(str(case("golden", "siglip")["config"]))
    config["text_config"] |= {"projection_size": 7, "layer_norm_eps": "small"}
    with pytest.raises(UserError, match=r"text_config\.layer_norm_eps must be a positive number.*projection_size is 7"):
        siglip.FORMAT.config(ArraySource({}, config), ExperimentConfig(), "")
    arrays = {name: source.read(name) for name in source.tensors}
    arrays["vision_model.head.attention.in_proj_weight"] = np.zeros((47, 16), np.float32)
    del arrays["logit_bias"]
    broken = ArraySource(arrays, source.config)
    with pytest.raises(UserError) as error:
        siglip.FORMAT.plan(broken, siglip.FORMAT.config(broken, ExperimentConfig(), ""))
    assert "logit_bias" in str(error.value) and "47 rows do not divide by 3" in str(error.value)
