"""The experiments by name."""

from __future__ import annotations

from revision_jax.experiments.answering import CONFIDENCE, SIGNAL
from revision_jax.experiments.core import Experiment
from revision_jax.experiments.films import DISTRIBUTION, LENGTH, NEEDLE
from revision_jax.experiments.hierarchies import HIERARCHIES, LEVELS
from revision_jax.experiments.learning import CONTRASTIVE, NEGATIVES, TIME
from revision_jax.experiments.pruning import PRUNER_PLACE, PRUNING

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one
    for one in (
        HIERARCHIES, LEVELS, CONTRASTIVE, NEGATIVES, CONFIDENCE, LENGTH, NEEDLE, PRUNING, PRUNER_PLACE, TIME, SIGNAL, DISTRIBUTION,
    )
}  # fmt: skip
