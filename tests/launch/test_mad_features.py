"""ReVisionLLM on MAD from what its owners give out, features and annotations, without a single video: the preset itself, with tiny widths and windows."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

import configs
from launch import datasets, evaluate, import_features, score, train
from launch.cli import run
from revision_jax import checkpoint
from revision_jax.config import override
from revision_jax.data.tokenizer import FILE
from revision_jax.models.revision import init_state
from tests.real_tokenizers import byte_level, sentencepiece_like

PRESET = str(Path(configs.__file__).parent / "revisionllm_7b_mad.py")
WIDTH, SECONDS = 16, 90.0
WORDS, CAPTIONS = sentencepiece_like(), byte_level(("<|startoftext|>", "<|endoftext|>"))
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
MOVIES = {"train": (1, 2, 3), "val": (4,), "test": (5, 6)}


def queries(movie):
    """MAD's rows of a movie: three sentences of 3 to 9 s."""
    starts = (5.0 + movie, 40.0, 70.0 - movie)
    return {
        f"{movie}{number}": {"movie": f"movie {movie}", "sentence": f"A man {number} opens the door of car {movie}.", "movie_duration": SECONDS,
                             "timestamps": [start, start + 3.0 + 3 * number]}
        for number, start in enumerate(starts)
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Owners' files, built and imported; and a checkpoint to begin with: `convert`'s layout, random."""
    folder = tmp_path_factory.mktemp("mad")
    manual, texts = folder / "manual", folder / "texts"
    manual.mkdir()
    texts.mkdir()
    random, keys = np.random.default_rng(0), {}
    with h5py.File(manual / "features.h5", "w") as file:
        for split, movies in MOVIES.items():
            rows = {key: row for movie in movies for key, row in queries(movie).items()}
            (manual / f"MAD_{split}.json").write_text(json.dumps(rows))
            keys |= {key: row["sentence"] for key, row in rows.items()}
            for movie in movies:
                file[f"movie {movie}"] = random.normal(size=(round(5 * SECONDS), WIDTH)).astype(np.float16)
    for key in keys:
        np.savez(texts / f"{key}.npz", token_features=random.normal(size=(9, WIDTH)), cls_features=random.normal(size=WIDTH))
    (folder / "durations.json").write_text(json.dumps({f"movie {movie}": SECONDS for movies in MOVIES.values() for movie in movies}))
    (folder / "texts.json").write_text(json.dumps(keys))
    datasets.main(["build", "mad", "--manual", str(manual), "--out", str(folder / "built")])
    shared = ["--width", str(WIDTH)]
    source = str(manual / "features.h5")
    import_features.main([source, "--rate", "5", "--durations", str(folder / "durations.json"), "--out", str(folder / "stores"), *shared])
    import_features.main([source, "--rate", "5", "--encoder", "clip-vit-base-patch32", "--out", str(folder / "others"), *shared])
    import_features.main([str(texts), "--queries", str(folder / "texts.json"), "--out", str(folder / "queries"), *shared])
    tokenizers = folder / "tokenizers"
    (tokenizers / checkpoint.TEXT_TOKENIZER).mkdir(parents=True)
    (tokenizers / FILE).write_text(WORDS.to_str())
    (tokenizers / checkpoint.TEXT_TOKENIZER / FILE).write_text(CAPTIONS.to_str())
    config = override(train.load_config(PRESET), OVERRIDES)
    checkpoint.export(init_state(config, jax.random.key(1)), config, tokenizers / FILE, folder / "begin", dtype="float32")
    return folder


def arguments(place: Path, workdir: str, *more: str, features: str = "stores") -> list[str]:
    where = [f"data.root={place / 'built'}", f"data.features={place / features}"]
    return [PRESET, "--workdir", str(place / workdir), "--init", str(place / "begin"), *OVERRIDES, *where, *more]


@pytest.fixture(scope="module")
def trained(place) -> Path:
    assert train.main(arguments(place, "run")) == 0
    return place / "run" / "checkpoint"


@pytest.mark.slow
def test_it_trains_all_stages_and_keeps_both_tokenizers(trained, place):
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(stage, step) for stage in ("1a", "1b", "2", "2-33") for step in (1, 2)]
    assert all(np.isfinite(row["loss"]) for row in rows)
    for name in (FILE, f"{checkpoint.TEXT_TOKENIZER}/{FILE}"):
        assert (trained / name).read_bytes() == (place / "begin" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("given", [[], ["--queries"]], ids=["text tower", "text features"])
def test_it_is_evaluated_on_features_alone(trained, place, given, tmp_path):
    extra = [*given, str(place / "queries")] if given else []
    evaluate.main([
        "--checkpoint", str(trained), "--dataset", "mad", "--data", str(place / "built"), "--features", str(place / "stores"), "--split", "test",
        "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "report.json"), *extra,
    ])  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["run"]["videos"] == 2 and report["counts"]["questions"] == 6
    assert 0 <= report["R1@0.1"] <= 100 and report["oracle_window_mIoU"] is not None


@pytest.mark.slow
def test_it_trains_on_text_features_in_place_of_the_tower(place):
    assert train.main(arguments(place, "run-queries", "--stages", "1a,1b", f"data.queries={place / 'queries'}")) == 0


@pytest.mark.slow
def test_features_of_another_encoder_are_refused(trained, place, capsys):
    for main, given in (
        (train.main, arguments(place, "run-others", features="others")),
        (evaluate.main, ["--checkpoint", str(trained), "--dataset", "mad", "--data", str(place / "built"), "--features", str(place / "others")]),
    ):
        with pytest.raises(SystemExit) as caught:
            run(lambda main=main, given=given: main(given))
        error = capsys.readouterr().err
        assert caught.value.code == 2 and "clip-vit-base-patch32" in error and "clip-vit-large-patch14" in error and error.count("\n") == 1


@pytest.mark.slow
def test_semi_hard_negatives_by_its_own_scores(trained, place, capsys):
    file = str(place / "scores")
    score.main([
        "--checkpoint", str(trained), "--dataset", "mad", "--data", str(place / "built"), "--features", str(place / "stores"), "--out", file, "--keep", "8",
    ])  # fmt: skip
    name = checkpoint.identity(trained)
    assert capsys.readouterr().out == f"{file}: 9 questions, scored by {name}\n"
    semi_hard = ["--stages", "1a", 'train.stages.1a.negatives=[["semi_hard", 1.0]]', f"train.stages.1a.examples.scores={file}"]
    assert train.main(arguments(place, "run-scores", *semi_hard, f"train.stages.1a.examples.scored_by={name}")) == 0
    with pytest.raises(SystemExit) as caught:
        run(lambda: train.main(arguments(place, "run-wrong", *semi_hard, "train.stages.1a.examples.scored_by=tiny-0123456789ab")))
    assert caught.value.code == 2 and f"these scores are of the checkpoint '{name}', not 'tiny-0123456789ab'" in capsys.readouterr().err
