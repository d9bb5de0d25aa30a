"""What cells measure with: one checkpoint, films of the rendered world, and questions that are asked once and kept film by film.

A cell that was stopped goes on with the film it was at. Rendered and encoded films lie in the cache folder, where `launch.evaluate` has its own; answers,
trainings and finished cells in the work directory.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from revision_jax import checkpoint, paths
from revision_jax.config import ExperimentConfig, LevelConfig
from revision_jax.data.synthetic.style import PLAIN, Style
from revision_jax.evaluation import datasets, exam, fitting
from revision_jax.evaluation.baselines import Decision, Method, Model, make
from revision_jax.evaluation.datasets import Item
from revision_jax.evaluation.outcome import Outcome
from revision_jax.experiments.core import Cell, Measured
from revision_jax.grounding.grounder import EncodedVideo, Grounder, default_cache

HOUR_S = 3600.0
ENCODERS = ("params/vision", "params/text", "params/similarity", "params/projection")
TOP_K = 5  # moments a question, as `launch.evaluate` keeps
Progress = Callable[[int, int, str], None]  # films done, of, what is being done


@runtime_checkable
class Exam(Protocol):
    """Films with questions."""

    def settings(self) -> dict[str, Any]:
        """What they are, as JSON."""
        ...

    def items(self, bench: Bench) -> list[Item]: ...

    def opened(self, bench: Bench) -> exam.Opened | None:
        """How an item's features are made; None: by encoding its video."""
        ...


@dataclass(frozen=True)
class Films:
    """The first `count` videos of a split of the world."""

    count: int
    duration_s: float = HOUR_S
    split: str = "test"
    style: Style = PLAIN

    def settings(self) -> dict[str, Any]:
        return {"split": self.split, "count": self.count, "duration_s": self.duration_s, "style": self.style.changes}

    def items(self, bench: Bench) -> list[Item]:
        told = lambda done, of: bench.progress(done, of, "rendering")
        return datasets.synthetic(self.split, bench.cache / "data", self.count, self.duration_s, told, self.style)

    def opened(self, bench: Bench) -> None:
        return None


class Bench:
    """A checkpoint under test. videos: test videos of a cell; duration_s: of each; seeds: of trainings; steps: share of a training's steps; cache: of films,
    the user's unless told otherwise.

    Raises UserError for a folder that is no checkpoint.
    """

    def __init__(
        self, folder: str | Path, workdir: str | Path, *, videos: int = 20, duration_s: float = HOUR_S, seeds: Sequence[int] = (0, 1, 2), steps: float = 1.0,
        cache: Path | None = None, progress: Progress | None = None,
    ):
        self.folder, self.workdir, self.cache = Path(folder), Path(workdir), cache or default_cache()
        self.videos, self.duration_s, self.seeds, self.steps = videos, duration_s, tuple(seeds), steps
        self.progress: Progress = progress or (lambda done, of, what: None)
        self.config: ExperimentConfig = checkpoint.load_config(folder)

    @functools.cached_property
    def identity(self) -> str:
        """A hash of all that answers depend on: weights, config, tokenizer, calibration; where they lie does not matter."""
        digest = hashlib.blake2b(checkpoint.identity(self.folder).rpartition("-")[2].encode(), digest_size=8)
        for name in (checkpoint.TOKENIZER, checkpoint.CALIBRATION):
            file = self.folder / name
            digest.update(file.read_bytes() if file.is_file() else b"")
        return digest.hexdigest()

    @functools.cached_property
    def encoders(self) -> str:
        """A hash of the encoders' weights and the tokenizer: all that a short training keeps of the checkpoint besides its config."""
        digest, source = hashlib.blake2b(digest_size=8), checkpoint.open_weights(self.folder)
        for name in sorted(name for name in source.tensors if any(paths.under(name, part) for part in ENCODERS)):
            digest.update(name.encode() + np.ascontiguousarray(source.read(name)).tobytes())
        digest.update((self.folder / checkpoint.TOKENIZER).read_bytes())
        return digest.hexdigest()

    @functools.cached_property
    def grounder(self) -> Grounder:
        return self.load(self.folder)

    def load(self, folder: str | Path) -> Grounder:
        """A model whose encoded films are kept with those of all others here."""
        return Grounder.from_pretrained(folder, cache_dir=self.cache, ask=False)

    @property
    def films(self) -> Films:
        """The films that most experiments ask about."""
        return Films(self.videos, self.duration_s)

    def lasting(self, duration_s: float, split: str = "test") -> Films:
        """About as many hours as `films` has, in videos of this length; at least one."""
        return Films(max(1, round(self.videos * self.duration_s / duration_s)), duration_s, split)

    def model(self, without: Sequence[str] = (), overrides: Sequence[str] = (), grounder: Grounder | None = None) -> Model:
        """The search with levels left out and settings changed; the threshold is the checkpoint's own."""
        return Model(Decision.of(grounder or self.grounder), tuple(sorted(set(without))), tuple(overrides))

    def baseline(self, name: str) -> Method:
        """As `launch.evaluate --baseline` has it."""
        return make(name, self.grounder, fitting.stored(self.folder))

    def ask(self, method: Method, asked: Exam, grounder: Grounder | None = None, folder: Path | None = None, given: Sequence[str] = ()) -> list[Outcome]:
        """Every question of these films. grounder, folder: another model than the bench's checkpoint. given: what the answers depend on besides."""
        where = exam.identity(folder or self.folder, method, TOP_K, [json.dumps(asked.settings(), sort_keys=True), *given])
        items, opened, warm = asked.items(self), asked.opened(self) or exam.video_of, False

        def open_warm(grounder: Grounder, item: Item) -> EncodedVideo:
            """Before anything is timed, one question makes the programs ready."""
            nonlocal warm
            video = opened(grounder, item)
            if not warm and item.questions:
                method.search(grounder, video, [item.questions[0].query], TOP_K)
                warm = True
            return video

        options = {"top_k": TOP_K, "oracle": False, "progress": self.progress, "opened": open_warm}
        return exam.run(grounder or self.grounder, method, items, self.workdir / "answers" / where, **options)

    # -------------------------------------------------------------------------------------------------------------------- its levels

    @property
    def levels(self) -> tuple[LevelConfig, ...]:
        """Of the search, coarse to fine."""
        return tuple(level for level in self.config.grounding.levels if level.searched)

    def all_but(self, *kept: str) -> tuple[str, ...]:
        """Names of the searched levels that are not of these kinds."""
        return tuple(level.name for level in self.levels if level.kind not in kept)

    def kinds(self) -> tuple[str, ...]:
        """Kinds of the searched levels, each once, coarse to fine."""
        return tuple(dict.fromkeys(level.kind for level in self.levels))


def searched(row: str, asked: Exam, without: Sequence[str] = (), overrides: Sequence[str] = (), at: tuple[float | str, ...] = ()) -> Cell:
    """A cell that asks the checkpoint, with levels left out and settings changed."""
    settings = {"films": asked.settings(), "without": sorted(without), "overrides": list(overrides)}
    return Cell(row, settings, lambda bench: Measured(bench.ask(bench.model(without, overrides), asked)), at=at)

