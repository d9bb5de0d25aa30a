"""Predictions in the field's forms: read, written, and scored as the owners of QVHighlights say."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import score_predictions
from launch.cli import run
from revision_jax.data.datasets.schema import Example
from revision_jax.errors import UserError
from revision_jax.evaluation import datasets, figures, report, submissions
from revision_jax.evaluation.outcome import Outcome

QVHIGHLIGHTS = Path(__file__).resolve().parents[3] / "shared/data/qvhighlights_val.jsonl"


def example(query_id, moments, duration=150.0):
    kind = "absent" if not moments else "one" if len(moments) == 1 else "several"
    return Example("film", duration, query_id, "a dog runs", np.asarray(moments, np.float32).reshape(-1, 2), kind, "", "", 0.0, "validation")


def answered(query_id, *moments):
    return Outcome("film", query_id, "a dog runs", "one", 150.0, ((0.0, 1.0),), tuple((s, e, c, c >= 0.5) for s, e, c in moments))


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------------------------------------- forms

ANSWERS = [answered("7", (10.0, 20.0, 0.4), (30.5, 40.0, 0.9)), answered("x 8")]


def test_qvhighlights_form(tmp_path):
    submissions.write(tmp_path / "a.jsonl", ANSWERS, "qvhighlights")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows == [
        {"qid": 7, "query": "a dog runs", "vid": "film", "pred_relevant_windows": [[30.5, 40.0, 0.9], [10.0, 20.0, 0.4]]},
        {"qid": "x 8", "query": "a dog runs", "vid": "film", "pred_relevant_windows": [[0.0, 0.0, 0.0]]},  # the owners' script wants a first one
    ]
    assert submissions.read(tmp_path / "a.jsonl") == {"7": ((30.5, 40.0, 0.9), (10.0, 20.0, 0.4)), "x 8": ()}


def test_extremewhenbench_form(tmp_path):
    submissions.write(tmp_path / "a.jsonl", ANSWERS, "extremewhenbench")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["pred"] for row in rows] == [[30.5, 40.0], None] and rows[0]["video_id"] == "film"
    assert submissions.read(tmp_path / "a.jsonl") == {"7": ((30.5, 40.0, None),), "x 8": ()}


def test_mad_form(tmp_path):
    submissions.write(tmp_path / "a.json", ANSWERS, "mad")
    assert json.loads((tmp_path / "a.json").read_text()) == {"7": [[30.5, 40.0, 0.9], [10.0, 20.0, 0.4]], "x 8": []}
    assert submissions.read(tmp_path / "a.json") == {"7": ((30.5, 40.0, 0.9), (10.0, 20.0, 0.4)), "x 8": ()}
    submissions.write(tmp_path / "none.json", [], "mad")
    assert json.loads((tmp_path / "none.json").read_text()) == {}


def test_a_dataset_has_a_form():
    forms = {"mad/extended": "mad", "extremewhenbench": "extremewhenbench", "charades_sta": "qvhighlights", "synthetic": "qvhighlights"}
    assert {name: submissions.form_of(name) for name in forms} == forms


spans = st.lists(st.tuples(st.floats(-10, 200), st.floats(201, 300), st.floats(-5, 5)), max_size=5).map(tuple)
ids = st.one_of(st.integers(0, 10**9).map(str), st.text(min_size=1, max_size=5).filter(lambda text: not text.isdecimal()))


@given(st.dictionaries(ids, spans, min_size=1, max_size=4), st.sampled_from(["qvhighlights", "mad"]))
def test_what_was_written_is_read_back(tmp_path_factory, predictions, form):
    path = tmp_path_factory.getbasetemp() / f"{form}.json"
    submissions.write(path, [answered(query, *one) for query, one in predictions.items()], form)
    assert submissions.read(path) == {query: tuple(sorted(one, key=lambda span: -span[2])) for query, one in predictions.items()}


BAD = [
    ("", "must hold lines"),
    ("[1, 2]", "must hold lines"),
    ('{"7": 3}', "query 7: spans must be a list"),
    ('{"7": [[1, 2]], "7": []}', "query 7 is there twice"),
    ('{"7": [["a", 2]]}', r"query 7: a span must be \[start, end\]"),
    ('{"7": [[1, NaN]]}', "finite"),
    ('{"7": [[1, 2, 3, 4]]}', "a span must be"),
    ('{"qid": 1, "pred": [1, 2]}\n{"qid": 1, "pred": null}', "a:2: query 1 is there twice"),
    ('{"qid": 1, "pred": [1, 2]}\nnonsense', "a:2: is not JSON"),
    ('{"qid": 1, "pred": [1, 2]}\n{"pred": [1, 2]}', "a:2: must be an object with a qid"),
    ('{"qid": true, "pred": [1, 2]}', "a:1: must be an object with a qid"),
    ('{"qid": 1, "answer": [1, 2]}', "a:1: holds neither"),
    ('{"qid": 1, "pred_relevant_windows": null}', "a:1: spans must be a list"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_bad_predictions_are_one_line(tmp_path, text, says):
    (tmp_path / "a").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        submissions.read(tmp_path / "a")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        submissions.read(tmp_path / "b")


# ------------------------------------------------------------------------------------------------------------------------- scoring


def scored(examples, predictions, threshold=None):
    return figures.figures(submissions.outcomes(examples, predictions, threshold))


def test_ties_empty_touching_outside_and_repeated():
    one = [example("1", [(10, 20)])]
    assert scored(one, {})["R1@0.1"] == scored(one, {"1": ()})["R1@0.1"] == 0
    assert scored(one, {"1": ((20.0, 30.0, 0.5),)})["mIoU"] == 0  # touches
    assert scored(one, {"1": ((-10.0, 20.0, 0.5),)})["mIoU"] == pytest.approx(100 / 3)  # is not cut to the video
    assert scored(one, {"1": ((20.0, 10.0, 0.5),)})["mIoU"] == 0  # ends before it starts
    tie = scored(one, {"1": ((0.0, 5.0, 0.5), (10.0, 20.0, 0.5))})  # in the order of the file
    assert tie["R1@0.5"] == 0 and tie["R5@0.5"] == 100 and tie["mAP"] == 50
    twice = scored(one, {"1": ((10.0, 20.0, 0.9), (10.0, 20.0, 0.8))})
    assert twice["mAP"] == 100 and twice["F1@0.5"] == pytest.approx(200 / 3) and twice["count_accuracy"] == 0


def test_scores_of_any_scale_rank_alone():
    examples = [example("1", [(10, 20)]), example("2", [(10, 20)]), example("3", [])]
    shared = {"1": ((0.0, 5.0, 0.2), (10.0, 20.0, 0.9)), "2": ((10.0, 20.0, 0.5),), "3": ((0.0, 5.0, 0.1),)}
    logits = {query: tuple((s, e, 20 * c - 10) for s, e, c in one) for query, one in shared.items()}
    plain, other = scored(examples, shared), scored(examples, logits)
    assert other["ECE"] is None and other["Brier"] is None and plain["ECE"] is not None
    assert {name: value for name, value in other.items() if not name.startswith(("ECE", "Brier"))} == pytest.approx(
        {name: value for name, value in plain.items() if not name.startswith(("ECE", "Brier"))}
    )
    assert other["AUROC"] == 1


def test_threshold_decides_what_counts_as_an_answer():
    examples = [example("1", [(10, 20)]), example("2", [])]
    predictions = {"1": ((10.0, 20.0, 0.9), (0.0, 1.0, 0.1)), "2": ((10.0, 20.0, 0.3),)}
    assert scored(examples, predictions)["FPR"] == 100
    decided = scored(examples, predictions, 0.5)
    assert decided["FPR"] == 0 and decided["RejF1"] == 100 and decided["F1@0.5"] == 100
    with pytest.raises(UserError, match="without a score"):
        submissions.outcomes(examples, {"1": ((1.0, 2.0, None),)}, 0.5)


def test_predictions_without_a_question_are_told():
    with pytest.raises(UserError, match="1 of 2 predictions are for queries that the annotations do not have: 9"):
        submissions.outcomes([example("1", [(1, 2)])], {"1": (), "9": ()})


# ------------------------------------------------------------------------------------------------------------------- QVHighlights


def owners_figures(truth, predictions):
    """The owners' protocol, from its description: the first ten spans, each taking the free moment of highest IoU that it reaches; for a class of lengths the
    questions that have such moments, and those moments alone."""

    def iou(a, b):
        both = min(a[1], b[1]) - max(a[0], b[0])
        return max(0.0, both) / ((a[1] - a[0]) + (b[1] - b[0]) - max(0.0, both))

    def precision(found, moments, threshold):
        taken, area, hits = set(), [], 0
        for rank, span in enumerate(found[:10], 1):
            reach = [(iou(span, moment), -i) for i, moment in enumerate(moments) if i not in taken and iou(span, moment) >= threshold]
            if reach:
                taken.add(-max(reach)[1])
                hits += 1
                area.append((hits, hits / rank))
        return sum(max(p for later, p in area if later >= hit) for hit, _ in area) / len(moments)

    thresholds = [t / 100 for t in range(50, 100, 5)]
    result = {}
    for name, low, high in (("mAP", 0, 150), ("mAP_short", 0, 10), ("mAP_middle", 10, 30), ("mAP_long", 30, 150)):
        chosen = {q: [m for m in moments if low < m[1] - m[0] <= high] for q, moments in truth.items()}
        values = [[precision(predictions[q], moments, t) for t in thresholds] for q, moments in chosen.items() if moments]
        if values:
            result[name] = 100 * np.mean(values)
            if name == "mAP":
                result["mAP@0.5"], result["mAP@0.75"] = 100 * np.mean(values, 0)[[0, 5]]
    for t in (0.5, 0.7):
        result[f"R1@{t}"] = 100 * np.mean([max(iou(predictions[q][0], m) for m in moments) >= t for q, moments in truth.items()])
    return result


def guesses(truth, rng):
    """A few spans a question, on the grid of two seconds as the truth: some near it, some anywhere."""
    found = {}
    for query, moments in truth.items():
        near = [(max(0, s + 2 * rng.integers(-5, 6)), e + 2 * rng.integers(-5, 6)) for s, e in moments]
        far = [(start, start + 2 * rng.integers(1, 20)) for start in 2 * rng.integers(0, 70, rng.integers(1, 13))]
        spans = [(float(s), float(e)) for s, e in [*near, *far] if s < e]
        scores = np.sort(rng.permutation(1000)[: len(spans)])[::-1] / 1000
        order = rng.permutation(len(spans))
        found[query] = tuple((*spans[i], float(score)) for i, score in zip(order, scores, strict=True))
    return found


def invented(rng, count=60):
    truth = {}
    for number in range(count):
        starts = 30 * np.sort(rng.permutation(5)[: rng.integers(1, 4)])
        truth[str(number)] = [(float(s), float(s + 2 * rng.integers(1, 16))) for s in starts]
    return truth


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_the_owners(seed):
    rng = np.random.default_rng(seed)
    truth = invented(rng)
    predictions = guesses(truth, rng)
    ours = scored([example(query, moments) for query, moments in truth.items()], predictions)
    for name, value in owners_figures(truth, predictions).items():
        assert ours[name] == pytest.approx(value), name


@pytest.mark.skipif(not QVHIGHLIGHTS.is_file(), reason=f"needs {QVHIGHLIGHTS.name}, the owners' validation annotations, beside the project")
def test_figures_are_the_owners_on_their_annotations():
    examples = list(datasets.annotated("qvhighlights", QVHIGHLIGHTS, "validation"))
    truth = {one.query_id: list(one.spans) for one in examples}
    predictions = guesses(truth, np.random.default_rng(0))
    ours = scored(examples, predictions)
    assert len(examples) == 1550
    for name, value in owners_figures(truth, predictions).items():
        assert ours[name] == pytest.approx(value), name


# ------------------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "RESAMPLES", 50)
    rows = [{"qid": n, "query": f"query {n}", "duration": 150, "vid": "film", "relevant_windows": [[10 * n, 10 * n + 10]]} for n in range(1, 4)]
    predictions = [{"qid": n, "query": f"query {n}", "vid": "film", "pred_relevant_windows": [[10 * n, 10 * n + 9, 0.8]]} for n in range(1, 3)]
    return lines(tmp_path / "truth.jsonl", *rows), lines(tmp_path / "mine.jsonl", *predictions)


def test_command_scores_a_file(files, tmp_path, capsys):
    truth, mine = map(str, files)
    common = ["--dataset", "qvhighlights", "--annotations", truth]
    score_predictions.main([mine, *common, "--json", str(tmp_path / "mine.json")])
    out = capsys.readouterr().out
    assert "1 of 3 questions have no prediction" in out and "R1@0.9" in out and "R10@" not in out
    made = report.load(tmp_path / "mine.json")
    assert made["R1@0.7"] == pytest.approx(200 / 3) and made["counts"]["no_candidate"] == 1
    other = lines(tmp_path / "other.jsonl", *[{"qid": n, "pred": [0, 1]} for n in range(1, 4)])  # another form, the same annotations
    score_predictions.main([str(other), *common, "--compare", str(tmp_path / "mine.json")])
    assert "other against mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "films", "--annotations", "TRUTH"], "--dataset: 'films' is not one of mad"),
        (["--dataset", "qvhighlights", "--annotations", "nowhere"], "--annotations: nowhere"),
        (["--dataset", "charades_sta", "--annotations", "TRUTH", "--split", "test"], "give the folder"),
        (["--dataset", "qvhighlights", "--annotations", "MINE"], "bad annotation"),
        (["--dataset", "qvhighlights", "--annotations", "TRUTH", "--compare", "nothing.json"], "nothing.json"),
        (["--annotations", "TRUTH"], "--dataset"),
    ],
)
def test_bad_arguments_are_one_line(files, capsys, arguments, says):
    given = [{"TRUTH": str(files[0]), "MINE": str(files[1])}.get(word, word) for word in arguments]
    with pytest.raises(SystemExit) as caught:
        run(lambda: score_predictions.main([str(files[1]), *given]))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and says in error and error.count("\n") == 1
