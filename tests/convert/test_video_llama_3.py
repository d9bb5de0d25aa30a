"""The whole of VideoLLaMA3: logits equal transformers' for images, videos with pruning, text and batches; both key families; and back."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import AdapterConfig, ExperimentConfig, GroundingConfig, LevelConfig, VisionConfig
from revision_jax.convert import video_llama_3
from revision_jax.convert.formats import detect, named
from revision_jax.convert.source import ArraySource, open_source
from revision_jax.convert.write import write_external
from revision_jax.data import frames as host_frames
from revision_jax.errors import UserError
from revision_jax.models.adapter import MlpAdapter
from revision_jax.models.decoder import Decoder
from revision_jax.models.vision import VisionTransformer, merge_tokens
from tests.convert.cases import SOURCES, case, converted, need_torch, source_of
from tests.golden import make_convert as golden
from tests.models.test_vision import assert_close

OURS_OF_THEIRS = {"model.language_model.": "model.", "model.vision_model.": "model.vision_encoder.", "model.projector.": "model.mm_projector."}


def own_names(name: str) -> str:
    """A tensor's name in the original repository."""
    return next((own + name.removeprefix(theirs) for theirs, own in OURS_OF_THEIRS.items() if name.startswith(theirs)), name)


def own_config(config: dict) -> dict:
    text = {key: value for key, value in config["text_config"].items() if key != "model_type"}
    vision = {**config["vision_config"], "model_type": "videollama3_vision_encoder"}
    tied = config["tie_word_embeddings"]
    return {**text, "model_type": "videollama3_qwen2", "tie_word_embeddings": tied, "vision_encoder_config": vision, "mm_projector_type": "mlp2x_gelu"}


# --------------------------------------------------------------------------------------------------------------------------- logits


@functools.cache
def _programs(config: ExperimentConfig):
    vision, decoder = VisionTransformer(config.vision), Decoder(config.decoder)

    def logits(state: dict, embeds, positions, valid):
        params = {"params": state["params"]["decoder"]}
        return decoder.apply(params, decoder.apply(params, embeds, positions, valid)[0], method=Decoder.logits)

    embed = lambda state, ids: decoder.apply({"params": state["params"]["decoder"]}, ids, method=Decoder.embed)
    project = lambda state, x: MlpAdapter(config.decoder.width).apply({"params": state["adapter/patch"]}, x)
    return jax.jit(vision.apply), project, embed, jax.jit(logits)


def embeds_of(config: ExperimentConfig, state: dict, name: str, sample: dict) -> np.ndarray:
    """[S H]: a sample's tokens, the kept visual ones in the places of their placeholders."""
    vision, project, embed, _ = _programs(config)
    embeds = np.array(embed(state, jnp.asarray(sample["ids"])[None])[0])
    start = kept = 0
    features = {"image": [], "video": []}
    for kind, frames, rows, columns, merge in golden.SAMPLES[name]:
        count = frames * rows * columns
        # One bucket for all: 4 frames of 24 patches.
        patches = np.zeros((4, 24, sample["patches"].shape[1]), sample["patches"].dtype)
        patches[:frames, : rows * columns] = sample["patches"][start : start + count].reshape(frames, rows * columns, -1)
        row, column = (np.pad(np.tile(x, (4, 1)), ((0, 0), (0, 24 - rows * columns))) for x in host_frames.positions((rows, columns), merge))
        out = vision({"params": state["params"]["vision"]}, *map(jnp.asarray, (patches, row, column, np.tile(np.arange(24) < rows * columns, (4, 1)))))
        tokens = merge_tokens(out["tokens"][:frames, : rows * columns], (rows, columns), merge)
        tokens = np.asarray(project(state, tokens)).reshape(-1, config.decoder.width)
        features[kind].append(tokens[sample["keep"][kept : kept + len(tokens)]])
        start, kept = start + count, kept + len(tokens)
    for kind, token in (("image", golden.IMAGE), ("video", golden.VIDEO)):
        if features[kind]:
            embeds[sample["ids"] == token] = np.concatenate(features[kind])
    return embeds


