"""Examples of the grounding stages: one per index, a pure function of (seed, stage, index).

An example is a window (`window_examples.py`), a group of windows (`group_examples.py`, `crop_examples.py`) or a group of videos (`video_examples.py`), a
question, and the answer in slot numbers. The stage's share of them is contrastive (`contrastive.py`): the window or the question is changed so that the answer
is "not present". The n-th contrastive example is about the same question and moment as the n-th other one (`targets.py`). Every array has a static shape that
follows from the config; T frames, N tokens of a frame, W windows, S text positions, E feature width, D text width:

    dense            frames [T E] f16, tokens [T N E] f16, frame_mask [T], times [T] f32 (true seconds from the window's start)
    sparse, video    frames [W T E], tokens [W T N E], frame_mask [W T], times [W T], window_mask [W]; answers name windows, or videos
    nested           as sparse with W = runs * windows of a run, one run after the other; answers name runs
    presence         as sparse with W = 1; the answer is yes or no
    patch            tokens [T N E], change [T N] f16, frame_mask [T], times [T]
    all              query_ids, query_mask, after_ids, after_mask, answer_ids, answer_mask [S], weight [] f32
                     with a store of text features query_tokens [S D], query_vectors [F E], query_motion [2] f16 in place of query_ids

Where the config compares frame vectors (`similarity="pooled"`) tokens have N = 0. Slots outside of the film are zeros under a False mask.
"""

from __future__ import annotations

import hashlib

import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data import negatives, prompts
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.contrastive import Contrastive
from revision_jax.data.corpus import Corpus
from revision_jax.data.crop_examples import CropExamples
from revision_jax.data.group_examples import GroupExamples
from revision_jax.data.pipeline import Batch
from revision_jax.data.pretraining import PretrainSource
from revision_jax.data.shown import Out, Shapes
from revision_jax.data.targets import Targets
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.data.video_examples import VideoExamples
from revision_jax.data.window_examples import PatchExamples, WindowExamples
from revision_jax.errors import UserError


def make_source(config: ExperimentConfig, stage: StageConfig, corpus: Corpus | None, tokenizer: Tokenizer, seed: int) -> Curriculum | PretrainSource:
    """What a stage is trained on: pictures for `pretrain` and `language` (no corpus needed), windows of the corpus otherwise."""
    if stage.task in ("pretrain", "language"):
        return PretrainSource(config, stage, tokenizer, seed)
    if corpus is None:
        raise UserError(f"stages.{stage.name}: needs a corpus")
    return Curriculum(config, stage, corpus, tokenizer, seed)


