"""`launch.bench tokens`: tokens that go through the language model for one question about a film of two hours, here and in the released procedure.

Released (constants of ReVisionLLM's public scripts for MAD): every dense window of the film, then groups of 100 and of 33 sparse windows, each at three zooms,
anew for every question. Here: a search by the preset's own levels, run for real on random features, with every width made small, which changes no count. A
random model's windows lie all over the film, so this is the worst case: windows that a trained one keeps lie side by side and share their frames.

Counted are tokens that are there, no padding: the prompt, what is seen, the question, and each token of each answer that is read back. Both sides have the same
prompts and the same length of answers. "Zooms as released" asks the groups at zooms 4, 2 and 1 here too.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from revision_jax.config import ExperimentConfig, LevelConfig
from revision_jax.grounding.programs import FrameAnswer, Programs, Question
from revision_jax.grounding.search import Searcher
from revision_jax.grounding.source import ArraySource

FILM_S, QUESTIONS = 7200.0, 32
QUERY = "a young man in a long coat opens the door and looks out into the night"  # 15 words; MAD's sentences have 12.7 on average
DENSE = (312, 250)  # features from one window to the next, frames that the model is shown
SPARSE = (125, (100, 33))  # features from one window to the next; windows of a group, of the two models
ZOOMS = (4, 2, 1)


def tokens(options: argparse.Namespace) -> dict[str, float | int]:
    """Tokens of a question by both procedures, and their ratios."""
    from configs.revisionllm_7b_mad import get_config

    config = small(get_config())
    programs, source = model(config, FILM_S)
    theirs = released(programs, FILM_S, config.grounding.rate)
    one, many = asked(programs, source, 1), asked(programs, source, QUESTIONS)
    zoomed = tuple(dataclasses.replace(level, zooms=ZOOMS) if level.kind == "sparse" else level for level in config.grounding.levels)
    as_released = asked(*model(dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=zoomed)), FILM_S), 1)
    return {
        "released to here, one question": theirs / one, f"released to here, {QUESTIONS} questions": theirs * QUESTIONS / many,
        "released: tokens a question": theirs, "here: tokens of one question": one, f"here: tokens a question of {QUESTIONS}": round(many / QUESTIONS),
        "here: tokens of one question, zooms as released": as_released,
    }


def small(config: ExperimentConfig, width: int = 32, mlp: int = 32, decoder: dict[str, Any] | None = None) -> ExperimentConfig:
    """The preset with small widths of towers and adapters, and of the decoder but for its fields that are given: levels, prompts and windows as they are."""
    heads = 4
    levels = tuple(
        dataclasses.replace(level, adapter=dataclasses.replace(level.adapter, width=width, heads=heads, mlp=mlp)) for level in config.grounding.levels
    )
    smaller = {"width": width, "layers": 1, "heads": heads, "kv_heads": heads, "head_dim": width // heads, "mlp": mlp, "scan": False, "dtype": "float32"}
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, width=width, layers=1, heads=heads, mlp=mlp, projection=width),
        text=dataclasses.replace(config.text, width=width, layers=1, heads=heads, mlp=mlp, projection=width),
        decoder=dataclasses.replace(config.decoder, **{**smaller, **(decoder or {})}),
        grounding=dataclasses.replace(config.grounding, levels=levels),
    )


class Counted(Programs):
    """Programs that count the decoder's tokens."""

    read = 0

    def window_answers(self, level: LevelConfig, groups: Sequence) -> tuple:
        decoded, calls = super().window_answers(level, groups)
        self.read += sum(len(self.functions.before[level.name]) + len(made.level) + self._asked(level, question, len(made.level)) for made, question in groups)
        self.read += _answered(decoded)
        return decoded, calls

    def frame_prefixes(self, level: LevelConfig, arrays: dict, valid: np.ndarray, questions: Sequence[Question] | None = None) -> list[dict]:
        self.read += len(valid) * len(self.functions.before[level.name]) + int(valid.sum())
        return super().frame_prefixes(level, arrays, valid, questions)

    def frame_answers(self, level: LevelConfig, rows: Sequence) -> FrameAnswer:
        made = super().frame_answers(level, rows)
        self.read += sum(self._asked(level, question, int(np.asarray(entry["valid"]).sum())) for entry, question in rows) + _answered(made.decoded)
        return made

    def _asked(self, level: LevelConfig, question: Question, slots: int) -> int:
        """Tokens of a question, and of the cues behind it where the model has them."""
        signal = self.config.decoder.signal
        return int(question.after[level.name][1].sum()) + (slots if signal.enabled and signal.cues else 0)


def _answered(decoded: tuple) -> int:
    """Tokens of all answers that went back in: all before the last choice. The opening counts once for each hypothesis, though it is read once."""
    return int(np.maximum(decoded.known - 1, 0).sum())


def model(config: ExperimentConfig, film_s: float) -> tuple[Counted, ArraySource]:
    """A random model of the config and a film of random features."""
    import jax

    from revision_jax.models.revision import init_state
    from revision_jax.planning.vocabulary import stand_in

    rng = np.random.default_rng(0)
    frames = round(film_s * config.grounding.rate)
    film = ArraySource({"frame": rng.standard_normal((frames, config.vision.projection), np.float32)}, config.grounding.rate, film_s)
    return Counted(config, init_state(config, jax.random.key(0)), stand_in(config)), film


def asked(programs: Counted, source: ArraySource, count: int) -> int:
    """Tokens of `count` questions about the film, asked together, from nothing."""
    programs.read = 0
    Searcher(programs.config, programs).search(source, questions(count))
    return programs.read


def questions(count: int) -> list[str]:
    """Different ones of the same length."""
    words = QUERY.split()
    return [" ".join(words[i % 7 :] + words[: i % 7]) + f" {i}" for i in range(count)]


def released(programs: Counted, film_s: float, rate: float) -> int:
    """Tokens of one question by the released procedure, with the prompts and the answers' length of `programs`."""
    levels = {level.name: level for level in programs.config.grounding.levels}
    question = programs.question(QUERY)

    def call(name: str, seen: int) -> int:
        level = levels[name]
        return len(programs.functions.before[name]) + seen + int(question.after[name][1].sum()) + programs.functions.grammar(level).steps - 1

    calls = released_calls(round(film_s * rate))
    return calls["dense"] * call("dense", DENSE[1]) + sum(calls[f"sparse-{size}"] * call(f"sparse-{size}", size) for size in SPARSE[1])


def released_calls(frames: int) -> dict[str, int]:
    """How often the released procedure asks the language model one question about a film of `frames` features, by what it shows it: a window of frames, or a
    group of windows at any of the zooms; and "windows", of which it makes sparse tokens."""
    stride, groups = SPARSE
    windows = math.ceil(frames / stride) - 1
    asked = {f"sparse-{size}": sum(math.ceil(windows / (size // zoom)) for zoom in ZOOMS) for size in groups}
    return {"dense": math.ceil(frames / DENSE[0]) - 1, **asked, "windows": windows}
