"""Short trainings, for what cannot be switched on a trained model: the checkpoint's encoders stay, its decoder is trained anew.

Two stages of the checkpoint's own curriculum, shortened: `language`, in which the decoder learns to point, and the first one that grounds in frames. The sparse
level is not trained; such a model is asked frame window by frame window. Each stage is a run of `launch.train` in a process and folder of its own, so one that
was stopped goes on where it was, and settings that differ in how they ground alone share the decoder that points. All share one corpus: the encoder that made
it is the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from revision_jax import checkpoint
from revision_jax.config import ExperimentConfig, StageConfig, override
from revision_jax.errors import UserError
from revision_jax.experiments.bench import ENCODERS, Bench
from revision_jax.experiments.core import Cell, Measured
from revision_jax.experiments.thresholds import fairly_decided
from revision_jax.files import write_text

STEPS = {"language": 300, "ground": 500}
TRAIN_VIDEOS = 6
PRESET = """import json
from pathlib import Path

from revision_jax.config import ExperimentConfig


def get_config():
    return ExperimentConfig.from_dict(json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8")))
"""


def ground_stage(config: ExperimentConfig) -> StageConfig:
    """The first stage that grounds in the frames of the search. Raises UserError where there is none."""
    return _stage(config, "ground")


def _stage(config: ExperimentConfig, task: str) -> StageConfig:
    dense = {level.name for level in config.grounding.levels if level.kind == "dense" and level.searched}
    for stage in config.train.stages:
        if stage.task == task and (task == "language" or stage.level in dense):
            return stage
    raise UserError(f"{config.name}: its config has no {task} stage of the decoder, so there is nothing to train in this experiment")


def short(config: ExperimentConfig, overrides: Sequence[str], seed: int, steps: float, duration_s: float) -> ExperimentConfig:
    """The config of a short training. steps: share of its steps; overrides: what is under test."""
    stages = tuple(replace(_stage(config, task), steps=max(1, round(count * steps))) for task, count in STEPS.items())
    data = replace(config.data, dataset="synthetic", train_videos=TRAIN_VIDEOS, patch_videos=0, duration_s=duration_s)
    train = replace(config.train, stages=stages, seed=seed, checkpoint_every=100, keep=1)
    return override(replace(config, data=data, train=train), list(overrides))


def trained(bench: Bench, overrides: Sequence[str], seed: int) -> Path:
    """The checkpoint of a short training: made now, gone on with, or there already."""
    config = short(bench.config, overrides, seed, bench.steps, bench.duration_s)
    folder, before, begin = bench.folder, bench.encoders, ["--init-parts", ",".join(ENCODERS)]
    for stage in config.train.stages:
        alone = replace(config, train=replace(config.train, stages=(stage,)))
        before = hashlib.blake2b(f"{before} {alone.to_json()}".encode(), digest_size=8).hexdigest()
        folder, begin = _stage_trained(bench, alone, bench.workdir / "trained" / before, ["--init", str(folder), *begin]), []
    return folder


def _stage_trained(bench: Bench, config: ExperimentConfig, run: Path, begin: Sequence[str]) -> Path:
    """The checkpoint of one stage."""
    out, root = run / "checkpoint", Path(__file__).parents[2]
    if (out / checkpoint.WEIGHTS).is_file():
        return out
    write_text(run / "config.json", config.to_json() + "\n")
    write_text(run / "preset.py", PRESET)
    _share_corpus(run, bench.workdir / "trained" / f"corpus-{bench.encoders}-{bench.duration_s:g}s")
    bench.progress(0, 1, "training")
    status = _train([str(run / "preset.py"), "--workdir", str(run), *begin], run, root)
    if status:
        last = (run / "train.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{run / 'train.log'}: the training ended with status {status}: {''.join(last)}")
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # the exported one goes on, and answers
    return out


def _train(arguments: Sequence[str], run: Path, root: Path) -> int:
    """`launch.train` in a process of its own, what it says in RUN/train.log; its exit status. Raises UserError while another is at it, which may be one that
    a killed run left: the lock is the training's as well, and lasts as long as it does."""
    paths = os.pathsep.join(path for path in (str(root), os.environ.get("PYTHONPATH", "")) if path)
    with open(run / "lock", "ab") as lock, open(run / "train.log", "ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run}: is being trained by another process; wait for it, or end it") from None
        command = [sys.executable, "-m", "launch.train", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": paths}, pass_fds=(lock.fileno(),))
        try:
            return process.wait()
        except BaseException:  # Ctrl-C, which it hears as well, or SIGTERM: it saves and ends
            process.terminate()
            process.wait()
            raise


def _share_corpus(run: Path, corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    if not (run / "corpus").is_symlink():
        (run / "corpus").symlink_to(corpus.resolve(), target_is_directory=True)


def cells(bench: Bench, row: str, overrides: Sequence[str]) -> list[Cell]:
    """A setting trained once for each seed, and asked about the test films by its frame level alone."""
    return [_cell(bench, row, tuple(overrides), seed) for seed in bench.seeds]


def _cell(bench: Bench, row: str, overrides: tuple[str, ...], seed: int) -> Cell:
    config = short(bench.config, overrides, seed, bench.steps, bench.duration_s)  # raises now what it would raise after hours
    films = bench.films
    made = {"steps": {stage.task: stage.steps for stage in config.train.stages}, "train_videos": TRAIN_VIDEOS}
    digest = hashlib.blake2b(config.to_json().encode(), digest_size=8).hexdigest()
    settings = {"overrides": list(overrides), "seed": seed, "films": films.settings(), **made, "config": digest}

    def measure(bench: Bench) -> Measured:
        folder = trained(bench, overrides, seed)
        grounder = bench.load(folder)
        outcomes = bench.ask(bench.model(bench.all_but("dense"), grounder=grounder), films, grounder, folder)
        return Measured(fairly_decided(outcomes))

    return Cell(row, settings, measure, seed)
