"""VideoLLaMA3's four stages from the command line, on a tiny model: trained, exported, talked with, and opened in transformers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from configs.videollama3_stages import stages
from launch import chat, convert, datasets, train
from revision_jax import checkpoint, paths
from revision_jax.config import ConfigError
from revision_jax.data.synthetic.stills import still_batch
from revision_jax.errors import UserError
from revision_jax.training.metrics import read_rows
from tests import conversing
from tests.golden import make_chat
from tests.golden import make_conversation as golden

ROW = '[{"length": 256, "visual": 192, "labels": 128, "slots": [[6, 64]]}]'
STEPS = {"vision": 2, "alignment": 25, "multitask": 1, "video": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rendered pictures and a film with conversations about them, built with the command line; a checkpoint to begin with; a config."""
    root = tmp_path_factory.mktemp("train")
    media, manual = conversing.write_media(root / "media"), root / "manual"
    manual.mkdir()
    stills = still_batch(0, 2, 1)
    rows = [golden.CASES["text"], golden.CASES["video"], golden.CASES["stream"], golden.CASES["images"]]
    for number, (picture, caption) in enumerate(zip(stills["images"], stills["captions"], strict=True)):
        Image.fromarray(picture).save(media / f"{number}.png")
        rows.append({"image": [f"{number}.png"], "conversations": golden.turns("<image>\nWhat is shown?", caption)})
    (manual / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    datasets.main(["build", "conversations", "--manual", str(manual), "--out", str(root / "data" / "all")])

    config, state = conversing.model()
    (root / "words").mkdir()
    conversing.tokenizer().save(root / "words")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, stages=stages(), log_every=1))
    checkpoint.export(state, config, root / "words" / "tokenizer.json", root / "init")
    (root / "init" / "preprocessor_config.json").write_text('{"min_tokens": 1, "max_tokens": 48, "max_frames": 3}', encoding="utf-8")
    text = json.dumps(config.to_dict())
    (root / "tiny.py").write_text(f"from revision_jax.config import ExperimentConfig\nimport json\n\n\ndef get_config():\n"
                                  f"    return ExperimentConfig.from_dict(json.loads({text!r}))\n", encoding="utf-8")  # fmt: skip
    return root


def arguments(folder, *more: str) -> list[str]:
    """The released stages, made small: few steps, one small shape of rows, one dataset for each mixture."""
    made = [str(folder / "tiny.py"), "--workdir", str(folder / "work"), "--init", str(folder / "init"), "--out", str(folder / "out"), *more]
    made += [f"data.root={folder / 'data'}", f"data.media={folder / 'media'}"]
    for name, steps in STEPS.items():
        made += [f"train.stages.{name}.{field}" for field in (f"steps={steps}", "batch=1", f"conversation.rows={ROW}", "conversation.visual=48")]
        made += [f"train.stages.{name}.{field}" for field in ('conversation.mixture=[["all", 1.0]]', "conversation.max_frames=3")]
        # Fast enough to be seen in a few steps, and in an export's 16 bits.
        rates = '[["params/vision", 0.01], ["adapter/patch", 0.02]]' if name == "vision" else "[]"
        made += [f"train.stages.{name}.learning_rate=0.01", f"train.stages.{name}.rates={rates}"]
    return made


def leaves(path) -> dict[str, np.ndarray]:
    return paths.flatten(checkpoint.load(path).state)


@pytest.fixture(scope="module")
def trained(folder):
    """Stage 1 alone, looked at; then all of them: (leaves before, after stage 1, after all)."""
    assert train.main(arguments(folder, "--stages", "vision")) == 0
    first = leaves(folder / "out")
    assert train.main(arguments(folder)) == 0
    return leaves(folder / "init"), first, leaves(folder / "out")


@pytest.mark.slow
def test_four_stages_are_trained_and_what_is_frozen_stays(folder, trained):
    before, first, last = trained
    moved = {name for name, leaf in before.items() if not np.array_equal(first[name], leaf)}
    learnt = {name for name in before if not name.startswith("params/decoder")}
    assert moved <= learnt and len(moved) > 0.9 * len(learnt)  # a bias of keys has no gradient
    assert sum(not np.array_equal(last[name], first[name]) for name in before) > 0.9 * len(before)
    rows = read_rows(folder / "work" / "metrics.jsonl")
    assert {name: sum(row["stage"] == name for row in rows) for name in STEPS} == STEPS
    # A pass over all conversations is two or three rows: at the end they are known far better than in the beginning.
    aligned = [row["loss"] for row in rows if row["stage"] == "alignment"]
    assert np.mean(aligned[-5:]) < 0.6 * np.mean(aligned[:5])
    assert all(0 < row["filled"] <= 1 and row["conversations"] >= 1 for row in rows)


