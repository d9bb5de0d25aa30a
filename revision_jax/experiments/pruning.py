"""The pruner of the patch level: how strict it may be, and whether it may decide before the encoder has looked."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from revision_jax.config import ExperimentConfig
from revision_jax.data.frames import token_change
from revision_jax.data.pruning import kept
from revision_jax.errors import UserError
from revision_jax.experiments.bench import Bench, searched
from revision_jax.experiments.core import Cell, Experiment, Measured
from revision_jax.experiments.rows import bars, over
from revision_jax.extraction.video import CHUNK
from revision_jax.grounding.grounder import Grounder
from revision_jax.models import revision
from revision_jax.models.pruner import compact_patches

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


class PlacedPruning(Grounder):
    """A grounder whose patch level is encoded whole and pruned then ("after"), or pruned first and encoded as what is left ("before")."""

    def __init__(self, model: Grounder, place: str):
        self.__dict__.update(model.__dict__)
        self._patches = type(model._patches)()  # encoded otherwise than the model's
        self.place, self.encoded, self.asked = place, 0, 0

    def find(self, video, queries, **options):
        self.asked += len(queries)
        return super().find(video, queries, **options)

    def _encoded(self, windows: Sequence[UInt8[np.ndarray, "n h w 3"]]) -> list[np.ndarray]:
        vision = self.config.encoder(self.config.patch_encoder)
        if not windows:
            return []
        if self.place == "after":
            patches = (windows[0].shape[1] // vision.patch) * (windows[0].shape[2] // vision.patch)
            self.encoded += -(-sum(map(len, windows)) // CHUNK) * CHUNK * patches
            return super()._encoded(windows)
        change = np.concatenate([token_change(window, vision.patch, vision.merge, None, vision.std) for window in windows])
        keep = np.concatenate([kept(window, vision.patch, vision.merge, self.config.pruner, vision.std) for window in windows])
        images, sizes = np.concatenate(windows), budgets(keep.shape[1])
        tokens = np.zeros((*keep.shape, vision.output), np.float16)
        own = np.asarray([next(size for size in sizes if count <= size) for count in keep.sum(1)])
        for size in sizes:
            frames = np.flatnonzero(own == size)
            together = max(1, CHUNK * sizes[0] // size)  # calls of about the same work, whose padding costs the same
            for first in range(0, len(frames), together):
                part = frames[first : first + together]
                pad = lambda x, part=part, together=together: np.concatenate([x[part], np.zeros((together - len(part), *x.shape[1:]), x.dtype)])
                made, cell, valid = encode_kept(self.config, size)(self.programs.state["params"], pad(images), pad(keep), pad(np.minimum(change, 6e4)))
                made, cell, valid = (np.asarray(x)[: len(part)] for x in (made, cell, valid))
                rows, blocks = np.nonzero(valid)
                tokens[part[rows], cell[rows, blocks]] = made[rows, blocks]
                self.encoded += together * size * vision.merge**2
        return np.split(tokens, np.cumsum([len(window) for window in windows])[:-1])

    @property
    def patches(self) -> float:
        """Patches that went through the encoder, padding among them, a question that was asked in this process; NaN where none was."""
        return self.encoded / self.asked if self.asked else math.nan


def budgets(tokens: int) -> tuple[int, ...]:
    """Static sizes that a frame's kept tokens are compacted into: an eighth, a quarter, half of them, all."""
    return tuple(sorted({math.ceil(tokens / part) for part in (8, 4, 2, 1)}))


@functools.lru_cache(maxsize=16)
def encode_kept(config: ExperimentConfig, budget: int):
    """The compiled encoder of kept tokens alone: (params, images uint8 [B h w 3], keep [B N], change [B N]) to (tokens [B budget E] float16, their places
    [B budget], valid [B budget]). Frames with more than `budget` kept tokens lose those that changed least."""
    encoder = config.patch_encoder
    merge = config.encoder(encoder).merge

    @jax.jit
    def encode(params: dict, images: Array, keep: Bool[Array, "B N"], change: Float[Array, "B N"]) -> tuple[Array, Array, Array]:
        patches, rows, columns, _ = revision.patchify(config, images, encoder)
        packed, rows, columns, valid, cell, _ = compact_patches(patches, rows, columns, keep, change, merge, budget)
        out = revision.encode_frames(config, params, packed, rows, columns, valid, (merge, budget * merge), encoder)
        return out["tokens"].astype(jnp.float16), cell, valid[:, :: merge**2]

    return encode


def pruner_place(bench: Bench) -> list[Cell]:
    """Raises UserError for a model without a patch level."""
    _check(bench)
    return [_placed(bench, "after the encoder", "after"), _placed(bench, "before the encoder", "before")]


def _placed(bench: Bench, row: str, place: str) -> Cell:
    films = bench.films

    def measure(bench: Bench) -> Measured:
        grounder = PlacedPruning(bench.grounder, place)
        outcomes = bench.ask(bench.model(), films, grounder, given=[f"pruned {place} the encoder"])
        return Measured(outcomes, {"encoder patches": grounder.patches})

    return Cell(row, {"films": films.settings(), "place": place}, measure)


PRUNER_PLACE = Experiment(
    "pruner_place", "May patches be dropped before the encoder sees them, which saves its work, or only after it?", pruner_place,
    ("R1@0.5", "R1@0.7", "mIoU", "mAP@0.75", "encoder patches"), bars("R1@0.7", "mIoU", "encoder patches", "seconds"),
    notes=("The patch level's encoder sees whole frames in training. Encoder patches: those that went through it for a question, padding among them.",),
)  # fmt: skip
