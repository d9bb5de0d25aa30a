"""The recursion on random features: what it looks at, what it shares, what it costs, and that pads never matter."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from revision_jax.data.windows import slot_frames
from revision_jax.errors import UserError
from revision_jax.grounding import confidence as sure
from revision_jax.grounding import levels as places
from revision_jax.grounding.levels import Window
from revision_jax.grounding.prefix_cache import PrefixCache
from revision_jax.grounding.programs import Programs
from revision_jax.grounding.search import Searcher, _Asked
from revision_jax.grounding.source import ArraySource, gather
from tests.grounding.conftest import TOKENS, WIDTH, noisy_state, random_film

QUERIES = ["a red ring", "a blue square"]


def patches(windows, level) -> list[dict[str, np.ndarray]]:
    return [patch(window, level) for window in windows]


def patch(window: Window, level) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(window.start_s * 100))
    return {
        "tokens": rng.normal(size=(level.tokens, TOKENS, WIDTH)).astype(np.float16),
        "change": rng.uniform(0, 2, size=(level.tokens, TOKENS)).astype(np.float16), "valid": np.ones(level.tokens, bool),
    }


@pytest.fixture
def searcher(config, programs):
    return Searcher(config, programs)


def spans(found):
    return [(m.start_s, m.end_s, m.confidence) for m in found.moments]


def test_the_whole_way_down(searcher):
    film = random_film(600)
    for found in searcher.search(film, QUERIES, refine=patches):
        assert [t.level.name for t in found.levels] == ["sparse", "dense", "patch"]
        assert 1 <= len(found.moments) <= 5 and found.parse_failures == 0
        confidences = [m.confidence for m in found.moments]
        assert confidences == sorted(confidences, reverse=True) and all(0 <= c <= 1 for c in confidences)
        for m in found.moments:
            assert 0 <= m.start_s < m.end_s <= 600 and set(m.features) >= set(sure.FEATURES)
            assert all(np.isfinite(v) for v in m.features.values())
        sparse, dense, patch = found.levels
        assert sparse.count == len(sparse.windows) == 59 and len(sparse.kept) == 4
        assert sparse.calls == 5 + 3  # five groups of twelve windows; their answers two a call
        assert (sparse.prompts, sparse.tokens) == (5, 60) and (dense.prompts, dense.tokens) == (len(dense.windows), 40 * len(dense.windows))
        assert patch.prompts == len(patch.windows) and 0 < patch.tokens <= 16 * patch.prompts
        kept = sparse.survivors
        assert all(any(low - 25 <= w.window.centre_s <= high + 25 for low, high in kept) for w in dense.windows)
        assert dense.calls <= 1 + len(dense.windows) // 4 + 1 and len(dense.windows) < dense.count
        assert patch.count == 2 * min(2, len(patch.windows) // 2) and patch.dropped_tokens >= 0
        for trace in found.levels:
            data = trace.to_json()
            assert {"name", "count", "calls", "seconds", "dropped_tokens", "windows"} <= set(data)
            assert all(0 <= w["score"] <= 1 and w["start_s"] < w["end_s"] for w in data["windows"])
        assert sum(w["kept"] for w in sparse.to_json()["windows"]) == 4


def test_questions_are_independent_and_share_prefixes(searcher, config, programs):
    film = random_film(600)
    together = searcher.search(film, QUERIES, refine=patches)
    misses = searcher.prefixes.misses
    again = searcher.search(film, QUERIES, refine=patches)
    assert searcher.prefixes.misses == misses and searcher.prefixes.hits >= misses  # every prefix came from the cache
    fresh = Searcher(config, programs)
    alone = [fresh.search(film, [query], refine=patches)[0] for query in QUERIES]
    for a, b, c in zip(together, again, alone, strict=True):
        assert spans(a) == spans(b)
        assert np.asarray(spans(a)) == pytest.approx(np.asarray(spans(c)), abs=1e-4)
    assert spans(together[0]) != spans(together[1])
    # One film's prefixes serve its questions alone.
    assert all(key[0] == film.key for key in searcher.prefixes._entries)


def test_one_window_asked_twice_is_encoded_once(searcher):
    film, given = random_film(600), [[(100.0, 110.0)], [(100.0, 110.0)]]
    first, second = searcher.localise(film, QUERIES, given)
    assert len(searcher.prefixes) == 1 and searcher.prefixes.misses == 1
    assert [w.window for w in first.levels[0].windows] == [w.window for w in second.levels[0].windows] == [Window(84.0, 124.0, 40.0)]
    assert all(m.start_s >= 83 and m.end_s <= 125 for m in first.moments)


def test_what_is_compiled_does_not_depend_on_the_films_length(searcher, programs):
    searcher.search(random_film(600), QUERIES, refine=patches)
    searcher.search(random_film(7200, seed=1), QUERIES[:1], refine=patches)  # the nested level too
    before, counted = dict(programs.compiled), programs.calls
    searcher.search(random_film(601.5, seed=2), QUERIES, refine=patches)
    ten_minutes = programs.calls - counted
    long = searcher.search(random_film(10800, seed=3), QUERIES[:1], refine=patches)
    searcher.search(random_film(47.3, seed=4), QUERIES, refine=patches)
    assert programs.compiled == before and set(before.values()) == {1}
    assert ten_minutes < programs.calls
    nested, sparse, dense, _ = long[0].levels
    assert nested.level.kind == "nested" and nested.count == 90 and sparse.count == 1079
    assert len(sparse.windows) <= 3 * 12 + 12 and len(dense.windows) <= 12  # depth keeps the finer levels from growing


def test_garbage_in_pads_changes_nothing(searcher, config, programs, monkeypatch):
    """A film shorter than its window: what the slots behind its end hold is nobody's business."""
    film = random_film(33)
    plain = searcher.search(film, QUERIES, refine=patches)
    from revision_jax.grounding import search as module

    def dirty(source, windows, slots, names, sampling):
        arrays, valid = gather(source, windows, slots, names, sampling)
        for array in arrays.values():
            array[~valid] = np.nan
        return arrays, valid

    monkeypatch.setattr(module, "gather", dirty)
    spoiled = Searcher(config, programs).search(film, QUERIES, refine=patches)
    assert [spans(f) for f in plain] == [spans(f) for f in spoiled]
    monkeypatch.undo()
    filled = Searcher(config, programs).search(random_film(65), QUERIES[:1], refine=patches)  # groups that are not full
    monkeypatch.setattr(module, "gather", dirty)
    assert spans(Searcher(config, programs).search(random_film(65), QUERIES[:1], refine=patches)[0]) == spans(filled[0])


