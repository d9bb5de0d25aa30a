"""The corpus of the grounding stages: the world's films rendered, and encoded once by the frozen encoder that pre-training left.

Everything is kept under the work directory and checked by content hash and encoder identity, so a run that was killed goes on with the film it
was at, and a second call costs nothing. Rendering runs in worker processes (they import no jax) while this process encodes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import jax

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.data.datasets import registry
from revision_jax.data.datasets.build import examples, find
from revision_jax.data.datasets.corpus import BEHIND, train_videos
from revision_jax.data.features import FeatureStore, matches
from revision_jax.data.synthetic.script import split_script
from revision_jax.data.synthetic.write import write
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.data.video import content_hash
from revision_jax.errors import UserError
from revision_jax.extraction.text import text_identity
from revision_jax.extraction.video import encoder_identity, extract
from revision_jax.sharding.distributed import wait

Report = Callable[[str, int, int], None]  # (what is being done, films done, films in all)


def render_film(split: str, index: int, duration_s: float, fps: int, directory: str) -> str:
    """Worker: renders one film of a split into `directory` (if it is not there yet) and returns its path."""
    film = Path(directory) / "video.mp4"
    if not film.exists():
        os.nice(5)  # encoding, in the process that waits for us, goes first
        write(split_script(split, index, duration_s, fps=fps), directory)
    return str(film)


def _store(film: Path, config: ExperimentConfig, params: dict, path: Path, rate: float, encoder: str = "vision") -> FeatureStore:
    """The film's features at `rate`, as `encoder` sees it: those on disk if they are of this film, encoder and rate, otherwise made now."""
    if path.exists():
        try:
            store = FeatureStore(path)
            if matches(store.header, content_hash(film), encoder_identity(config, params, encoder), rate):
                return store
            store.close()
        except UserError:
            pass  # a broken store is made again
    return extract(film, config, params, path, rate=rate, encoder=encoder)


def built_corpus(config: ExperimentConfig, params: dict, report: Report | None = None) -> Corpus:
    """The train split of the built dataset that `config.data` names, with its feature stores: made by `data.encoder`, or by the encoder in params.

    Raises ConfigError where `data` does not say where these are, UserError for a dataset that was not built and for videos without usable features.
    """
    data = config.data
    name, _, preset = data.dataset.partition("/")
    if name not in registry.GROUNDING:
        raise ConfigError(f"data.dataset: {data.dataset!r} is not one of synthetic, {', '.join(registry.GROUNDING)}")
    for field, what in (("root", "the folder of built datasets"), ("features", "the folder of feature stores")):
        if not getattr(data, field):
            raise ConfigError(f"data.{field}: must name {what} for dataset {data.dataset!r}")
    built = find(data.root, name, preset)
    videos, counts = train_videos(config, examples(built, "train"), data.features, data.on_missing, data.encoder or encoder_identity(config, params))
    if report is not None:
        lost = counts.pop(BEHIND, 0)
        said = [*(f"{number} videos {what}" for what, number in counts.items()), *([f"{lost} {BEHIND}"] if lost else [])]
        report(f"{data.dataset}: {', '.join(said)}", counts["used"], sum(counts.values()))
    return Corpus(videos)


def stage_corpus(config: ExperimentConfig, stage: StageConfig) -> ExperimentConfig:
    """The config of the corpus that a stage reads: its own features where it names some. Raises ConfigError where it says half of it."""
    rate, features = stage.examples.rate, stage.examples.features
    if not rate and not features:
        return config
    where = f"stages.{stage.name}.examples"
    if config.data.dataset == "synthetic":
        raise ConfigError(f"{where}.rate: the rendered world's features have one rate, grounding.rate; leave it 0")
    if rate and not features and rate != config.grounding.rate:
        raise ConfigError(f"{where}.features: must name the folder of stores with {rate:g} frames a second (or set {where}.rate=0 to use data.features)")
    data = dataclasses.replace(config.data, features=features or config.data.features)
    return dataclasses.replace(config, data=data, grounding=dataclasses.replace(config.grounding, rate=rate or config.grounding.rate))


def query_store(config: ExperimentConfig, params: dict) -> TextFeatureStore | None:
    """The features of queries that `data.queries` names; None where the text tower makes them. Raises UserError for those of another encoder."""
    data = config.data
    if not data.queries:
        return None
    store = TextFeatureStore(data.queries)
    store.require(data.query_encoder or data.encoder or text_identity(config, params))
    return store


def prepare(config: ExperimentConfig, params: dict, workdir: str | Path, report: Report | None = None, workers: int = 2) -> Corpus:
    """Renders and encodes what `config.data` asks for under workdir/corpus and returns it; every process of a pod makes its share.

    params: the state's "params" (the encoder). The first `patch_videos` films are stored a second time, at the patch level's rate.
    A dataset other than the synthetic world is read as it was built, with the features that `config.data` names (`built_corpus`).
    """
    data = config.data
    if data.dataset != "synthetic":
        return built_corpus(config, params, report)
    patch = next((level for level in config.grounding.levels if level.kind == "patch"), None)
    patch_videos = data.patch_videos if patch is not None else 0
    root = Path(workdir) / "corpus"
    mine = range(jax.process_index(), data.train_videos, jax.process_count())

    def place(index: int) -> Path:
        return root / f"train-{index:04d}"

    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        films = {pool.submit(render_film, "train", index, data.duration_s, data.fps, str(place(index))): index for index in mine}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(films)):
                index = films[future]
                film = Path(future.result())
                if report is not None:
                    report(f"encoding {place(index).name}", done, len(mine))
                _store(film, config, params, place(index) / "features", config.grounding.rate)
                if index < patch_videos:
                    _store(film, config, params, place(index) / "patches", patch.rate, config.patch_encoder)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    wait("corpus")
    videos = [
        TrainVideo(
            video_id=place(index).name,
            duration_s=data.duration_s,
            store=place(index) / "features",
            patch_store=place(index) / "patches" if index < patch_videos else None,
            seed=split_script("train", index, data.duration_s, fps=data.fps).seed,
            fps=data.fps,
        )
        for index in range(data.train_videos)
    ]
    if jax.process_index() == 0:
        Corpus.write_index(root, videos)
    return Corpus(videos)
