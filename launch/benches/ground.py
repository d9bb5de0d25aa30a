"""`launch.bench ground`: questions about an hour of video, its features at hand, beside the released ReVisionLLM procedure (`released.py`).

Both have the levels, prompts and windows of the MAD preset (5 features a second), the same random weights and the same batch; adapters and towers are small
(width 96), and the decoder has the shipped model's size, "tiny", or 100 M parameters. First logits and sparse tokens of both must agree, or it stops. Ours is
a whole search by `Searcher` from the questions' text on, once with 1 and once with 32 questions, nothing kept from an earlier run. It carries its LoRAs beside
the matrices; the peer has them merged. Random weights name windows all over the film, the worst case for ours.

The released procedure does the same for every question, so its time is found from parts of it: PARTS batches of dense windows and of each kind of group, and as
many sparse windows as a group has, each scaled by how many a question needs (`tokens.released_calls`). "At its limit" is what it takes where no answer ends
before its limit of 1,024 tokens, as random weights never do and trained ones may: measured once, on one batch of the shortest prompts, and scaled.
Runs take turns, A B A B; medians of five, of 32 questions to the small decoder of three, and to the larger one a single run, which takes minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import numpy as np

from launch.benches.commands import by_turns
from launch.benches.decode import DECODER
from launch.benches.released import Released, language_model
from launch.benches.tokens import DENSE, SPARSE, Counted, model, questions, released_calls, small
from revision_jax.config import DecoderConfig, ExperimentConfig
from revision_jax.errors import UserError

FILM_S, MANY, PARTS, LIMIT = 3600.0, 32, 1, 1024
TINY = DecoderConfig(vocab=512, width=128, layers=3, heads=4, kv_heads=2, head_dim=32, mlp=384, tie_embeddings=True)
SIZES = {"tiny": (TINY, 3), "100 M": (DECODER, 1)}  # and how often 32 questions are measured
FIELDS = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "tie_embeddings")


def ground(options: argparse.Namespace) -> dict[str, float | int]:
    """Seconds of both, and how many times as fast ours is, for each decoder."""
    figures: dict[str, float | int] = {}
    for name, (decoder, repeats) in SIZES.items():
        figures |= {f"{name}: {figure}": value for figure, value in measured(sized(decoder), repeats).items()}
    return figures


def sized(decoder: DecoderConfig) -> ExperimentConfig:
    """The MAD preset with another decoder and small adapters; its LoRAs have the rank that 64 is to a width of 4,096."""
    from configs.revisionllm_7b_mad import get_config
    from revision_jax.config import LoraConfig, TrainConfig

    lora = LoraConfig(rank=max(1, decoder.width // 64), alpha=2.0 * max(1, decoder.width // 64), dropout=0.0)
    fields = {name: getattr(decoder, name) for name in FIELDS}
    return dataclasses.replace(small(get_config(), 96, 384, {**fields, "lora": lora}), train=TrainConfig())


def measured(config: ExperimentConfig, repeats: int) -> dict[str, float | int]:
    programs, film, theirs = both(config)
    agree(programs, film, theirs)
    asked = questions(MANY)
    question, batch = programs.question(asked[0]), config.grounding.level("dense").batch
    per_question, parts, limit = released_calls(film.frames), {}, {}
    dense = lambda: theirs.ask("dense", question, theirs.dense_tokens(0, PARTS * batch))
    parts["dense"] = (dense, per_question["dense"] / (PARTS * batch))
    for size in SPARSE[1]:
        name = f"sparse-{size}"
        count = min(size, per_question["windows"])
        shown = theirs.sparse_tokens(name, question, 0, count)[None].expand(PARTS * batch, -1, -1)
        parts[name] = (lambda name=name, shown=shown: theirs.ask(name, question, shown), per_question[name] / (PARTS * batch))
        parts[f"{name} tokens"] = (lambda name=name, count=count: theirs.sparse_tokens(name, question, 0, count), per_question["windows"] / count)
        limit = {"name": name, "shown": shown[:batch]}
    one = by_turns({"ours": lambda: searching(programs, film, asked[:1]), **{name: (lambda run=run: run) for name, (run, _) in parts.items()}})
    tokens = programs.read
    many = by_turns({"ours": lambda: searching(programs, film, asked)}, repeats, warm=True)["ours"]  # one question has compiled it all
    whole = sum(one[name] * times for name, (_, times) in parts.items())
    began = time.perf_counter()
    theirs.ask(limit["name"], question, limit["shown"], LIMIT)
    longer = time.perf_counter() - began - one[limit["name"]] / PARTS
    calls = sum(per_question[name] for name in ("dense", *(f"sparse-{size}" for size in SPARSE[1])))
    longest = whole + longer * calls / batch
    return {
        "one question, times as fast as released": whole / one["ours"], f"a question of {MANY}, times as fast as released": whole * MANY / many,
        "one question, times as fast as released at its limit (scaled from one batch)": longest / one["ours"],
        "ours, one question (s)": one["ours"], f"ours, {MANY} questions (s)": many,
        f"released, one question, scaled from {PARTS} batch of each kind (s)": whole,
        f"released at its limit of {LIMIT} tokens, one question, scaled from one batch (s)": longest,
        "ours, one question: tokens": tokens, "released, one question: calls of the language model": calls,
        **{f"released, of it: {name} (s)": one[name] * times for name, (_, times) in parts.items()},
    }  # fmt: skip


def both(config: ExperimentConfig) -> tuple[Counted, object, Released]:
    """(our programs, the film, the released procedure), of the same weights."""
    import jax
    import jax.numpy as jnp

    from revision_jax.convert.formats import named
    from revision_jax.convert.load import load_state
    from revision_jax.convert.source import ArraySource
    from revision_jax.models.decoder import split_layers

    peer = language_model(config.decoder)
    source = ArraySource({name: value.numpy() for name, value in peer.state_dict().items()}, peer.config.to_dict())
    plan = named("llama").plan(source, config)
    programs, film = model(config, FILM_S)
    programs.state["params"]["decoder"] = split_layers(jax.tree.map(jnp.asarray, load_state([plan]))["params"]["decoder"])
    return programs, film, Released(peer, programs, film.arrays["frame"])


def searching(programs: Counted, film, asked: list[str]):
    """A search from nothing."""
    from revision_jax.grounding.search import Searcher

    searcher = Searcher(programs.config, programs)
    programs.read = 0
    return lambda: searcher.search(film, asked)


def agree(programs: Counted, film, theirs: Released) -> None:
    """Raises UserError where both do not make the same sparse tokens, or do not read the same dense window to the same logits."""
    import jax.numpy as jnp

    from revision_jax.grounding import generate
    from revision_jax.grounding.levels import Window
    from revision_jax.grounding.source import gather
    from revision_jax.models import revision

    question, config = programs.question(questions(1)[0]), programs.config
    level = config.grounding.level(f"sparse-{SPARSE[1][0]}")
    windows = [Window(25.0 * i, 25.0 * i + 125.0, 125.0) for i in range(3)]
    shown = programs.on_device(level, *gather(film, windows, level.frames, ("frame",), level.sampling))
    made = programs.window_tokens(level, shown, question).token[:3]
    check("the sparse tokens", made, theirs.sparse_tokens(level.name, question, 0, 3).numpy())

    level = config.grounding.level("dense")
    tokens = theirs.dense_tokens(0, 1)
    shown = revision.Visual(jnp.asarray(tokens.numpy()), jnp.ones((1, DENSE[1]), bool))
    cache = generate.prefix(config, programs.state, "dense", programs.functions.before["dense"], shown)
    after = [jnp.asarray(x)[None] for x in question.after["dense"]]
    ours = generate.ask(config, programs.state, "dense", cache, shown, *after, programs.functions.grammar(level).slots).logits[:, 0]
    check("the logits of a dense window", np.asarray(ours), theirs.logits("dense", question, tokens))
    own = programs.frame_prefixes(level, *gather(film, windows[:1], level.tokens, ("frame",), level.sampling))[0]["cache"]["layers"][0]["v"]
    check("what a dense window is shown", np.asarray(own), np.asarray(cache["layers"][0]["v"]))


def check(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    apart = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if apart > 1e-3:
        raise UserError(f"bench ground: not the same model, {what} differ by {apart:.2g} of the largest")