def test_a_stretch_is_searched_alone(searcher, config, programs):
    film = random_film(600)
    changed = random_film(600)
    for array in changed.arrays.values():
        array[:200] = array[400:] = 3
    plain = searcher.search(film, QUERIES, start_s=200, end_s=400)
    for found, other in zip(plain, Searcher(config, programs).search(changed, QUERIES, start_s=200, end_s=400), strict=True):
        assert all(200 <= m.start_s < m.end_s <= 400 for m in found.moments) and spans(found) == spans(other)
        assert all(w.window.start_s >= 200 and w.window.end_s <= 400 for t in found.levels for w in t.windows)
        assert [t.level.name for t in found.levels] == ["sparse", "dense"]  # without frames to read there is no patch level


def test_a_nested_level_looks_at_less(searcher):
    (found,) = searcher.search(random_film(7200), QUERIES[:1])
    nested, sparse, _ = found.levels
    assert nested.level.kind == "nested" and nested.count == 60 and len(nested.kept) == 3
    assert sparse.count == 719 and len(sparse.windows) <= 3 * (12 + 2)  # a run and the windows that straddle its ends
    assert all(any(low - 1 <= w.window.centre_s <= high + 1 for low, high in nested.survivors) for w in sparse.windows)


def test_flat_is_one_window_over_everything(searcher):
    (found,) = searcher.flat(random_film(600), QUERIES[:1])
    (trace,) = found.levels
    assert [w.window for w in trace.windows] == [Window(0.0, 600.0, 600.0)] and trace.calls == 1
    assert all(0 <= m.start_s < m.end_s <= 600 and m.end_s - m.start_s >= 7 for m in found.moments)  # a slot is 15 s wide


def test_an_unusable_question_is_named(searcher):
    long = "query has 10000 characters, at most 1000"
    for query, message in (("", "query is empty"), ("word " * 100, "query has 100 tokens"), ("x" * 10_000, long), ("<eos>", "reserved")):
        with pytest.raises(UserError, match=message):
            searcher.search(random_film(60), [query])


def test_a_calibrator_decides_the_ranking(config, programs):
    n = len(sure.FEATURES)
    weights = [float(name == "log_duration") for name in sure.FEATURES]
    longest = sure.Calibrator(sure.FEATURES, (0.0,) * n, (1.0,) * n, tuple(weights), -3.0)
    (found,) = Searcher(config, programs, longest).search(random_film(600), QUERIES[:1])
    lengths = [m.end_s - m.start_s for m in found.moments]
    assert lengths == sorted(lengths, reverse=True)
    assert found.moments[0].confidence == pytest.approx(longest.apply(found.moments[0].features))


