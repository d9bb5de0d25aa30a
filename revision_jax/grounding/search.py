"""The recursion: one loop over levels, coarse to fine, for all questions at once.

    regions = the whole stretch
    for each level: windows of the level inside the regions -> tokens -> answers -> ranked; the best `beam` windows are the next regions
    frame level: spans in seconds, each with a confidence; patch level: their boundaries looked at closely
    overlapping spans are merged, the best `top_k` are the answer

What a window level hands on is its windows ranked by P(present) of their group times the probability that the answer names them (summed over the
beam), mixed with the window's similarity to the question by `grounding.retrieval`: plain frame retrieval fills the places that the decoder leaves open,
and it is what a search of hours may not lose (DESIGN, section 1).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig
from revision_jax.data.pruning import judged
from revision_jax.grounding import confidence as sure
from revision_jax.grounding import levels as places
from revision_jax.grounding import merging
from revision_jax.grounding.confidence import CLIP, Calibrator
from revision_jax.grounding.evidence import rank_score, said_above, span_features
from revision_jax.grounding.found import Candidate, Found, Ranked, Trace
from revision_jax.grounding.levels import EPSILON, Window
from revision_jax.grounding.prefix_cache import PrefixCache
from revision_jax.grounding.programs import Programs, Question, WindowTokens
from revision_jax.grounding.prompt import parse_ids
from revision_jax.grounding.source import Source, gather

WORTH = 0.2  # of the best candidate's confidence: a lesser one is not looked at closely
# For patch windows, each one's {"tokens" [T N E], "change" [T N], "valid" [T]}, or None where there is nothing to see.
Refine = Callable[[Sequence[Window], LevelConfig], Sequence[dict[str, np.ndarray] | None]]
Progress = Callable[[str, int, int], None]  # level, done, of


@dataclass
class _Asked:
    """One question on its way through the levels."""

    question: Question
    regions: list[tuple[float, float]]
    calibrator: Calibrator | None  # of the levels that search for it
    ranked: list[Ranked] = field(default_factory=list)  # kept windows of the level above
    tokens: dict[tuple[str, Window], tuple] = field(default_factory=dict)  # (level, window) -> token, summary, similarity
    candidates: list[Candidate] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)


class Searcher:
    """Searches films with one model. Keeps shared prefixes between calls, under the config's budget."""

    def __init__(self, config: ExperimentConfig, programs: Programs, calibrator: Calibrator | None = None):
        """Raises ConfigError where the levels cannot be run from coarse to fine."""
        places.check_order(config.grounding.levels)
        self.config, self.programs, self.calibrator = config, programs, calibrator
        self.prefixes = PrefixCache(config.grounding.prefix_cache_mb << 20)

    # ------------------------------------------------------------------------------------------------------------------- entrances

    def search(
        self, source: Source, queries: Sequence[str | Question], *, start_s: float = 0.0, end_s: float | None = None, top_k: int = 5,
        refine: Refine | None = None, progress: Progress | None = None,
    ) -> list[Found]:
        """Answers every question about seconds [start_s, end_s] of a film by the whole hierarchy. Raises UserError for a question that cannot be used."""
        end_s = source.duration_s if end_s is None else min(end_s, source.duration_s)
        wanted = [level for level in places.applicable(self.config.grounding.levels, end_s - start_s) if level.kind != "patch" or refine is not None]
        fitted = self.calibrator and self.calibrator.of(places.hierarchy(self.config.grounding.levels, end_s - start_s))
        asked = [_Asked(self._question(query), [(start_s, end_s)], fitted) for query in queries]
        for index, level in enumerate(wanted):
            report = (lambda done, of, name=level.name: progress(name, done, of)) if progress else (lambda done, of: None)
            if level.kind in places.WINDOW_KINDS:
                self._window_level(source, level, wanted[index + 1 :], asked, start_s, end_s, report)
            elif level.kind == "dense":
                windows = [places.frame_windows(a.regions, level, start_s, end_s, 1 / source.rate) for a in asked]
                self._frame_level(source, level, asked, windows, start_s, end_s, report)
            else:
                self._patch_level(level, asked, start_s, end_s, refine, report)
        return [self._found(a, top_k) for a in asked]

    def localise(self, source: Source, queries: Sequence[str | Question], spans: Sequence[Sequence[tuple[float, float]]], *, top_k: int = 5) -> list[Found]:
        """The frame level alone, in windows centred on the given spans of each question: how good is the answer where search cannot fail?"""
        level = self._frame_kind()
        asked = [_Asked(self._question(query), list(given), self.calibrator) for query, given in zip(queries, spans, strict=True)]
        windows = [places.frame_windows(a.regions, level, 0.0, source.duration_s, 1 / source.rate) for a in asked]
        self._frame_level(source, level, asked, windows, 0.0, source.duration_s, lambda done, of: None)
        return [self._found(a, top_k) for a in asked]

    def rank(self, source: Source, queries: Sequence[str | Question]) -> list[list[Ranked]]:
        """Every window of the coarsest sparse level for each question, best first: what a search of the whole film would rank, before any is dropped.

        Raises ConfigError where there is no sparse level.
        """
        level = next((level for level in self.config.grounding.levels if level.kind == "sparse" and level.searched), None)
        if level is None:
            raise ConfigError("grounding.levels: there is no sparse level to rank windows by")
        asked = [_Asked(self._question(query), [(0.0, source.duration_s)], self.calibrator) for query in queries]
        self._window_level(source, level, [level], asked, 0.0, source.duration_s, lambda done, of: None)
        return [a.traces[-1].windows for a in asked]

    def flat(self, source: Source, queries: Sequence[str | Question], *, level: str | None = None, top_k: int = 5) -> list[Found]:
        """The baseline that VTimeLLM stands for: one pass, the whole film resampled to the tokens of a frame level.

        level: its name; default: the dense level kept as a baseline, or, where there is none, the search's own.
        """
        chosen = self._frame_kind(baseline=True) if level is None else self.config.grounding.level(level)
        whole = Window(0.0, source.duration_s, source.duration_s)
        asked = [_Asked(self._question(query), [(0.0, source.duration_s)], self.calibrator) for query in queries]
        self._frame_level(source, chosen, asked, [[whole] for _ in asked], 0.0, source.duration_s, lambda done, of: None)
        return [self._found(a, top_k) for a in asked]

    def _question(self, query: str | Question) -> Question:
        return query if isinstance(query, Question) else self.programs.question(query)

    def _frame_kind(self, baseline: bool = False) -> LevelConfig:
        levels = sorted((level for level in self.config.grounding.levels if level.kind == "dense"), key=lambda level: level.baseline != baseline)
        if not levels:
            raise ConfigError("grounding.levels: there is no dense level")
        return levels[0]

    # --------------------------------------------------------------------------------------------------------------- window levels

    def _window_level(self, source: Source, level: LevelConfig, finer: list[LevelConfig], asked: list[_Asked], start_s: float, end_s: float, report) -> None:
        """Sparse or nested: ranks the level's windows inside the regions of each question, and makes the best of them its regions."""
        began = time.perf_counter()
        base = level if level.kind == "sparse" else next(other for other in finer if other.kind == "sparse")
        windows = places.windows(start_s, end_s, base.span_s, base.stride_s)
        inside = [[w for w in windows if any(low - EPSILON <= w.centre_s <= high + EPSILON for low, high in a.regions)] for a in asked]
        if level.kind == "nested":
            inside = [windows for _ in asked]
        calls = self._sparse_tokens(source, base, asked, inside, report)
        rows: list[tuple[int, list[Window], WindowTokens]] = []  # question, its windows, their tokens
        for number, a in enumerate(asked):
            chosen = inside[number]
            tokens = WindowTokens(*(np.stack(parts) for parts in zip(*(a.tokens[base.name, w] for w in chosen), strict=True)))
            if level.kind == "nested":
                length = base.run_length(level)
                members = places.runs(chosen, length)
                tokens = self.programs.run_tokens(level, tokens, members, length, a.question)
                chosen = [places.spanned([chosen[i] for i in member]) for member in members]
                calls[number] += math.ceil(len(chosen) / level.tokens)
            for zoom in level.zooms:
                for group in places.groups(len(chosen), level.tokens // zoom):
                    shown = [i for i in group for _ in range(zoom)]
                    rows.append((number, [chosen[i] for i in shown], WindowTokens(*(x[shown] for x in tokens))))
            a.traces.append(Trace(level, count=len(chosen) if level.kind == "nested" else len(windows)))
        decoded, _ = self.programs.window_answers(level, [(tokens, asked[number].question) for number, _, tokens in rows])
        ranked: list[dict[Window, Ranked]] = [{} for _ in asked]
        last = not any(other.kind in (*places.WINDOW_KINDS, "dense") for other in finer)
        for row, (number, members, tokens) in enumerate(rows):
            spans = self._spans(level, decoded, row, len(members), asked[number].traces[-1])
            named = np.zeros(len(members))
            for s, e, j in spans:
                named[s : e + 1] += math.exp(float(decoded.score[row, j]))
                if last:  # a hierarchy that ends with windows answers in windows
                    seconds = places.windows_seconds(members, s, e)
                    features = span_features(decoded, row, j, seconds, tokens.level, None, (s, e), (0.0, 0.0), 0.0)
                    asked[number].candidates.append(self._candidate(*seconds, features, None, asked[number].calibrator))
            present = float(np.clip(decoded.present[row], -CLIP, CLIP))
            for w, window in enumerate(members):
                share = min(float(named[w]), 1.0)
                score = rank_score(present, share, float(tokens.level[w, 0]), self.config.grounding.retrieval)
                entry = Ranked(window, score, present, max(math.log(share), -CLIP) if share > 0 else -CLIP)
                if window not in ranked[number] or entry.score > ranked[number][window].score:
                    ranked[number][window] = entry
        seconds = time.perf_counter() - began
        for number, a in enumerate(asked):
            order = sorted(ranked[number].values(), key=lambda r: (-r.score, r.window))
            a.ranked = order[: max(level.beam, math.ceil(level.beam_share * len(order)))]
            a.regions = places.joined((r.window.start_s, r.window.end_s) for r in a.ranked)
            trace = a.traces[-1]
            trace.windows, trace.kept = order, [r.window for r in a.ranked]
            groups = [len(members) for other, members, _ in rows if other == number]
            trace.calls, trace.seconds = calls[number] + math.ceil(len(groups) / level.batch), seconds / len(asked)
            trace.prompts, trace.tokens = len(groups), sum(groups)

    def _sparse_tokens(self, source: Source, level: LevelConfig, asked: list[_Asked], inside: list[list[Window]], report) -> list[int]:
        """Makes the sparse tokens that are missing, reading a group of windows once for all questions that want it. Returns the device calls of each."""
        calls = [0] * len(asked)
        wanting: dict[tuple[Window, ...], list[int]] = {}  # all questions want the first level's, and each its own of a finer one's
        for number, (a, wanted) in enumerate(zip(asked, inside, strict=True)):
            wanting.setdefault(tuple(w for w in wanted if (level.name, w) not in a.tokens), []).append(number)
        groups = [(windows[i : i + level.tokens], numbers) for windows, numbers in wanting.items() for i in range(0, len(windows), level.tokens)]
        for done, (group, numbers) in enumerate(groups):
            shown = self.programs.on_device(level, *gather(source, group, level.frames, self.programs.names, level.sampling))
            for number in numbers:
                made = self.programs.window_tokens(level, shown, asked[number].question)
                calls[number] += len(shown)
                asked[number].tokens |= {(level.name, window): tuple(x[i] for x in made) for i, window in enumerate(group)}
            report(done + 1, len(groups))
        return calls

    # ---------------------------------------------------------------------------------------------------------------- frame level

    def _frame_level(
        self, source: Source, level: LevelConfig, asked: list[_Asked], windows: list[list[Window]], start_s: float, end_s: float, report
    ) -> None:
        """Dense: spans in each window of each question, as candidates in seconds."""
        began = time.perf_counter()
        rows = sorted(((w, number) for number, chosen in enumerate(windows) for w in chosen), key=lambda row: (row[0], row[1]))
        for number, a in enumerate(asked):
            count = len(places.windows(start_s, end_s, level.span_s, level.stride_s))
            a.traces.append(Trace(level, count=max(count, len(windows[number]))))
        best: dict[tuple[int, Window], float] = {}
        batches = [rows[i : i + level.batch] for i in range(0, len(rows), level.batch)]
        prefixes = self._shared(source, level, rows, asked)
        for done, part in enumerate(batches):
            entries = list(itertools.islice(prefixes, len(part)))
            out = self.programs.frame_answers(level, [(entry, asked[number].question) for entry, (_, number) in zip(entries, part, strict=True)])
            for number in {number for _, number in part}:
                asked[number].traces[-1].calls += 1
            for row, (window, number) in enumerate(part):
                a = asked[number]
                valid = int(np.asarray(entries[row]["valid"]).sum())
                best[number, window] = 0.0
                a.traces[-1].prompts += 1
                a.traces[-1].tokens += valid
                for s, e, j in self._spans(level, out.decoded, row, valid, a.traces[-1]):
                    low, high = places.slot_seconds(window, level.tokens, s, e, level.prompt.end, level.sampling)
                    low, high = max(low, start_s), min(high, end_s)
                    if high <= low:
                        continue
                    cut = (s == 0 and window.start_s > start_s + EPSILON) or (e == valid - 1 and window.end_s < end_s - 1 / source.rate)
                    seen, along = out.level[row][:valid], out.along[row][:valid] if a.question.says_a_way else None
                    features = span_features(out.decoded, row, j, (low, high), seen, along, (s, e), said_above(a.ranked, low, high), float(cut))
                    candidate = self._candidate(low, high, features, window, a.calibrator)
                    best[number, window] = max(best[number, window], candidate.confidence)
                    a.candidates.append(candidate)
            report(done + 1, len(batches))
        seconds = time.perf_counter() - began
        for number, a in enumerate(asked):
            trace = a.traces[-1]
            trace.windows, trace.seconds = [Ranked(w, best[number, w]) for w in windows[number]], seconds / len(asked)

    def _shared(self, source: Source, level: LevelConfig, rows: Sequence[tuple[Window, int]], asked: list[_Asked]) -> Iterator[dict]:
        """Each row's prefix entry, in turn: the cache's where it has one. What is missing is made as many at a time as a call takes, those of rows further on
        with it. Questions share them, but where the adapter reads the question."""
        reads = level.adapter.reads_query
        keys = [(source.key, level.name, window, asked[number].question.text if reads else "") for window, number in rows]
        last = {key: i for i, key in enumerate(keys)}
        made: dict[tuple, dict] = {}
        for i, key in enumerate(keys):
            entry = made.get(key) or self.prefixes.get(key)
            if entry is None:
                wanted: dict[tuple, int] = {}  # of each missing key its next row
                for j in range(i, len(keys)):
                    if keys[j] not in made and keys[j] not in self.prefixes:
                        wanted.setdefault(keys[j], j)
                    if len(wanted) == level.batch:
                        break
                arrays, valid = gather(source, [rows[j][0] for j in wanted.values()], level.tokens, self.programs.names, level.sampling)
                questions = [asked[rows[j][1]].question for j in wanted.values()] if reads else None
                for k, prefix in zip(wanted, self.programs.frame_prefixes(level, arrays, valid, questions), strict=True):
                    made[k] = prefix
                    self.prefixes.put(k, prefix)
                entry = made[key]
            yield entry
            if last[key] == i:
                made.pop(key, None)

    # ---------------------------------------------------------------------------------------------------------------- patch level

    def _patch_level(self, level: LevelConfig, asked: list[_Asked], start_s: float, end_s: float, refine: Refine, report) -> None:
        """Looks closely at both boundaries of the best candidates of each question, and moves them where the patches say so.

        A window around the start moves the start if its answer begins inside of it, one around the end the end if it ends inside. An answer
        of "absent" moves nothing.
        """
        began = time.perf_counter()
        wanted = []  # question, candidate, which boundary, window
        for number, a in enumerate(asked):
            a.traces.append(Trace(level))
            a.candidates = [a.candidates[i] for i in self._order(a.candidates)[0]]
            for which, candidate in enumerate(a.candidates[: level.beam]):
                if candidate.confidence < WORTH * a.candidates[0].confidence:
                    break
                for side, boundary in enumerate((candidate.start_s, candidate.end_s)):
                    wanted.append((number, which, side, places.boundary_window(boundary, level, start_s, end_s)))
                    a.traces[-1].count += 1
        windows = sorted({window for *_, window in wanted})
        patches = dict(zip(windows, refine(windows, level), strict=True))
        rows = [(*row, patches[row[-1]]) for row in wanted if patches[row[-1]] is not None]
        if rows:
            decoded, dropped, _ = self.programs.patch_answers(level, [(arrays, asked[number].question) for number, *_, arrays in rows])
            for row, (number, which, side, window, arrays) in enumerate(rows):
                a, trace = asked[number], asked[number].traces[-1]
                valid = int(arrays["valid"].sum())
                present = float(sure.sigmoid(decoded.present[row]))
                trace.windows.append(Ranked(window, present))
                trace.dropped_tokens += int(dropped[row])
                trace.prompts += 1
                trace.tokens += min(int(judged(arrays["change"][arrays["valid"]], self.config.pruner).sum()), level.budget)
                spans = self._spans(level, decoded, row, valid, trace)
                if present > 0.5 and spans:
                    s, e, _ = spans[0]
                    low, high = places.slot_seconds(window, level.tokens, s, e, level.prompt.end, level.sampling)
                    candidate = a.candidates[which]
                    # A span that touches the window's edge goes on beyond it: it says nothing about where this boundary lies.
                    seen = s > 0 if side == 0 else e < valid - 1
                    moved = replace(candidate, start_s=max(low, start_s)) if side == 0 else replace(candidate, end_s=min(high, end_s))
                    if seen and moved.start_s < moved.end_s:
                        a.candidates[which] = moved
                        trace.kept.append(window)
            report(len(rows), len(rows))
        seconds = time.perf_counter() - began
        for number, a in enumerate(asked):
            a.traces[-1].seconds = seconds / len(asked)
            a.traces[-1].calls = math.ceil(sum(1 for other, *_ in rows if other == number) / level.batch)

    # ---------------------------------------------------------------------------------------------------------------------- parts

    def _spans(self, level: LevelConfig, decoded, row: int, count: int, trace: Trace) -> list[tuple[int, int, int]]:
        """(first, last, hypothesis) of a row's answers, best first; what cannot be read is counted."""
        spans = []
        for j in range(decoded.length.shape[1]):
            length = int(decoded.length[row, j])
            if not length:
                continue
            parsed = parse_ids(self.programs.tokenizer, level.prompt, decoded.tokens[row, j, :length])
            if parsed is None or parsed == "absent" or parsed[1] >= count:
                trace.parse_failures += 1
            else:
                spans.append((parsed[1], min(parsed[2], count - 1), j))
        return spans

    def _candidate(self, start_s: float, end_s: float, features: dict, window: Window | None, calibrator: Calibrator | None) -> Candidate:
        return Candidate(start_s, end_s, sure.confidence(self.config.grounding.confidence, features, calibrator), features, window)

    def _order(self, candidates: list[Candidate]) -> tuple[list[int], list[float]]:
        """Indices of the candidates that merging leaves, best first, and their confidence after it."""
        spans = np.asarray([(c.start_s, c.end_s) for c in candidates], np.float64).reshape(-1, 2)
        scores = np.asarray([c.confidence for c in candidates], np.float64)
        if self.config.grounding.merge == "soft_nms":
            order, lowered = merging.soft_nms(spans, scores, self.config.grounding.merge_iou)
            return order.tolist(), lowered.tolist()
        order = merging.nms(spans, scores, self.config.grounding.merge_iou)
        return order.tolist(), scores[order].tolist()

    def _found(self, a: _Asked, top_k: int) -> Found:
        order, scores = self._order(a.candidates)
        moments = tuple(replace(a.candidates[i], confidence=score) for i, score in zip(order[:top_k], scores[:top_k], strict=True))
        for trace in a.traces:
            if trace.level.kind == "dense":
                trace.kept = sorted({m.window for m in moments if m.window is not None})
        return Found(a.question.text, moments, tuple(a.candidates), tuple(a.traces), {trace.level.name: trace.seconds for trace in a.traces})
