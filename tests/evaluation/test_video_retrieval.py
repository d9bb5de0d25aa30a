"""Ranks of videos and their figures by hand, against sorting, and the whole command on a few MSR-VTT-shaped videos."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import evaluate
from launch.cli import run
from revision_jax import checkpoint
from revision_jax.config import DataConfig, LevelConfig, PromptConfig
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, store_path
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.errors import UserError
from revision_jax.evaluation import report as reports
from revision_jax.evaluation import video_retrieval
from revision_jax.grounding import retrieve
from tests.grounding.conftest import TOKENS, WIDTH, WORDS, noisy_state, small_config


def figures(ranks):
    table = {"rank": np.asarray(ranks, np.float64)}
    return {name: float(value[0]) for name, value in video_retrieval.weighted(table, np.ones((1, len(ranks)))).items()}


def test_by_hand():
    # own videos: best of three, tied for the first place, last
    scores = np.array([[0.9, 0.1, 0.5], [0.7, 0.7, 0.2], [0.5, 0.4, 0.3]])
    ranks = video_retrieval.ranks(scores, np.array([0, 1, 2]))
    assert ranks.tolist() == [1, 1.5, 3]
    assert figures(ranks) == pytest.approx({"R@1": 100 / 3, "R@5": 100, "R@10": 100, "MdR": 1.5, "MnR": 5.5 / 3})


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_rank_is_the_mean_of_the_places_that_sorting_may_give(questions, videos, seed):
    rng = np.random.default_rng(seed)
    scores, own = rng.integers(0, 4, (questions, videos)) / 4, rng.integers(0, videos, questions)
    first = [sorted(row, reverse=True).index(row[v]) + 1 for row, v in zip(scores.tolist(), own, strict=True)]
    last = [videos - sorted(row).index(row[v]) for row, v in zip(scores.tolist(), own, strict=True)]
    ranks = video_retrieval.ranks(scores, own)
    np.testing.assert_array_equal(ranks, (np.asarray(first) + last) / 2)
    order = rng.permutation(videos)  # the videos' order means nothing
    np.testing.assert_array_equal(ranks, video_retrieval.ranks(scores[:, order], np.argsort(order)[own]))


@given(st.lists(st.integers(1, 200).map(lambda twice: twice / 2 + 0.5), min_size=1, max_size=20), st.data())
def test_weights_are_repetitions(ranks, data):
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(ranks), max_size=len(ranks)).filter(any))
    repeated = np.repeat(ranks, weights)
    found = video_retrieval.weighted({"rank": np.asarray(ranks)}, np.asarray([weights], np.float64))
    assert {name: value[0] for name, value in found.items()} == pytest.approx(figures(repeated))
    assert found["MdR"][0] == np.median(repeated)
    assert found["R@1"] <= found["R@5"] <= found["R@10"]


def report(ranks, **about):
    questions = [{"query_id": str(number), "video": f"v{number}", "query": "a ring", "rank": rank} for number, rank in enumerate(ranks)]
    return video_retrieval.build(questions, 50, about, resamples=200)


def test_reports_are_kept_and_compared(tmp_path):
    good, bad = report([1.0] * 20), report([30.0] * 19 + [1.0])
    reports.save(tmp_path / "a.json", good)
    assert video_retrieval.load(tmp_path / "a.json") == good and good["intervals"]["R@1"] == [100, 100]
    found = video_retrieval.compare(good, bad, resamples=200)
    assert found["R@1"]["better"] and found["MdR"]["better"] and found["MdR"]["difference"] == -29
    with pytest.raises(UserError, match="different questions"):
        video_retrieval.compare(good, report([1.0] * 3))
    for text in ("", "{}", '{"kind": "text-to-video retrieval", "questions": []}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"x\.json: is not"):
            video_retrieval.load(tmp_path / "x.json")


CAPTIONS = ["A red ring.", "A blue square", "Not present", "Small circles pass behind", "A green star turns yellow"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Owners' files of five videos, their features, and a random checkpoint with a level of two videos a group."""
    folder = tmp_path_factory.mktemp("msrvtt")
    config = small_config()
    sparse = config.grounding.level("sparse")
    words = PromptConfig(after="during which video can we see {query} ?", answer="from {start} .", end="single")
    videos = LevelConfig(name="videos", kind="video", tokens=2, frames=6, sampling="linspace", batch=2, spans=2, adapter=sparse.adapter, prompt=words)
    grounding = dataclasses.replace(config.grounding, levels=(videos, *config.grounding.levels))
    config = dataclasses.replace(config, grounding=grounding, data=DataConfig(encoder="made"))
    build_word_tokenizer(WORDS, numbers=256, vocab_size=320).save(folder)
    checkpoint.export(noisy_state(config), config, folder / "tokenizer.json", folder / "model", dtype="float32")

    rng, names = np.random.default_rng(0), [f"video{number}" for number in range(5)]
    arrays = {"frame": ((WIDTH,), "float16"), "tokens": ((TOKENS, WIDTH), "float16"), "change": ((TOKENS,), "float16")}
    for name in names:
        header = FeatureHeader(f"id:{name}", "made", 1.0, 12.0, arrays)
        with FeatureWriter(store_path(folder / "stores", name), header) as writer:
            writer.append(np.arange(12.0), {key: rng.normal(size=(12, *shape)) for key, (shape, _) in arrays.items()})
    about = [{"video_id": name, "start time": 0.0, "end time": 12.0, "split": "test", "url": ""} for name in names]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": about, "sentences": []}))
    rows = [f"ret{number},msr{number},{name},{caption}" for number, (name, caption) in enumerate(zip(names, CAPTIONS, strict=True))]
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n")
    return folder


@pytest.mark.slow
def test_the_command_ranks_all_videos(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(retrieve, "QUESTIONS", 3)
    common = ["--checkpoint", str(place / "model"), "--dataset", "msrvtt", "--data", str(place), "--features", str(place / "stores")]
    evaluate.main([*common, "--json", str(tmp_path / "a.json"), "--cache", str(tmp_path)])
    made = video_retrieval.load(tmp_path / "a.json")
    assert [question["query"] for question in made["questions"]][:2] == ["a red ring", "a blue square"]
    assert all(1 <= question["rank"] <= 5 for question in made["questions"]) and made["R@5"] == 100
    assert made["counts"] == {"questions": 5, "videos": 5} and str(tmp_path) not in json.dumps(made)

    monkeypatch.setattr(retrieve, "QUESTIONS", 64)  # however many questions are asked at a time
    evaluate.main([*common, "--cache", str(tmp_path), "--compare", str(tmp_path / "a.json")])
    evaluate.main(["--dataset", "msrvtt", "--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    out = capsys.readouterr().out
    assert "5 questions about 5 videos" in out and "undecided" in out and "+0.0" in out


@pytest.mark.parametrize("more", [["--fit"], ["--baseline", "flat"], ["--submission", "x"]])
def test_what_has_no_meaning_is_refused(place, capsys, more):
    with pytest.raises(SystemExit) as caught:
        run(lambda: evaluate.main(["--dataset", "msrvtt", "--data", str(place), *more]))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "msrvtt asks which video it is" in error and error.count("\n") == 1
