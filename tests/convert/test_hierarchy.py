"""A whole ReVisionLLM, tiny and random: every piece as it is released, put together, asked about a film, and written back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.revisionllm_7b_mad import FRAMES, WINDOWS
from revision_jax.config import AdapterConfig, DecoderConfig, ExperimentConfig, GroundingConfig, LevelConfig, LoraConfig, TextConfig, VisionConfig
from revision_jax.convert.assemble import Part, assemble, export
from revision_jax.convert.llama import module_names
from revision_jax.convert.write import write_checkpoint
from revision_jax.errors import UserError
from revision_jax.grounding.grounder import Grounder
from revision_jax.grounding.source import ArraySource
from tests.convert.test_revisionllm import linear, norm, released
from tests.real_tokenizers import byte_level, sentencepiece_like

try:
    import torch
except ImportError:
    torch = None

WIDTH, HIDDEN, MLP, LAYERS, RANK = 16, 32, 40, 2, 4  # CLIP's shared space; the decoder
LEVELS = ("sparse-8", "sparse-3", "dense")
QUERIES = ["A red ring turns green.", "a blue square"]


def config() -> ExperimentConfig:
    """The levels alone count: all sizes come from the files."""
    sparse, dense = AdapterConfig(kind="sparse", width=8, heads=4, mlp=8), AdapterConfig(kind="dense", width=8)
    group = LevelConfig(
        name="sparse-8", kind="sparse", span_s=20.0, stride_s=5.0, tokens=8, frames=10, batch=2, zooms=(4, 2, 1), beam=3, spans=2, adapter=sparse,
        prompt=WINDOWS,
    )  # fmt: skip
    levels = (
        group, dataclasses.replace(group, name="sparse-3", tokens=3, beam=2, zooms=(1,)),
        LevelConfig(name="dense", span_s=20.0, stride_s=10.0, tokens=20, batch=2, beam=2, spans=2, adapter=dense, prompt=FRAMES),
    )  # fmt: skip
    return ExperimentConfig(
        name="tiny hierarchy", vision=VisionConfig(merge=4, grids=((4, 4),)), text=TextConfig(suffix="."),
        decoder=DecoderConfig(lora=LoraConfig(rank=RANK, alpha=8.0)),
        grounding=GroundingConfig(levels=levels, query_len=32, prompt_len=96, answer_len=24, confidence="entropy"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------------- pieces


def llama(random, vocabulary: int) -> dict[str, np.ndarray]:
    sizes = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (HIDDEN, HIDDEN), "v_proj": (HIDDEN, HIDDEN), "o_proj": (HIDDEN, HIDDEN), "gate_proj": (MLP, HIDDEN),
             "up_proj": (MLP, HIDDEN), "down_proj": (HIDDEN, MLP)}  # fmt: skip
    tensors = {name: random.normal(size=(vocabulary, HIDDEN)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tensors["model.norm.weight"] = np.ones(HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        tensors |= {f"{layer}.{name}.weight": 1 + 0.1 * random.normal(size=HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")}
        tensors |= {f"{layer}.{module}.weight": random.normal(size=sizes[module.split(".")[1]]) * HIDDEN**-0.5 for module in module_names().values()}
    return tensors


def lora(random) -> dict[str, np.ndarray]:
    tensors = {}
    for i in range(LAYERS):
        for module in module_names().values():
            width_in, width_out = (MLP, HIDDEN) if "down" in module else (HIDDEN, MLP) if "mlp" in module else (HIDDEN, HIDDEN)
            name = f"base_model.model.model.layers.{i}.{module}"
            tensors[f"{name}.lora_A.weight"] = 0.2 * random.normal(size=(RANK, width_in))
            tensors[f"{name}.lora_B.weight"] = 0.2 * random.normal(size=(width_out, RANK))
    return tensors


def clip(random, vocabulary: int) -> dict[str, np.ndarray]:
    """One block a tower; patches of 8 pixels, 4 x 4 of them."""
    seen, read = "vision_model.embeddings", "text_model.embeddings"
    tensors = {
        "logit_scale": np.asarray(2.0),
        "visual_projection.weight": random.normal(size=(WIDTH, 8)),
        "text_projection.weight": random.normal(size=(WIDTH, WIDTH)),
        f"{seen}.class_embedding": random.normal(size=8),
        f"{seen}.patch_embedding.weight": random.normal(size=(8, 3, 8, 8)) * 0.1,
        f"{seen}.position_embedding.weight": random.normal(size=(17, 8)),
        f"{read}.token_embedding.weight": random.normal(size=(vocabulary, WIDTH)),
        f"{read}.position_embedding.weight": random.normal(size=(32, WIDTH)),
        **norm(random, "vision_model.pre_layrnorm", 8),
        **norm(random, "vision_model.post_layernorm", 8),
        **norm(random, "text_model.final_layer_norm", WIDTH),
    }
    for tower, width in (("vision_model", 8), ("text_model", WIDTH)):
        layer = f"{tower}.encoder.layers.0"
        tensors |= norm(random, f"{layer}.layer_norm1", width) | norm(random, f"{layer}.layer_norm2", width)
        tensors |= linear(random, f"{layer}.mlp.fc1", 12, width) | linear(random, f"{layer}.mlp.fc2", width, 12)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= linear(random, f"{layer}.self_attn.{part}", width, width)
    return tensors


def write(folder: Path, name: str, tensors: dict[str, np.ndarray], **files: dict | str) -> dict[str, np.ndarray]:
    """A piece on disk; `.bin` as torch writes it, where there is torch, else as safetensors. Returns its tensors as written: float32."""
    folder.mkdir()
    tensors = {key: np.asarray(array, np.float32) for key, array in tensors.items()}
    if name.endswith(".bin") and torch is not None:
        torch.save({key: torch.from_numpy(array) for key, array in tensors.items()}, folder / name)
    else:
        save_file(tensors, (folder / name).with_suffix(".safetensors"))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tensors


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """(the folder of all downloads, what each of them holds)."""
    place, random = tmp_path_factory.mktemp("released"), np.random.default_rng(0)
    words, captions = sentencepiece_like(), byte_level(("<|startoftext|>", "<|endoftext|>"))
    decoder = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": words.get_vocab_size(), "hidden_size": HIDDEN, "intermediate_size": MLP,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "rms_norm_eps": 1e-5, "torch_dtype": "float32",
    }  # fmt: skip
    towers = {
        "model_type": "clip", "projection_dim": WIDTH,
        "vision_config": {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32},
        "text_config": {"hidden_size": WIDTH, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
                        "vocab_size": captions.get_vocab_size()},
    }  # fmt: skip
    pairs = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": [name.split(".")[1] for name in module_names().values()], "bias": "none"}
    projector = {f"model.{name}": array for name, array in released("dense", WIDTH, HIDDEN).items()}
    adapter = {f"base_model.model.model.{name}": array for name, array in released("sparse", WIDTH, HIDDEN, 20, layers=1).items()}
    held = {
        "llama": write(place / "vicuna", "model.safetensors", llama(random, words.get_vocab_size()), config=decoder, tokenizer=words.to_str()),
        "clip": write(place / "clip", "model.safetensors", clip(random, captions.get_vocab_size()), config=towers, tokenizer=captions.to_str()),
        "vtimellm": write(place / "stage-1", "mm_projector.bin", projector),
        "revisionllm": write(place / "1-b", "non_lora_trainables.bin", adapter),
    }
    for level in LEVELS:
        name = "adapter_model.bin" if level == "dense" else "adapter_model.safetensors"
        held[level] = write(place / f"lora-{level}", name, lora(random), adapter_config=pairs)
    return place, held


def parts(place: Path) -> list[Part]:
    return [
        Part(place / "vicuna", "llama"),
        Part(place / "clip", "clip"),
        Part(next((place / "stage-1").glob("mm_projector.*")), "vtimellm", "dense"),
        Part(next((place / "1-b").glob("non_lora_trainables.*")), "revisionllm", "sparse-8,sparse-3"),
        *(Part(place / f"lora-{level}", "peft", level) for level in LEVELS),
    ]


@pytest.fixture(scope="module")
def checkpoint(pieces, tmp_path_factory) -> Path:
    made = assemble(parts(pieces[0]), config())
    assert made.notes == []  # nothing is missing
    return write_checkpoint(tmp_path_factory.mktemp("made") / "hierarchy", made.config, made.plans, made.files)


# -------------------------------------------------------------------------------------------------------------------------- tests


def test_it_answers(checkpoint, tmp_path):
    grounder = Grounder.from_pretrained(checkpoint, cache_dir=tmp_path)
    found = grounder.config
    assert (found.decoder.width, found.decoder.lora.rank, found.vision.output, found.text.width) == (HIDDEN, RANK, WIDTH, WIDTH)
    assert grounder.programs.text_tokenizer is not grounder.programs.tokenizer and grounder.programs.text_tokenizer.bos is not None
    frames = np.random.default_rng(1).normal(size=(120, WIDTH)).astype(np.float16)
    film = ArraySource({"frame": frames}, 1.0, 120.0, key="film")
    for answer in grounder.searcher.search(film, QUERIES):
        assert [trace.level.name for trace in answer.levels] == list(LEVELS) and answer.parse_failures == 0
        assert answer.levels[0].count == 21 and len(answer.levels[0].kept) == 3 and len(answer.levels[1].kept) == 2
        assert answer.moments and all(0 <= m.start_s < m.end_s <= 120 and np.isfinite(m.confidence) for m in answer.moments)
        # Frame numbers are instants: a slot is a second, windows begin at whole seconds.
        assert all(float(m.start_s).is_integer() and float(m.end_s).is_integer() for m in answer.moments)


def test_pieces_come_back_as_they_were(checkpoint, pieces):
    held = pieces[1]
    targets = [("llama", ""), ("vtimellm", "dense"), ("revisionllm", "sparse-8,sparse-3"), *(("peft", level) for level in LEVELS)]
    for target, level in targets:
        written, wanted = dict(export(checkpoint, target, level).tensors), held[level if target == "peft" else target]
        assert set(written) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(written[name], array, err_msg=f"{target} {name}")


def test_a_piece_that_is_missing_or_too_many_is_named(pieces):
    place = pieces[0]
    without = [part for part in parts(place) if "stage-1" not in str(part.path)]
    assert assemble(without, config()).notes[0].startswith("no part gives adapter/dense: 2 of")
    with pytest.raises(UserError, match=r"both give adapter/dense"):
        assemble([*parts(place), Part(place / "stage-1", "vtimellm", "dense")], config())
    with pytest.raises(UserError, match=r"no level 'sparse-9'"):
        assemble([*without, Part(place / "stage-1", "vtimellm", "sparse-9")], config())
