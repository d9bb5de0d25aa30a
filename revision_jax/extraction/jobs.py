"""Many videos to feature stores, by any number of processes: what `launch.extract` and the Beam pipeline both do.

A job is one video. `FeatureExtractor.run` claims it, keeps a store that fits, goes on with one that a killed process left, or begins; and tells what became
of it instead of raising, so that one broken file among a hundred thousand is a line in a report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from revision_jax import checkpoint, paths
from revision_jax.claims import claim
from revision_jax.config import ExperimentConfig, LevelConfig
from revision_jax.convert.source import open_source
from revision_jax.data.feature_parts import remove_parts
from revision_jax.data.features import FeatureStore, StoreError, store_path
from revision_jax.data.video import content_hash
from revision_jax.errors import UserError
from revision_jax.extraction import video as extraction
from revision_jax.models.revision import abstract_state

SUFFIXES = frozenset([".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".ogv", ".3gp"])
ENCODERS = ("params/vision/", "params/projection/", "params/patch_vision/")  # the tensors that encoding needs
Progress = Callable[[float, float], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One video: its name in the stores, its file, and the file's bytes."""

    video_id: str
    path: Path
    size: int


@dataclass(frozen=True)
class Outcome:
    """What became of a job. written: made now; kept: was there; left: another process is at it; failed: `reason` says why."""

    job: Job
    what: Literal["written", "kept", "left", "failed"]
    frames: int = 0
    seconds: float = 0.0
    reason: str = ""
    warnings: tuple[str, ...] = ()


def find_jobs(videos: Iterable[str | Path]) -> list[Job]:
    """The videos of files and folders (with sub-folders, by file ending), sorted by name: the same list on every host that sees the same files.

    A file is called by its name without the ending, a file below a folder by its path there. Raises UserError, naming all: paths that do not exist, folders
    without a video, two videos of one name.
    """
    found: dict[str, Path] = {}
    wrong: list[str] = []
    for given in map(Path, videos):
        if given.is_dir():
            files = [(file.relative_to(given).with_suffix("").as_posix(), file) for file in _files(given)]
            if not files:
                wrong.append(f"{given}: holds no file that ends like a video's")
        elif given.exists():
            files = [(given.stem, given)]
        else:
            wrong.append(f"{given}: no such file or folder")
            continue
        for video_id, file in files:
            if found.setdefault(video_id, file).resolve() != file.resolve():
                wrong.append(f"{found[video_id]} and {file} would both be {video_id!r}")
    if wrong:
        raise UserError("; ".join(wrong))
    return [Job(video_id, found[video_id], found[video_id].stat().st_size) for video_id in sorted(found)]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file())


def shard(jobs: Sequence[T], index: int, count: int) -> list[T]:
    """Every `count`-th job from the `index`-th on: the shares of all indices are disjoint and are all jobs together. Raises UserError for no such share."""
    if not 0 <= index < count:
        raise UserError(f"shard {index}/{count}: the number must lie in 0..{count - 1}")
    return list(jobs[index::count])


def load_encoder(folder: str | Path, prefixes: tuple[str, ...] = ENCODERS) -> tuple[ExperimentConfig, dict]:
    """(config, params) of a checkpoint folder, of the params only those below `prefixes`, which encode frames. Raises UserError for tensors that are missing or
    of another shape."""
    config, weights = checkpoint.load_config(folder), Path(folder) / checkpoint.WEIGHTS
    source = open_source(weights)
    expected = {name: leaf.shape for name, leaf in paths.flatten(abstract_state(config)).items() if name.startswith(prefixes)}
    wrong = checkpoint.mismatches({name: info.shape for name, info in source.tensors.items() if name.startswith(prefixes)}, expected)
    if wrong:
        raise UserError(f"{weights}: {len(wrong)} tensors do not match {checkpoint.CONFIG}: {'; '.join(wrong)}")
    # As the Grounder loads them: the encoder's identity is that of the weights as they are used.
    dtype = checkpoint.DTYPES["bfloat16" if config.decoder.dtype == "bfloat16" else "float32"]
    return config, paths.unflatten({name: source.read(name).astype(dtype) for name in expected})["params"]


def check_patches(folder: str | Path, patches: bool) -> None:
    """Raises UserError unless `folder` is a checkpoint, with a patch level if `patches` are wanted."""
    _patch_level(folder, checkpoint.load_config(folder), patches)


def _patch_level(folder: str | Path, config: ExperimentConfig, wanted: bool) -> LevelConfig | None:
    level = next((level for level in config.grounding.levels if level.kind == "patch"), None)
    if wanted and level is None:
        raise UserError(f"{folder}: this model has no patch level, so there are no patches to store")
    return level


class FeatureExtractor:
    """A checkpoint's encoders over a folder of stores. `rate`: frames a second (None: the checkpoint's); `patches`: also at the patch level's rate."""

    def __init__(self, folder: str | Path, out: str | Path, rate: float | None = None, patches: bool = False):
        """Raises UserError for a checkpoint that cannot be used, and where it has no patch level but patches are wanted."""
        self.config, self.params = load_encoder(folder)
        self.out = Path(out)
        level = _patch_level(folder, self.config, patches)
        self.passes = [("features", rate or self.config.grounding.rate, "vision")]
        if patches:
            self.passes.append(("patches", level.rate, self.config.patch_encoder))
        self.identities = {encoder: extraction.encoder_identity(self.config, self.params, encoder) for _, _, encoder in self.passes}

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        """Makes the stores of a video that are not there. progress(seconds done, seconds in all), over all passes.

        Raises UserError where the stores' folder cannot be written; whatever is wrong with the video is told in the outcome.
        """
        began = time.perf_counter()
        place = store_path(self.out, job.video_id)
        with claim(place) as mine:
            if not mine:
                return Outcome(job, "left")
            try:
                content, made, warnings, frames = content_hash(job.path), False, (), 0
                for number, (kind, rate, encoder) in enumerate(self.passes):
                    path = store_path(self.out, job.video_id, kind)
                    store = self._kept(path, content, self.identities[encoder], rate)
                    made = made or store is None
                    if store is None:
                        told = progress and (lambda done, of, number=number: progress(of * number + done, of * len(self.passes)))
                        options = {"rate": rate, "encoder": encoder, "identity": self.identities[encoder], "resume": True, "progress": told}
                        options["decoders"] = 1  # there are as many processes as are wanted, each with a film of its own
                        store = extraction.extract(job.path, self.config, self.params, path, **options)
                    warnings, frames = warnings or store.header.warnings, frames or store.frames
                    store.close()
            except StoreError:
                raise
            except (UserError, OSError) as error:
                return Outcome(job, "failed", seconds=time.perf_counter() - began, reason=str(error))
            return Outcome(job, "written" if made else "kept", frames, time.perf_counter() - began, warnings=tuple(warnings))

    def _kept(self, path: Path, content: str, identity: str, rate: float) -> FeatureStore | None:
        """The store, if it is there and whole and of this video. Raises UserError for one that another encoder made: it may be wanted elsewhere."""
        if not path.is_file():
            return None
        try:
            store = FeatureStore(path)
        except UserError:
            return None  # broken: made again
        store.require(None, identity, rate)
        if store.header.video_hash != content:  # another file of this name: the old one's features are of no use
            store.close()
            return None
        remove_parts(path)
        return store
