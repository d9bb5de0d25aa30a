"""Constrained decoding against teacher forcing: the same numbers from the cache as without one, the best spans, nothing but allowed answers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError, SignalConfig
from revision_jax.data.prompts import encode_answer
from revision_jax.grounding import confidence as sure
from revision_jax.grounding import generate
from revision_jax.grounding.level_functions import LevelFunctions, WindowTokens
from revision_jax.grounding.programs import Programs
from revision_jax.grounding.prompt import parse_ids, span_grammar
from revision_jax.models import revision, signal
from tests.grounding.conftest import WIDTH, noisy_state
from tests.grounding.test_prompt import RELEASED, digit_tokenizer

ROWS, COUNTS = 4, (12, 7, 1, 12)


def groups(programs: Programs, seed: int) -> list:
    """Window tokens of four groups, of 12, 7, 1 and 12 windows, each for its question."""
    rng = np.random.default_rng(seed)
    width = programs.config.decoder.width
    made = lambda *shape: rng.normal(size=shape).astype(np.float32)
    tokens = [WindowTokens(made(n, width), np.zeros((n, WIDTH), np.float32), rng.random((n, 3)).astype(np.float32)) for n in COUNTS]
    return list(zip(tokens, [programs.question(text) for text in ("a red ring", "a blue square", "a red ring", "small circles")], strict=True))


@pytest.fixture(scope="module")
def level(config):
    return config.grounding.level("sparse")


@pytest.fixture(scope="module")
def forced(config, tokenizer, programs):
    """logits(group, question, answers) by teacher forcing, without a cache: [spans + absent, L, V] for every allowed answer of a full group."""
    level = config.grounding.level("sparse")
    spans = [(s, e) for s in range(level.tokens) for e in range(s, level.tokens)]
    ids = np.stack([encode_answer(tokenizer, level.prompt, answer, 6)[0] for answer in [*spans, None]])

    @jax.jit
    def run(state, token, seen, valid, after_ids, after_mask):
        visual = revision.window_visual(config, state, "sparse", token, valid, jnp.asarray(programs.functions.numbers), signal.Match(seen))
        spread = lambda x: jnp.broadcast_to(x, (len(ids), *x.shape[1:]))
        visual = jax.tree.map(spread, visual)
        before = jnp.asarray(programs.functions.before["sparse"])
        return revision.answer_logits(config, state, "sparse", visual, before, spread(after_ids), spread(after_mask), jnp.asarray(ids))

    def logits(tokens: WindowTokens, question) -> np.ndarray:
        n = len(tokens.level)
        token, seen = (np.zeros((1, level.tokens, x.shape[1]), np.float32) for x in (tokens.token, tokens.level))
        token[0, :n], seen[0, :n] = tokens.token, tokens.level
        after_ids, after_mask = question.after["sparse"]
        return np.asarray(run(programs.state, token, seen, (np.arange(level.tokens) < n)[None], after_ids[None], after_mask[None]), np.float64)

    return spans, ids, logits


def log_softmax(x):
    return x - np.logaddexp.reduce(x, -1, keepdims=True)


def test_beams_are_the_best_spans_by_teacher_forcing(programs, level, forced, tokenizer):
    spans, ids, logits = forced
    rows = groups(programs, 0)
    decoded, calls = programs.window_answers(level, rows)
    assert calls == 2  # four groups, two a call
    for row, (tokens, question) in enumerate(rows):
        n, raw = COUNTS[row], logits(tokens, question)
        number = [tokenizer.id(str(k)) for k in range(level.tokens)]
        wide = log_softmax(raw)
        start = log_softmax(raw[0, 1, number[:n]])  # after "from"
        best: dict[int, tuple[float, int, int]] = {}
        for index, (s, e) in enumerate(spans):
            if e < n:
                score = start[s] + log_softmax(raw[index, 3, number[s:n]])[e - s]
                best[s] = max(best.get(s, (-np.inf, 0, 0)), (score, e, index))
        wanted = sorted(np.argsort(-start)[: level.spans], key=lambda s: -best[s][0])
        found = [j for j in range(level.spans) if decoded.length[row, j]]
        assert len(found) == min(n, level.spans)
        for j, s in zip(found, wanted, strict=True):
            score, e, index = best[s]
            assert parse_ids(tokenizer, level.prompt, decoded.tokens[row, j]) == ("span", s, e)
            assert decoded.score[row, j] == pytest.approx(score, abs=2e-3)
            known = 4  # "from 3 to 7": the period and the end are forced, and not read
            chosen = np.take_along_axis(wide[index], ids[index][:, None], -1)[:, 0]
            assert decoded.log_probability[row, j] == pytest.approx(chosen[:known].sum(), abs=5e-3)
            assert decoded.entropy[row, j, :known] == pytest.approx(sure.token_entropy(raw[index])[:known], abs=2e-3)
            assert not decoded.entropy[row, j, known:].any()
            assert decoded.length[row, j] == 6 and decoded.known[row, j] == known
        assert decoded.present[row] == pytest.approx(raw[0, 0, tokenizer.id("from")] - raw[0, 0, tokenizer.id("not")], abs=2e-3)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # there are calls of one token alone on a CPU
def test_digits_are_read_one_by_one_and_score_as_by_teacher_forcing(platform, config, state, monkeypatch):
    """Calls of one digit, and of a digit with the "to" behind it, in one answer; rows that may name fewer numbers go other ways than full ones."""
    monkeypatch.setattr(generate, "platform", lambda: platform)
    plain = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, signal=SignalConfig(), time="none"))
    count, spans, grammar = jnp.asarray([112, 112, 23, 0]), 3, span_grammar(digit_tokenizer(), RELEASED, 112)
    assert grammar.width > 1 and (grammar.reads == 1).any() and grammar.opening.tolist() and grammar.rounds > 2
    rng, batch = np.random.default_rng(5), len(count)
    tokens, valid = jnp.asarray(rng.normal(size=(batch, 6, plain.decoder.width)), jnp.float32), jnp.arange(6) < jnp.asarray([[6], [4], [6], [6]])
    visual, before = revision.Visual(tokens, valid), np.asarray([1], np.int32)
    after, mask = jnp.asarray(rng.integers(4, 20, (batch, 5)), jnp.int32), jnp.arange(5) < jnp.asarray([[5], [3], [5], [5]])

    @jax.jit
    def answered(state):
        asked = generate.ask(
            plain, state, "dense", generate.prefix(plain, state, "dense", before, visual), visual, after, mask, grammar.slots, grammar.token[grammar.opening]
        )
        return generate.beam(plain, state, "dense", asked, grammar, count, spans)[0]

    decoded = jax.tree.map(np.asarray, answered(state))
    assert (decoded.length[:3] > 0).all() and not decoded.length[3].any(), "no numbers, no answer"
    forced = jax.jit(lambda state, ids: revision.answer_logits(plain, state, "dense", visual, jnp.asarray(before), after, mask, ids))
    for j in range(spans):
        logits = np.asarray(forced(state, jnp.asarray(decoded.tokens[:, j])), np.float64)
        for row in range(3):
            ids, known, score, at = decoded.tokens[row, j, : decoded.length[row, j]], decoded.known[row, j], 0.0, 0
            for step, token in enumerate(ids):
                allowed = (grammar.next[at] >= 0) & (grammar.least[at] < int(count[row])) & ~(grammar.absent & (step == grammar.branch))
                column = np.flatnonzero(allowed & (grammar.token == token))[-1]
                score += log_softmax(logits[row, step, grammar.token[allowed]])[np.flatnonzero(allowed).tolist().index(column)]
                at = grammar.next[at, column]
            assert at == grammar.end and decoded.score[row, j] == pytest.approx(score, abs=2e-3)
            chosen = np.take_along_axis(log_softmax(logits[row]), decoded.tokens[row, j, :, None], -1)[:known, 0]
            assert decoded.log_probability[row, j] == pytest.approx(chosen.sum(), abs=5e-3)
            assert decoded.entropy[row, j, :known] == pytest.approx(sure.token_entropy(logits[row])[:known], abs=2e-3)


def test_a_prompt_in_one_call_is_prefix_and_question(config, state):
    """Logits, and the logits of two answer tokens read behind them; garbage in the pads changes neither."""
    state = jax.device_put(state)
    rng, frames, asked, names = np.random.default_rng(7), 6, 5, ("dense", np.asarray([1, 2], np.int32))
    valid, mask = np.arange(frames) < np.asarray([[6], [4], [0]]), np.arange(asked) < np.asarray([[5], [3], [4]])
    tokens, ids = rng.normal(size=(3, frames, config.decoder.width)), rng.integers(4, 20, (3, asked))
    level, cues = rng.uniform(size=(3, frames, len(config.decoder.signal.channels))), rng.normal(size=(3, frames, config.decoder.width))
    summary = jnp.asarray(rng.uniform(size=(3, config.decoder.signal.top)), jnp.float32)

    def visual(pad: float) -> revision.Visual:
        clean = lambda x: jnp.asarray(np.where(valid[..., None], x, pad), jnp.float32)
        return revision.Visual(clean(tokens), jnp.asarray(valid), clean(level), summary, clean(cues), jnp.asarray(valid))

    def read(asked: generate.Asked) -> list[np.ndarray]:
        two, weights = jnp.asarray([[3, 4], [5, 6], [7, 8]]), generate.variables(state, "dense")
        logits, _ = generate.feed(config, weights, asked, asked.cache, two, jnp.ones((3, 2), bool), jnp.zeros(3, jnp.int32), jnp.asarray(0), 1)
        return [np.asarray(x) for x in (asked.logits, logits, asked.position)]

    rest = lambda pad: (visual(pad), jnp.where(mask, ids, int(pad)), jnp.asarray(mask), 3, np.asarray([9], np.int32))
    in_two = read(generate.ask(config, state, names[0], generate.prefix(config, state, *names, visual(0)), *rest(0)))
    for pad in (0, 11):
        for one, other in zip(read(generate.prompt(config, state, *names, *rest(pad))), in_two, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_whatever_the_weights_answers_can_be_read_and_differ(seed, config, tokenizer, programs, level):
    before = programs.state
    programs.state = jax.device_put(noisy_state(config, seed))
    try:
        decoded, _ = programs.window_answers(level, groups(programs, seed))
    finally:
        programs.state = before
    for row, n in enumerate(COUNTS):
        alive = decoded.length[row] > 0
        parsed = [parse_ids(tokenizer, level.prompt, ids) for ids in decoded.tokens[row, alive]]
        assert len(parsed) == min(n, level.spans)
        assert all(kind == "span" and 0 <= s <= e < n for kind, s, e in parsed)
        assert len({s for _, s, _ in parsed}) == len(parsed)
        assert (np.diff(decoded.score[row]) <= 0).all() and np.exp(decoded.score[row, alive]).sum() <= 1 + 1e-4
        assert (decoded.score[row, ~alive] == np.float32(generate.NEVER)).all()
        assert np.isfinite(decoded.entropy[row]).all() and (decoded.entropy[row] >= -1e-6).all()


def test_free_decoding_is_greedy_by_teacher_forcing_and_sampling_stays_in_the_nucleus(config, programs, level, tokenizer):
    tokens, question = groups(programs, 3)[0]
    state, steps, numbers = programs.state, 5, jnp.asarray(programs.functions.numbers)
    after = [jnp.asarray(x)[None] for x in question.after["sparse"]]

    @jax.jit
    def run(state, token, seen):
        visual = revision.window_visual(config, state, "sparse", token, jnp.ones(seen.shape[:2], bool), numbers, signal.Match(seen))
        cache = generate.prefix(config, state, "sparse", programs.functions.before["sparse"], visual)
        asked = generate.ask(config, state, "sparse", cache, visual, *after, steps)
        greedy = generate.free(config, state, "sparse", asked, steps, tokenizer.eos, tokenizer.pad)
        drawn = generate.free(config, state, "sparse", asked, steps, tokenizer.eos, tokenizer.pad, key=jax.random.key(0), temperature=1.0, top_p=1e-6)
        logits = revision.answer_logits(config, state, "sparse", visual, jnp.asarray(programs.functions.before["sparse"]), *after, greedy.tokens[:, 0])
        return greedy, drawn, logits

    greedy, drawn, logits = run(state, tokens.token[None], tokens.level[None])
    n = int(greedy.length[0, 0])
    assert np.asarray(greedy.tokens)[0, 0, :n].tolist() == np.asarray(logits).argmax(-1)[0, :n].tolist()
    assert drawn.tokens.tolist() == greedy.tokens.tolist()  # a nucleus of next to nothing is the likeliest token
    chosen = np.take_along_axis(log_softmax(np.asarray(logits, np.float64)), np.asarray(greedy.tokens)[:, 0, :, None], -1)[0, :n, 0]
    assert greedy.log_probability[0, 0] == pytest.approx(chosen.sum(), abs=5e-3)
    with pytest.raises(ValueError, match="key"):
        asked = generate.Asked({}, jnp.zeros((1, 1, 4)), jnp.zeros(1, jnp.int32), 0, None)
        generate.free(config, state, "sparse", asked, 1, 0, 0, temperature=0.5)


def test_nucleus():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    kept = lambda p: np.asarray(generate.nucleus(logits, p) > generate.NEVER / 2)[0].tolist()
    assert kept(1.0) == [True] * 4 and kept(0.79) == [True, True, False, False] and kept(0.01) == [True, False, False, False]


def test_a_longer_answer_than_planned_is_refused(config, state, tokenizer):
    short = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, answer_len=5))
    with pytest.raises(ConfigError, match=r"grounding\.answer_len: must be at least 6"):
        LevelFunctions(short, tokenizer).grammar(short.grounding.level("dense"))
