"""The report as JSON and as a table, and what is said about reports that do not fit together."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from revision_jax.errors import UserError
from revision_jax.evaluation import report
from revision_jax.evaluation.outcome import Outcome

RUN = {"method": "model", "dataset": "synthetic", "split": "test"}


def outcomes(shift=0.0):
    truth = (((100.0, 120.0),), ((10.0, 30.0), (50.0, 60.0)), (), ())
    kinds = ("one", "several", "absent", "near_miss")
    return [
        Outcome("film", str(i), "a ring", kinds[i % 4], 3600.0, truth[i % 4], ((100.0 + shift, 120.0 + shift, 0.7, True),), parse_failures=i % 2,
                survivors=((60.0, 130.0),), windows=((60.0, 130.0),), survivors_share=0.1, oracle_iou=0.5 if truth[i % 4] else None, seconds=0.5)
        for i in range(8)
    ]  # fmt: skip


def shown(table):
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_has_every_figure_that_is_promised():
    made = report.build(outcomes(), RUN, resamples=50)
    recalls = [f"R{rank}@{iou}" for rank in (1, 5, 10, 50, 100) for iou in (0.1, 0.3, 0.5, 0.7, 0.9)]
    for name in [*recalls, "mIoU", "mAP", "ECE", "AUROC", "RejF1", "EtF1", "window_recall", "oracle_window_mIoU", "survivors_share", "seconds",
                 "F1@0.5", "FPR", "AURC", "Brier", "window_recall@1", "mAP@0.5", "mAP_middle"]:  # fmt: skip
        assert isinstance(made[name], float), name
    assert made["parse_failures"] == 4 and made["counts"]["questions"] == 8 and made["counts"]["near_miss"] == 2
    assert set(made["kinds"]) == {"one", "several", "absent", "near_miss"} and made["kinds"]["absent"]["R1@0.5"] is None
    json.dumps(made, allow_nan=False)


def test_each_kind_has_intervals_of_its_own():
    asked = [dataclasses.replace(o, moments=((100.0 + 3 * i, 120.0, 0.7, True),)) for i, o in enumerate(outcomes())]
    made = report.build(asked, RUN, resamples=50)
    for kind in ("one", "several", "absent", "near_miss"):
        assert made["kind_intervals"][kind] == report.build([o for o in asked if o.kind == kind], RUN, resamples=50)["intervals"]
    low, high = made["kind_intervals"]["one"]["mIoU"]
    assert low < made["kinds"]["one"]["mIoU"] < high and made["kind_intervals"]["absent"]["mIoU"] is None


def test_survives_saving(tmp_path):
    made = report.build(outcomes(), RUN, resamples=50)
    report.save(tmp_path / "deep" / "a.json", made)
    assert report.load(tmp_path / "deep" / "a.json") == json.loads(json.dumps(made))
    assert report.outcomes_of(made) == outcomes()


def test_tables_show_figures_and_verdicts():
    first, second = (report.build(outcomes(shift), RUN, resamples=50) for shift in (0.0, 50.0))
    text = shown(report.table(first))
    assert "R1@0.5" in text and "near miss (2)" in text and "unreadable" in text
    text = shown(report.comparison_table(report.compare(first, second, resamples=200), "a", "b"))
    assert "mIoU" in text and ("better" in text or "undecided" in text)


def test_figures_by_tag():
    tags = {"one": ("still",), "several": ("still", "[red]"), "absent": ("still",), "near_miss": ("still",)}
    asked = [dataclasses.replace(o, tags=tags[o.kind], moments=() if o.kind == "absent" else o.moments) for o in outcomes()]
    made = report.build(asked, RUN, resamples=10)
    still, red = made["tags"]["still"], made["tags"]["[red]"]
    assert (still["questions"], still["present"], still["refused"], still["refused_near_miss"]) == (8, 4, 0.5 * 100, 0.0)
    assert still["R1@0.5"] == made["R1@0.5"] == 50.0 and red["questions"] == 2 and red["R1@0.5"] == 0.0 and red["refused"] is red["refused_near_miss"] is None
    rows = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in shown(report.tag_table(made)).splitlines() if "│" in line}
    assert rows["[red]"] == ["0.0 (2)", "0.0 (2)", "0.0 (2)", "100.0 (2)", "-", "-"]
    assert rows["still"][0] == "50.0 (4)" and rows["still"][4:] == ["50.0 (4)", "0.0 (2)"]
    assert report.outcomes_of(json.loads(json.dumps(made))) == asked
    untagged = report.build(outcomes(), RUN, resamples=10)
    assert untagged["tags"] == {} and report.tag_table(untagged) is None
    for answer in untagged["questions"]:
        del answer["tags"]  # a report of before
    assert report.outcomes_of(untagged) == outcomes()


def test_comparison_wants_the_same_exam():
    first = report.build(outcomes(), RUN, resamples=10)
    fewer = report.build(outcomes()[:6], RUN, resamples=10)
    with pytest.raises(UserError, match="2 only in the first"):
        report.compare(first, fewer)
    moved = [dataclasses.replace(o, truth=((1.0, 2.0),)) if o.truth else o for o in outcomes()]
    with pytest.raises(UserError, match="different annotations"):
        report.compare(first, report.build(moved, RUN, resamples=10))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"questions": [{"video": 1}]}', "\x00"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="evaluation"):
        report.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="no such file"):
        report.load(tmp_path / "y.json")


def test_an_empty_run_is_no_report():
    with pytest.raises(UserError, match="no question"):
        report.build([], RUN)
