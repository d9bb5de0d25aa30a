"""A built dataset with feature stores as the curriculum's films, and what is said about films without usable features."""

import dataclasses

import numpy as np
import pytest

from configs.tiny import get_config
from revision_jax.config import ConfigError, DataConfig
from revision_jax.data.curriculum import Curriculum
from revision_jax.data.datasets.corpus import train_videos
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.errors import UserError
from revision_jax.training.corpus import prepare
from tests.data.datasets.owners import built, jsonl, put

CONFIG = get_config()


def store(path, seconds, rate=CONFIG.grounding.rate, width=CONFIG.vision.output):
    arrays = {"frame": ((width,), "float16"), "tokens": ((25, width), "float16"), "change": ((25,), "float16")}
    frames = round(seconds * rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(frames)
    with FeatureWriter(path, FeatureHeader("hash", "encoder", rate, float(seconds), arrays)) as writer:
        writer.append(np.arange(frames) / rate, {name: rng.standard_normal((frames, *shape)).astype(dtype) for name, (shape, dtype) in arrays.items()})


def row(video, query, *moments, duration=120.0):
    return {"video_id": video, "duration_s": duration, "query": query, "moments": list(moments)}


def examples_of(tmp_path, *rows):
    put(tmp_path / "manual", "train.jsonl", jsonl(*rows))
    return built("jsonl", tmp_path)[1]["train"]


def test_films_with_their_questions(tmp_path):
    rows = [row("b", "a dog runs", [5, 20]), row("a/1", "a cat sleeps", [1, 2], [9, 40]), row("b", "it rains"), row("b", "a bird sings", [30, 31])]
    examples = examples_of(tmp_path, *rows)
    store(tmp_path / "stores" / "b.features", 120)
    store(tmp_path / "stores" / "b.patches", 120)
    store(tmp_path / "stores" / "a" / "1.features", 118.5)  # within two seconds of what the annotations say
    videos, counts = train_videos(CONFIG, examples, tmp_path / "stores")
    assert [video.video_id for video in videos] == ["b", "a/1"] and counts == {"used": 2}
    assert [(q.query, q.moments, q.kind) for q in videos[0].questions] == [
        ("a dog runs", ((5.0, 20.0),), "one"), ("it rains", (), "absent"), ("a bird sings", ((30.0, 31.0),), "one"),
    ]  # fmt: skip
    assert videos[0].patch_store == tmp_path / "stores" / "b.patches" and videos[1].patch_store is None and videos[1].questions[0].kind == "several"


def test_films_without_usable_features_are_listed_or_left_out(tmp_path):
    videos = ("good", "none", "short", "rate", "width", "cut", "../good")
    examples = examples_of(tmp_path, *[row(video, "x", [1, 2]) for video in videos])
    folder = tmp_path / "stores"
    store(folder / "good.features", 120)
    store(folder / "short.features", 100)
    store(folder / "rate.features", 120, rate=2 * CONFIG.grounding.rate)
    store(folder / "width.features", 120, width=CONFIG.vision.output + 8)
    whole = (folder / "good.features").read_bytes()
    (folder / "cut.features").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        train_videos(CONFIG, examples, folder)
    said = str(error.value)
    assert "6 of 7 videos without usable features" in said and "none has none" in said and "short.features ends at 100.0 s of 120.0 s" in said
    assert "grounding.rate" in said and "of width" in said and "and 1 more" in said
    used, counts = train_videos(CONFIG, examples, folder, "skip")
    assert [video.video_id for video in used] == ["good"]
    assert counts == {"damaged features": 1, "missing features": 2, "other rate": 1, "other width": 1, "short features": 1, "used": 1}
    with pytest.raises(UserError, match=r"1 of 1 videos without usable features"):
        train_videos(CONFIG, [example for example in examples if example.video_id == "none"], folder, "skip")
    with pytest.raises(UserError, match=r"no such folder"):
        train_videos(CONFIG, examples, tmp_path / "nowhere")


def test_training_reads_a_built_dataset(tmp_path):
    words = ["a dog runs", "a cat sleeps", "it rains"]
    examples_of(tmp_path, *[row(video, words[number], [10, 40]) for video in ("a", "b") for number in range(2)], row("a", words[2]))
    for video in ("a", "b"):
        store(tmp_path / "stores" / f"{video}.features", 120)
    data = DataConfig(dataset="jsonl", root=str(tmp_path / "out"), features=str(tmp_path / "stores"), encoder="encoder")
    config = dataclasses.replace(CONFIG, data=data)
    told = []
    corpus = prepare(config, {}, tmp_path / "work", lambda *said: told.append(said))
    assert [video.video_id for video in corpus.videos] == ["a", "b"] and told == [("jsonl: 2 videos used", 2, 2)]
    with pytest.raises(UserError, match=r"a\.features was made by 'encoder', wanted is '[0-9a-f]{24}' \(data\.encoder, or this model's own\)"):
        prepare(dataclasses.replace(config, data=dataclasses.replace(data, encoder="")), {}, tmp_path / "work")
    stage = next(stage for stage in config.train.stages if stage.task not in ("pretrain", "language"))
    tokenizer = build_word_tokenizer([*words, "during which frames can we see happen in the video from to not present yes no ? ."], 256, 512)
    examples = [Curriculum(config, stage, corpus, tokenizer, seed).example(index) for seed in (3, 3) for index in range(8)]
    for one, again in zip(examples[:8], examples[8:], strict=True):
        assert all(np.array_equal(one[name], again[name]) for name in one) and one["tokens"].any()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": "imagenet"}, r"data.dataset: 'imagenet' is not one of synthetic, mad"),
        ({"dataset": "conversations"}, "data.dataset"),
        ({"dataset": "mad", "features": "f"}, "data.root: must name the folder of built datasets"),
        ({"dataset": "mad", "root": "r"}, "data.features: must name the folder of feature stores"),
    ],
)
def test_a_config_that_does_not_say_where(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        prepare(dataclasses.replace(CONFIG, data=DataConfig(**changes)), {}, tmp_path)
    with pytest.raises(UserError, match=r"mad: holds no built dataset"):
        prepare(dataclasses.replace(CONFIG, data=DataConfig(dataset="mad", root=str(tmp_path), features="f")), {}, tmp_path)