def logits_of(config: ExperimentConfig, state: dict, embeds: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of a batch of unequal prompts, padded on the left with garbage."""
    length = 80
    padded = np.full((len(embeds), length, config.decoder.width), np.nan, np.float32)
    valid = np.zeros((len(embeds), length), bool)
    for row, one in enumerate(embeds):
        padded[row, length - len(one) :], valid[row, length - len(one) :] = one, True
    positions = np.maximum(np.cumsum(valid, 1) - 1, 0)
    out = np.asarray(_programs(config)[3](state, *map(jnp.asarray, (padded, positions, valid))))
    return [out[row, length - len(one) :] for row, one in enumerate(embeds)]


def samples_of(data: dict) -> dict[str, dict]:
    return {name: {key: data[f"{name}/{key}"] for key in ("ids", "patches", "keep", "logits")} for name in golden.SAMPLES}


@functools.cache
def model(source: str) -> tuple[dict, ExperimentConfig, dict]:
    data = case(source, "video_llama_3")
    return samples_of(data), *converted("video_llama_3", source_of(data))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", golden.SAMPLES)
def test_logits_equal_transformers(source, name):
    samples, config, state = model(source)
    sample = samples[name]
    assert name != "video" or not sample["keep"].all()
    assert_close(logits_of(config, state, [embeds_of(config, state, name, sample)])[0], sample["logits"], 1e-4)


@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_of_unequal_prompts_equals_each_alone(source):
    samples, config, state = model(source)
    found = logits_of(config, state, [embeds_of(config, state, name, sample) for name, sample in samples.items()])
    for ours, sample in zip(found, samples.values(), strict=True):
        assert_close(ours, sample["logits"], 1e-4)


# ---------------------------------------------------------------------------------------------------------------- names, both ways


def source_by(family: str, tied: bool = True) -> ArraySource:
    """The golden model as a checkpoint of either family."""
    source = source_of(case("golden", "video_llama_3"))
    config = source.config
    arrays = {name: source.read(name) for name in source.tensors}
    if not tied:
        config = json.loads(json.dumps(config))
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
        arrays["lm_head.weight"] = np.random.default_rng(0).normal(size=(97, 32)).astype(np.float32)
    if family == "video_llama_3":
        return ArraySource(arrays, config)
    prefix = "model.vision_encoder." if family == "training" else "\0"
    return ArraySource({own_names(name).replace(prefix, prefix + "vision_encoder."): value for name, value in arrays.items()}, own_config(config))


@pytest.mark.parametrize("family", ["videollama3", "training"])
def test_own_names_give_the_same_model(family):
    config, state = converted("video_llama_3", source_by("video_llama_3"))
    source = source_by(family)
    assert detect(source).name == "videollama3"
    own, own_state = converted("videollama3", source)
    assert own == config
    for name, leaf in paths.flatten(state).items():
        np.testing.assert_array_equal(paths.flatten(own_state)[name], leaf)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["video_llama_3", "videollama3"])
def test_there_and_back(tmp_path, family, tied):
    """What is written, in shards, has the same names, shapes, numbers and config."""
    source = source_by(family, tied)
    form = named(family)
    assert detect(source) is form
    config, state = converted(family, source)
    leaves = paths.flatten(state)
    read = lambda path, index: np.asarray(leaves[path] if index is None else leaves[path][index])
    write_external(tmp_path / "out", form.export_plan(config).backward(read), form.external(config, ""), shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    again = open_source(tmp_path / "out")
    assert detect(again) is form and form.config(again, ExperimentConfig(), "") == config
    assert set(again.tensors) == set(source.tensors)
    for name in again.tensors:
        np.testing.assert_array_equal(again.read(name), source.read(name))


@pytest.mark.torch
def test_what_is_written_opens_in_transformers(tmp_path):
    need_torch()
    import torch
    from transformers import AutoModelForImageTextToText

    samples, config, state = model("golden")
    leaves = paths.flatten(state)
    read = lambda path, index: np.asarray(leaves[path] if index is None else leaves[path][index])
    external = {**video_llama_3.FORMAT.external(config, ""), "image_token_id": golden.IMAGE, "video_token_id": golden.VIDEO}
    write_external(tmp_path / "out", video_llama_3.FORMAT.export_plan(config).backward(read), external)
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(**golden.inputs_of("both", samples["both"], torch)).logits[0].numpy()
    assert_close(logits, samples["both"]["logits"], 1e-5)


def test_a_model_with_two_encoders_and_a_level_of_another_name():
    level = LevelConfig(name="close", kind="patch", budget=64, adapter=AdapterConfig(kind="mlp", width=8))
    base = ExperimentConfig(patch_vision=VisionConfig(width=8, heads=2, patch=4, grids=((4, 4),)), grounding=GroundingConfig(levels=(level,)))
    config, state = converted("video_llama_3", source_by("video_llama_3"), base)
    assert set(state) == {"params", "adapter/close"} and set(state["params"]) == {"patch_vision", "decoder"}
    assert config.text == base.text and config.vision == base.vision and config.patch_vision.width == 16
    assert config.grounding.level("close").adapter.width == 16 and config.grounding.level("close").budget == 64


def test_bad_checkpoints_name_everything():
    source = source_by("video_llama_3")
    config = json.loads(json.dumps(source.config))
    config["vision_config"]["num_attention_heads"] = 0
    config["text_config"] |= {"vocab_size": None, "use_sliding_window": True}
    with pytest.raises(UserError, match=r"vision_config\.num_attention_heads must be.*vocab_size must be.*use_sliding_window is True"):
        video_llama_3.FORMAT.config(ArraySource({}, config), ExperimentConfig(), "")
    with pytest.raises(UserError, match="mm_projector_type is 'linear', must be 'mlp2x_gelu'"):
        video_llama_3.OWN_FORMAT.config(ArraySource({}, {**own_config(source.config), "mm_projector_type": "linear"}), ExperimentConfig(), "")
    with pytest.raises(UserError, match="vision_config must be an object"):
        video_llama_3.FORMAT.config(ArraySource({}, {key: value for key, value in source.config.items() if key != "vision_config"}), ExperimentConfig(), "")
    arrays = {name: source.read(name) for name in source.tensors}
    del arrays["model.projector.readout.2.bias"]
    arrays["model.vision_model.post_layernorm.weight"] = np.zeros(5, np.float32)
    arrays["lm_head.weight"] = np.zeros((97, 32), np.float32)
    broken = ArraySource(arrays, source.config)
    with pytest.raises(UserError) as error:
        video_llama_3.FORMAT.plan(broken, video_llama_3.FORMAT.config(broken, ExperimentConfig(), ""))
    assert "model.projector.readout.2.bias" in str(error.value) and "post_layernorm.weight has shape (5,)" in str(error.value)
    arrays = {name: source.read(name) for name in source.tensors} | {"lm_head.weight": np.zeros((97, 32), np.float32)}
    broken = ArraySource(arrays, source.config)
    with pytest.raises(UserError, match=r"tied weights given twice and different: lm_head\.weight"):
        video_llama_3.FORMAT.plan(broken, video_llama_3.FORMAT.config(broken, ExperimentConfig(), ""))


def test_a_level_that_cannot_hold_the_projector_is_named():
    level = LevelConfig(name="dense", kind="dense")
    with pytest.raises(UserError, match=r"one level of kind patch with an adapter of kind mlp; there are dense \(dense, adapter dense\)"):
        video_llama_3.patch_level(ExperimentConfig(grounding=GroundingConfig(levels=(level,))))
