"""VL3-SigLIP-NaViT's format: parity with transformers' encoder, layer by layer; both key families; and back."""

import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import ExperimentConfig, VisionConfig
from revision_jax.convert import navit
from revision_jax.convert.formats import detect
from revision_jax.convert.source import ArraySource, open_source
from revision_jax.convert.write import write_external
from revision_jax.errors import UserError
from revision_jax.models.vision import merge_tokens, merge_valid
from tests.convert.cases import SOURCES, converted, encode
from tests.golden import make_vision
from tests.models.test_vision import assert_close, bucket
from tests.models.test_vision import case as vision_case

TINY = {
    "model_type": "videollama3_vision_encoder", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_channels": 3, "attention_dropout": 0.0,
}  # fmt: skip


def tiny(source: str = "golden", merge: int = 1, prefix: str = "") -> tuple[ArraySource, dict]:
    weights, data = vision_case(source, f"videollama3_merge{merge}")
    return ArraySource({prefix + name: value for name, value in weights.items()}, TINY), data


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("prefix", ["", "vision_encoder."])
def test_activations_equal_transformers(source, merge, prefix):
    """Three images of unequal sizes padded into one bucket; the encoder's every layer and the merged tokens."""
    checkpoint, data = tiny(source, merge, prefix)
    config, state = converted("navit", checkpoint)
    assert config.text is None and config.vision.patch == 4
    grids = make_vision.GRIDS[merge]
    patches, rows, columns, valid = bucket(data["patches"], grids, merge, 28, np.nan)
    out = encode(config.vision, state["params"]["vision"], patches, rows, columns, valid)
    real = np.asarray(valid)
    for ours, theirs in zip([out["embedded"], *out["blocks"]], data["hidden"], strict=True):
        assert_close(np.asarray(ours)[real], theirs)
    merged = np.asarray(merge_tokens(out["tokens"], (4, 7) if merge == 1 else (2, 14), merge))
    assert_close(merged[np.asarray(merge_valid(valid, merge))], data["merged"])


def test_there_and_back(tmp_path):
    """What is written has the original's names, shapes, numbers and config."""
    checkpoint, _ = tiny(prefix="vision_encoder.")
    config, state = converted("navit", checkpoint)
    leaves = paths.flatten(state)
    plan = navit.FORMAT.export_plan(config)
    write_external(tmp_path / "out", plan.backward(lambda path, index: np.asarray(leaves[path])), navit.FORMAT.external(config, ""))
    again = open_source(tmp_path / "out")
    assert set(again.tensors) == {name.removeprefix("vision_encoder.") for name in checkpoint.tensors}
    for name in again.tensors:
        np.testing.assert_array_equal(again.read(name), checkpoint.read("vision_encoder." + name))
    assert detect(again).name == "navit" and navit.FORMAT.config(again, ExperimentConfig(), "") == config


def test_patch_is_the_weights_where_the_config_is_silent():
    """The config class's default is 16; the weights know better."""
    checkpoint, _ = tiny()
    silent = ArraySource({name: checkpoint.read(name) for name in checkpoint.tensors}, {key: value for key, value in TINY.items() if key != "patch_size"})
    assert converted("navit", silent)[0].vision.patch == 4


def test_the_encoder_of_the_patch_level_and_its_processor(tmp_path):
    checkpoint, _ = tiny()
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 4, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}')
    checkpoint.path = tmp_path
    base = ExperimentConfig(patch_vision=VisionConfig(patch=4, grids=((2, 4), (6, 6))))
    config, state = converted("navit", checkpoint, base)
    assert set(state["params"]) == {"patch_vision"} and config.patch_vision.grids == ((2, 4), (6, 6)) and config.text == base.text
    assert config.patch_vision.mean == (0.4, 0.5, 0.6) and config.patch_vision.std == (0.2, 0.3, 0.4)
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 14}')
    with pytest.raises(UserError, match="the processor's patch_size is 14, the encoder's is 4"):
        converted("navit", checkpoint, base)


def test_bad_checkpoints_name_everything():
    checkpoint, _ = tiny()
    arrays = {name: checkpoint.read(name) for name in checkpoint.tensors}
    with pytest.raises(UserError, match=r"model_type is 'siglip'.*num_hidden_layers must be.*'two'.*hidden_act is 'relu'"):
        navit.FORMAT.config(ArraySource(arrays, {**TINY, "model_type": "siglip", "num_hidden_layers": "two", "hidden_act": "relu"}), ExperimentConfig(), "")
    with pytest.raises(UserError, match="2-D RoPE needs a head width that divides by 4"):
        navit.FORMAT.config(ArraySource(arrays, {**TINY, "num_attention_heads": 8}), ExperimentConfig(), "")
    del arrays["post_layernorm.bias"]
    wrong = ArraySource(arrays, {**TINY, "intermediate_size": 32, "num_hidden_layers": 1})
    with pytest.raises(UserError) as error:
        navit.FORMAT.plan(wrong, navit.FORMAT.config(wrong, ExperimentConfig(), ""))
    for told in ("missing: post_layernorm.bias", "encoder.layers.0.mlp.fc1.weight has shape (24, 16)", "encoder.layers.1.layer_norm1.weight"):
        assert told in str(error.value)


def test_another_encoder_cannot_be_exported_as_this():
    with pytest.raises(UserError, match="export: the encoder is not VideoLLaMA3's"):
        navit.FORMAT.external(ExperimentConfig(vision=VisionConfig(position="learned")), "")
