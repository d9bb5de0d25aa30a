"""Which answers are the worst, and at which step each went wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.evaluation import moments, worst
from revision_jax.evaluation.outcome import Outcome, columns
from revision_jax.evaluation.worst import Judged

TRUTH = ((100.0, 110.0),)
RIGHT, HALF, WRONG = (100.0, 110.0), (100.0, 105.0), (300.0, 310.0)


def answered(*found, truth=TRUTH, survivors=((90.0, 120.0),), video="film", query_id="q", **more):
    """found: (span, confidence), best first; accepted from 0.5 on."""
    kind = "absent" if not truth else "one" if len(truth) == 1 else "several"
    ranked = tuple((*span, confidence, confidence >= 0.5) for span, confidence in found)
    return Outcome(video, query_id, "a red ring", kind, 3600.0, truth, ranked, survivors=survivors, **more)


@pytest.mark.parametrize(
    ("outcome", "loss"),
    [
        (answered((WRONG, 0.9)), 0.9),
        (answered(((100.0, 104.0), 0.8), (RIGHT, 0.7)), 0.6 * 0.8),
        (answered((RIGHT, 0.3)), 0.7),  # refused
        (answered(), 1.0),
        (answered((WRONG, 0.9), truth=()), 0.9),
        (answered((WRONG, -3.0), probabilities=False), 1.0),  # scores that are no probabilities say nothing of how sure
    ],
)
def test_loss_of_wrong_answers_by_hand(outcome, loss):
    assert Judged(outcome).wrong and Judged(outcome).loss == pytest.approx(loss)


@pytest.mark.parametrize("outcome", [answered((RIGHT, 0.9)), answered((HALF, 0.9)), answered(truth=()), answered((WRONG, 0.4), truth=())])
def test_what_is_not_wrong(outcome):
    assert not Judged(outcome).wrong and worst.wrong([outcome]) == []


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (answered((WRONG, 0.9), (RIGHT, 0.8), survivors=((300.0, 340.0),)), "search"),
        (answered(survivors=()), "search"),
        (answered((WRONG, 0.9), ((100.0, 104.0), 0.8)), "localisation"),
        (answered(), "localisation"),
        (answered((WRONG, 0.9), survivors=None), "localisation"),  # a short video: no level of windows
        (answered((WRONG, 0.9), (HALF, 0.2)), "ranking"),
        (answered((WRONG, 0.4), (RIGHT, 0.2)), "ranking"),
        (answered((RIGHT, 0.4)), "rejection"),
        (answered((WRONG, 0.9), truth=()), "rejection"),
    ],
)
def test_an_answer_fails_at_the_first_step_that_failed(outcome, cause):
    assert Judged(outcome).wrong and Judged(outcome).cause == cause
    told = ("the right candidate was refused" if outcome.present else "something absent was accepted") if cause == "rejection" else worst.CAUSES[cause]
    assert Judged(outcome).reason == told


def test_several_moments_one_of_which_survived():
    one = Judged(answered((WRONG, 0.9), ((500.0, 510.0), 0.8), truth=((100.0, 110.0), (500.0, 510.0)), survivors=((490.0, 520.0),)))
    assert one.let_through == (1, 2) and one.cause == "ranking"
    assert one.nearest == (100.0, 110.0) and Judged(answered(((498.0, 510.0), 0.9), truth=one.outcome.truth)).nearest == (500.0, 510.0)
    assert Judged(answered(truth=())).let_through is None and Judged(answered(survivors=None)).let_through is None


def test_equal_losses_go_by_video_and_id():
    asked = [answered((WRONG, 0.9), video=video, query_id=number) for video, number in (("b", "1"), ("a", "2"), ("a", "1"))]
    found = worst.wrong([*asked, answered((WRONG, 0.95), video="z")])
    assert [one.outcome.key for one in found] == [("z", "q"), ("a", "1"), ("a", "2"), ("b", "1")]


def test_what_they_have_in_common_is_counted():
    asked = [
        answered((WRONG, 0.9), query_id="1", tags=("indoors",)), answered((WRONG, 0.9), truth=(), query_id="2", tags=("indoors", "short")),
        answered((RIGHT, 0.9), query_id="3", tags=("night",)),
    ]  # fmt: skip
    counts = worst.common(worst.wrong(asked))
    assert counts["all"]["all"] == 2 and counts["localisation"] | counts["rejection"] != counts["all"]
    assert (counts["localisation"]["one"], counts["rejection"]["absent"], counts["rejection"]["indoors"], counts["search"]["all"]) == (1, 1, 1, 0)
    assert counts["all"]["indoors"] == 2 and counts["search"]["indoors"] == 0
    assert worst.asked(asked) == {"all": 3, "one": 2, "absent": 1, "indoors": 2, "short": 1, "night": 1}


spans = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda drawn: (float(drawn[0]), float(drawn[0] + drawn[1])))
confidences = st.integers(0, 20).map(lambda drawn: drawn / 20)
candidates = st.lists(st.tuples(spans, confidences), max_size=4).map(lambda found: sorted(found, key=lambda one: -one[1]))
survivors = st.none() | st.lists(spans, max_size=2).map(tuple)


@given(st.lists(st.tuples(candidates, st.lists(spans, max_size=2).map(tuple), survivors), max_size=12))
def test_wrong_is_what_the_figures_call_wrong(drawn):
    asked = [answered(*found, truth=truth, survivors=kept) for found, truth, kept in drawn]
    found, table = worst.wrong(asked), columns(asked)
    losses = [one.loss for one in found]
    assert losses == sorted(losses, reverse=True) and all(0 <= loss <= 1 for loss in losses)
    answered_right = [table["answered"][i] and table["R1@0.5"][i] if one.present else table["refused"][i] for i, one in enumerate(asked)]
    assert len(found) == sum(not right for right in answered_right)
    for one in found:
        matches = moments.best_iou([moment[:2] for moment in one.outcome.moments], one.outcome.truth)
        possible = bool((matches >= 0.5 - moments.EPSILON).any())
        assert one.cause in worst.CAUSES and (one.cause != "ranking" or possible) and (one.cause != "localisation" or not possible)
        assert one.cause != "search" or one.let_through[0] == 0
    counts = worst.common(found)
    assert sum(counts[cause]["all"] for cause in worst.CAUSES) == counts["all"]["all"] == len(found)
