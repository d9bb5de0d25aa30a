"""Cells on disk, tables and pictures, with answers that are made up."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from revision_jax.config import ExperimentConfig
from revision_jax.evaluation import figures
from revision_jax.experiments import charts
from revision_jax.experiments.bench import Bench
from revision_jax.experiments.core import Cell
from revision_jax.experiments.journal import Journal
from revision_jax.experiments.rows import BETTER, NOISE, WORSE, over, rows
from revision_jax.experiments.run import measure, publish
from tests.experiments.answers import answers, cell, experiment

RESAMPLES = 300


class MadeUp(Bench):
    """A bench without a checkpoint."""

    def __init__(self, workdir):
        self.workdir, self.identity, self.config = workdir, "abc", ExperimentConfig()


@pytest.fixture
def bench(tmp_path):
    return MadeUp(tmp_path / "work")


def compared(bench, *cells, **options):
    """Rows of some cells, all resampled little."""
    return rows(measure(experiment(list(cells), **options), bench), RESAMPLES)


# ------------------------------------------------------------------------------------------------------------------------- journal


def test_a_finished_cell_is_not_measured_again(bench):
    log = []
    made = experiment([cell("one", answers(0.9), log=log), cell("two", answers(0.1), log=log)])
    first = measure(made, bench)
    assert log == ["one", "two"] and measure(made, bench) == first and log == ["one", "two"]
    record = json.loads((bench.workdir / "made_up" / "cells" / "one.json").read_text())
    assert record["about"]["checkpoint"] == "abc" and record["figures"]["R1@0.5"] == pytest.approx(figures.figures(answers(0.9))["R1@0.5"])
    assert record["figures"]["extra"] == 1.5 and record["made"]["jax"] and len(record["questions"]) == 60
    assert ExperimentConfig.from_dict(record["config"]) == bench.config


def test_what_is_half_written_or_of_something_else_is_measured_again(bench):
    log = []
    made = experiment([cell("one", answers(0.9), log=log, threshold=2), cell("two", answers(0.1), log=log)])
    first = measure(made, bench)
    file = bench.workdir / "made_up" / "cells" / "one.json"
    whole = file.read_text()
    for spoilt in (whole[: len(whole) // 2], "", "[]", '{"format": 1}', whole.replace('"format": 1', '"format": 0'), whole.replace('"truth"', '"falsehood"')):
        file.write_text(spoilt)
        again = measure(made, bench)
        assert [record["figures"] for _, record in again] == [record["figures"] for _, record in first]
    assert log == ["one", "two"] + 6 * ["one"]
    measure(experiment([cell("one", answers(0.9), log=log, threshold=3), cell("two", answers(0.1), log=log)]), bench)
    assert log[8:] == ["one"]  # a changed setting
    bench.identity = "another checkpoint"
    measure(made, bench)
    assert log[9:] == ["one", "two"]


def test_a_stop_keeps_the_cells_before_it(bench):
    log = []

    def stopped(bench):
        log.append("stopped")
        raise KeyboardInterrupt

    first = cell("one", answers(0.9), log=log)
    with pytest.raises(KeyboardInterrupt):
        measure(experiment([first, Cell("two", {}, stopped)]), bench)
    assert [file.name for file in (bench.workdir / "made_up" / "cells").iterdir()] == ["one.json"]  # and nothing half-written
    measure(experiment([first, cell("two", answers(0.1), log=log)]), bench)
    assert log == ["one", "stopped", "two"]


def test_cells_never_share_a_file(bench):
    with pytest.raises(ValueError, match="different names"):
        Journal(bench.workdir, experiment([]), "abc", bench.config).check([cell("1: a", []), cell("1 a", [])])


# --------------------------------------------------------------------------------------------------------------------- differences


def test_equal_cells_are_inside_the_noise_and_unequal_ones_are_not(bench):
    same, other, worse = compared(bench, cell("a", answers(0.6)), cell("b", answers(0.6)), cell("c", answers(0.0)))
    assert {one.verdict for one in other.against(same).values()} == {NOISE} and other.against(same)["R1@0.5"].value == 0
    assert worse.against(same)["R1@0.5"].verdict == WORSE and same.against(worse)["R1@0.5"].verdict == BETTER
    assert worse.against(same)["seconds"].verdict == NOISE
    dearer = compared(bench, cell("d", [dataclasses.replace(o, seconds=0.9) for o in answers(0.6)]))[0]
    assert dearer.against(same)["seconds"].verdict == WORSE  # less is better


def test_paired_rows_agree_with_the_paired_bootstrap(bench):
    first, second = compared(bench, cell("a", answers(0.7, seed=1)), cell("b", answers(0.5, seed=2)))
    by_key = lambda outcomes: sorted(outcomes, key=lambda outcome: outcome.key)
    expected = figures.paired_bootstrap(by_key(answers(0.7, seed=1)), by_key(answers(0.5, seed=2)), resamples=RESAMPLES)
    for name, one in first.against(second).items():
        assert (one.value, one.low, one.high) == tuple(expected[name][key] for key in ("difference", "low", "high"))


def test_other_questions_are_not_paired_and_give_a_wider_interval(bench):
    a, same, elsewhere = compared(bench, cell("a", answers(0.6)), cell("b", answers(0.6)), cell("c", answers(0.6, video="another")))
    assert a.pairs_with(same) and not a.pairs_with(elsewhere)
    paired, apart = same.against(a)["R1@0.5"], elsewhere.against(a)["R1@0.5"]
    assert paired.low == paired.high == 0 and apart.low < -3 and apart.high > 3 and apart.verdict == NOISE


def test_seeds_are_one_row_whose_figures_are_means(bench):
    runs = [answers(share, seed) for seed, share in enumerate((0.4, 0.6, 0.8))]
    (row,) = compared(bench, *(cell("a", run, seed) for seed, run in enumerate(runs)))
    alone = [figures.figures(run) for run in runs]
    for name in ("R1@0.5", "AUROC", "AURC", "RejF1"):
        assert row.figures[name] == pytest.approx(np.mean([one[name] for one in alone]))
        assert row.intervals[name][0] < row.figures[name] < row.intervals[name][1]
    single = compared(bench, cell("middle", runs[1]))[0]
    spread = lambda row: row.intervals["R1@0.5"][1] - row.intervals["R1@0.5"][0]
    assert spread(row) > 0.6 * spread(single)  # not as narrow as three times as many questions would make it


def test_seeds_that_disagree_about_the_sign_are_noise(bench):
    base = [cell("base", answers(0.5, seed), seed) for seed in range(3)]
    better = [cell("better", answers(1.0, seed), seed) for seed in range(3)]
    mixed = [cell("mixed", answers(1.0 if seed else 0.3, 7 * seed), seed) for seed in range(3)]
    reference, up, either = compared(bench, *base, *better, *mixed)
    assert up.against(reference)["R1@0.5"].verdict == BETTER
    one = either.against(reference)["R1@0.5"]
    assert one.value > 10 and one.verdict == NOISE


def test_runs_of_a_row_must_ask_the_same(bench):
    with pytest.raises(ValueError, match="different questions"):
        compared(bench, cell("a", answers(0.5), 0), cell("a", answers(0.5, video="another"), 1))


# ---------------------------------------------------------------------------------------------------------------------------- page


def test_the_page_tells_figures_differences_and_how_they_were_made(bench, tmp_path):
    made = experiment([cell("one", answers(0.9)), cell("twin", answers(0.9)), cell("poor | man", answers(0.0))], notes=("A note.",))
    done = measure(made, bench, "python -m launch.experiment made_up --seeds 0")  # by parts; the page tells what measures the whole
    written = publish(made, done, tmp_path / "out", "python -m launch.experiment made_up", RESAMPLES)
    text = written.read_text()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()[::-1] if line.startswith("| ")}
    assert text.startswith("# made_up\n\nWhat is made up?\n") and "```bash\npython -m launch.experiment made_up\n```" in text and "- A note." in text
    assert lines["one"].count(" to ") >= 4 and "| 1.5 |" in lines["one"] and lines["one"].endswith("| 60 |")
    differences = text.split("Less **one**")[1]
    twin = next(line for line in differences.splitlines() if line.startswith("| twin"))
    poor = next(line for line in differences.splitlines() if line.startswith("| poor \\| man"))
    assert twin.count(NOISE) >= 5 and "**" not in twin and "**worse**" in poor and poor.endswith("| the same |")
    assert str(tmp_path) not in text
    with Image.open(tmp_path / "out" / "made_up.png") as image:
        assert image.format == "PNG" and image.width > 600
        image.verify()


def test_figures_that_no_row_has_are_no_column(bench, tmp_path):
    absent = [outcome for outcome in answers(0.5) if not outcome.present]
    made = experiment([cell("one", absent)])
    text = publish(made, measure(made, bench), tmp_path, "", RESAMPLES).read_text()
    assert "R1@0.5" not in text.split("\n\n")[2] and "AUROC" not in text.split("\n\n")[2] and "seconds" in text


# -------------------------------------------------------------------------------------------------------------------------- charts


def test_every_kind_of_chart_is_drawn(bench, tmp_path):
    point = charts.Point
    made = {
        "bars": charts.Bars({"R1": {"a": point(50, 40, 60), "none": point(float("nan"), 0, 0)}, "less": {"a": point(-1, -2, 0.5)}}),
        "lines": charts.Lines({"R1": {"a": [point(50, 40, 60, 10), point(20, 10, 30, 600)], "b": [point(1, 1, 1, 60)]}, "none": {"a": []}}, "minutes", True),
        "same": charts.Lines({"R1": {"a": [point(50, 50, 50, 3)]}}, "one place"),
        "heat": charts.Heat(("10 min", "1 h"), ("0 %", "50 %"), ((100.0, 0.0), (float("nan"), 50.0)), ("length", "depth")),
    }
    for name, chart in made.items():
        with Image.open(charts.draw(tmp_path / f"{name}.png", "What?", chart)) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, name
    dark = np.asarray(Image.open(tmp_path / "heat.png").convert("RGB"))
    assert (dark == charts.HOT).all(-1).sum() > 2000  # the cell of 100 %


def test_lines_leave_out_rows_that_stand_nowhere(bench):
    placed, nowhere = compared(bench, dataclasses.replace(cell("a", answers(0.5)), at=(10.0,)), cell("b", answers(0.5)))
    panel = over("minutes", "R1@0.5", "extra")([placed, nowhere]).panels
    assert [p.x for p in panel["R1@0.5"]["R1@0.5"]] == [10.0] and panel["extra"]["extra"] == [charts.Point(1.5, 1.5, 1.5, 10.0)]
