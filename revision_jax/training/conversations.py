"""What a stage of conversations is trained on: the datasets of its mixture, found, measured once, and packed."""

from __future__ import annotations

from pathlib import Path

import jax

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data import lengths as measuring
from revision_jax.data.conversation import ConversationReader
from revision_jax.data.conversation_source import ConversationSource
from revision_jax.data.datasets.build import Built, find
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError
from revision_jax.sharding.distributed import wait
from revision_jax.training.corpus import Report

DATASET = "conversations"  # what its builder is called
TOLD = 5  # problems that a message spells out


def mixture(config: ExperimentConfig, stage: StageConfig) -> list[Built]:
    """The built datasets of a stage, in the order of its mixture: NAME is the one that `launch.datasets build conversations --out ROOT/NAME` made.

    Raises ConfigError where the config names none or does not say where they are, UserError that lists those that were not built.
    """
    asked, data = stage.conversation.mixture, config.data
    if not asked:
        raise ConfigError(f"stages.{stage.name}.conversation.mixture: names no dataset")
    for field, what in (("root", "the folder with a folder for each dataset of the mixture"), ("media", "the folder with the images and videos")):
        if not getattr(data, field):
            raise ConfigError(f"data.{field}: must name {what}")
        if not Path(getattr(data, field)).is_dir():
            raise UserError(f"data.{field}: {getattr(data, field)}: no such folder")
    found, missing = [], []
    for name, _ in asked:
        try:
            found.append(find(Path(data.root) / name, DATASET))
        except UserError as error:
            missing.append(str(error))
    if missing:
        raise UserError(f"stages.{stage.name}.conversation.mixture: {'; '.join(missing)}")
    return found


def conversation_source(config: ExperimentConfig, stage: StageConfig, tokenizer: Tokenizer, report: Report | None = None) -> ConversationSource:
    """The stage's examples. Conversations that were not measured yet are measured first, every process of a pod its share.

    Raises what `mixture` raises, and UserError that lists conversations that cannot be used, unless `data.on_missing` is "skip".
    """
    reader = ConversationReader(config, stage, tokenizer, config.data.media)
    datasets, before_encoder = mixture(config, stage), config.pruner.where == "before_encoder"
    share = jax.process_index(), jax.process_count()
    for built in datasets:
        measuring.make(built, reader, before_encoder, workers=config.data.workers, share=share, report=report)
    wait("conversations measured")
    if share[0] == 0:
        for built in datasets:
            measuring.finish(built, reader)
    wait("conversations joined")
    measured, unusable = [], []
    for (name, _), built in zip(stage.conversation.mixture, datasets, strict=True):
        lengths, problems = measuring.load(built, reader)
        measured.append(lengths)
        unusable += [f"{name}: {why}" for why in problems.values()]
    if unusable and config.data.on_missing == "raise":
        more = f"; and {len(unusable) - TOLD} more" if len(unusable) > TOLD else ""
        told = "; ".join(unusable[:TOLD])
        raise UserError(f"{len(unusable)} conversations cannot be used: {told}{more}; leave them out with data.on_missing=skip")
    source = ConversationSource(config, stage, reader, datasets, measured)
    if report is not None and share[0] == 0:
        for line in source.report():
            report(f"stage {stage.name}: {line}", 1, 1)
    return source
