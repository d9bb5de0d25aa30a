"""Decoding an answer: prefix, question, then a beam of spans under a grammar, or free decoding. Pure functions, traced into the level programs.

    slots   [ before | visual tokens | question, cues, opening | answer ]
              `prefix`: its cache      `ask`                     `beam` / `free`
              does not depend on
              the question              `prompt`: both in one call

The beam searches spans alone: whether there is one is decided apart, by the share of "from" against "not" at the first answer token, so that a
sure "no" does not hide where it would be. So every answer has the same opening ("from"), which is read with the question, and nothing is read behind the
last choice: "from 12 to 31 ." is one call of the decoder, of "12 to". Two hypotheses never share their start: once it is settled, each goes on with its best
end. Scores are log-probabilities among the allowed answers; entropies and `log_probability` are of the raw distribution over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from revision_jax.config import ExperimentConfig
from revision_jax.grounding.prompt import Grammar
from revision_jax.models.cache import behind, follow, fork, init_cache
from revision_jax.models.decoder import Decoder
from revision_jax.models.revision import Visual, last_valid, question
from revision_jax.sharding.activations import platform

NEVER = -1e30  # a log-probability that is finite, so that sums and differences of it stay finite
NOTHING = np.zeros(0, np.int32)


class Decoded(NamedTuple):
    """Answers of B prompts. J hypotheses each, best first; L answer positions."""

    tokens: Int[Array, "B J L"]  # ids, end token included, padded
    length: Int[Array, "B J"]  # tokens, end token included; 0 where there is no such hypothesis
    known: Int[Array, "B J"]  # of them, those up to the last choice, whose distributions are known: what is forced behind it is not read
    score: Float[Array, "B J"]  # log-probability among the allowed spans
    log_probability: Float[Array, "B J"]  # of the known tokens as plain text, over the whole vocabulary
    entropy: Float[Array, "B J L"]  # nats, of each known step's raw distribution; 0 behind them
    present: Float[Array, "B"]  # log-odds of "there is one" against "there is none"


class Asked(NamedTuple):
    """A prompt up to the first token of its answer that is chosen."""

    cache: dict
    logits: Float[Array, "B P V"]  # of each token of the opening, then of the first that is chosen
    position: Int[Array, "B"]  # RoPE position of the first chosen token
    first: int  # slot of the first chosen token
    summary: Float[Array, "B R"] | None


def variables(state: dict, name: str) -> dict:
    """The decoder's collections for one level."""
    return {"params": state["params"]["decoder"], "lora": state[f"lora/{name}"]}


def prefix(config: ExperimentConfig, state: dict, name: str, before: Int[np.ndarray, "A"], visual: Visual) -> dict:
    """Cache of the slots before the question: [B, A + N]. Nothing of the question is in it."""
    decoder, weights = Decoder(config.decoder, config.mesh.rules), variables(state, name)
    embeds, valid = _front(decoder, weights, before, visual)
    _, cache = decoder.apply(weights, embeds, _positions(valid), valid, cache=init_cache(config.decoder, *valid.shape), start=0)
    return cache


def ask(
    config: ExperimentConfig, state: dict, name: str, cache: dict, visual: Visual, after_ids: Int[Array, "B S"], after_mask: Bool[Array, "B S"],
    answer_len: int, opening: Int[np.ndarray, "O"] = NOTHING,
) -> Asked:
    """Puts question, cues and the answer's opening tokens behind a prefix cache; room for `answer_len` answer slots is added. `visual`: its signal, summary and
    cues are what counts."""
    decoder, weights = Decoder(config.decoder, config.mesh.rules), variables(state, name)
    used = cache["valid"].shape[1]
    embeds, valid, rows = _back(decoder, weights, visual, after_ids, after_mask, opening)
    s = valid.shape[1]
    base = jnp.sum(cache["valid"], 1)
    hidden, cache = decoder.apply(
        weights, embeds, base[:, None] + _positions(valid), valid, reads=jnp.ones_like(valid), signal=_signal(visual, used, s + answer_len),
        summary=visual.summary, cache=behind(cache, s + answer_len), start=used, rows=rows,
    )  # fmt: skip
    return Asked(cache, decoder.apply(weights, hidden, method=Decoder.logits), base + jnp.sum(valid, 1), used + s, visual.summary)