def test_films_of_another_hierarchy_are_judged_by_their_own_calibrator(config, programs):
    n = len(sure.FEATURES)
    common, own = (sure.Calibrator(sure.FEATURES, (0.0,) * n, (1.0,) * n, (0.0,) * n, bias) for bias in (0.0, 2.0))
    short = config.grounding.level("dense").span_s
    assert places.hierarchy(config.grounding.levels, short) == "dense" != places.hierarchy(config.grounding.levels, 600)
    both = Searcher(config, programs, dataclasses.replace(common, hierarchies={"dense": own}))
    for seconds, expected in ((600, common), (short, own)):
        (found,) = both.search(random_film(seconds), QUERIES[:1])
        assert found.candidates and {c.confidence for c in found.candidates} == {expected.apply(found.candidates[0].features)}


def test_soft_nms_keeps_more(config, programs):
    soft = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, merge="soft_nms"))
    hard_found = Searcher(config, programs).search(random_film(600), QUERIES[:1], top_k=100)[0]
    soft_found = Searcher(soft, programs).search(random_film(600), QUERIES[:1], top_k=100)[0]
    assert len(soft_found.moments) == len(soft_found.candidates) >= len(hard_found.moments)


# ------------------------------------------------------------------------------------------------------------------ reading features


@given(starts=st.lists(st.integers(0, 580), min_size=1, max_size=8), slots=st.sampled_from([5, 20, 40]))
@settings(max_examples=50, deadline=None)
def test_gather_takes_the_frame_of_each_slot(starts, slots):
    count = 500
    film = ArraySource({"frame": np.arange(count, dtype=np.float32)[:, None]}, 1.0, 500.0)
    windows = [Window(float(s), float(min(s + 20, 590)), 20.0) for s in starts]
    arrays, valid = gather(film, windows, slots, ["frame"])
    for w, window in enumerate(windows):
        times = window.start_s + np.arange(slots) * 20 / slots
        wanted = np.floor(times + 0.5 + 1e-6)
        assert valid[w].tolist() == ((wanted < count) & (times < window.end_s - 1e-6)).tolist()
        assert arrays["frame"][w, valid[w], 0].tolist() == wanted[valid[w]].tolist() and not arrays["frame"][w, ~valid[w]].any()


@given(starts=st.lists(st.integers(0, 580), min_size=1, max_size=8), slots=st.sampled_from([5, 20, 40]))
@example(starts=[580], slots=40)
@settings(max_examples=50, deadline=None)
def test_gather_shows_what_training_showed(starts, slots):
    """`windows.slot_frames`, by either rule; linspace's last slot is the window's end, or the film's last frame."""
    count = 600
    film = ArraySource({"frame": np.arange(count, dtype=np.float32)[:, None]}, 1.0, 600.0)
    for sampling in ("even", "linspace"):
        arrays, valid = gather(film, [Window(float(s), float(s) + 20.0, 20.0) for s in starts], slots, ["frame"], sampling)
        wanted = slot_frames(np.asarray(starts, float), 20.0, slots, 1.0, count, sampling)
        # Even slots in the film's last half second are nearest to a frame that it does not have.
        assert (valid == (wanted < count)).all() and (sampling == "even" or valid.all())
        assert arrays["frame"][..., 0].tolist() == np.where(valid, wanted, 0).tolist()
    assert wanted[:, -1].tolist() == [min(s + 20, count - 1) for s in starts]


def test_linspace_slots_of_a_window_that_is_cut_end_with_it():
    film = ArraySource({"frame": np.arange(100, dtype=np.float32)[:, None]}, 1.0, 100.0)
    arrays, valid = gather(film, [Window(50.0, 60.0, 20.0), Window(90.0, 100.0, 20.0)], 5, ["frame"], "linspace")
    assert arrays["frame"][0, valid[0], 0].tolist() == [50, 55, 60] and arrays["frame"][1, valid[1], 0].tolist() == [90, 95]


def test_gather_reads_each_stretch_once():
    reads = []

    class Film(ArraySource):
        def read_frames(self, first, stop, names=None):
            reads.append((first, stop))
            return super().read_frames(first, stop, names)

    film = Film({"frame": np.zeros((500, 2), np.float32)}, 1.0, 500.0)
    gather(film, [Window(s, s + 20.0, 20.0) for s in (300.0, 0.0, 10.0, 20.0)], 20, ["frame"])
    assert reads == [(0, 40), (300, 320)]


