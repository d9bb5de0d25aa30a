"""The arrays of a stage's batches by name, shape and type, from its config alone: what a program is compiled for where there is no corpus.

They are those of `curriculum.py`, `pretraining.py` and `packed_row.py`, whose texts say what each means. A frame has as many tokens as the largest grid of its
encoder gives it.
"""

from __future__ import annotations

import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig, VisionConfig
from revision_jax.data.packed_row import empty_row
from revision_jax.data.pretraining import CAPTIONS
from revision_jax.data.synthetic.language import COLOUR_WORDS, PATTERN_BEFORE, SHAPE_WORDS, SIZE_WORDS
from revision_jax.data.synthetic.world import FRAME

Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # name -> (shape with the leading batch axis, type)


def batch_shapes(config: ExperimentConfig, stage: StageConfig) -> tuple[Shapes, ...]:
    """The shapes that a stage's batches come in, `stage.batch` rows each: one, or one for each row of a conversation stage. Raises ConfigError."""
    if stage.task == "conversation":
        vision = config.encoder(config.patch_encoder)
        rows = [empty_row(row, 3 * vision.patch**2) for row in stage.conversation.rows]
        arrays = [{name: (array.shape, array.dtype) for name, array in row.items()} for row in rows]
    elif stage.task in ("pretrain", "language"):
        arrays = [_pictures(config, stage)]
    else:
        arrays = [{**_shown(config, stage), **_asked(config)}]
    return tuple({name: ((stage.batch, *shape), np.dtype(dtype)) for name, (shape, dtype) in example.items()} for example in arrays)


def _shown(config: ExperimentConfig, stage: StageConfig) -> dict:
    """What an example shows of films: a window of frames, a group of windows or of videos, or patches."""
    level = config.grounding.level(stage.level)
    below = config.grounding.below(level.name) if level.kind == "nested" else level
    if level.kind == "patch" and stage.task != "presence":
        vision, slots = config.encoder(config.patch_encoder), (level.tokens,)
        patches = (*slots, _merged(vision))
        return {"tokens": ((*patches, vision.output), "float16"), "change": (patches, "float16"), "frame_mask": (slots, bool), "times": (slots, "float32")}
    frames = below.frames or below.tokens
    if stage.task == "presence":
        windows, frames = (1,), stage.examples.frames or frames
    elif level.kind == "dense":
        windows, frames = (), stage.examples.frames or frames
    else:
        run = below.run_length(level) if level.kind == "nested" else 1
        windows = (stage.windows or level.tokens * run,)
        if windows[0] % run or windows[0] // run > level.tokens:
            raise ConfigError(f"stages.{stage.name}.windows: must be a multiple of {run}, at most {level.tokens * run}, is {windows[0]}")
    slots, width = (*windows, frames), config.vision.output
    late = config.decoder.signal.enabled and config.decoder.signal.similarity == "late"
    arrays = {
        "frames": ((*slots, width), "float16"), "tokens": ((*slots, _merged(config.vision) if late else 0, width), "float16"), "frame_mask": (slots, bool),
        "times": (slots, "float32"),
    }  # fmt: skip
    return {**arrays, **({"window_mask": (windows, bool)} if windows else {})}


def _merged(vision: VisionConfig) -> int:
    return max((rows // vision.merge) * (columns // vision.merge) for rows, columns in vision.grids)


def _asked(config: ExperimentConfig) -> dict:
    """Query, question and answer; of the query its features where `data.queries` has them."""
    sizes, text = config.grounding, config.text
    asked: dict = {"query_ids": ((sizes.query_len,), "int32")}
    if config.data.queries:
        asked = {"query_tokens": ((sizes.query_len, text.width), "float16"), "query_vectors": ((1 + text.phrases, text.projection), "float16")}
        asked |= {"query_motion": ((2,), "float16")} if text.motion else {}
    lengths = {"query": sizes.query_len, "after": sizes.prompt_len, "answer": sizes.answer_len}
    masks = {f"{name}_mask": ((length,), bool) for name, length in lengths.items()}
    ids = {f"{name}_ids": ((lengths[name],), "int32") for name in ("after", "answer")}
    return {**asked, **masks, **ids, "weight": ((), "float32")}


def _pictures(config: ExperimentConfig, stage: StageConfig) -> dict:
    captions, length, phrases = stage.batch * CAPTIONS, min(stage.caption_len, config.grounding.query_len), min(config.text.phrases, 4)
    tags = 2 * sum(map(len, (COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, PATTERN_BEFORE)))
    arrays = {
        "images": ((FRAME, FRAME, 3), "uint8"), "labels": ((captions,), bool), "phrase_labels": ((phrases, captions), bool),
        "caption_ids": ((CAPTIONS, length), "int32"), "caption_mask": ((CAPTIONS, length), bool), "travels": ((CAPTIONS, 2), "float32"),
        "tag_ids": ((tags, length), "int32"), "tag_mask": ((tags, length), bool), "tag_labels": ((tags,), bool),
    }  # fmt: skip
    if stage.task == "pretrain":
        return arrays
    dense = next((level for level in config.grounding.levels if level.kind == "dense"), None)
    if dense is None:
        raise ConfigError(f"stages.{stage.name}: a language stage needs a dense level in grounding.levels")
    sizes = config.grounding
    for name, size in (("full", sizes.query_len), ("point_after", sizes.prompt_len), ("point_answer", sizes.answer_len)):
        arrays |= {f"{name}_ids": ((size,), "int32"), f"{name}_mask": ((size,), bool)}
    return arrays | {"point_slots": ((dense.tokens,), "int32"), "point_query": ((), "int32")}