def prompt(
    config: ExperimentConfig, state: dict, name: str, before: Int[np.ndarray, "A"], visual: Visual, after_ids: Int[Array, "B S"],
    after_mask: Bool[Array, "B S"], answer_len: int, opening: Int[np.ndarray, "O"] = NOTHING,
) -> Asked:
    """`ask` behind `prefix`, as one call of the decoder: for prompts whose visual tokens no other question will see. The weights are read once, not twice, and
    the answer's slots lie behind all of the prompt."""
    decoder, weights = Decoder(config.decoder, config.mesh.rules), variables(state, name)
    (front, seen), (back, asked, rows) = _front(decoder, weights, before, visual), _back(decoder, weights, visual, after_ids, after_mask, opening)
    (batch, used), s = seen.shape, asked.shape[1]
    valid, reads = jnp.concatenate([seen, asked], 1), jnp.broadcast_to(jnp.arange(used + s) >= used, (batch, used + s))
    hidden, cache = decoder.apply(
        weights, jnp.concatenate([front, back.astype(front.dtype)], 1), _positions(valid), valid, reads=reads, signal=_signal(visual, used, s),
        summary=visual.summary, cache=init_cache(config.decoder, batch, used + s), start=0, rows=used + rows,
    )  # fmt: skip
    cache = behind(cache, answer_len) | {"signal": _signal(visual, used, s + answer_len)}
    return Asked(cache, decoder.apply(weights, hidden, method=Decoder.logits), jnp.sum(valid, 1), used + s, visual.summary)


def _front(decoder: Decoder, weights: dict, before: Int[np.ndarray, "A"], visual: Visual) -> tuple[Float[Array, "B P H"], Bool[Array, "B P"]]:
    """(embeds, valid) of the text before the visual tokens and of these."""
    batch, a = len(visual.valid), len(before)
    embeds, valid = visual.tokens.astype(decoder.config.dtype), visual.valid
    if a:
        text = decoder.apply(weights, jnp.asarray(before, jnp.int32)[None], method=Decoder.embed)
        embeds = jnp.concatenate([jnp.broadcast_to(text, (batch, a, decoder.config.width)), embeds], 1)
        valid = jnp.concatenate([jnp.ones((batch, a), bool), valid], 1)
    return embeds, valid


def _back(
    decoder: Decoder, weights: dict, visual: Visual, after_ids: Int[Array, "B S"], after_mask: Bool[Array, "B S"], opening: Int[np.ndarray, "O"]
) -> tuple[Float[Array, "B S2 H"], Bool[Array, "B S2"], Int[Array, "B R"]]:
    """(embeds, valid, rows) of question, cues and opening; rows: those that foretell the opening's tokens, and the first that is chosen."""
    embed = lambda ids: decoder.apply(weights, ids, method=Decoder.embed)
    embeds, valid = question(visual, embed(after_ids), after_mask)
    (batch, asked), o = valid.shape, len(opening)
    rows = jnp.concatenate([last_valid(valid)[:, None], jnp.broadcast_to(asked + jnp.arange(o), (batch, o))], 1)
    if o:
        begun = embed(jnp.asarray(opening, jnp.int32)[None]).astype(embeds.dtype)
        embeds = jnp.concatenate([embeds, jnp.broadcast_to(begun, (batch, *begun.shape[1:]))], 1)
        valid = jnp.concatenate([valid, jnp.ones((batch, o), bool)], 1)
    return embeds, valid, rows


