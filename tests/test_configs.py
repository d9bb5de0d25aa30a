"""Every preset as a whole: it can be made, travels as JSON, has the published number of parameters, and says what its model was trained on."""

from __future__ import annotations

import functools
import importlib
import json
import math

import pytest

from revision_jax import paths
from revision_jax.config import ExperimentConfig
from revision_jax.grounding.levels import check_order
from revision_jax.models.revision import abstract_state

PRESETS = (
    "tiny", "videollama3_2b", "videollama3_7b", "revisionllm_7b_mad", "revisionllm_7b_vidchapters", "revisionllm_7b_msrvtt", "revisionllm_7b_hour",
    "revision_2b", "revision_7b",
)  # fmt: skip
# Published, by part. Encoders, towers and decoders: the papers and model cards (Qwen2.5-1.5B 1.54 B, 7B 7.61 B; LLaMA-2-7B 6.74 B; CLIP ViT-L/14 428 M;
# SigLIP so400m 878 M, of which the encoder alone, without positions and head, is VL3-SigLIP-NaViT, 0.4 B). LoRA: 159 M for the dense level (ReVisionLLM).
NAVIT, QWEN_2B, QWEN_7B, VICUNA, LORA_7B = 412_147_440, 1_543_714_304, 7_615_616_512, 6_738_415_616, 159_907_840
SIGLIP = {"params/vision": 428_225_600, "params/text": 449_734_896}
# Ours has biases at CLIP's patch embedding (1,024) and text projection (768), which it has not: zeros.
CLIP = {"params/vision": 303_179_776 + 1024, "params/projection": 786_432, "params/text": 123_060_480 + 589_824 + 768}
PUBLISHED = {
    "videollama3_2b": {"params/vision": NAVIT, "params/decoder": QWEN_2B, "adapter/patch": 1152 * 1536 + 1536 + 1536**2 + 1536},
    "videollama3_7b": {"params/vision": NAVIT, "params/decoder": QWEN_7B, "adapter/patch": 1152 * 3584 + 3584 + 3584**2 + 3584},
    "revisionllm_7b_mad": {
        **CLIP, "params/decoder": VICUNA, "lora/dense": LORA_7B, "lora/sparse-100": LORA_7B, "lora/sparse-33": LORA_7B,
        "adapter/dense": 768 * 4096 + 4096, "adapter/sparse-100": 25_207_296, "adapter/sparse-33": 25_207_296,
    },
    "revisionllm_7b_vidchapters": {
        **CLIP, "params/decoder": VICUNA, "lora/dense": LORA_7B, "lora/sparse-100": LORA_7B, "adapter/dense": 768 * 4096 + 4096,
        "adapter/sparse-100": 25_207_296 + 2 * 4096,
    },
    "revision_2b": {**SIGLIP, "params/patch_vision": NAVIT, "params/decoder": QWEN_2B},
    "revision_7b": {**SIGLIP, "params/patch_vision": NAVIT, "params/decoder": QWEN_7B},
}  # fmt: skip
TOTALS = {"videollama3_2b": 1.96e9, "videollama3_7b": 8.04e9}  # as the model hub counts the released files


def preset(name: str) -> ExperimentConfig:
    return importlib.import_module(f"configs.{name}").get_config()


@functools.cache
def leaves(name: str) -> dict:
    return paths.flatten(abstract_state(preset(name)))


def counted(name: str) -> dict[str, int]:
    """Parameters by part: params/vision, adapter/dense, ..."""
    parts: dict[str, int] = {}
    for path, leaf in leaves(name).items():
        part = "/".join(path.split("/")[:2])
        parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
    return parts


@pytest.mark.parametrize("name", PRESETS)
def test_it_travels_as_json(name):
    config = preset(name)
    assert config.name == name
    assert ExperimentConfig.from_dict(json.loads(config.to_json())) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_number_of_parameters(name):
    found = counted(name)
    assert {part: found.get(part) for part in PUBLISHED[name]} == PUBLISHED[name]
    if name in TOTALS:
        assert sum(found.values()) == pytest.approx(TOTALS[name], rel=2e-3)


