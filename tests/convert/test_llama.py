"""LLaMA and Qwen2 directories: the same logits as transformers gives, with and without a cache, and back again."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from revision_jax import paths
from revision_jax.config import DecoderConfig, ExperimentConfig, LoraConfig
from revision_jax.convert import formats
from revision_jax.convert.llama import LLAMA, QWEN2, decoder_config, decoder_rules, external_config
from revision_jax.convert.load import load_state
from revision_jax.convert.plan import make_plan
from revision_jax.convert.source import ArraySource, Source, open_source
from revision_jax.convert.write import write_external
from revision_jax.errors import UserError
from revision_jax.models.cache import init_cache
from revision_jax.models.decoder import Decoder
from tests.golden.make_decoder import CONFIGS, LIVE

GOLDEN = Path(__file__).parents[1] / "golden"
BASE = ExperimentConfig(decoder=DecoderConfig(lora=LoraConfig(rank=0)))
VALUES = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "rms_norm_eps": 1e-5, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


def imported(source: Source) -> tuple[ExperimentConfig, dict]:
    form = formats.detect(source)
    config = form.config(source, BASE, "")
    return config, load_state([form.plan(source, config)])


@functools.partial(jax.jit, static_argnums=0)
def logits(config: DecoderConfig, params: dict, ids: jax.Array, positions: jax.Array, valid: jax.Array) -> jax.Array:
    decoder, tree = Decoder(config), {"params": params}
    hidden, _ = decoder.apply(tree, decoder.apply(tree, ids, method=Decoder.embed), positions, valid)
    return decoder.apply(tree, hidden, method=Decoder.logits)


@functools.partial(jax.jit, static_argnums=0)
def cached_step(config: DecoderConfig, params: dict, ids: jax.Array, start: jax.Array, cache: dict) -> tuple[jax.Array, dict]:
    decoder, tree = Decoder(config), {"params": params}
    positions = jnp.broadcast_to(start + jnp.arange(ids.shape[1]), ids.shape)
    embeds = decoder.apply(tree, ids, method=Decoder.embed)
    hidden, cache = decoder.apply(tree, embeds, positions, jnp.ones(ids.shape, bool), cache=cache, start=start)
    return decoder.apply(tree, hidden, method=Decoder.logits), cache


def cached_logits(config: DecoderConfig, params: dict, ids: jax.Array) -> np.ndarray:
    """`logits` of whole rows, token by token after a prefix of five, through a cache."""
    cache, found = init_cache(config, len(ids), ids.shape[1], "float32"), []
    for start, end in [(0, 5), *((i, i + 1) for i in range(5, ids.shape[1]))]:
        out, cache = cached_step(config, params, ids[:, start:end], jnp.int32(start), cache)
        found.append(out)
    return np.concatenate(found, axis=1)


def relative_error(found, wanted) -> float:
    wanted = np.asarray(wanted, np.float64)
    return float(np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max())


# ---------------------------------------------------------------------------------------------------------------- without torch


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"decoder_{name}.npz"))


def golden_directory(folder: Path, name: str) -> Path:
    """What the golden arrays were made from, as a directory of safetensors."""
    weights = {key.removeprefix("weight/"): np.ascontiguousarray(value) for key, value in golden(name).items() if key.startswith("weight/")}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(external_config(CONFIGS[name])))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_logits(tmp_path, name):
    arrays = golden(name)
    source = open_source(golden_directory(tmp_path, name))
    config = formats.detect(source).config(source, BASE, "")
    assert config.decoder == dataclasses.replace(CONFIGS[name], lora=LoraConfig(rank=0))
    params = load_state([formats.detect(source).plan(source, config)], dtype="float32")["params"]["decoder"]
    found = logits(config.decoder, params, arrays["ids"], arrays["positions"], arrays["mask"])
    assert relative_error(found[arrays["mask"]], arrays["logits"][arrays["mask"]]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_with_cache_and_without(tmp_path, name):
    config, state = imported(open_source(golden_directory(tmp_path, name)))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), state["params"]["decoder"])
    ids = jnp.asarray(golden(name)["ids"])[:, :9]
    whole = logits(config.decoder, params, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), jnp.ones(ids.shape, bool))
    assert relative_error(cached_logits(config.decoder, params, ids), whole) < 1e-5


# What bfloat16 costs, weights and activations: the largest deviation of a logit over the largest logit. Two layers here; 8 bits of mantissa are 0.4 %.
BFLOAT16 = 0.03


def bfloat16_logits(config: DecoderConfig, source: Source, ids, positions, valid) -> np.ndarray:
    config = dataclasses.replace(config, dtype="bfloat16", lora=LoraConfig(rank=0))
    plan = (QWEN2 if config.qkv_bias else LLAMA).plan(source, ExperimentConfig(decoder=config))
    return np.asarray(logits(config, load_state([plan], dtype="bfloat16")["params"]["decoder"], ids, positions, valid))


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16(tmp_path, name):
    arrays, source = golden(name), open_source(golden_directory(tmp_path, name))
    mask = arrays["mask"]
    found = bfloat16_logits(CONFIGS[name], source, arrays["ids"], arrays["positions"], mask)[mask]
    exact, theirs = arrays["logits"][mask], arrays["logits_bfloat16"][mask]
    assert 1e-4 < relative_error(found, exact) < min(BFLOAT16, 1.5 * relative_error(theirs, exact))
    assert relative_error(found, theirs) < BFLOAT16


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_the_same_file(tmp_path, name):
    (tmp_path / "in").mkdir()
    source = open_source(golden_directory(tmp_path / "in", name))
    config, state = imported(source)
    leaves = paths.flatten(state)
    form = formats.detect(source)
    tensors = form.export_plan(config).backward(lambda path, index: leaves[path] if index is None else leaves[path][index])
    out = open_source(write_external(tmp_path / "out", tensors, form.external(config, ""), shard_bytes=8000))
    assert len({info.file for info in out.tensors.values()}) > 3 and out.metadata == {"format": "pt"}
    assert set(out.tensors) == set(source.tensors) and form.config(out, BASE, "").decoder == config.decoder
    for name_ in source.tensors:
        np.testing.assert_array_equal(out.read(name_), source.read(name_))


def test_another_prefix():
    arrays = {f"model.language_model.{key.removeprefix('weight/model.')}": value for key, value in golden("qwen2").items() if key.startswith("weight/")}
    config = ExperimentConfig(decoder=CONFIGS["qwen2"])
    rules = decoder_rules(config.decoder, model="model.language_model")
    plan = make_plan(rules, (), ArraySource(arrays), formats.target(config, ["params/decoder"]))
    assert len(plan.steps) == len(arrays)


def test_config_of_both_ages_of_transformers():
    old = decoder_config(VALUES | {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "bfloat16", "num_key_value_heads": 2}, "here")
    new = decoder_config(VALUES | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "dtype": "bfloat16", "num_key_value_heads": 2}, "here")
    assert old == new and (old.rope_theta, old.dtype, old.kv_heads, old.head_dim, old.qkv_bias) == (5e5, "bfloat16", 2, 8, False)
    assert decoder_config(VALUES | {"head_dim": 16}, "here").head_dim == 16 and decoder_config(VALUES, "here").kv_heads == 4
    kept = DecoderConfig(lora=LoraConfig(rank=7), scan=False)
    assert (decoder_config(VALUES, "here", kept).lora.rank, decoder_config(VALUES, "here", kept).scan) == (7, False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_scaling is 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', must be silu"),
        ({"attention_bias": True, "mlp_bias": True}, "attention_bias is True, must be false; mlp_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"vocab_size": None, "hidden_size": "32"}, "vocab_size must be a positive whole number, is None; hidden_size must be"),
        ({"num_key_value_heads": 3}, "4 heads do not divide into 3"),
    ],
)
def test_configs_that_are_refused(changes, told):
    with pytest.raises(UserError) as error:
        decoder_config(VALUES | changes, "dir/config.json")
    assert told in str(error.value) and str(error.value).startswith("dir/config.json: ")


def test_missing_and_foreign_tensors_are_named(tmp_path):
    arrays = {key.removeprefix("weight/"): value for key, value in golden("llama").items() if key.startswith("weight/")}
    del arrays["model.layers.1.mlp.up_proj.weight"], arrays["lm_head.weight"]
    arrays |= {"model.layers.2.mlp.up_proj.weight": arrays["model.layers.0.mlp.up_proj.weight"], "model.vision.weight": np.zeros(1, np.float32),
               "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}  # fmt: skip
    with pytest.raises(UserError) as error:
        LLAMA.plan(ArraySource(arrays), ExperimentConfig(decoder=CONFIGS["llama"]))
    for part in ("missing: lm_head.weight, model.layers.1.mlp.up_proj.weight", "does not know: model.vision.weight", "does not have: model.layers.2.mlp"):
        assert part in str(error.value)
    assert "inv_freq" not in str(error.value)


def test_a_format_is_told_by_its_config():
    tensors = {"model.embed_tokens.weight": np.zeros((2, 2), np.float32)}
    assert formats.detect(ArraySource(tensors, {"model_type": "qwen2"})) is QWEN2
    with pytest.raises(UserError, match=r"names \['GPT2LMHeadModel'\]\); known are .*llama, qwen2"):
        formats.detect(ArraySource(tensors, {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))


# --------------------------------------------------------------------------------------------------------------------- with torch


def torch_model(c: DecoderConfig, seed: int = 0, **kwargs):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    kind, config_kind = (Qwen2ForCausalLM, Qwen2Config) if c.qkv_bias else (LlamaForCausalLM, LlamaConfig)
    torch.manual_seed(seed)
    model = kind(config_kind(**{key: value for key, value in external_config(c).items() if key not in ("architectures", "model_type")}, **kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # transformers starts norms at one and biases at zero: anything would fit
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def torch_logits(model, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.from_numpy(np.asarray(ids, np.int64))).logits.float().numpy()


def our_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    config, state = imported(open_source(folder))
    params, ids = jax.tree.map(jnp.asarray, state["params"]["decoder"]), jnp.asarray(ids)
    return np.asarray(logits(config.decoder, params, ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape), jnp.ones(ids.shape, bool)))


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", LIVE)
def test_logits_of_a_saved_model(tmp_path, name):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model = torch_model(LIVE[name])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    ids = np.random.default_rng(0).integers(0, LIVE[name].vocab, (2, 9))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert relative_error(our_logits(tmp_path, ids), torch_logits(model, ids)) < 1e-4


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_as_close_as_torch_s(tmp_path, name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, ids = torch_model(CONFIGS[name]), np.arange(16).reshape(2, 8)
    model.save_pretrained(tmp_path)
    exact, theirs = torch_logits(model, ids), torch_logits(model.to(torch.bfloat16), ids)
    positions, valid = jnp.broadcast_to(jnp.arange(8), ids.shape), jnp.ones(ids.shape, bool)
    ours = bfloat16_logits(CONFIGS[name], open_source(tmp_path), jnp.asarray(ids), positions, valid)
    assert relative_error(ours, exact) < max(1.5 * relative_error(theirs, exact), 0.01)
    assert relative_error(ours, theirs) < BFLOAT16


@pytest.mark.torch
def test_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = torch_model(CONFIGS["llama"])
    weights = dict(model.state_dict())
    names = list(weights)
    for i, part in enumerate((names[:7], names[7:]), start=1):
        torch.save({name: weights[name] for name in part}, tmp_path / f"pytorch_model-{i:05d}-of-00002.bin")
    (tmp_path / "config.json").write_text(json.dumps(external_config(CONFIGS["llama"])))
    ids = np.arange(14).reshape(2, 7)
    assert relative_error(our_logits(tmp_path, ids), torch_logits(model, ids)) < 1e-4


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", LIVE)
def test_transformers_opens_what_is_written(tmp_path, name):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ExperimentConfig(decoder=dataclasses.replace(LIVE[name], lora=LoraConfig(rank=0)))
    random = np.random.default_rng(1)
    leaves = {path: (0.3 * random.normal(size=leaf.shape)).astype(np.float32) for path, leaf in formats.target(config, ["params/decoder"]).items()}
    form = QWEN2 if LIVE[name].qkv_bias else LLAMA
    tensors = form.export_plan(config).backward(lambda path, index: leaves[path] if index is None else leaves[path][index])
    write_external(tmp_path / "out", tensors, form.external(config, ""), shard_bytes=30000)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ids = np.arange(14).reshape(2, 7)
    assert relative_error(our_logits(tmp_path / "out", ids), torch_logits(model.eval(), ids)) < 1e-4
