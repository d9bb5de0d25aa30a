"""`python -m launch.convert` on tiny random models, both ways, and everything a person can get wrong: one line, exit status 2, nothing written."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.cli import run
from launch.convert import main
from revision_jax import checkpoint, paths
from revision_jax.config import DecoderConfig, ExperimentConfig, GroundingConfig, LevelConfig, LoraConfig
from revision_jax.convert import formats, peft
from revision_jax.convert.llama import LLAMA, QWEN2
from revision_jax.convert.source import open_source
from revision_jax.convert.write import write_external
from revision_jax.data.tokenizer import build_word_tokenizer

SMALL = {"vocab": 61, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp": 24}
DECODERS = {
    "llama": DecoderConfig(**SMALL, lora=LoraConfig(rank=0)),
    "qwen2": DecoderConfig(**SMALL, qkv_bias=True, tie_embeddings=True, norm_eps=1e-6, rope_theta=1e6, lora=LoraConfig(rank=0)),
}
LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.0)
LEVELS = '''
from revision_jax.config import DecoderConfig, ExperimentConfig, GroundingConfig, LevelConfig, LoraConfig
def get_config():
    levels = (LevelConfig(name="sparse"), LevelConfig(name="dense"))
    return ExperimentConfig(name="mine", text=None, decoder=DecoderConfig(lora=LoraConfig(rank=3, alpha=6.0)), grounding=GroundingConfig(levels=levels))
'''


def random_leaves(target, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: (0.2 * random.normal(size=leaf.shape)).astype(dtype) for name, leaf in target.items()}


def write_tokenizer(folder: Path, *tokens: str) -> None:
    import tokenizers

    folder.mkdir(exist_ok=True)
    inner = tokenizers.Tokenizer.from_file(str(build_word_tokenizer(["a red ring"], numbers=10, vocab_size=24).save(folder)))
    inner.add_special_tokens([token for token in tokens if inner.token_to_id(token) is None])
    inner.save(str(folder / "tokenizer.json"))


def model(folder: Path, kind: str, *, shard_bytes: int = 10**9, tokens=("<s>", "</s>", "<|endoftext|>"), change=lambda tensors, config: None) -> Path:
    """A directory as transformers writes it. change(tensors, config) spoils it."""
    form, config = (LLAMA, QWEN2)[kind == "qwen2"], ExperimentConfig(text=None, decoder=DECODERS[kind])
    leaves = random_leaves(form.target(config))
    tensors = dict(form.export_plan(config).backward(lambda path, index: leaves[path] if index is None else leaves[path][index]))
    values = form.external(config, "")
    change(tensors, values)
    write_external(folder, tensors.items(), values, shard_bytes)
    if tokens is not None:
        write_tokenizer(folder, *tokens)
    return folder


def lora(folder: Path, kind: str = "llama", seed: int = 1, settings: LoraConfig = LORA, **sizes) -> Path:
    decoder = dataclasses.replace(DECODERS[kind], lora=settings, **sizes)
    config = ExperimentConfig(text=None, decoder=decoder, grounding=GroundingConfig(levels=(LevelConfig(name="dense"),)))
    leaves = random_leaves(peft.FORMAT.target(config, "dense"), seed)
    tensors = peft.FORMAT.export_plan(config, "dense").backward(lambda path, index: leaves[path][index])
    return write_external(folder, tensors, peft.FORMAT.external(config, "dense"), stem="adapter_model", config_name="adapter_config.json")


@pytest.fixture
def levels(tmp_path) -> str:
    (tmp_path / "levels.py").write_text(LEVELS)
    return str(tmp_path / "levels.py")


def same_tensors(one: Path, other: Path) -> None:
    first, second = open_source(one), open_source(other)
    assert set(first.tensors) == set(second.tensors)
    for name in first.tensors:
        np.testing.assert_array_equal(first.read(name), second.read(name))


# ------------------------------------------------------------------------------------------------------------------- what works


@pytest.mark.parametrize("kind", DECODERS)
def test_there_and_back(tmp_path, capsys, kind):
    source, ours, back = model(tmp_path / "in", kind, shard_bytes=3000), tmp_path / "ours", tmp_path / "back"
    main(["--source", kind, "--path", str(source), "--out", str(ours)])
    told = capsys.readouterr().out
    assert f"{ours}: 0.00 GB" in told and "note: no part gives params/vision" in told
    read = checkpoint.load(ours)
    assert read.config.decoder == DECODERS[kind] and set(read.state) == {"params"} and set(read.state["params"]) == {"decoder"}
    assert read.tokenizer.read_text() == (source / "tokenizer.json").read_text()
    main(["--target", kind, "--path", str(ours), "--out", str(back), "--shard-bytes", "3000"])
    same_tensors(source, back)
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert (back / "tokenizer.json").is_file() and len(list(back.glob("*.safetensors"))) > 2


def test_videollama3_is_found_out_and_written_back(tmp_path):
    from tests.tiny import config as tiny

    form = formats.named("video_llama_3")
    vision = dataclasses.replace(tiny().vision, projection=0)
    adapter = dataclasses.replace(tiny().grounding.level("patch").adapter, width=vision.width)
    level = LevelConfig(name="patch", kind="patch", budget=16, tokens=8, adapter=adapter)
    config = ExperimentConfig(vision=vision, text=None, decoder=DECODERS["qwen2"], grounding=GroundingConfig(levels=(level,)))
    leaves = random_leaves(form.target(config))
    tensors = form.export_plan(config).backward(lambda path, index: leaves[path] if index is None else leaves[path][index])
    source = write_external(tmp_path / "in", tensors, form.external(config, ""), 5000)
    write_tokenizer(source, *form.special_tokens(config))
    main(["--path", str(source), "--out", str(tmp_path / "ours"), "--dtype", "bfloat16"])
    read = checkpoint.load(tmp_path / "ours", dtype="float32")
    found = paths.flatten(read.state)
    assert set(found) == set(paths.flatten(leaves)) and not [level.name for level in read.config.grounding.levels if level.kind != "patch"]
    assert all(np.abs(found[name] - leaf).max() <= np.abs(leaf).max() / 128 for name, leaf in leaves.items())
    main(["--target", "video_llama_3", "--path", str(tmp_path / "ours"), "--out", str(tmp_path / "back"), "--dtype", "float32"])
    assert set(open_source(tmp_path / "back").tensors) == set(open_source(source).tensors)


def test_a_lora_apart_then_exported_and_merged(tmp_path, capsys, levels):
    base, pairs, ours = model(tmp_path / "base", "llama"), lora(tmp_path / "lora"), tmp_path / "ours"
    main(["--config", levels, "--source", "peft:dense", "--path", str(pairs), "--source", "llama", "--path", str(base), "--out", str(ours)])
    read = checkpoint.load(ours)
    assert read.config.name == "mine" and set(read.state) == {"params", "lora/dense"}
    assert (read.config.decoder.lora.rank, read.config.decoder.lora.scale) == (3, 2.0)
    main(["--target", "peft:dense", "--path", str(ours), "--out", str(tmp_path / "lora again")])
    same_tensors(pairs, tmp_path / "lora again")
    main(["--source", "llama", "--path", str(base), "--source", "peft", "--path", str(pairs), "--merge-lora", "--out", str(tmp_path / "merged")])
    main(["--target", "llama", "--path", str(ours), "--merge-lora", "dense", "--out", str(tmp_path / "merged base")])
    main(["--path", str(tmp_path / "merged base"), "--out", str(tmp_path / "merged again")])
    merged = checkpoint.load(tmp_path / "merged")
    assert merged.config.decoder.lora.rank == 0 and set(merged.state) == {"params"}
    leaves, again = paths.flatten(merged.state), paths.flatten(checkpoint.load(tmp_path / "merged again").state)
    kernel = paths.flatten(read.state)["params/decoder/layers/attention/q/kernel"][1]
    layer = {side: read.state["lora/dense"]["layers"]["attention"]["q"][side][1] for side in "ab"}
    np.testing.assert_allclose(leaves["params/decoder/layers/attention/q/kernel"][1], kernel + 2.0 * layer["a"] @ layer["b"], atol=1e-6)
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(again[name], leaf)


def test_parts_are_added_to_a_checkpoint_of_ours(tmp_path, levels):
    base, first, second = model(tmp_path / "base", "llama"), lora(tmp_path / "one"), lora(tmp_path / "two", seed=2)
    main(["--config", levels, "--source", "llama", "--path", str(base), "--source", "peft:dense", "--path", str(first), "--out", str(tmp_path / "a")])
    main(["--path", str(tmp_path / "a"), "--source", "auto", "--source", "peft:dense", "--path", str(second), "--out", str(tmp_path / "b")])
    before, after = (paths.flatten(checkpoint.load(tmp_path / name).state) for name in "ab")
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) == name.startswith("params/") for name in before)


def test_the_level_s_signal_has_no_place_in_peft_and_that_is_said(tmp_path, capsys):
    from tests.tiny import config as tiny

    ours = tmp_path / "ours"
    write_tokenizer(tmp_path / "words")
    levels = tuple(f"{kind}/{level.name}" for level in tiny().grounding.levels for kind in ("lora", "adapter"))
    state = paths.unflatten(random_leaves(formats.target(tiny(), ("params", *levels))))
    checkpoint.export(state, tiny(), tmp_path / "words" / "tokenizer.json", ours, dtype="float32")
    main(["--target", "peft:sparse", "--path", str(ours), "--out", str(tmp_path / "lora")])
    assert "lora/sparse/layers/signal_scale" in (told := capsys.readouterr().out) and "lora/dense" not in told
    np.testing.assert_array_equal(open_source(tmp_path / "lora").read("base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"),
                                  state["lora/sparse"]["layers"]["mlp"]["up"]["a"][1].T)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------- what does not


def refused(capsys, tmp_path, *arguments) -> str:
    """Exit status 2, one line, and nothing but what was there."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SystemExit) as stop:
        run(lambda: main([str(argument) for argument in arguments]))
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1, told
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return told