def test_the_paper_s_trainable_parameters_are_sums_of_these_parts():
    """Its 159 M (dense alone) are the dense LoRA, cut off rather than rounded. Its 363 M (default) come out of one sum of LoRAs, sparse encoders and their
    projections alone: two LoRAs and two encoders, the projections not counted. The paper does not list its parts; what our stages train is 345 M for the
    two hierarchies that are trained (two LoRAs and one sparse adapter with its projection), and one LoRA more for groups of 33."""
    found = counted("revisionllm_7b_mad")
    lora, projection = found["lora/dense"], found["adapter/dense"]
    encoder = found["adapter/sparse-100"] - projection
    assert lora // 10**6 == 159 and encoder == 22_057_472
    few = range(5)
    fitting = [(a, b, c) for a in few for b in few for c in few if (a * lora + b * encoder + c * projection) // 10**6 == 363]
    assert fitting == [(2, 2, 0)]
    trained = {path: math.prod(leaf.shape) for stage in preset("revisionllm_7b_mad").train.stages if stage.name != "2-33"
               for path, leaf in leaves("revisionllm_7b_mad").items() if any(paths.under(path, prefix) for prefix in stage.train)}  # fmt: skip
    assert sum(trained.values()) == 2 * lora + encoder + projection == 345_022_976


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_has_its_place_on_a_mesh(name):
    from revision_jax.sharding.parameters import axes_of

    for path, leaf in leaves(name).items():
        assert len(axes_of(path, tuple(leaf.shape))) == len(leaf.shape)


@pytest.mark.parametrize("name", PRESETS)
def test_every_stage_trains_something_and_copies_what_fits(name):
    from revision_jax.training.state import split

    config, state = preset(name), paths.unflatten(leaves(name))
    for stage in config.train.stages:
        trained, _ = split(state, stage.train, stage.name)
        assert paths.flatten(trained)
        for source, target in stage.copies:
            shapes = [{path[len(end):]: leaf.shape for path, leaf in leaves(name).items() if paths.under(path, end)} for end in (source, target)]
            assert shapes[0] and shapes[0] == shapes[1], f"{source} -> {target}"


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("videollama3")])
def test_a_searching_preset_has_an_order_of_levels(name):
    check_order(preset(name).grounding.levels)


def test_revisionllms_words_are_the_released_ones():
    for name in ("revisionllm_7b_mad", "revisionllm_7b_vidchapters"):
        levels = preset(name).grounding.levels
        for level in levels:
            seen = "video" if level.kind == "sparse" else "frames"
            system = (
                "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the "
                "user's questions."
            )
            assert level.prompt.before + "<video>" + level.prompt.after == f"{system} USER: <video>\nDuring which {seen} can we see {{query}}? ASSISTANT:"
            assert (level.prompt.answer, level.prompt.absent) == ("From {start} to {end}.", "Not Present")
            assert level.prompt.digits == (2 if level.kind == "dense" else 1)
            assert "Does {query} happen in the video? Write your answer either yes or no." in level.prompt.presence


def test_revisionllm_on_mad_is_three_hierarchies_of_the_released_sizes():
    config = preset("revisionllm_7b_mad")
    assert [(level.kind, level.tokens, level.span_s, level.stride_s) for level in config.grounding.levels] == [
        ("sparse", 100, 125.0, 25.0), ("sparse", 33, 125.0, 25.0), ("dense", 250, 125.0, 62.5),
    ]  # fmt: skip
    assert config.decoder.lora.scale == 2.0 and config.grounding.rate == 5.0 and config.text.suffix == "."
    assert [(stage.name, stage.batch) for stage in config.train.stages] == [("1a", 1024), ("1b", 256), ("2", 128), ("2-33", 128)]
    assert all(stage.learning_rate == 1e-4 and stage.warmup == 0.03 and stage.weight_decay == 0 for stage in config.train.stages)
    assert [round(stage.steps * stage.batch / 280_183 / 2, 2) for stage in config.train.stages] == [5, 1, 2, 2]  # epochs of lists that hold every query twice
    assert [stage.absent for stage in config.train.stages] == [0.5, 0.5, 0.0, 0.0]
    assert [stage.examples.groups for stage in config.train.stages] == ["grid", "grid", "crops", "crops"]
    assert [stage.examples.long_events for stage in config.train.stages] == ["skip", "skip", "cut", "cut"]
    assert all(level.sampling == "linspace" for level in config.grounding.levels)
    assert config.data.encoder == "clip-vit-large-patch14"


