"""Which levels a search needs: one to four of them, and sparse, dense or both."""

from __future__ import annotations

from revision_jax.errors import UserError
from revision_jax.experiments.bench import Bench, searched
from revision_jax.experiments.core import Cell, Experiment
from revision_jax.experiments.rows import bars

ORDER = ("dense", "sparse", "patch", "nested")  # in which levels are added
CONFIDENCE = "One calibrator, fitted on the whole hierarchy, serves all of them: compare places (R1@k, mIoU) before confidences."


def hierarchies(bench: Bench) -> list[Cell]:
    """1: frames; 2: windows above them; 3: patches below; 4: runs of windows above all. A level of long films is used whatever the length."""
    kinds = [kind for kind in ORDER if kind in bench.kinds()]
    cells = []
    for count in range(1, len(kinds) + 1):
        used = kinds[:count]
        names = [level.name for level in bench.levels if level.kind in used]
        overrides = [f"grounding.levels.{level.name}.min_duration_s=0" for level in bench.levels if level.kind in used and level.min_duration_s > 0]
        cells.append(searched(f"{count}: {', '.join(names)}", bench.films, bench.all_but(*used), overrides))
    return cells


def levels(bench: Bench) -> list[Cell]:
    """Raises UserError for a model that lacks one of the two."""
    if not {"sparse", "dense"} <= set(bench.kinds()):
        raise UserError(f"{bench.folder}: has no sparse and dense level to choose between; its levels are {', '.join(level.name for level in bench.levels)}")
    return [
        searched("both", bench.films, bench.all_but("sparse", "dense")),
        searched("sparse only", bench.films, bench.all_but("sparse")),
        searched("dense only", bench.films, bench.all_but("dense")),
    ]


HIERARCHIES = Experiment(
    "hierarchies", "What does each of one to four levels of search bring, and cost?", hierarchies,
    ("R1@0.5", "R1@0.7", "mIoU", "RejF1", "AUROC", "window_recall"), bars("R1@0.5", "mIoU", "seconds"), notes=(CONFIDENCE,),
)  # fmt: skip
LEVELS = Experiment(
    "levels", "Sparse windows alone, dense frames alone, or frames inside of the best windows?", levels,
    ("R1@0.3", "R1@0.5", "mIoU", "RejF1", "AUROC"), bars("R1@0.5", "mIoU", "seconds"),
    notes=("Without the patch level, whose part hierarchies tells. Sparse only answers in whole windows.", CONFIDENCE),
)  # fmt: skip