def _positions(valid: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    return jnp.maximum(jnp.cumsum(valid, 1) - 1, 0)


def _signal(visual: Visual, used: int, more: int) -> Float[Array, "B M C"] | None:
    """The search signal of all slots: `used` before the question, whose last are the visual tokens, and `more` behind."""
    return None if visual.signal is None else jnp.pad(visual.signal, ((0, 0), (used - visual.signal.shape[1], more), (0, 0)))


def feed(
    config: ExperimentConfig, weights: dict, asked: Asked, cache: dict, tokens: Int[Array, "N W"], valid: Bool[Array, "N W"], taken: Array, slot: Array,
    rows: int,
) -> tuple[Float[Array, "N W V"], dict]:
    """The next tokens of every row: their logits, and the cache with them from `slot` of the answer on. N is B x `rows`; taken: tokens of each row before."""
    decoder = Decoder(config.decoder, config.mesh.rules)
    repeated = lambda x: None if x is None else jnp.repeat(x, rows, 0)
    positions = (repeated(asked.position) + taken)[:, None] + jnp.arange(tokens.shape[1])
    hidden, cache = decoder.apply(
        weights, decoder.apply(weights, tokens, method=Decoder.embed), positions, valid,
        reads=jnp.ones_like(valid), summary=repeated(asked.summary), cache=cache, start=asked.first + slot,
    )
    return decoder.apply(weights, hidden, method=Decoder.logits), cache


def entropy(logits: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """-sum p log p in nats, float32."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    return -jnp.sum(jnp.where(log_p > NEVER, jnp.exp(log_p) * log_p, 0.0), -1)


def branch_log_odds(logits: Float[Array, "B V"], grammar: Grammar) -> Float[Array, "B"]:
    """Log-odds of the answers that say yes against the one that says no, from the logits at the grammar's branching step."""
    yes = jax.nn.logsumexp(logits[:, grammar.token[grammar.present]], -1)
    return yes - jax.nn.logsumexp(logits[:, grammar.token[grammar.absent]], -1)


def beam(
    config: ExperimentConfig, state: dict, name: str, asked: Asked, grammar: Grammar, count: Int[Array, "B"], spans: int
) -> tuple[Decoded, dict]:
    """The best `spans` spans of each prompt, each with another start, numbers below `count`, and the log-odds that there is one; and the cache behind them, for
    a caller who donated it.

    Fewer where fewer starts exist: their length is 0 and their score `NEVER`. A round chooses one token of each hypothesis; that one and all that the grammar
    forces behind it are one call of the decoder, so a forced token costs no call of its own, and what is forced up to the end none at all. `asked` has read
    the grammar's opening, and has `grammar.slots` free slots.
    """
    weights = variables(state, name)
    batch, steps, width, most, begun = asked.logits.shape[0], grammar.steps, grammar.width, grammar.forced.shape[1], len(grammar.opening)
    tables = {key: jnp.asarray(getattr(grammar, key)) for key in ("token", "next", "least", "decided", "absent", "forced", "forced_count", "choice", "reads")}
    token, columns = tables["token"], len(grammar.token)
    row, places = jnp.arange(batch)[:, None], jnp.arange(steps)
    # An accelerator reads the weights for one token as long as for two, and the second kind of call would be compiled for nothing.
    narrow = platform() == "cpu" and width > 1 and bool((grammar.reads == 1).any())

    def put(array: Array, place: Array, value: Array, wanted: Array) -> Array:
        """[B J L] with `value` at each hypothesis' `place`, where wanted."""
        return jnp.where((places == place[..., None]) & wanted[..., None], value[..., None], array)

    def select(s: dict) -> dict:
        """Chooses a token of each hypothesis by its logits, and puts down what must follow it."""
        logits = s["logits"].astype(jnp.float32)
        here = s["state"]
        ok = (tables["next"][here] >= 0) & (tables["least"][here] < count[:, None, None])
        ok &= ~((s["length"] == grammar.branch)[..., None] & tables["absent"])
        at = jnp.where(ok, logits[..., token], NEVER)
        log_p = jnp.where(ok, at - jax.nn.logsumexp(at, -1, keepdims=True), NEVER)
        best = jnp.arange(columns) == jnp.argmax(log_p, -1, keepdims=True)
        log_p = jnp.where(tables["decided"][here][..., None] & ~best, NEVER, log_p)  # a settled start goes on with its best end alone
        total = jnp.maximum(s["score"][..., None] + log_p, NEVER)
        score, chosen = jax.lax.top_k(total.reshape(batch, -1), spans)
        parent, column = chosen // columns, chosen % columns
        pick = lambda x: x[row, parent]
        alive = score > NEVER / 2
        running, length = (pick(here) != grammar.end) & alive, pick(s["length"])
        entered = tables["next"][pick(here), column]
        forced, forced_count = tables["forced"][entered], jnp.where(running, tables["forced_count"][entered], 0)
        read = jnp.where(running, tables["reads"][entered], 0)
        raw = jax.nn.log_softmax(logits, -1)
        chosen_log_p = jnp.take_along_axis(pick(raw), token[column][..., None], -1)[..., 0]
        tokens = put(pick(s["tokens"]), length, token[column], running)
        for k in range(most):
            tokens = put(tokens, length + 1 + k, token[forced[..., k]], k < forced_count)
        return {
            "state": jnp.where(alive, tables["choice"][entered], grammar.end),
            "score": jnp.where(alive, score, NEVER),
            "log_probability": pick(s["log_probability"]) + jnp.where(running, chosen_log_p, 0.0),
            "tokens": tokens,
            "entropy": put(pick(s["entropy"]), length, pick(entropy(logits)), running),
            "length": length + running + forced_count,
            "known": jnp.where(running, length + jnp.maximum(read, 1), pick(s["known"])),
            "parent": parent,
            "taken": length - begun,  # tokens before the chosen one, without the opening
            "read": read,  # of the chosen and the forced
            "block": jnp.concatenate([token[column][..., None], token[forced]], -1),
            "logits": s["logits"],
        }

    def advance(slot: Array, s: dict, cache: dict) -> tuple[dict, dict]:
        """Reads the chosen and the forced tokens: scores of the forced ones, logits of the next choice."""
        if spans > 1:  # hypotheses of one prompt differ in the answer's slots alone
            cache = follow(cache, (row * spans + s["parent"]).reshape(-1), asked.first, grammar.slots)
        block, read = s["block"], s["read"]  # [B J 1 + most], of which the first `width` may be read
        flat = lambda x: x.reshape(batch * spans, *x.shape[2:])

        def reading(some: int) -> Callable[[dict], tuple[Array, dict]]:
            """Reads the first `some` tokens of each block; logits [B J width V], those behind them 0."""

            def run(cache: dict) -> tuple[Array, dict]:
                valid = jnp.arange(some) < read[..., None]
                logits, cache = feed(config, weights, asked, cache, flat(block[..., :some]), flat(valid), flat(s["taken"]), slot, spans)
                logits = logits.reshape(batch, spans, some, -1).astype(jnp.float32)
                return jnp.pad(logits, ((0, 0), (0, 0), (0, width - some), (0, 0))), cache

            return run

        if narrow:  # between two digits nothing is forced: half of a wide call would be empty
            wide = jnp.any(read > 1)
            logits = jnp.zeros((batch, spans, width, asked.logits.shape[-1]))
            for some, wanted in ((width, wide), (1, ~wide)):  # loops of one turn or none: they change the cache where it lies, which `cond` would copy
                turn = lambda carry, some=some: (jnp.asarray(False), *reading(some)(carry[2]))
                _, logits, cache = jax.lax.while_loop(lambda carry: carry[0], turn, (wanted, logits, cache))
        else:
            logits, cache = reading(width)(cache)
        log_probability, entropies = s["log_probability"], s["entropy"]
        for k in range(width - 1):  # what stands at place k foretells place k + 1
            is_forced = k + 1 < read
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :, k], -1), block[:, :, k + 1, None], -1)[..., 0]
            log_probability = log_probability + jnp.where(is_forced, log_p, 0.0)
            entropies = put(entropies, begun + s["taken"] + 1 + k, entropy(logits[:, :, k]), is_forced)
        last = jnp.take_along_axis(logits, jnp.maximum(read - 1, 0)[..., None, None], 2)[:, :, 0]
        return s | {"log_probability": log_probability, "entropy": entropies, "logits": last}, cache

    def body(carry: tuple) -> tuple:
        number, s, cache = carry
        s, cache = advance(number * width, s, cache)
        return number + 1, select(s), cache

    shape, behind = (batch, spans), steps - begun
    opening = token[grammar.opening]
    raw = jax.nn.log_softmax(asked.logits.astype(jnp.float32), -1)  # [B P V]
    spread = lambda x: jnp.broadcast_to(x[:, None], (batch, spans, *x.shape[1:]))
    start = {
        "state": jnp.full(shape, grammar.first, jnp.int32),
        "score": jnp.where((jnp.arange(spans) == 0) & (count > 0)[:, None], 0.0, NEVER),
        "log_probability": spread(jnp.sum(jnp.take_along_axis(raw[:, :begun], opening[None, :, None], -1), (1, 2))),
        "tokens": jnp.broadcast_to(jnp.concatenate([opening, jnp.full(behind, token[0])]).astype(jnp.int32), (*shape, steps)),
        "entropy": spread(jnp.pad(entropy(asked.logits[:, :begun]), ((0, 0), (0, behind)))),
        "length": jnp.full(shape, begun, jnp.int32),
        "known": jnp.full(shape, begun, jnp.int32),
        "logits": spread(asked.logits[:, begun].astype(jnp.float32)),
    }
    unfinished = lambda carry: (carry[0] < grammar.rounds - 1) & jnp.any(carry[1]["read"] > 0)
    carry = jnp.asarray(0), select(start), fork(asked.cache, spans)
    _, s, cache = jax.lax.while_loop(unfinished, body, carry) if grammar.slots else carry  # one choice settles all: nothing more is read
    dead = s["score"] <= NEVER / 2
    order = jnp.argsort(-s["score"], axis=1, stable=True)
    sort = lambda x: x[row, order]
    length, known = (sort(jnp.where(dead, 0, s[name])) for name in ("length", "known"))
    present = branch_log_odds(asked.logits[:, grammar.branch].astype(jnp.float32), grammar)
    return Decoded(sort(s["tokens"]), length, known, sort(s["score"]), sort(s["log_probability"]), sort(s["entropy"]), present), cache