def test_revisionllm_on_vidchapters_has_its_own_windows_in_1b():
    config = preset("revisionllm_7b_vidchapters")
    dense, presence, sparse = config.train.stages
    assert (dense.batch, presence.batch, sparse.batch) == (256, 512, 128)
    assert (presence.examples.span_s, presence.examples.frames, presence.examples.rate) == (50.0, 100, 5.0)
    assert dense.examples.frames == 250 and config.grounding.level("dense").tokens == 100
    assert sparse.examples.min_duration_s == 2500.0


def test_the_retrieval_level_names_one_video():
    (videos, *_), (stage,) = preset("revisionllm_7b_msrvtt").grounding.levels, preset("revisionllm_7b_msrvtt").train.stages
    assert (videos.kind, videos.tokens, videos.prompt.answer, videos.prompt.absent) == ("video", 100, "In video {start}", "Not Present")
    assert "During which video can we see {query}?" in videos.prompt.after and stage.level == "videos"


def test_the_methods_own_words():
    for level in preset("revisionllm_7b_hour").grounding.levels:
        assert f"<video>{level.prompt.after}" == "<video> when can we see the {query} happening?" and level.prompt.before == ""
        assert (level.prompt.answer, level.prompt.absent) == ("From {start} to {end}.", "Not Present.")
        assert f"<video>{level.prompt.presence}" == "<video> Does the {query} happen? yes/no"


def test_a_model_without_a_text_tower_has_none_of_its_parameters():
    assert not any(path.startswith(("params/text", "params/similarity")) for path in leaves("videollama3_2b"))


@pytest.mark.torch
@pytest.mark.slow
def test_the_towers_and_decoders_are_as_large_as_those_of_transformers():
    torch = pytest.importorskip("torch")
    import transformers as hf

    siglip = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    qwen = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    with torch.device("meta"):
        vision = hf.SiglipVisionModel(hf.SiglipVisionConfig(**siglip, patch_size=14, image_size=384))
        text = hf.SiglipTextModel(hf.SiglipTextConfig(**siglip, vocab_size=32000, max_position_embeddings=64, projection_size=1152))
        decoder = hf.Qwen2ForCausalLM(hf.Qwen2Config(**qwen, tie_word_embeddings=False))
    size = lambda model: sum(parameter.numel() for parameter in model.parameters())
    assert (size(vision), size(text), size(decoder)) == (SIGLIP["params/vision"], SIGLIP["params/text"], QWEN_7B)


def test_videollama3_is_trained_in_its_four_stages():
    from revision_jax.training.optimizer import rate_of

    for name in ("videollama3_2b", "videollama3_7b"):
        stages = {stage.name: stage for stage in preset(name).train.stages}
        assert list(stages) == ["vision", "alignment", "multitask", "video"]
        for stage in stages.values():
            leaves_of = ("params/vision/patch_embed/kernel", "adapter/patch/readout/0/weight", "params/decoder/norm/scale")
            vision, projector, decoder = (rate_of(stage, leaf) for leaf in leaves_of)
            assert (vision, projector) == ((1e-5, 1e-3) if stage.name == "vision" else (2e-6, 1e-5))
            assert stage.name == "vision" or decoder == 1e-5
            assert ("params/decoder" in stage.train) == (stage.name != "vision") and (stage.warmup, stage.weight_decay) == (0.03, 0.0)
            asked = stage.conversation
            assert (asked.image_merge, asked.video_merge, asked.pruning) == (2 if stage.name == "video" else 1, 2, stage.name in ("multitask", "video"))
            assert (asked.visual, asked.fps, asked.max_frames, max(row.length for row in asked.rows)) == (10240, 1.0, 180, 16384)
        assert preset(name).decoder.remat == "full" and preset(name).decoder.dtype == "bfloat16"


def test_the_largest_conversations_find_a_row_in_every_stage_of_videollama3():
    """10,240 visual tokens as one picture, as 180 frames and as 8 large ones, and 6,000 tokens of text beside them; 16,384 of text alone."""
    from revision_jax.data.lengths import measured
    from revision_jax.data.packing import shapes_of

    for stage in preset("videollama3_2b").train.stages:
        square = stage.conversation.image_merge**2
        shown = [(10240, [(1, 10240 * square)]), (10240, [(4, 2560 * square)]), (0, [])]
        if stage.conversation.pruning:
            shown += [(180 * 56, [(180, 224)]), (8 * 1196, [(8, 4784)])]
        samples = [(visual + text, visual, 2000, runs) for visual, runs in shown for text in (2100, 6000)]
        assert (shapes_of(measured([*samples, (16384, 0, 16000, [])]), stage.conversation.rows) >= 0).all(), stage.name