@pytest.mark.slow
def test_the_export_is_talked_with(folder, trained, capsys):
    shown = ["--image", str(folder / "media" / "0.png"), "--prompt", "What is shown?", "--max-new-tokens", "4", "--dtype", "float32"]
    assert (folder / "out" / "preprocessor_config.json").is_file()  # its rules came along
    chat.main(["--checkpoint", str(folder / "out"), *shown])
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.torch
@pytest.mark.slow
def test_transformers_opens_the_export_and_gives_the_same_logits(folder, trained):
    torch = pytest.importorskip("torch")
    import transformers

    from revision_jax.chat.engine import Engine
    from tests.chat.test_parity import close, prompt_logits, prompt_of

    convert.main(["--target", "video_llama_3", "--path", str(folder / "out"), "--out", str(folder / "hub"), "--dtype", "float32"])
    model = transformers.VideoLlama3ForConditionalGeneration.from_pretrained(folder / "hub", attn_implementation="eager", dtype=torch.float32).eval()
    words = conversing.tokenizer()  # whose places are not where the released vocabulary has them
    model.config.image_token_id, model.config.video_token_id = words.id("<|image_pad|>"), words.id("<|video_pad|>")
    shipped = checkpoint.load(folder / "out", dtype="float32")
    engine = Engine(shipped.config, shipped.state)
    assert shipped.config.decoder.dtype == "float32"
    for case in make_chat.CASES:
        prompt, tokens = prompt_of(case, engine, words)
        inputs = make_chat.inputs(case)
        with torch.no_grad():
            theirs = model(**inputs).logits.numpy()
        close(prompt_logits(engine, [(prompt, tokens)]), theirs)


def test_what_is_missing_is_said_before_anything_is_written(folder, tmp_path):
    fresh = ["--workdir", str(tmp_path / "w")]
    for wrong, error, told in (
        (["data.media="], ConfigError, r"data\.media: must name the folder with the images and videos"),
        (['train.stages.video.conversation.mixture=[["none", 1.0]]'], UserError, r"stages\.video\.conversation\.mixture: .*none/conversations: holds no built"),
        (['train.stages.vision.level="dense"'], ConfigError, r"stages\.vision\.level: 'dense' is not a level"),
        (['train.stages.vision.train=["lora/patch"]', "train.stages.vision.rates=[]"], ConfigError, "which no LoRA is part of"),
        (['train.stages.vision.rates=[["params/visions", 1.0]]'], ConfigError, r"'params/visions' is not under what is trained"),
    ):
        with pytest.raises(error, match=told):
            train.main([*arguments(folder), *fresh, *wrong])
    without = [argument for argument in arguments(folder) if argument not in ("--init", str(folder / "init"))]
    with pytest.raises(UserError, match="want the model's own tokenizer; begin from a checkpoint that has it"):
        train.main([*without, "--workdir", str(tmp_path / "v")])
    assert not (tmp_path / "w" / "checkpoints").exists()


@pytest.mark.slow
def test_conversations_that_cannot_be_used_stop_the_run_or_are_left_out(folder, tmp_path, capsys):
    manual = tmp_path / "manual"
    manual.mkdir()
    rows = [golden.CASES["text"], {"image": ["none.png"], "conversations": golden.turns("<image>What?", "No.")}]
    (manual / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    datasets.main(["build", "conversations", "--manual", str(manual), "--out", str(tmp_path / "data" / "all")])
    here = [*arguments(folder, "--stages", "vision"), "--workdir", str(tmp_path / "w"), f"data.root={tmp_path / 'data'}", "train.stages.vision.steps=1"]
    with pytest.raises(UserError, match=r"1 conversations cannot be used: all: a\.json\[1\]: .*none\.png: not readable.*data\.on_missing=skip"):
        train.main(here)
    here[here.index(str(tmp_path / "w"))] = str(tmp_path / "v")
    assert train.main([*here, "data.on_missing=skip"]) == 0
    assert "1 cannot be read" in capsys.readouterr().out
