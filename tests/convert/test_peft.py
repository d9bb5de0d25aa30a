"""LoRA directories of PEFT: kept apart and merged they give PEFT's logits, and PEFT opens what is written."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import DecoderConfig, ExperimentConfig, GroundingConfig, LevelConfig, LoraConfig
from revision_jax.convert import formats
from revision_jax.convert.llama import LLAMA, QWEN2
from revision_jax.convert.load import load_state
from revision_jax.convert.peft import FORMAT, Merged, lora_config
from revision_jax.convert.plan import Plan
from revision_jax.convert.source import ArraySource, Source, open_source
from revision_jax.convert.write import write_external
from revision_jax.errors import UserError
from revision_jax.models.decoder import Decoder
from tests.golden.make_decoder import CONFIGS, LIVE
from tests.golden.make_lora import SETTINGS, lora_model

GOLDEN = Path(__file__).parents[1] / "golden"
LEVELS = GroundingConfig(levels=(LevelConfig(name="dense"),))


@functools.cache
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "lora.npz"))


def base() -> ArraySource:
    arrays = np.load(GOLDEN / "decoder_llama.npz")
    return ArraySource({key.removeprefix("weight/"): np.asarray(arrays[key], np.float32) for key in arrays if key.startswith("weight/")})


def lora(drop=(), **changes) -> ArraySource:
    arrays = {key.removeprefix("lora/"): np.asarray(value, np.float32) for key, value in golden().items() if key.startswith("lora/")}
    return ArraySource({name: array for name, array in arrays.items() if name not in drop}, json.loads(str(golden()["config"])) | changes, "the-lora")


def experiment(decoder: DecoderConfig = CONFIGS["llama"], rank: int = 0) -> ExperimentConfig:
    return ExperimentConfig(text=None, decoder=dataclasses.replace(decoder, lora=LoraConfig(rank=rank)), grounding=LEVELS)


def logits(config: ExperimentConfig, plans: list[Plan], ids: np.ndarray) -> np.ndarray:
    state = load_state(plans, dtype="float32")
    tree = {"params": state["params"]["decoder"], **({"lora": state["lora/dense"]} if "lora/dense" in state else {})}

    @jax.jit
    def run(tree, ids):
        decoder = Decoder(config.decoder)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        hidden, _ = decoder.apply(tree, decoder.apply(tree, ids, method=Decoder.embed), positions, jnp.ones(ids.shape, bool))
        return decoder.apply(tree, hidden, method=Decoder.logits)

    return np.asarray(run(tree, jnp.asarray(ids)))


def relative_error(found, wanted) -> float:
    return float(np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max())


def apart_and_merged(model: Source, pairs: Source, config: ExperimentConfig, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    form = QWEN2 if config.decoder.qkv_bias else LLAMA
    config = FORMAT.config(pairs, config, "dense")
    decoder = form.plan(model, config)
    merged = Merged(decoder, FORMAT.plan(pairs, config, ""), "", config.decoder.lora.scale)
    return logits(config, [decoder, FORMAT.plan(pairs, config, "dense")], ids), logits(config, [merged], ids)


def test_golden_logits_apart_and_merged():
    config = FORMAT.config(lora(), experiment(), "dense")
    assert config.decoder.lora == LoraConfig(rank=3, alpha=7.0, dropout=0.1, rank_stabilised=True)
    ids, wanted = golden()["ids"], golden()["logits"]
    for found in apart_and_merged(base(), lora(), experiment(), ids):
        assert relative_error(found, wanted) < 1e-5
    assert relative_error(logits(config, [LLAMA.plan(base(), config)], ids), wanted) > 0.05  # without it the model is another


def test_modules_that_it_leaves_alone_are_zero():
    config = FORMAT.config(lora(), experiment(), "dense")
    leaves = paths.flatten(load_state([FORMAT.plan(lora(), config, "dense")]))
    assert set(leaves) == set(FORMAT.target(config, "dense")) == set(formats.target(config, ["lora/dense"]))
    assert not any(leaves[f"lora/dense/layers/{name}/{x}"].any() for name in ("attention/k", "mlp/gate", "mlp/up") for x in "ab")
    assert all(leaves[f"lora/dense/layers/{name}/{x}"].any() for name in ("attention/q", "mlp/down") for x in "ab")


def test_there_and_back(tmp_path):
    config = FORMAT.config(lora(), experiment(), "dense")
    plan = FORMAT.plan(lora(), config, "dense")
    out = write_external(tmp_path / "out", FORMAT.export_plan(config, "dense").backward(plan.read), FORMAT.external(config, "dense"),
                         stem=FORMAT.weights, config_name=FORMAT.config_name)  # fmt: skip
    again = open_source(out)
    assert formats.detect(again) is FORMAT and FORMAT.config(again, experiment(), "dense") == config
    for name in lora().tensors:
        np.testing.assert_array_equal(again.read(name), lora().read(name))
    assert len(again.tensors) == 2 * 2 * 7


def test_older_names():
    source = lora().renamed(lambda name: name.replace(".weight", ".default.weight"))
    config = FORMAT.config(source, experiment(), "dense")
    assert len(FORMAT.plan(source, config, "dense").steps) == len(FORMAT.plan(lora(), config, "dense").steps)


def complaint(source: Source, config: ExperimentConfig | None = None, level: str = "dense") -> str:
    with pytest.raises(UserError) as error:
        config = FORMAT.config(source, config or experiment(), level)
        FORMAT.plan(source, config, level)
    return str(error.value)


def test_another_base_is_named_in_one_error():
    other = dataclasses.replace(CONFIGS["llama"], layers=3, mlp=40)
    told = complaint(lora(), experiment(other))
    for part in ("the-lora: ", "its base is 'the-base'", "made for 2 layers", "the base has 3", "mlp.down_proj has 48 features in, the base has 40"):
        assert part in told


def test_another_rank_is_named():
    told = complaint(lora(r=4))
    assert "adapter_config.json says rank 4, 16 tensors have rank 3" in told
    preset = dataclasses.replace(experiment(), decoder=dataclasses.replace(CONFIGS["llama"], lora=LoraConfig(rank=64)))
    assert "rank 3 and scale 4.04145, the model's levels have rank 64 and scale 2" in complaint(lora(), preset)


def test_what_else_is_refused():
    assert "peft_type is 'IA3'" in complaint(lora(peft_type="IA3"))
    told = complaint(lora(use_dora=True, bias="all", rank_pattern={"q_proj": 8}, modules_to_save=["lm_head"], r=None))
    for part in ("use_dora is True", "bias is 'all', must be 'none'", "rank_pattern is", "modules_to_save is", "r must be a positive"):
        assert part in told
    assert "names self_attn.k_proj, of which there are no tensors" in complaint(lora(target_modules=["q_proj", "k_proj"]))
    assert "'sparse' is not a level of the config; there are dense" in complaint(lora(), level="sparse")
    absent = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    assert f"missing: {absent}" in complaint(lora(drop=[absent]))
    extra = ArraySource({name: lora().read(name) for name in lora().tensors} | {"base_model.model.lm_head.weight": np.zeros(1, np.float32)}, lora().config)
    assert "does not know: base_model.model.lm_head.weight" in complaint(extra)


def test_settings():
    plain = lora_config({"peft_type": "LORA", "r": 8, "lora_alpha": 16}, "here")
    assert (plain.scale, plain.dropout, plain.rank_stabilised) == (2.0, 0.0, False)


# ---------------------------------------------------------------------------------------------------------------------- with peft


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "llama_gqa_tied"])
def test_the_directory_that_peft_writes(tmp_path, name, binary):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    everything = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    model = lora_model(None, LIVE[name], everything if binary else SETTINGS)
    model.save_pretrained(tmp_path / "lora", safe_serialization=not binary)
    if binary and not (tmp_path / "lora" / "adapter_model.bin").exists():  # later versions of PEFT write safetensors alone
        torch.save(peft.get_peft_model_state_dict(model), tmp_path / "lora" / "adapter_model.bin")
        (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    ids = np.arange(14).reshape(2, 7)
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(ids)).logits.numpy()
        model.unload().save_pretrained(tmp_path / "base")
    for found in apart_and_merged(open_source(tmp_path / "base"), open_source(tmp_path / "lora"), experiment(LIVE[name]), ids):
        assert relative_error(found, wanted) < 1e-4


@pytest.mark.torch
@pytest.mark.slow
def test_peft_opens_what_is_written(tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = experiment(LIVE["qwen2"])
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, lora=LoraConfig(rank=3, alpha=5.0, rank_stabilised=True)))
    random = np.random.default_rng(3)
    target = formats.target(config, ["params/decoder", "lora/dense"])
    leaves = {name: (0.3 * random.normal(size=leaf.shape)).astype(np.float32) for name, leaf in target.items()}
    read = lambda path, index: leaves[path] if index is None else leaves[path][index]
    write_external(tmp_path / "base", QWEN2.export_plan(config).backward(read), QWEN2.external(config, ""))
    write_external(tmp_path / "lora", FORMAT.export_plan(config, "dense").backward(read), FORMAT.external(config, "dense"),
                   stem=FORMAT.weights, config_name=FORMAT.config_name)  # fmt: skip
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "lora").eval()
    ids = np.arange(14).reshape(2, 7)
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    for found in apart_and_merged(open_source(tmp_path / "base"), open_source(tmp_path / "lora"), experiment(LIVE["qwen2"]), ids):
        assert relative_error(found, wanted) < 1e-4