def test_wrong_architecture(tmp_path, capsys):
    def other(tensors, config):
        config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}

    folder = model(tmp_path / "in", "llama", change=other)
    assert "GPT2LMHeadModel" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out")
    assert "model_type is 'gpt2', must be llama" in refused(capsys, tmp_path, "--source", "llama", "--path", folder, "--out", tmp_path / "out")
    qwen = model(tmp_path / "qwen", "qwen2")
    assert "model_type is 'qwen2', must be llama" in refused(capsys, tmp_path, "--source", "llama", "--path", qwen, "--out", tmp_path / "out")
    told = refused(capsys, tmp_path, "--source", "gpt2", "--path", folder, "--out", tmp_path / "out")
    assert "'gpt2' is not a known format; known are" in told and "qwen2" in told


def test_damaged_files(tmp_path, capsys):
    folder = model(tmp_path / "in", "llama", shard_bytes=3000)
    shards = sorted(folder.glob("model-*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost"] = "model-00009-of-00009.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    told = refused(capsys, tmp_path, "--source", "llama", "--path", folder, "--out", tmp_path / "out")
    assert f"{shards[0].name} is missing" in told and f"{shards[1].name} is truncated" in told and "model-00009-of-00009.safetensors is missing" in told


@pytest.mark.torch
def test_a_pickle_that_wants_code(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    folder = tmp_path / "in"
    folder.mkdir()
    torch.save({"x": Path("/")}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "pytorch_model.bin: refused, its pickle wants to run code" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out")


def test_missing_and_unknown_tensors(tmp_path, capsys):
    def change(tensors, config):
        tensors["stranger"] = tensors.pop("model.norm.weight")
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)

    told = refused(capsys, tmp_path, "--path", model(tmp_path / "in", "llama", change=change), "--out", tmp_path / "out")
    for part in ("does not know: stranger", "missing: model.norm.weight", "of another shape: model.layers.0.mlp.up_proj.weight has shape (3, 3)"):
        assert part in told


def test_dtype_mixtures_need_a_word(tmp_path, capsys):
    def change(tensors, config):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)

    folder = model(tmp_path / "in", "llama", change=change)
    assert "mixed dtypes: 20 of float32" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out")
    assert "--dtype: 'int8' is not one of" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out", "--dtype", "int8")
    main(["--path", str(folder), "--out", str(tmp_path / "out"), "--dtype", "float16"])
    assert {str(info.dtype) for info in open_source(tmp_path / "out").tensors.values()} == {"float16"}


def test_tied_weights_given_twice(tmp_path, capsys):
    def twice(tensors, config):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    def different(tensors, config):
        twice(tensors, config)
        tensors["lm_head.weight"][3, 2] += 1

    main(["--path", str(model(tmp_path / "same", "qwen2", change=twice)), "--out", str(tmp_path / "out")])
    told = refused(capsys, tmp_path, "--path", model(tmp_path / "different", "qwen2", change=different), "--out", tmp_path / "out 2")
    assert "tied weights given twice and different: lm_head.weight is not equal to model.embed_tokens.weight" in told


def test_tokenizers_that_do_not_fit(tmp_path, capsys):
    folder = model(tmp_path / "in", "llama", tokens=("</s>",))
    assert "the tokenizer has no token <s>, which the model needs" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out")
    write_tokenizer(folder, "<s>", "</s>", *(f"<{i}>" for i in range(61)))
    assert "tokens, the model 61" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out")
    (folder / "tokenizer.json").write_text("{")
    assert "not a tokenizer" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json and no tokenizer.model beside" in refused(capsys, tmp_path, "--path", folder, "--out", tmp_path / "out")
    write_tokenizer(tmp_path / "words", "<s>", "</s>")
    main(["--path", str(folder), "--out", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "words" / "tokenizer.json")])
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_loras_that_do_not_fit(tmp_path, capsys, levels):
    base = model(tmp_path / "base", "llama")
    out = ("--out", tmp_path / "out")
    both = lambda source, pairs: ("--source", "llama", "--path", base, "--source", source, "--path", pairs, *out)
    wider = lora(tmp_path / "wider", mlp=40, layers=3)
    told = refused(capsys, tmp_path, "--config", levels, *both("peft:dense", wider))
    assert "made for 3 layers (3 given), the base has 2" in told and "mlp.up_proj has 40 features out, the base has 24" in told
    told = refused(capsys, tmp_path, "--config", levels, *both("peft:dense", lora(tmp_path / "ranked", settings=LoraConfig(rank=5))))
    assert "the LoRA has rank 5 and scale 25.6, the model's levels have rank 3 and scale 2" in told
    fits = lora(tmp_path / "fits")
    (fits / "adapter_config.json").write_text((fits / "adapter_config.json").read_text().replace('"r": 3', '"r": 4'))
    assert "adapter_config.json says rank 4, 28 tensors have rank 3" in refused(capsys, tmp_path, "--merge-lora", *both("peft", fits))
    whole = lora(tmp_path / "whole")
    assert "'nowhere' is not a level of the config; there are sparse, dense" in refused(capsys, tmp_path, "--config", levels, *both("peft:nowhere", whole))
    assert "needs a level to be kept apart (--source peft:LEVEL), or is merged" in refused(capsys, tmp_path, *both("peft", whole))
    assert "no decoder to merge the LoRA into" in refused(capsys, tmp_path, "--source", "peft", "--path", whole, "--merge-lora", *out)
    told = refused(capsys, tmp_path, "--config", levels, *both("peft:dense", whole), "--source", "peft:dense", "--path", whole)
    assert "both give lora/dense" in told


