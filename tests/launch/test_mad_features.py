"""ReVisionLLM on MAD from what its owners give out, features and annotations, without a single video: the preset itself, with tiny widths and windows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from launch import evaluate, import_features, score, train
from launch.cli import run
from revision_jax import checkpoint
from revision_jax.data.tokenizer import FILE
from tests import mad_path
from tests.mad_path import CAPTIONS, WORDS

ADAPTER = [f"grounding.levels.{level}.adapter.{field}" for level in ("sparse-100", "sparse-33", "dense") for field in ("width=16", "heads=4", "mlp=8")]
# Windows of 20 s, groups of 8 and 3 of them; batches of 4, two steps a stage.
OVERRIDES = [
    *ADAPTER,
    *(f"grounding.levels.sparse-{size}.{field}" for size in (100, 33) for field in ("span_s=20", "stride_s=5", "frames=10", "batch=2")),
    *("grounding.levels.sparse-100.tokens=8", "grounding.levels.sparse-33.tokens=3", "grounding.levels.sparse-33.zooms=[1]"),
    *(f"grounding.levels.dense.{field}" for field in ("tokens=20", "span_s=20", "stride_s=10", "batch=2")),
    *("grounding.query_len=48", "grounding.prompt_len=128", "grounding.answer_len=24", "mesh.data=1", "mesh.fsdp=1"),
    *(f"vision.{field}" for field in ("width=8", "layers=1", "heads=2", "mlp=12", "patch=8", "grids=[[4,4]]", "merge=4", "projection=16")),
    *(f"text.{field}" for field in (f"vocab={CAPTIONS.get_vocab_size()}", "width=16", "layers=1", "heads=2", "mlp=12", "max_len=48", "projection=16")),
    *(f"decoder.{field}" for field in (f"vocab={WORDS.get_vocab_size()}", "width=32", "layers=2", "heads=4", "kv_heads=4", "head_dim=8", "mlp=40")),
    *("decoder.dtype=float32", "decoder.remat=none", "decoder.lora.rank=4"),
    *(f"train.stages.{stage}.{field}" for stage in ("1a", "1b", "2", "2-33") for field in ("steps=2", "batch=4")),
    *("train.stages.2.absent=0.5", "train.log_every=1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Three training films of 90 s, one of validation, one of test; 15 questions."""
    folder = tmp_path_factory.mktemp("mad")
    mad_path.make_set(folder, films=5, minutes=1.5, questions=15, width=16)
    source = str(folder / "manual" / mad_path.FRAMES)
    import_features.main([source, "--rate", "5", "--encoder", "clip-vit-base-patch32", "--out", str(folder / "others"), "--width", "16"])
    mad_path.begin(folder, OVERRIDES, "float32")
    return folder


@pytest.fixture(scope="module")
def trained(place) -> Path:
    assert train.main(mad_path.training(place, "run", OVERRIDES)) == 0
    return place / "run" / "checkpoint"


@pytest.mark.slow
def test_it_trains_all_stages_and_keeps_both_tokenizers(trained, place):
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(stage, step) for stage in ("1a", "1b", "2", "2-33") for step in (1, 2)]
    assert all(np.isfinite(row["loss"]) for row in rows)
    for name in (FILE, f"{checkpoint.TEXT_TOKENIZER}/{FILE}"):
        assert (trained / name).read_bytes() == (place / "begin" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("given", ["", "queries"], ids=["text tower", "text features"])
def test_it_is_evaluated_on_features_alone_beside_the_papers(trained, place, given, tmp_path, capsys):
    files = ["--top-k", "10", "--json", str(tmp_path / "report.json"), "--published", str(tmp_path / "table.md")]
    extra = ["--queries", str(place / given)] if given else []
    evaluate.main(mad_path.evaluating(place, trained, *files, *extra))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["run"]["videos"] == 1 and report["counts"]["questions"] == 2
    assert 0 <= report["R1@0.1"] <= 100 and report["oracle_window_mIoU"] is not None
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in (tmp_path / "table.md").read_text().splitlines()]
    ours = {row[0]: row[table[0].index("here")] for row in table[2:]}
    assert ours["R10@0.5"] == f"{report['R10@0.5']:.1f}" and ours["R50@0.1"] == "-"  # ten were asked for
    assert table[2][table[0].index("ReVisionLLM")] == "15" and "the papers' figures" in capsys.readouterr().out


@pytest.mark.slow
def test_shares_of_the_videos_are_asked_apart_and_told_together(trained, place, capsys, tmp_path):
    asked = mad_path.evaluating(place, trained, "--split", "train", "--baseline", "random", "--workdir", str(tmp_path / "answers"))
    evaluate.main([*asked, "--shard", "1/2", "--questions", "2"])
    assert "share 1/2: 2 questions about 1 videos answered" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "answers")
    for number in (0, 1):
        evaluate.main([*asked, "--shard", f"{number}/2"])
        assert f"share {number}/2: {(6, 3)[number]} questions about {(2, 1)[number]} videos answered" in capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").rglob("*.jsonl")}
    evaluate.main([*asked, "--json", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text())["counts"]["questions"] == 9
    assert len(kept) == 3 and kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").rglob("*.jsonl")}


@pytest.mark.slow
def test_frame_retrieval_finds_what_was_planted_and_wants_vectors_for_it(trained, place, tmp_path, capsys):
    asked = mad_path.evaluating(place, trained, "--split", "train", "--baseline", "retrieval")
    evaluate.main([*asked, "--queries", str(place / "sentences"), "--json", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text())["R1@0.1"] == 100
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(lambda: evaluate.main([*asked, "--queries", str(place / "queries")]))
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and error.startswith("error: ") and "queries: holds no vectors" in error


@pytest.mark.slow
def test_it_trains_on_text_features_in_place_of_the_tower(place):
    assert train.main(mad_path.training(place, "run-queries", OVERRIDES, "--stages", "1a,1b", f"data.queries={place / 'queries'}")) == 0


@pytest.mark.slow
def test_features_of_another_encoder_are_refused(trained, place, capsys):
    for main, given in (
        (train.main, mad_path.training(place, "run-others", OVERRIDES, features="others")),
        (evaluate.main, mad_path.evaluating(place, trained, features="others")),
    ):
        with pytest.raises(SystemExit) as caught:
            run(lambda main=main, given=given: main(given))
        error = capsys.readouterr().err
        assert caught.value.code == 2 and "clip-vit-base-patch32" in error and "clip-vit-large-patch14" in error and error.count("\n") == 1


@pytest.mark.slow
def test_semi_hard_negatives_by_its_own_scores(trained, place, capsys):
    file = str(place / "scores")
    where = ["--data", str(place / "datasets"), "--features", str(place / "stores")]
    score.main(["--checkpoint", str(trained), "--dataset", "mad", *where, "--out", file, "--keep", "8"])
    name = checkpoint.identity(trained)
    assert capsys.readouterr().out == f"{file}: 9 questions, scored by {name}\n"
    semi_hard = ["--stages", "1a", 'train.stages.1a.negatives=[["semi_hard", 1.0]]', f"train.stages.1a.examples.scores={file}"]
    assert train.main(mad_path.training(place, "run-scores", OVERRIDES, *semi_hard, f"train.stages.1a.examples.scored_by={name}")) == 0
    with pytest.raises(SystemExit) as caught:
        run(lambda: train.main(mad_path.training(place, "run-wrong", OVERRIDES, *semi_hard, "train.stages.1a.examples.scored_by=tiny-0123456789ab")))
    assert caught.value.code == 2 and f"these scores are of the checkpoint '{name}', not 'tiny-0123456789ab'" in capsys.readouterr().err
