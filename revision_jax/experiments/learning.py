"""What only training tells: windows without an answer among the examples, which ones, and how a visual token says its time."""

from __future__ import annotations

import json

from revision_jax.experiments.bench import Bench
from revision_jax.experiments.core import Cell, Experiment
from revision_jax.experiments.rows import bars
from revision_jax.experiments.training import TRAIN_VIDEOS, cells, ground_stage

FIGURES = ("R1@0.5", "R5@0.5", "mIoU", "RejF1", "AUROC", "AUROC_right")
VIDEOS = 8
HOW = (
    f"Trained shortly, on {TRAIN_VIDEOS} films with the checkpoint's encoders, and asked by its frame level alone, window by window: it tells how soon"
    " something is learnt, not where it ends.",
    "RejF1 at thresholds fitted on the other half of the films.",
)


def contrastive(bench: Bench) -> list[Cell]:
    stage = ground_stage(bench.config)
    return [*cells(bench, "with", ()), *cells(bench, "without", (f"train.stages.{stage.name}.absent=0",))]


def negatives(bench: Bench) -> list[Cell]:
    """Each strategy by itself, the checkpoint's own mixture, and all four alike."""
    stage = ground_stage(bench.config)
    alone = ("random", "hard", "cross_video", "swap")
    mixed = lambda weights: (f"train.stages.{stage.name}.negatives={json.dumps(weights)}",)
    own = ", ".join(f"{name} {weight:g}" for name, weight in stage.negatives)
    found = cells(bench, f"as configured ({own})", ())
    for name in alone:
        found += cells(bench, name, mixed([[name, 1.0]]))
    return [*found, *cells(bench, "all alike", mixed([[name, 0.25] for name in alone]))]


def time(bench: Bench) -> list[Cell]:
    names = {"sinusoidal": "sinusoidal", "token": "text timestamps", "none": "none"}
    return [cell for kind, row in names.items() for cell in cells(bench, row, (f"decoder.time={kind}",))]


CONTRASTIVE = Experiment(
    "contrastive", "What do training windows without an answer bring?", contrastive, FIGURES, bars("R1@0.5", "RejF1", "AUROC"), videos=VIDEOS, notes=HOW,
    trains=True,
)  # fmt: skip
NEGATIVES = Experiment(
    "negatives", "Which windows and questions without an answer teach most?", negatives, FIGURES, bars("R1@0.5", "RejF1", "AUROC"), videos=VIDEOS, trains=True,
    notes=(*HOW, "random: another window of the film; hard: one that looks like the event; cross_video: of another film; swap: one attribute of the question."),
)  # fmt: skip
TIME = Experiment(
    "time", "How should a visual token say when it is: not at all, by a sinusoid, or by its number's own word?", time, FIGURES, bars("R1@0.5", "mIoU", "RejF1"),
    videos=VIDEOS, notes=HOW, trains=True,
)  # fmt: skip
