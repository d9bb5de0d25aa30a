"""The papers' figures, and a run's beside them."""

from pathlib import Path

import pytest

from revision_jax.errors import UserError
from revision_jax.evaluation import published


@pytest.mark.parametrize("one", [one for table in published.PUBLISHED.values() for one in table], ids=lambda one: f"{one.method}")
def test_figures_are_such_as_can_be(one):
    """More candidates or a smaller IoU never find less."""
    known = {(int(name[1:].partition("@")[0]), float(name.partition("@")[2])): value for name, value in one.figures.items()}
    assert known and all(0 <= value <= 100 for value in known.values())
    assert all(known[a] <= known[b] for a in known for b in known if a[0] <= b[0] and a[1] >= b[1])


def test_a_runs_column_stands_last_and_holds_what_it_asked_for():
    report = {"run": {"top_k": 5}, "R1@0.1": 12.345, "R5@0.5": 7.0, "R10@0.1": 7.0, "R1@0.3": None}
    heading, rows = published.columns("mad/default", report)
    ours = {row[0]: row[-1] for row in rows}
    assert heading[-1] == "here" and len(rows) == 15 and all(len(row) == len(heading) for row in rows)
    assert (ours["R1@0.1"], ours["R5@0.5"], ours["R1@0.3"], ours["R10@0.1"], ours["R100@0.5"]) == ("12.3", "7.0", "-", "-", "-")
    revision = {row[0]: row[heading.index("ReVisionLLM")] for row in rows}
    assert [revision[f"R{rank}@{iou}"] for iou in (0.1, 0.3, 0.5) for rank in (1, 5)] == ["15", "25.1", "11", "18.8", "5.8", "10.5"]
    assert {row[0]: row[heading.index("CONE")] for row in rows}["R50@0.3"] == "34.73"


def test_without_a_run_its_column_is_empty():
    lines = published.markdown("vidchapters").splitlines()
    assert len(lines) == 6 and lines[2] == "| R1@0.3 | 10.7 | 37.4 | 10.6 | 33.8 |  |"


def test_the_page_about_mad_holds_the_table_with_an_empty_column():
    assert published.markdown("mad") in (Path(__file__).parents[2] / "docs" / "reproducing.md").read_text()


def test_a_dataset_without_known_figures_is_told():
    with pytest.raises(UserError, match="no figures of papers are known here for 'ego4d_nlq'"):
        published.markdown("ego4d_nlq/clip")
