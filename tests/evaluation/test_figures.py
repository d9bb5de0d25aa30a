"""Figures of whole runs: worked by hand, and the bootstrap's good sense."""

import dataclasses

import numpy as np
import pytest

from revision_jax.evaluation import calibration, rejection
from revision_jax.evaluation import figures as f
from revision_jax.evaluation.outcome import Outcome, columns, with_threshold


def question(number, truth, moments, kind=None, **more):
    kind = kind or ("absent" if not truth else "one" if len(truth) == 1 else "several")
    return Outcome("video", str(number), "a red ring", kind, 3600.0, tuple(truth), tuple(moments), **more)


def perfect(number, truth):
    return question(number, truth, [(s, e, 1.0, True) for s, e in truth], survivors=tuple(truth), survivors_share=0.1, oracle_iou=1.0 if truth else None)


@pytest.fixture
def run():
    """A run whose answers are right in part, with ties and an answer that could not be read."""
    generator = np.random.default_rng(1)
    outcomes = []
    for number in range(40):
        truth = [(100.0, 120.0)] if number % 2 else []
        shift, confidence = generator.uniform(0, 20), round(float(generator.uniform()), 1)
        outcomes.append(question(number, truth, [] if number == 7 else [(100 + shift, 120 + shift, confidence, confidence >= 0.5)]))
    return outcomes


def test_perfect_answers_reach_the_top():
    values = f.figures([perfect(0, [(0.0, 10.0)]), perfect(1, [(5.0, 9.0), (50.0, 60.0)]), perfect(2, [])])
    for name in (*f.RECALLS, "mIoU", "mAP", "EtF1", "RejF1", "window_recall", "oracle_window_mIoU"):
        assert values[name] == pytest.approx(100), name
    assert values["AUROC"] == 1 and values["ECE"] == 0 and values["survivors_share"] == pytest.approx(10)


def test_by_hand():
    outcomes = [
        question(0, [(0.0, 10.0)], [(50.0, 60.0, 0.9, True), (0.0, 10.0, 0.6, True)]),  # right one second; count wrong; tF1 2/3
        question(1, [(0.0, 10.0)], [(0.0, 8.0, 0.4, False)]),  # IoU 0.8 but refused: tF1 0, count wrong
        question(2, [(0.0, 10.0), (20.0, 30.0)], [(0.0, 10.0, 0.8, True), (20.0, 30.0, 0.7, True)]),
        question(3, [], [(0.0, 10.0, 0.3, False)]),
        question(4, [], [(0.0, 10.0, 0.95, True)], kind="near_miss"),
        question(5, [(0.0, 10.0)], [], parse_failures=1),  # could not be read: 0, but counted
    ]
    values = f.figures(outcomes)
    assert values["R1@0.5"] == pytest.approx(50) and values["R5@0.5"] == pytest.approx(75)
    assert values["mIoU"] == pytest.approx(100 * (0 + 0.8 + 1 + 0) / 4)
    assert values["EtF1"] == pytest.approx(100 * (1 / 4) * (2 / 3 + 0 + 1 + 0) / 4)
    assert values["RejF1"] == pytest.approx(rejection.rejection_f1(0.5, 0.5))
    # confidences of present 0.9, 0.4, 0.8, 0 against absent 0.3, 0.95: three of eight pairs in order
    assert values["AUROC"] == pytest.approx(3 / 8)
    assert values["window_recall"] is None
    assert values["F1@0.5"] == pytest.approx(100 * (2 / 3 + 0 + 1 + 0) / 4) and values["FPR"] == pytest.approx(50)
    assert values["false_alarms_per_hour"] == pytest.approx(1 / 2)  # one accepted, two absent questions of an hour each
    # all true moments last 10 s; the right ones come second, alone (IoU 0.8: seven thresholds of ten), both, and not at all
    assert values["mAP_short"] == values["mAP"] == pytest.approx(100 * (0.5 + 0.7 + 1 + 0) / 4) and values["mAP_long"] is None
    # by confidence: wrong (absent), wrong, right, right, wrong (absent), wrong (none)
    assert values["AURC"] == pytest.approx(np.mean([1, 1, 2 / 3, 2 / 4, 3 / 5, 4 / 6]))
    assert values["Brier"] == pytest.approx(np.mean([0.9**2, 0.6**2, 0.2**2, 0.3**2, 0.95**2, 0]))


def test_ranking_is_by_confidence_whatever_the_order_given():
    moments = [(50.0, 60.0, 0.2, False), (0.0, 10.0, 0.6, True)]
    assert f.figures([question(0, [(0.0, 10.0)], moments)])["R1@0.7"] == 100


