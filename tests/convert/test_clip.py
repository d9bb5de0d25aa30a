"""CLIP's format against transformers: both towers' pooled and token features, projections, scale; and what it does not have."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ExperimentConfig, VisionConfig
from revision_jax.convert import clip
from revision_jax.convert.formats import detect, named
from revision_jax.convert.source import ArraySource
from revision_jax.errors import UserError
from revision_jax.models import revision, signal
from revision_jax.models.text import TextTower
from tests.convert.cases import SOURCES, case, converted, encode, learned_inputs, need_torch, source_of
from tests.golden import make_convert as golden
from tests.models.test_vision import assert_close


def check_towers(data: dict, config: ExperimentConfig, state: dict, bias: bool, tolerance: float = 1e-5) -> None:
    """Features, one by one, so that a failure says where. bias: the similarity's is ours, not theirs."""
    inputs = learned_inputs(data["images"], config.vision.patch)
    out = encode(config.vision, state["params"]["vision"], *inputs)
    for ours, theirs in zip([out["embedded"], *out["blocks"]], data["hidden"], strict=True):
        assert_close(ours, theirs, tolerance)
    assert_close(out["frame"], data["pooled"], tolerance)
    side = data["images"].shape[2] // config.vision.patch
    encoded = revision.encode_frames(config, state["params"], *map(jnp.asarray, inputs), (side, side))
    assert_close(encoded["frame"], data["frame"], tolerance)
    mask = np.arange(data["ids"].shape[1]) < data["lengths"][:, None]
    words = jax.jit(TextTower(config.text).apply)({"params": state["params"]["text"]}, jnp.asarray(data["ids"]), jnp.asarray(mask))
    assert_close(np.asarray(words["tokens"])[mask], data["tokens"][mask], tolerance)  # after the last norm, not projected
    assert_close(words["vector"], data["vector"], tolerance)
    logits = signal.token_logits(state["params"]["similarity"], encoded["frame"][:, None, None], words["vector"][None])[..., 0]
    assert_close(logits - bias * state["params"]["similarity"]["bias"], data["logits"], tolerance)


@pytest.mark.parametrize("source", SOURCES)
def test_features_equal_transformers(source):
    data = case(source, "clip")
    config, state = converted("clip", source_of(data))
    assert config.vision.grids == (golden.CLIP_GRID,) and config.vision.projection == config.text.projection == 12
    check_towers(data, config, state, bias=True)


def test_what_clip_does_not_have():
    """Biases of the patch convolution and of the text projection are zero; the similarity's is ours: even odds at a cosine of 0.25."""
    data = case("golden", "clip")
    config, state = converted("clip", source_of(data))
    params = state["params"]
    assert not params["vision"]["patch_embed"]["bias"].any() and not params["text"]["projection"]["bias"].any()
    assert params["similarity"]["scale"] == 1.5
    along = jnp.asarray([[[0.25, 0.9375**0.5] + [0.0] * 10]])
    assert abs(signal.token_logits(params["similarity"], along, jnp.eye(12)[:1])[0, 0]) < 1e-5
    # Every leaf of these subtrees is there: the model runs as it is initialised.
    expected = revision.abstract_state(config)["params"]
    for name in ("vision", "text", "projection", "similarity"):
        assert jax.tree.map(jnp.shape, params[name]) == jax.tree.map(jnp.shape, expected[name])


@pytest.mark.torch
@pytest.mark.parametrize("grid", [(5, 4), (2, 3)])
def test_positions_are_resized_as_transformers_does(grid):
    need_torch()
    import torch
    from transformers import CLIPConfig, CLIPModel

    data = case("golden", "clip")
    source = source_of(data)
    base = ExperimentConfig(vision=VisionConfig(position="learned", grids=(grid,), merge=1))
    config, state = converted("clip", source, base)
    assert config.vision.grids == (grid,)
    model = CLIPModel(CLIPConfig(**json.loads(str(data["config"])))).eval()
    model.load_state_dict({name: torch.tensor(source.read(name)) for name in source.tensors}, strict=False)
    images = np.random.default_rng(0).normal(size=(2, 3, 4 * grid[0], 4 * grid[1])).astype(np.float32)
    with torch.no_grad():
        theirs = model.vision_model(torch.tensor(images), interpolate_pos_encoding=True).pooler_output.numpy()
    assert_close(encode(config.vision, state["params"]["vision"], *learned_inputs(images, 4))["frame"], theirs)


def test_bad_checkpoints_name_everything():
    source = source_of(case("golden", "clip"))
    assert detect(source) is named("clip")
    config = json.loads(str(case("golden", "clip")["config"]))
    config["vision_config"] |= {"hidden_act": "relu", "hidden_size": -3, "num_channels": 1}
    with pytest.raises(UserError, match=r"num_channels is 1.*hidden_size must be.*-3.*hidden_act is 'relu'"):
        clip.FORMAT.config(ArraySource({}, config), ExperimentConfig(), "")
    with pytest.raises(UserError, match="model_type is 'blip'"):
        clip.FORMAT.config(ArraySource({}, {**config, "model_type": "blip"}), ExperimentConfig(), "")
    arrays = {name: source.read(name) for name in source.tensors}
    del arrays["visual_projection.weight"]
    arrays["text_model.encoder.layers.1.mlp.fc1.bias"] = np.zeros(3, np.float32)
    arrays["stray"] = np.zeros(3, np.float32)
    broken = ArraySource(arrays, source.config)
    with pytest.raises(UserError) as error:
        clip.FORMAT.plan(broken, clip.FORMAT.config(broken, ExperimentConfig(), ""))
    assert all(name in str(error.value) for name in ("visual_projection.weight", "text_model.encoder.layers.1.mlp.fc1.bias", "stray"))


def test_it_is_only_read():
    with pytest.raises(UserError, match="clip is only read"):
        clip.FORMAT.export_plan(ExperimentConfig())