def test_a_lora_of_another_base_of_the_same_shape_is_named(tmp_path, capsys):
    base, pairs = model(tmp_path / "vicuna-7b-v1.5", "llama"), lora(tmp_path / "lora")
    for name, said in (("lmsys/Vicuna-7b-v1.5", False), ("meta-llama/Llama-2-7b", True), (None, False)):
        (pairs / "adapter_config.json").write_text(json.dumps({**json.loads((pairs / "adapter_config.json").read_text()), "base_model_name_or_path": name}))
        main(["--source", "llama", "--path", str(base), "--source", "peft", "--path", str(pairs), "--merge-lora", "--out", str(tmp_path / "out")])
        assert (f"was trained on {name!r}; its shapes fit vicuna-7b-v1.5" in capsys.readouterr().out) == said


def test_help_lists_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for name in formats.MODULES:
        form = formats.named(name)
        assert any(line.split()[0] in (name, f"{name}:LEVEL") and form.says in line for line in told.splitlines() if line.strip()), name
    assert "siglip              SigLIP" in told and "(read, written)" in told


def test_findings_of_all_parts_are_told_at_once(tmp_path, capsys, levels):
    def other(tensors, config):
        config |= {"hidden_act": "gelu"}

    folder = model(tmp_path / "in", "llama", change=other)
    out, pairs = ("--out", tmp_path / "out"), lora(tmp_path / "lora")
    told = refused(capsys, tmp_path, "--config", levels, "--source", "llama", "--path", folder, "--source", "vtimellm:nowhere", "--path", pairs, *out)
    assert "hidden_act is 'gelu'" in told and "nowhere" in told
    def lame(tensors, config):
        del tensors["model.norm.weight"]

    told = refused(capsys, tmp_path, "--path", model(tmp_path / "lame", "llama", tokens=("</s>",), change=lame), *out)
    assert "the tokenizer has no token <s>" in told and "missing: model.norm.weight" in told
    told = refused(capsys, tmp_path, "--source", "llama", "--path", tmp_path / "none", "--source", "peft", "--path", tmp_path / "neither", *out)
    assert "none: no such file" in told and "neither: no such file" in told


