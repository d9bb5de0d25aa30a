"""The pruner of the patch level: how strict it may be, and whether it may decide before the encoder has looked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from revision_jax.errors import UserError
from revision_jax.evaluation.baselines import Model
from revision_jax.experiments.bench import Bench, searched
from revision_jax.experiments.core import Cell, Experiment, Measured
from revision_jax.experiments.rows import bars, over
from revision_jax.grounding.found import Found
from revision_jax.grounding.grounder import EncodedVideo, Grounder

# ------------------------------------------------------------------------------------------------------------------------ threshold

FACTORS = (1.0, 0.0, 0.25, 0.5, 2.0, 4.0, 8.0, 16.0)  # times the checkpoint's own threshold


def _check(bench: Bench) -> None:
    if "patch" not in bench.kinds():
        raise UserError(f"{bench.folder}: has no patch level, and so nothing to prune")


def pruning(bench: Bench) -> list[Cell]:
    """Raises UserError for a model without a patch level."""
    _check(bench)
    own = bench.config.pruner.threshold
    cells = [
        searched(f"{own * factor:g}" + (", as configured" if factor == 1 else ""), bench.films, (), (f"pruner.threshold={own * factor:g}",), (own * factor,))
        for factor in FACTORS
    ]
    return [*cells, searched("no patch level", bench.films, bench.all_but("dense", "sparse", "nested"))]


PRUNING = Experiment(
    "pruning", "How many of the patches that hardly change can be dropped before the answers suffer?", pruning, ("R1@0.5", "R1@0.7", "mIoU", "mAP@0.75"),
    over("threshold: mean change of a token's pixels x 255, above which it is kept", "R1@0.7", "mIoU", "tokens"),
    notes=(
        "Rows are thresholds of `pruner.threshold`. Visual tokens are those of all levels; only the patch level's change. Where more patches are kept than"
        " its budget holds, those that changed least are dropped.",
    ),
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------------- place


@dataclass(frozen=True)
class Counted(Model):
    """The model, and what it was asked in this process: "questions", and "patches" that went through the patch level's encoder for them."""

    counts: Counter[str] = field(default_factory=Counter, compare=False)

    def search(self, grounder: Grounder, video: EncodedVideo, queries: Sequence[str], top_k: int) -> list[Found]:
        placed = self.bounded(grounder)
        before = placed.encoded_patches
        found = super().search(grounder, video, queries, top_k)
        self.counts.update(questions=len(queries), patches=placed.encoded_patches - before)
        return found


def pruner_place(bench: Bench) -> list[Cell]:
    """Raises UserError for a model without a patch level."""
    _check(bench)
    return [_placed(bench, "after the encoder", "after_encoder"), _placed(bench, "before the encoder", "before_encoder")]


def _placed(bench: Bench, row: str, where: str) -> Cell:
    asked, overrides = bench.films, (f"pruner.where={where}",)

    def measure(bench: Bench) -> Measured:
        model = bench.model((), overrides)
        counted = Counted(model.decision, model.without, model.overrides)
        outcomes, counts = bench.ask(counted, asked), counted.counts
        return Measured(outcomes, {"encoder patches": counts["patches"] / counts["questions"] if counts else math.nan})

    return replace(searched(row, asked, (), overrides), measure=measure)


PRUNER_PLACE = Experiment(
    "pruner_place", "May patches be dropped before the encoder sees them, which saves its work, or only after it?", pruner_place,
    ("R1@0.5", "R1@0.7", "mIoU", "mAP@0.75", "encoder patches"), bars("R1@0.7", "mIoU", "encoder patches", "seconds"),
    notes=("The patch level's encoder sees whole frames in training. Encoder patches: those that went through it for a question, padding among them.",),
)  # fmt: skip