def test_auroc_agrees_with_the_plain_function(run):
    table = columns(run)
    assert f.figures(run)["AUROC"] == pytest.approx(rejection.auroc(table["confidence"], table["present"] > 0))


def test_order_of_questions_does_not_matter(run):
    assert f.figures(run) == pytest.approx(f.figures(run[::-1]), nan_ok=True)


def test_weights_are_repetitions(run):
    table = columns(run)
    weights = np.zeros((1, len(run)))
    weights[0, :20] = 1
    weights[0, 3] = 3
    repeated = f.figures(run[:20] + [dataclasses.replace(run[3], query_id=f"again {i}") for i in range(2)])
    for name, value in f.weighted(table, weights).items():
        if repeated[name] is not None:
            assert value[0] == pytest.approx(repeated[name]), name


def test_threshold_can_be_moved_afterwards(run):
    strict, loose = f.figures([with_threshold(o, 2.0) for o in run]), f.figures([with_threshold(o, 0.0) for o in run])
    assert strict["refused"] == 100 and strict["answered"] == 0
    assert loose["refused"] == 0 and loose["answered"] == pytest.approx(95)
    assert strict["R1@0.5"] == loose["R1@0.5"]


def test_interval_holds_the_figure_and_repeats(run):
    first, second = f.intervals(run, resamples=400), f.intervals(run, resamples=400)
    assert first == second
    low, high = first["mIoU"]
    assert low < f.figures(run)["mIoU"] < high


def test_a_run_is_no_better_than_itself(run):
    result = f.paired_bootstrap(run, run, resamples=200)["mIoU"]
    assert (result["difference"], result["low"], result["high"], result["p"]) == (0, 0, 0, 1)
    assert not result["better"] and not result["worse"]


def test_a_clearly_better_run_is_found_better(run):
    best = [perfect(int(outcome.query_id), list(outcome.truth)) for outcome in run]
    there, back = f.paired_bootstrap(best, run, resamples=400), f.paired_bootstrap(run, best, resamples=400)
    assert there["R1@0.7"]["better"] and there["R1@0.7"]["p"] < 0.05 and back["R1@0.7"]["worse"]
    assert there["ECE"]["better"] and there["ECE"]["difference"] < 0  # lower is better


def test_noise_is_not_found_better():
    generator = np.random.default_rng(0)
    runs = [[question(i, [(0.0, 10.0)], [(0.0, 10.0 if generator.uniform() < 0.5 else 1.0, 0.5, True)]) for i in range(60)] for _ in range(2)]
    result = f.paired_bootstrap(*runs, resamples=1000)["R1@0.5"]
    assert not result["better"] and not result["worse"] and result["p"] > 0.05


def test_pairs_must_be_the_same_questions(run):
    with pytest.raises(ValueError, match="same questions"):
        f.paired_bootstrap(run, run[::-1])


def test_outcomes_survive_json(run):
    import json

    for outcome in [*run, perfect(99, [(1.0, 2.0)])]:
        assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_aurc_agrees_with_the_plain_function(run):
    table = columns(run)
    assert f.figures(run)["AURC"] == pytest.approx(rejection.risk_coverage(table["confidence"], table["correct@0.5"] > 0).mean())


def test_brier_agrees_with_the_plain_function(run):
    table = columns(run)
    assert f.figures(run)["Brier"] == pytest.approx(calibration.brier(table["confidence"], table["correct@0.5"] > 0))


def test_precision_by_length_asks_for_moments_of_that_length_alone():
    both = question(0, [(0.0, 5.0), (100.0, 150.0)], [(100.0, 150.0, 0.9, True), (0.0, 5.0, 0.8, True)])
    values = f.figures([both, question(1, [(0.0, 20.0)], [(0.0, 20.0, 0.9, True)])])
    assert values["mAP"] == 100 and values["mAP_short"] == 50 and values["mAP_middle"] == 100 and values["mAP_long"] == 100


def test_window_recall_at_k():
    windows = tuple((60.0 * i, 60.0 * i + 60.0) for i in (3, 0, 1, 2, 4, 5))
    values = f.figures([question(number, truth, [], windows=windows) for number, truth in enumerate(([(10.0, 20.0)], [(310.0, 320.0)], []))])
    assert [values[name] for name in f.WINDOW_RECALLS] == [0, 50, 100]


def test_scores_that_are_no_probabilities_have_no_calibration_error(run):
    values = f.figures([dataclasses.replace(outcome, probabilities=False) for outcome in run])
    assert values["ECE"] is None and values["Brier"] is None
    assert values["AUROC"] == f.figures(run)["AUROC"] and values["AURC"] == f.figures(run)["AURC"]