def test_targets_that_are_none(tmp_path, capsys, levels):
    base, ours = model(tmp_path / "base", "llama"), tmp_path / "ours"
    main(["--path", str(base), "--out", str(ours)])
    out = ("--out", tmp_path / "out")
    assert "is what is read" in refused(capsys, tmp_path, "--path", base, "--out", tmp_path / "." / "base")
    assert "exists and is not a checkpoint" in refused(capsys, tmp_path, "--path", ours, "--out", base)
    assert "exists and is not empty" in refused(capsys, tmp_path, "--target", "llama", "--path", ours, "--out", base)
    assert "not a checkpoint of this project" in refused(capsys, tmp_path, "--target", "llama", "--path", base, *out)
    assert "the decoder is a llama, not a qwen2" in refused(capsys, tmp_path, "--target", "qwen2", "--path", ours, *out)
    assert "'nowhere'" in refused(capsys, tmp_path, "--target", "peft:nowhere", "--path", ours, *out)
    assert "peft:LEVEL" in refused(capsys, tmp_path, "--target", "peft", "--path", ours, *out)
    assert "siglip is only read, not written" in refused(capsys, tmp_path, "--target", "siglip", "--path", ours, *out)
    assert "1 formats for 2 --path" in refused(capsys, tmp_path, "--source", "llama", "--path", base, "--path", base, *out)
    assert "levels.py" not in refused(capsys, tmp_path, "--config", "nothing_such", "--path", base, *out)


def test_the_command_itself(tmp_path):
    command = [sys.executable, "-m", "launch.convert", "--path", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such file" in done.stderr
