"""Grounding with a model that can only be talked to: VideoLLaMA3 as it is released, which answers with seconds in free text.

    grounder = Grounder.from_pretrained("VideoLLaMA3-7B")        # gives an AskingGrounder
    grounder.ground("film.mp4", ["a red ring turns green"])

The film is cut into windows of what the model was released for (180 s, each overlapping the next by half), and every window is shown and asked when it
happens; times in the prompt count from the window's start, as in its training. A window's frames are read, encoded and put into the cache once for all
questions. Nothing is searched from coarse to fine and nothing refuses: for hours, and for an honest "not there", a model with levels is needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revision_jax.chat import budget
from revision_jax.chat.chat import Chat
from revision_jax.chat.engine import slots_for
from revision_jax.data import video as files
from revision_jax.data.chat_template import Message, Prompt, Shown, check_text, encode, render
from revision_jax.data.media import look
from revision_jax.data.prompts import clean_query
from revision_jax.errors import UserError
from revision_jax.grounding import answer as answers
from revision_jax.grounding import confidence as sure
from revision_jax.grounding import levels as places
from revision_jax.grounding import merging
from revision_jax.grounding.answer import Answer
from revision_jax.grounding.found import Candidate, Found, Ranked, Trace
from revision_jax.grounding.levels import Window

# Its training and its evaluation on Charades-STA end questions like this.
QUESTION = 'When does "{query}" happen in the video? Please output the start and end timestamps in seconds.'
STEPS = 64  # tokens of an answer at most
NUMBER = r"(\d+(?:\.\d+)?)"
SPAN = re.compile(rf"{NUMBER}\s*(?:s|secs?|seconds?)?\s*(?:to|and|-|–|—)\s*{NUMBER}")


@dataclass(frozen=True)
class Film:
    """A video that will be shown window by window; nothing is kept of it on disk."""

    path: str
    duration_s: float
    fps: float
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


def spans_in(text: str, longest: float) -> list[tuple[float, float]]:
    """The intervals that an answer names ("3.5 to 7", "3 - 7 seconds"), inside [0, longest]; those that are empty there are left out."""
    found = ((float(start), min(float(end), longest)) for start, end in SPAN.findall(text))
    return list(dict.fromkeys((start, end) for start, end in found if start < end))


class AskingGrounder:
    """Has what `Grounder` has: encode, ground, check, to_json, threshold. Features are not kept, so `cache_limit` and `decoders` mean nothing."""

    cache_limit = 0
    decoders: int | None = None

    def __init__(self, chat: Chat, question: str = QUESTION):
        """question: with "{query}" in it. Raises ConfigError for a model that cannot be talked to."""
        self.chat, self.question, self.config = chat, question, chat.config
        self.level = self.config.grounding.level(chat.engine.level)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> AskingGrounder:
        """What `Chat.from_pretrained` reads. Raises UserError."""
        return cls(Chat.from_pretrained(path, **options))

    @property
    def threshold(self) -> float:
        return self.config.grounding.threshold

    def check(self, query: str) -> None:
        """Raises UserError for a question that cannot be asked."""
        check_text(self.question.format(query=clean_query(query)), self.chat.tokenizer)

    def encode(self, path: str | Path, progress: Callable[[float, float], None] | None = None) -> Film:
        """Looks at the file alone. Raises UserError for what is no readable video."""
        info = files.probe(path)
        return Film(str(path), info.duration_s, info.fps)

    def ground(
        self, video: Film | str | Path, queries: Sequence[str], top_k: int = 5, threshold: float | None = None, start_s: float | None = None,
        end_s: float | None = None, progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Answer]:
        """As `Grounder.ground`. A moment's confidence is R / (1 + R) of the answer that names it, R = 1 / mean entropy of its tokens."""
        film = video if isinstance(video, Film) else self.encode(video)
        threshold = self.threshold if threshold is None else threshold
        start, end = start_s or 0.0, film.duration_s if end_s is None else min(end_s, film.duration_s)
        if not 0 <= start < end:
            raise UserError(f"{film.path}: nothing to search from {start:g} s to {end:g} s; the video lasts {film.duration_s:.1f} s")
        for query in queries:
            self.check(query)
        windows = places.windows(start, end, self.level.span_s, self.level.stride_s)
        traces = [Trace(self.level, count=len(windows)) for _ in queries]
        candidates: list[list[Candidate]] = [[] for _ in queries]
        began = time.perf_counter()
        for done, window in enumerate(windows, 1):
            for number, (text, certainty) in enumerate(self._answers(film, window, queries)):
                spans = spans_in(text, window.end_s - window.start_s)
                traces[number].parse_failures += not spans
                traces[number].calls += 1
                traces[number].windows.append(Ranked(window, certainty if spans else 0.0))
                candidates[number] += [Candidate(window.start_s + low, window.start_s + high, certainty, window=window) for low, high in spans]
            if progress is not None:
                progress(self.level.name, done, len(windows))
        spent = {self.level.name: time.perf_counter() - began}
        found = [self._found(query, some, trace, top_k, spent) for query, some, trace in zip(queries, candidates, traces, strict=True)]
        return [answers.answer(one, threshold, film.duration_s) for one in found]

    def to_json(self, video: Film, given: Iterable[Answer]) -> dict[str, Any]:
        """One video's part of the JSON that `launch.ground` writes."""
        return answers.result(video.path, video.duration_s, video.fps, list(given), video.warnings)

    # ----------------------------------------------------------------------------------------------------------------------- parts

    def _answers(self, film: Film, window: Window, queries: Sequence[str]) -> list[tuple[str, float]]:
        """What the model says of one window to each question, and how sure it is. Raises UserError where the window does not fit into the token budget."""
        chat, engine = self.chat, self.chat.engine
        (medium,) = look((), (film.path,), chat.rules, chat.vision, chat.max_pixels, (window.start_s, window.end_s))
        text = max(len(self._prompt(query, Shown((1,) * medium.shape.frames, medium.seconds)).ids) for query in queries) - medium.shape.frames
        budget.check(budget.need(0, text, [medium], chat.vision.patch, STEPS), chat.token_budget, self.config.decoder)
        place, visual = chat.shown(medium)
        prompts = [self._prompt(query, place) for query in queries]
        # All questions stand behind the same frames.
        shared = int(np.flatnonzero(prompts[0].visual)[-1]) + 1
        slots = slots_for(max(len(prompt.ids) for prompt in prompts) + STEPS, chat.token_budget)
        head = engine.batch([Prompt(prompts[0].ids[:shared], prompts[0].visual[:shared])], [visual])
        _, prefix = engine.read(engine.new_cache(1, slots), head, 0)
        told = []
        for prompt in prompts:
            rest = engine.batch([Prompt(prompt.ids[shared:], prompt.visual[shared:])], [visual[:0]])
            logits, cache = engine.read(jax.tree.map(jnp.copy, prefix), rest._replace(positions=rest.positions + shared), shared)
            length, seen = len(prompt.ids), jnp.zeros((1, self.config.decoder.vocab), bool)
            ids, steps = engine.answer(logits, cache, np.asarray([length], np.int32), length, seen, STEPS, stops=chat.specials.stops)
            complete = ids[0, -1] in chat.specials.stops
            mean = sure.mean_entropy(sure.token_entropy(steps), np.asarray([steps.shape[1]]))[0]
            told.append((chat.tokenizer.decode(ids[0, : len(ids[0]) - complete].tolist()), sure.squash(sure.reliability(mean))))
        return told

    def _prompt(self, query: str, shown: Shown) -> Prompt:
        asked = self.question.format(query=clean_query(query))
        text = render([Message("user", (shown, asked))], self.chat.rules, self.chat.specials)
        return encode(text, self.chat.tokenizer, self.chat.specials, shown.tokens)

    def _found(self, query: str, candidates: Sequence[Candidate], trace: Trace, top_k: int, spent: dict[str, float]) -> Found:
        """Overlapping moments of neighbouring windows merged, the surest first."""
        moments: tuple[Candidate, ...] = ()
        if candidates:
            spans = np.asarray([(c.start_s, c.end_s) for c in candidates])
            order = merging.nms(spans, np.asarray([c.confidence for c in candidates]), self.config.grounding.merge_iou)
            moments = tuple(candidates[i] for i in order[:top_k])
        trace.kept, trace.seconds = sorted({c.window for c in moments}), sum(spent.values())
        return Found(query, moments, tuple(candidates), (trace,), spent)