def test_the_prefix_cache_keeps_its_budget():
    cache = PrefixCache(100)
    entry = lambda size: {"k": np.zeros(size, np.uint8)}
    cache.put("a", entry(40))
    cache.put("b", entry(40))
    assert cache.get("a") is not None and cache.bytes == 80
    cache.put("c", entry(40))  # b was not used for longest
    assert cache.get("b") is None and cache.get("a") is not None and cache.get("c") is not None
    cache.put("d", entry(101))
    assert cache.get("d") is None and cache.bytes == 80
    cache.put("a", entry(60))
    assert cache.bytes == 100 and len(cache) == 2 and (cache.hits, cache.misses) == (3, 2)
    cache.clear()
    assert cache.bytes == 0 and cache.get("a") is None


def test_a_long_film_keeps_its_share_of_windows(config, programs):
    level = dataclasses.replace(config.grounding.level("sparse"), beam_share=0.1)
    levels = tuple(level if other.name == "sparse" else other for other in config.grounding.levels)
    searcher = Searcher(dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=levels)), programs)
    for seconds, windows, kept in ((300, 29, 4), (900, 89, 9)):  # at least the beam of four
        sparse = searcher.search(random_film(seconds), QUERIES[:1], refine=patches)[0].levels[0]
        assert (sparse.count, len(sparse.kept)) == (windows, kept)


def test_zooms_ask_about_fewer_windows_each_shown_several_times(config, programs):
    """A window's rank is its best over the zooms; whatever the zoom, a call has the level's one shape."""
    def zoomed(*zooms):
        levels = tuple(dataclasses.replace(level, zooms=zooms) if level.name == "sparse" else level for level in config.grounding.levels)
        changed = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=levels))
        return Searcher(changed, programs).search(random_film(600), QUERIES[:1])[0].levels[0]

    plain, both = zoomed(1), zoomed(3, 1)
    compiled = dict(programs.compiled)
    assert both.calls - plain.calls == 10 - 3  # 59 windows in 5 groups, and in 15 of four windows; two groups a call
    scores = {ranked.window: ranked.score for ranked in plain.windows}
    gains = np.array([ranked.score - scores[ranked.window] for ranked in both.windows])
    assert len(both.windows) == 59 and gains.min() > -1e-6 and gains.max() > 1e-3
    assert zoomed(12).calls - plain.calls == 30 - 3  # a window alone
    assert programs.compiled == compiled


def test_an_adapter_that_reads_the_question_shares_no_prefix(config, tokenizer):
    def temporal(level):
        return dataclasses.replace(level, adapter=dataclasses.replace(level.adapter, kind="temporal", heads=2, mlp=24)) if level.kind == "dense" else level

    changed = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=tuple(map(temporal, config.grounding.levels))))
    searcher = Searcher(changed, Programs(changed, noisy_state(changed), tokenizer))
    film, places = random_film(600), [[(100.0, 110.0)], [(100.0, 110.0)]]
    together = searcher.localise(film, QUERIES, places)
    assert len(searcher.prefixes) == 2  # one window, two questions
    made = searcher.prefixes.misses
    assert [spans(found) for found in searcher.localise(film, QUERIES, places)] == [spans(found) for found in together]
    assert searcher.prefixes.misses == made
    other = searcher.localise(film, QUERIES[1:], places[1:])[0]
    assert np.asarray(spans(other)) == pytest.approx(np.asarray(spans(together[1])), abs=1e-4)
    window, level = together[0].levels[0].windows[0].window, changed.grounding.level("dense")
    asked = [_Asked(searcher._question(query), [], None) for query in QUERIES]
    first, second = (entry["cache"] for entry in searcher._shared(film, level, [(window, 0), (window, 1)], asked))
    assert not all(np.allclose(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_prefixes_are_made_a_full_call_at_a_time(config, programs, monkeypatch):
    """Two questions about the same six windows, batches of 4: rows of two windows each, whose prefixes come from calls of four and of two."""
    made, own = [], programs.frame_prefixes
    monkeypatch.setattr(programs, "frame_prefixes", lambda level, arrays, valid, *rest: made.append(len(valid)) or own(level, arrays, valid, *rest))
    places = [(100.0 * k, 100.0 * k + 10) for k in range(1, 7)]
    cached, none = (Searcher(dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, prefix_cache_mb=mb)), programs) for mb in (64, 0))
    found = cached.localise(random_film(1000), QUERIES[:2], [places, places])
    assert made == [4, 2]
    cached.localise(random_film(1000), QUERIES[:2], [places, places])
    assert made == [4, 2]  # the cache has them all
    again = none.localise(random_film(1000), QUERIES[:2], [places, places])
    assert made == [4, 2, 4, 2] and len(none.prefixes) == 0  # without a cache too
    assert [spans(one) for one in again] == [spans(one) for one in found]