class Curriculum:
    """Examples of one stage. Picklable; threads may share it."""

    def __init__(
        self, config: ExperimentConfig, stage: StageConfig, corpus: Corpus, tokenizer: Tokenizer, seed: int, text_tokenizer: Tokenizer | None = None,
        queries: TextFeatureStore | None = None,
    ):
        """text_tokenizer: the text tower's, where it is not the decoder's. queries: features of the queries, in place of the text tower.

        Raises UserError where the corpus cannot serve the stage, ConfigError where the stage's numbers contradict the level's.
        """
        self.config, self.stage, self.corpus, self.tokenizer, self.seed = config, stage, corpus, tokenizer, seed
        self.text_tokenizer, self.queries = text_tokenizer or tokenizer, queries
        self.level = config.grounding.level(stage.level)
        self._key = int.from_bytes(hashlib.blake2b(stage.name.encode(), digest_size=8).digest(), "little")
        single = stage.task == "presence" or self.level.kind == "dense"
        span = stage.examples.span_s or (config.grounding.below(self.level.name) if self.level.kind == "nested" else self.level).span_s
        longest = span if single and stage.examples.long_events == "skip" else float("inf")
        try:
            self.targets = Targets(
                corpus, f"{seed} {stage.name}", patch=self.level.kind == "patch" and not single, longest_s=longest, min_duration_s=stage.examples.min_duration_s
            )
            self._shown = self._builder(single)
        except UserError as error:
            raise type(error)(str(error) if str(error).startswith("stages.") else f"stages.{stage.name}: {error}") from None
        self.prompt = stage.prompt or self.level.prompt
        self.shapes: Shapes = {**self._shown.shapes, **self._text_shapes()}

    def _builder(self, single: bool) -> WindowExamples | PatchExamples | GroupExamples | CropExamples | VideoExamples:
        config, stage, targets = self.config, self.stage, self.targets
        late = config.decoder.signal.enabled and config.decoder.signal.similarity == "late"
        if self.level.kind == "video" and not single:
            return VideoExamples(config, stage, targets, late)
        contrastive = Contrastive(stage, targets)
        if single:
            return WindowExamples(config, stage, targets, contrastive, late)
        if self.level.kind == "patch":
            return PatchExamples(config, stage, targets, contrastive)
        if stage.examples.groups == "grid":
            return GroupExamples(config, stage, targets, contrastive, late)
        if self.level.kind != "sparse":
            raise ConfigError(f"stages.{stage.name}.examples.groups: 'crops' are for sparse levels, {self.level.name} is {self.level.kind}")
        return CropExamples(config, stage, targets, contrastive, late)

    def example(self, index: int) -> Batch:
        """Example number `index` (see the module's text for its arrays)."""
        out = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes.items()}
        self.fill(index, out)
        return out

    def batch(self, step: int) -> Batch:
        """Examples step * batch .. with a leading axis of `stage.batch`."""
        out = {name: np.zeros((self.stage.batch, *shape), dtype) for name, (shape, dtype) in self.shapes.items()}
        for row in range(self.stage.batch):
            self.fill(step * self.stage.batch + row, {name: array[row, ...] for name, array in out.items()})
        return out

    def fill(self, index: int, out: Out) -> None:
        """Example number `index` into arrays of `shapes`, which are zeros."""
        rng = np.random.default_rng([self.seed, self._key, index])
        absent = negatives.is_absent(index, self.stage.absent)
        before = negatives.absent_before(index, self.stage.absent)
        target = self.targets.at(before if absent else index - before, rng)
        question, answer = self._shown.fill(rng, target, absent, out)
        self._text(question, answer, out)

    def _text_shapes(self) -> Shapes:
        sizes, text = self.config.grounding, self.config.text
        asked: Shapes = {"query_ids": ((sizes.query_len,), "int32")}
        if self.queries is not None:
            asked = {"query_tokens": ((sizes.query_len, text.width), "float16"), "query_vectors": ((1 + text.phrases, text.projection), "float16")}
            asked |= {"query_motion": ((2,), "float16")} if text.motion else {}
            wanted = {"tokens", *(name.removeprefix("query_") for name in asked if self.config.decoder.signal.enabled)}
            if not wanted <= set(self.queries.arrays):
                lacks = ", ".join(sorted(wanted - set(self.queries.arrays)))
                raise UserError(f"{self.queries.path}: holds no {lacks} of queries, which the search signal reads; extract them with this model's text tower")
        texts = {"query": sizes.query_len, "after": sizes.prompt_len, "answer": sizes.answer_len}
        masks = {f"{name}_mask": ((length,), "bool") for name, length in texts.items()}
        ids = {f"{name}_ids": ((texts[name],), "int32") for name in ("after", "answer")}
        return {**asked, **masks, **ids, "weight": ((), "float32")}

    def _text(self, question: TrainQuestion, answer: prompts.Answer, out: Out) -> None:
        sizes = self.config.grounding
        presence = self.stage.task == "presence"
        pairs = {
            "after": prompts.encode_question(self.tokenizer, self.prompt, question.query, sizes.prompt_len, presence),
            "answer": prompts.encode_answer(self.tokenizer, self.prompt, answer, sizes.answer_len),
        }
        if self.queries is None:
            pairs["query"] = prompts.encode_query(self.text_tokenizer, question.query, sizes.query_len, self.config.text.suffix)
        else:
            self._query_features(question.query, out)
        for name, (ids, mask) in pairs.items():
            out[f"{name}_ids"][:], out[f"{name}_mask"][:] = ids, mask
        out["weight"][...] = self.stage.absent_weight if answer is None or answer is False else 1.0

    def _query_features(self, query: str, out: Out) -> None:
        found = self.queries.features(prompts.clean_query(query))
        tokens = found["tokens"][: self.config.grounding.query_len]
        out["query_tokens"][: len(tokens)], out["query_mask"][: len(tokens)] = tokens, True
        for name in ("vectors", "motion"):
            if name in found and f"query_{name}" in out:
                out[f"query_{name}"][...] = found[name]
