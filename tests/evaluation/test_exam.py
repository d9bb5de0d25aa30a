"""The whole exam with a very small random model and two short videos: asked, kept, gone on with, fitted, compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from launch import evaluate
from revision_jax import checkpoint
from revision_jax.data.synthetic.script import make_script
from revision_jax.data.synthetic.write import write
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.errors import UserError
from revision_jax.evaluation import baselines, datasets, exam, fitting, report, submissions
from revision_jax.evaluation.baselines import Decision, Flat, Model, Random, Retrieval
from revision_jax.evaluation.outcome import Outcome, with_threshold
from revision_jax.grounding.confidence import Calibrator
from revision_jax.grounding.grounder import Grounder
from tests.grounding.conftest import WORDS, noisy_state, small_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("videos")
    for seed, name in ((1, "first"), (2, "second")):
        write(make_script(seed, 120.0, 5), place / name)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model")
    config = small_config()
    build_word_tokenizer(WORDS, numbers=256, vocab_size=320).save(place)
    return checkpoint.export(noisy_state(config), config, place / "tokenizer.json", place / "small", dtype="float32")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def grounder(model, cache) -> Grounder:
    return Grounder.from_pretrained(model, cache_dir=cache)


@pytest.fixture(scope="module")
def items(folder):
    return datasets.folder(folder)


@pytest.mark.parametrize("method", [Model(), Model(without=("patch",)), Retrieval(), Flat(), Random()], ids=lambda method: method.name)
def test_every_method_answers_in_the_same_form(method, grounder, items):
    assert isinstance(method, baselines.Method)
    item = items[0]
    outcomes = exam.ask(grounder, method, item, grounder.encode(item.video), top_k=3, oracle=method.name == "model")
    assert [o.query_id for o in outcomes] == [q.query_id for q in item.questions]
    for outcome in outcomes:
        confidences = [m[2] for m in outcome.moments]
        assert len(outcome.moments) <= 3 and confidences == sorted(confidences, reverse=True)
        assert all(0 <= s < e <= outcome.duration_s and 0 <= c <= 1 and (c >= 0.5 or not a) for s, e, c, a in outcome.moments)
        assert with_threshold(outcome, 0.5) == outcome, "the same rule where an answer is made and where it is decided anew"
    if method.name == "model":
        assert all((o.oracle_iou is not None) == o.present for o in outcomes)
        assert all(o.survivors is not None and 0 < o.survivors_share <= 1 for o in outcomes)
        best = [o.windows[0] for o in outcomes]  # survives, so lies inside of a surviving stretch
        assert all(any(low <= s and e <= high for low, high in o.survivors) for (s, e), o in zip(best, outcomes, strict=True))
        assert all(len(o.windows) <= 10 for o in outcomes)
        assert all(o.parse_failures == 0 for o in outcomes)  # the grammar leaves nothing unreadable
    json.dumps(report.build(outcomes, {}, resamples=20), allow_nan=False)


def test_answers_do_not_depend_on_how_many_questions_are_searched_at_once(grounder, items, monkeypatch):
    item, counts = items[0], []
    video = grounder.encode(item.video)
    search = grounder.searcher.search
    monkeypatch.setattr(grounder.searcher, "search", lambda source, queries, **more: counts.append(len(queries)) or search(source, queries, **more))
    together = exam.ask(grounder, Model(), item, video, top_k=3, oracle=True)
    monkeypatch.setattr(exam, "TOGETHER", 2)
    apart = exam.ask(grounder, Model(), item, video, top_k=3, oracle=True)
    assert counts[0] == len(item.questions) > 2 and max(counts[1:]) == 2 and sum(counts[1:]) == counts[0]
    for one, other in zip(together, apart, strict=True):
        assert (one.query_id, one.truth) == (other.query_id, other.truth) and one.oracle_iou == pytest.approx(other.oracle_iou, abs=1e-3)
        assert np.allclose([m[:3] for m in one.moments], [m[:3] for m in other.moments], atol=1e-3)


def test_overrides_change_the_search_and_share_programs_where_they_can(grounder, items):
    searched = Model(overrides=("grounding.retrieval=0", "grounding.levels.sparse.beam=2")).bounded(grounder)
    assert searched.programs is grounder.programs and searched.config.grounding.retrieval == 0 and searched.searcher.config is not grounder.config
    strict = Model(overrides=("pruner.threshold=1e9",))
    assert strict.bounded(grounder).programs is not grounder.programs and strict.bounded(grounder) is strict.bounded(grounder)
    video = grounder.encode(items[0].video)
    found = strict.search(grounder, video, [items[0].questions[0].query], 3)[0]
    patch = found.levels[-1]
    assert patch.level.kind == "patch" and patch.prompts > 0 and patch.tokens == patch.prompts * (4 + 7)  # the first frame whole, one token of each other
    assert exam.outcome(items[0], 0, found, Decision(), video.duration_s).tokens == sum(trace.tokens for trace in found.levels)


def test_random_spans_are_the_same_again(grounder, items):
    video = grounder.encode(items[0].video)
    first, again = (Random().search(grounder, video, ["a", "b"], 5) for _ in range(2))
    assert first[0].moments == again[0].moments and first[0].moments != first[1].moments


def test_frame_similarity_does_not_depend_on_chunks(grounder, items, monkeypatch):
    from revision_jax.grounding import similarity

    video, question = grounder.encode(items[0].video), grounder.programs.question("a red ring")
    whole = similarity.frame_similarity(grounder.programs, video.source, [question])
    assert whole.shape == (1, video.source.frames) and ((whole >= 0) & (whole <= 1)).all() and whole.std() > 0
    monkeypatch.setattr(similarity, "CHUNK", 50)
    np.testing.assert_allclose(similarity.frame_similarity(grounder.programs, video.source, [question]), whole, atol=1e-5)


def test_a_stopped_run_goes_on(grounder, items, tmp_path, monkeypatch):
    asked = []

    class Counting(Random):
        def search(self, grounder, video, queries, top_k):
            asked.append(video.path)
            return super().search(grounder, video, queries, top_k)

    whole = exam.run(grounder, Counting(), items, tmp_path / "a")
    assert len(asked) == 2 and exam.run(grounder, Counting(), items, tmp_path / "a") == whole and len(asked) == 2
    # killed while the second video's answers were written: only a whole file counts
    (tmp_path / "a" / "second.jsonl").write_text((tmp_path / "a" / "second.jsonl").read_text()[:200])
    assert exam.run(grounder, Counting(), items, tmp_path / "a") == whole and len(asked) == 3


def test_identity_follows_what_the_answers_depend_on(model, tmp_path):
    base = exam.identity(model, Model(), 5)
    assert base == exam.identity(model, Model(), 5) and base.startswith("model-")
    other = shutil.copytree(model, tmp_path / "other")
    assert exam.identity(other, Model(), 5) == base  # where it lies does not matter
    (other / "calibration.json").write_text("{}")
    names = {base, exam.identity(other, Model(), 5), exam.identity(model, Model(), 4), exam.identity(model, Flat(), 5), exam.identity(model, Random(seed=1), 5)}
    assert len(names) == 5
    assert exam.identity(model, Random(), 5) == exam.identity(other, Random(), 5)


def test_fit_then_evaluate_then_compare(model, folder, cache, tmp_path, capsys):
    place = str(shutil.copytree(model, tmp_path / "fitted"))
    common = ["--checkpoint", place, "--dataset", "folder", "--data", str(folder), "--cache", str(cache), "--workdir", str(tmp_path / "answers")]
    evaluate.main([*common, "--fit"])
    stored = fitting.stored(place)
    assert 0 <= stored["threshold"] <= 1 and stored["temperature"] > 0 and set(stored["baselines"]) == {"retrieval", "flat", "random"}
    assert stored["false_alarms"]["confidences"] == sorted(stored["false_alarms"]["confidences"], reverse=True) and stored["false_alarms"]["hours"] > 0
    strict, loose = (fitting.threshold_for(place, limit) for limit in (0, 1e6))
    assert strict > stored["false_alarms"]["confidences"][0] and loose == 0
    fitted = Grounder.from_pretrained(place, cache_dir=cache)
    assert fitted.threshold == stored["threshold"]
    assert stored["fitted_on"]["hierarchy"] == "sparse/dense"
    rule = baselines.make("retrieval", fitted, stored)
    assert rule.settings() == stored["baselines"]["retrieval"]

    evaluate.main([*common, "--json", str(tmp_path / "model.json"), "--submission", str(tmp_path / "model.jsonl")])
    handed_in = submissions.read(tmp_path / "model.jsonl")
    assert set(handed_in) == {question["query_id"] for question in report.load(tmp_path / "model.json")["questions"]}
    evaluate.main([*common, "--baseline", "random", "--json", str(tmp_path / "random.json"), "--compare", str(tmp_path / "model.json")])
    evaluate.main(["--compare", str(tmp_path / "model.json"), str(tmp_path / "random.json")])
    out = capsys.readouterr().out
    assert "RejF1" in out and "difference" in out
    made = report.load(tmp_path / "model.json")
    assert made["counts"]["videos"] == 2 and made["run"]["settings"]["threshold"] == stored["threshold"]
    assert str(tmp_path) not in json.dumps(made["run"])


def test_the_threshold_for_further_moments_is_fitted_on_how_many_there_are():
    """Second moments of 0.4 are true, of 0.3 false: between them the count and the spans are right."""
    question = lambda n, truth, *confidence: Outcome(
        "film", str(n), "q", "several" if len(truth) > 1 else "one", 100.0, truth,
        tuple((10.0 * i, 10.0 * i + 5, c, False) for i, c in enumerate(confidence)),
    )  # fmt: skip
    both, one = ((0.0, 5.0), (10.0, 15.0)), ((0.0, 5.0),)
    outcomes = [question(0, both, 0.9, 0.4), question(1, one, 0.9, 0.3), question(2, (), 0.8, 0.7), question(3, one, 0.95)]
    assert fitting.further(outcomes, 0.6) == pytest.approx(0.35)
    again = [with_threshold(outcome, 0.6, 0.35) for outcome in outcomes]
    assert [sum(accepted for *_, accepted in outcome.moments) for outcome in again] == [2, 1, 2, 1]


def test_a_fit_of_another_hierarchy_stands_beside_the_first():
    plain = Calibrator(("score",), (0.0,), (1.0,), (1.0,), 0.0, 1.0, 0.3).to_dict()
    fit = lambda levels, bias: {**plain, "bias": bias, "false_alarms": {}, "fitted_on": {"hierarchy": levels}}
    first = fitting.merged({}, fit("sparse/dense", 0.1))
    both = fitting.merged(first, fit("dense", 0.2) | {"threshold": 0.9})
    assert both["bias"] == 0.1 and both["threshold"] == 0.3 and both["hierarchies"]["dense"]["fitted_on"] == {"hierarchy": "dense"}
    assert Calibrator.from_dict(both).of("dense").bias == 0.2
    assert fitting.merged(both, fit("sparse/dense", 0.5)).get("hierarchies") == {}, "another first fit is another model's: what was beside it goes"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "films"], "--dataset: 'films'"),
        (["--dataset", "folder"], "--data"),
        (["--split", "exam"], "exam"),
        (["--limit", "0"], "--limit"),
        (["--without", "roof"], "--without: no level 'roof'; there are nested, sparse, dense, patch"),
        (["--without", "patch", "--baseline", "flat"], "a baseline has none"),
        (["--baseline", "magic"], "--baseline: 'magic'"),
        (["--fit", "--split", "test"], "fit on validation"),
        (["--fit", "--baseline", "flat"], "--fit"),
        (["--compare", "nothing.json"], "nothing.json"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_are_one_line(arguments, says, model):
    given = arguments if "--checkpoint" in arguments else ["--checkpoint", str(model), *arguments]
    with pytest.raises(UserError, match=says) as error:
        evaluate.main(given)
    assert "\n" not in str(error.value)