def free(
    config: ExperimentConfig, state: dict, name: str, asked: Asked, steps: int, end: int, pad: int, *, key: Array | None = None, temperature: float = 0.0,
    top_p: float = 1.0,
) -> Decoded:
    """Unconstrained decoding, one hypothesis: greedy at temperature 0, else sampled from the nucleus of mass `top_p`. For parity with released models.

    `score` equals `log_probability`; `present` is zero: read it from the text.
    """
    if temperature > 0 and key is None:
        raise ValueError("free decoding at a temperature needs a key")
    weights, batch = variables(state, name), asked.logits.shape[0]

    def choose(step: Array, logits: Array, s: dict) -> dict:
        logits = logits.astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits, -1)
        if temperature > 0:
            token = jax.random.categorical(jax.random.fold_in(key, step), nucleus(logits / temperature, top_p))
        else:
            token = jnp.argmax(logits, -1)
        token = jnp.where(s["done"], pad, token).astype(jnp.int32)
        gain = jnp.take_along_axis(log_p, token[:, None], -1)[:, 0]
        return {
            "tokens": s["tokens"].at[:, step].set(token),
            "entropy": s["entropy"].at[:, step].set(jnp.where(s["done"], 0.0, entropy(logits))),
            "log_probability": s["log_probability"] + jnp.where(s["done"], 0.0, gain),
            "length": s["length"] + ~s["done"],
            "done": s["done"] | (token == end),
        }

    def body(carry: tuple) -> tuple:
        step, s, cache = carry
        taken = jnp.broadcast_to(step, (batch,))
        logits, cache = feed(config, weights, asked, cache, s["tokens"][:, step, None], ~s["done"][:, None], taken, step, 1)
        return step + 1, choose(step + 1, logits[:, 0], s), cache

    start = {
        "tokens": jnp.full((batch, steps), pad, jnp.int32), "entropy": jnp.zeros((batch, steps)), "log_probability": jnp.zeros(batch),
        "length": jnp.zeros(batch, jnp.int32), "done": jnp.zeros(batch, bool),
    }
    first = choose(jnp.asarray(0), asked.logits[:, -1], start)
    unfinished = lambda carry: (carry[0] < steps - 1) & jnp.any(~carry[1]["done"])
    _, s, _ = jax.lax.while_loop(unfinished, body, (jnp.asarray(0), first, asked.cache))
    one = lambda x: x[:, None]
    length, log_probability = one(s["length"]), one(s["log_probability"])
    return Decoded(one(s["tokens"]), length, length, log_probability, log_probability, one(s["entropy"]), jnp.zeros(batch))


def nucleus(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """Logits with everything outside the smallest set of mass `top_p` at `NEVER`; the likeliest token always stays."""
    if top_p >= 1.0:
        return logits
    ordered = jnp.sort(logits, -1)[..., ::-1]
    before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
    return jnp.where(logits >= least, logits, NEVER)
