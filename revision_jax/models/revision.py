"""The whole model: frames -> features -> visual tokens of a level -> logits of the answer. Pure functions of (config, state, arrays).

State is a plain dict: `params` (vision, text, similarity, decoder; patch_vision where the patch level has an encoder of its own),
`adapter/<level>` and `lora/<level>`; the LoRA collection of a level also holds its search-signal parameters. A call of the decoder sees

    [ before-text | visual tokens | after-text (the question) | cues | answer ]

and everything left of the question is the same for every question of one film (dense and patch levels).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from revision_jax.config import ExperimentConfig, LevelConfig, VisionConfig
from revision_jax.models import signal as search_signal
from revision_jax.models.adapter import make_adapter
from revision_jax.models.decoder import Decoder, init_decoder, init_lora
from revision_jax.models.pruner import prune
from revision_jax.models.quantize import quantize_state
from revision_jax.models.text import TextTower
from revision_jax.models.vision import VisionTransformer, merge_tokens
from revision_jax.sharding.activations import constrain


class Visual(NamedTuple):
    """What a level shows the decoder."""

    tokens: Float[Array, "B N H"]
    valid: Bool[Array, "B N"]
    signal: Float[Array, "B N C"] | None = None  # bias channels, query-dependent; the tokens of dense and patch levels are not
    summary: Float[Array, "B R"] | None = None
    cues: Float[Array, "B T H"] | None = None  # tokens that stand behind the question, one for each slot
    cues_valid: Bool[Array, "B T"] | None = None


# --------------------------------------------------------------------------------------------------------------------------- state


def init_state(config: ExperimentConfig, key: Array) -> dict:
    """A freshly initialised state, float32 but for `params`, which are `train.base_dtype`. Levels of one kind start from different keys."""
    keys = iter(jax.random.split(key, 8 + 2 * len(config.grounding.levels)))
    vision, text = config.vision, config.text
    params = {"vision": _init_vision(vision, next(keys))}
    text_key = next(keys)
    if text is not None:
        ids = jnp.zeros((1, text.max_len), jnp.int32)
        params["text"] = TextTower(text).init(text_key, ids, jnp.ones_like(ids, bool))["params"]
        params["similarity"] = {"scale": jnp.log(12.0), "bias": jnp.asarray(-7.0)}
    params["decoder"] = init_decoder(config.decoder, next(keys))["params"]
    if config.patch_vision is not None:
        params["patch_vision"] = _init_vision(config.patch_vision, jax.random.fold_in(key, 1))
    if vision.projection:
        params["projection"] = {"kernel": jax.random.normal(next(keys), (vision.width, vision.projection)) * vision.width**-0.5}
    state = {"params": jax.tree.map(lambda x: x.astype(config.train.plain_dtype), params)}
    for level in config.grounding.levels:
        state[f"adapter/{level.name}"] = init_adapter(level, config, next(keys))
        key = next(keys)
        state[f"lora/{level.name}"] = init_lora(config.decoder, key)
        signal = config.decoder.signal
        if signal.enabled and signal.cues:
            cues = search_signal.init_cues(signal, 1 + text.phrases, config.decoder.width, jax.random.fold_in(key, 1), text.motion)
            state[f"lora/{level.name}"]["cues"] = cues
    return state


def _init_vision(vision: VisionConfig, key: Array) -> dict:
    rows, columns = vision.grids[0]
    index = jnp.zeros((1, rows * columns), jnp.int32)
    return VisionTransformer(vision).init(key, jnp.zeros((1, rows * columns, 3 * vision.patch**2)), index, index, jnp.ones_like(index, bool))["params"]


def init_adapter(level: LevelConfig, config: ExperimentConfig, key: Array) -> dict:
    """A fresh adapter of a level."""
    module = make_adapter(level.adapter, config.decoder.width)
    frames = jnp.zeros((1, 2, level.adapter.width))
    if level.adapter.reads_query:
        return module.init(key, frames, jnp.ones((1, 2), bool), jnp.zeros((1, 2, level.adapter.width)), jnp.ones((1, 2), bool))["params"]
    return module.init(key, frames)["params"]


def first_state(config: ExperimentConfig, key: Array) -> dict:
    """What training begins with: `init_state`, with an int8 decoder where `train.base_dtype` asks for it. Files never hold one."""
    state = init_state(config, key)
    return quantize_state(state) if config.train.base_dtype == "int8" else state


def abstract_state(config: ExperimentConfig) -> dict:
    """Shapes and dtypes of `init_state` without allocating anything."""
    return jax.eval_shape(lambda: init_state(config, jax.random.key(0)))


# ------------------------------------------------------------------------------------------------------------------------ encoders


def encode_frames(
    config: ExperimentConfig,
    params: dict,
    patches: Float[Array, "B P F"],
    rows: Int[Array, "B P"],
    columns: Int[Array, "B P"],
    valid: Bool[Array, "B P"],
    grid: tuple[int, int],
    encoder: str = "vision",
    segments: Int[Array, "B P"] | None = None,
) -> dict[str, Array]:
    """Frames to features: {"frame": (B, E), "tokens": (B, N, E)}. B is frames: they never see each other. `encoder`: see `ExperimentConfig.encoder`.

    segments: where B is lines of several frames (`data/compaction.py`), which of them a patch is of; "frame" then means nothing.
    """
    vision = config.encoder(encoder)
    patches = constrain(patches, config.mesh.rules, "frame", None, None)
    out = VisionTransformer(vision).apply({"params": params[encoder]}, patches, rows, columns, valid, segments)
    frame = out["frame"]
    tokens = merge_tokens(out["tokens"], grid, vision.merge)
    if vision.projection:
        frame, tokens = frame @ params["projection"]["kernel"], tokens @ params["projection"]["kernel"]
    return {"frame": frame, "tokens": tokens}


def patchify(config: ExperimentConfig, images: Array, encoder: str = "vision") -> tuple[Array, Array, Array, Array]:
    """uint8 frames (B, h, w, 3) to (patches, rows, columns, valid) on the device, in VideoLLaMA3's block-major order.

    Equal to `data.frames.patchify`; here for inputs that are cheaper to move as bytes.
    """
    vision = config.encoder(encoder)
    m, p = vision.merge, vision.patch
    pixels = (images.astype(jnp.float32) / 255.0 - jnp.asarray(vision.mean)) / jnp.asarray(vision.std)
    patches = rearrange(pixels, "b (hb mh p) (wb mw q) c -> b (hb wb mh mw) (c p q)", mh=m, mw=m, p=p, q=p)
    height, width = images.shape[1] // p, images.shape[2] // p
    block = lambda grid: rearrange(grid, "(hb mh) (wb mw) -> (hb wb mh mw)", mh=m, mw=m)
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    shape = (images.shape[0], height * width)
    return patches, jnp.broadcast_to(block(rows), shape), jnp.broadcast_to(block(columns), shape), jnp.ones(shape, bool)


def encode_images(config: ExperimentConfig, params: dict, images: Array, keep: float = 1.0, encoder: str = "vision") -> dict[str, Array]:
    """`encode_frames` of uint8 frames (B, h, w, 3) that already have the size of a grid bucket.

    keep below 1 encodes only that share of the blocks of patches, those with the most contrast, as if the others were not there: half the work
    while pre-training (after FLIP, arXiv 2212.00794, which drops at random). Rows and columns stay true; "tokens" then has as many entries as were kept.
    """
    vision = config.encoder(encoder)
    grid = (images.shape[1] // vision.patch, images.shape[2] // vision.patch)
    patches, rows, columns, valid = patchify(config, images, encoder)
    if keep < 1:
        m2 = vision.merge**2
        block = rearrange(patches, "b (n m) f -> b n (m f)", m=m2)
        kept = jax.lax.top_k(jnp.var(block, -1), max(1, round(keep * block.shape[1])))[1]
        select = lambda x: rearrange(
            jnp.take_along_axis(rearrange(x, "b (n m) ... -> b n m ...", m=m2), kept.reshape(*kept.shape, *[1] * (x.ndim - 1)), 1), "b n m ... -> b (n m) ..."
        )
        patches, rows, columns, valid = select(patches), select(rows), select(columns), select(valid)
        grid = (vision.merge, patches.shape[1] // vision.merge)
    return encode_frames(config, params, patches, rows, columns, valid, grid, encoder)


def encode_text(config: ExperimentConfig, params: dict, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> dict[str, Array]:
    """Queries to {"tokens": (B, S, D) after the final norm, unprojected; "vectors": (B, F, E): the whole query's vector and its phrases';
    "motion": (B, 2), or None for a tower that does not say it}."""
    out = TextTower(config.text).apply({"params": params["text"]}, ids, mask)
    vectors = jnp.concatenate([out["vector"][:, None], out["phrases"]], 1)
    return {"tokens": out["tokens"], "vectors": vectors, "motion": out["motion"] if config.text.motion else None}


def merged_grid(config: ExperimentConfig, tokens: int) -> tuple[int, int]:
    """(rows, columns) of a frame's merged tokens: the bucket whose size it is."""
    for rows, columns in config.vision.grids:
        if (rows // config.vision.merge) * (columns // config.vision.merge) == tokens:
            return rows // config.vision.merge, columns // config.vision.merge
    return 1, tokens


def similarity(config: ExperimentConfig, params: dict, frame: Array, tokens: Array | None, vectors: Array) -> tuple[Array, Array]:
    """(level in [0, 1], place) of frames against F query vectors each; leading axes broadcast. See models/signal.py."""
    grid = merged_grid(config, tokens.shape[-2]) if tokens is not None else (1, 1)
    return search_signal.similarity(params["similarity"], config.decoder.signal, frame, tokens, vectors, grid)


# --------------------------------------------------------------------------------------------------------------------- visual tokens


def _numbered(config: ExperimentConfig, params: dict, tokens: Array, numbers: Array, number_ids: Int[Array, "M"]) -> Array:
    """Adds each visual token's absolute time, its number in the answer, as `decoder.time` asks.

    `token` adds the embedding of the number's own text token: a text timestamp that costs no position.
    """
    if config.decoder.time == "token":
        return tokens + params["decoder"]["embed"]["embedding"][number_ids[numbers]]
    if config.decoder.time == "sinusoidal":
        half = config.decoder.width // 2
        angle = numbers[..., None] / 10000.0 ** (jnp.arange(half) / half)
        return tokens + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
    return tokens


def _signals(
    config: ExperimentConfig, state: dict, name: str, match: search_signal.Match | None, valid: Array, number_ids: Array
) -> dict[str, Array]:
    """The query-dependent fields of `Visual`, bias channels apart from the patch level's for each slot: {} where the signal is off."""
    signal = config.decoder.signal
    if not signal.enabled or match is None:
        return {}
    level = match.level[..., 0]
    fields = {"signal": search_signal.channels(signal, level, valid), "summary": search_signal.summary(signal, level, valid)}
    if signal.cues:
        cues = search_signal.cue_tokens(state[f"lora/{name}"]["cues"], search_signal.cue_features(signal, match, valid))
        fields |= {"cues": _numbered(config, state["params"], cues, jnp.arange(valid.shape[1]), number_ids), "cues_valid": valid}
    return fields


def dense_visual(
    config: ExperimentConfig,
    state: dict,
    name: str,
    frames: Float[Array, "B T E"],
    valid: Bool[Array, "B T"],
    number_ids: Int[Array, "M"],
    match: search_signal.Match | None = None,
    query: Float[Array, "B S D"] | None = None,
    query_mask: Bool[Array, "B S"] | None = None,
) -> Visual:
    """One token a frame. `match`: how the frames match the query, or None to leave the search signal off.

    `query`: the question's token features, which a "temporal" adapter reads; others give the same tokens whatever is asked.
    """
    adapter = make_adapter(config.grounding.level(name).adapter, config.decoder.width)
    frames = jnp.where(valid[..., None], frames.astype(jnp.float32), 0.0)
    variables = {"params": state[f"adapter/{name}"]}
    if config.grounding.level(name).adapter.reads_query:
        tokens, _ = adapter.apply(variables, frames, valid, query, query_mask)
    else:
        tokens = adapter.apply(variables, frames)
    tokens = _numbered(config, state["params"], tokens, jnp.arange(frames.shape[1]), number_ids)
    return Visual(tokens, valid, **_signals(config, state, name, match, valid, number_ids))


def sparse_tokens(
    config: ExperimentConfig,
    state: dict,
    name: str,
    frames: Float[Array, "W T E"],
    valid: Bool[Array, "W T"],
    query: Float[Array, "W S D"],
    query_mask: Bool[Array, "W S"],
    *,
    key: Array | None = None,
) -> tuple[Float[Array, "W H"], Float[Array, "W D"]]:
    """Each window as one token, in the light of the query: (token, summary before the last linear, which a nested level reads)."""
    adapter = make_adapter(config.grounding.level(name).adapter, config.decoder.width)
    frames = constrain(jnp.where(valid[..., None], frames.astype(jnp.float32), 0.0), config.mesh.rules, "frame", None, None)  # windows never see each other
    rngs = None if key is None else {"dropout": key}
    return adapter.apply({"params": state[f"adapter/{name}"]}, frames, valid, query, query_mask, deterministic=key is None, rngs=rngs)


def window_visual(
    config: ExperimentConfig,
    state: dict,
    name: str,
    tokens: Float[Array, "B W H"],
    valid: Bool[Array, "B W"],
    number_ids: Int[Array, "M"],
    match: search_signal.Match | None = None,
) -> Visual:
    """A group of sparse (or nested) tokens as the decoder sees it; `match`: each window's similarity (`signal.top_mean` of its frames')."""
    tokens = _numbered(config, state["params"], jnp.where(valid[..., None], tokens, 0.0), jnp.arange(tokens.shape[1]), number_ids)
    return Visual(tokens, valid, **_signals(config, state, name, match, valid, number_ids))


def patch_visual(
    config: ExperimentConfig,
    state: dict,
    name: str,
    tokens: Float[Array, "B T N D"],
    change: Float[Array, "B T N"],
    valid: Bool[Array, "B T"],
    number_ids: Int[Array, "M"],
    vectors: Float[Array, "B F E"] | None = None,
    motion: Float[Array, "B 2"] | None = None,
) -> tuple[Visual, Int[Array, "B"]]:
    """The kept patches of a few seconds, compacted into the level's budget. Returns also how many tokens the budget dropped.

    tokens: of every place of a frame, of such as were not encoded those that they are alike to (`extraction/patches.py`).
    """
    level_config, params = config.grounding.level(name), state["params"]
    tokens = jnp.where(valid[..., None, None], tokens.astype(jnp.float32), 0.0)
    kept = jax.vmap(lambda t, c, v: prune(t, c, config.pruner, level_config.budget, v))(tokens, change, valid)
    packed, frame_index, cell_index, kept_valid, dropped = kept
    adapter = make_adapter(level_config.adapter, config.decoder.width)
    visual = adapter.apply({"params": state[f"adapter/{name}"]}, packed)
    visual = _numbered(config, params, visual, frame_index, number_ids)
    # Tokens of another encoder share no space with the query: the patch level then looks without the search signal.
    if not config.decoder.signal.enabled or vectors is None or config.patch_vision is not None:
        return Visual(visual, kept_valid), dropped
    # A token carries its frame's channels (so that the frame where the match begins stands out), scaled by how well it matches beside
    # the frame's best token (so that among a frame's patches the subject's stand out).
    logits = search_signal.token_logits(params["similarity"], tokens[:, :, None], vectors[:, None])
    level = jax.nn.sigmoid(search_signal.frame_logits(logits))
    where = search_signal.place(logits, merged_grid(config, tokens.shape[2]))
    fields = _signals(config, state, name, search_signal.Match(level, where, motion), valid, number_ids)
    whole = logits[:, :, 0]
    beside_best = jnp.exp(whole - jnp.max(whole, -1, keepdims=True))
    own = jax.vmap(lambda x, t, n: x[t, n])(beside_best, frame_index, cell_index)
    bias = jnp.take_along_axis(fields["signal"], frame_index[..., None], 1) * own[..., None]
    return Visual(visual, kept_valid, **{**fields, "signal": jnp.where(kept_valid[..., None], bias, 0.0)}), dropped


# --------------------------------------------------------------------------------------------------------------------------- answer


def question(visual: Visual, after: Float[Array, "B S H"], mask: Bool[Array, "B S"]) -> tuple[Array, Array]:
    """(embeds, valid) of all that stands between visual tokens and answer: the text behind them, and the cues."""
    if visual.cues is None:
        return after, mask
    return jnp.concatenate([after, visual.cues.astype(after.dtype)], 1), jnp.concatenate([mask, visual.cues_valid], 1)


def last_valid(valid: Bool[Array, "B S"]) -> Int[Array, "B"]:
    """The last slot of each row that holds something; 0 where none does."""
    return jnp.max(jnp.where(valid, jnp.arange(valid.shape[1]), 0), 1)


def answer_logits(
    config: ExperimentConfig,
    state: dict,
    name: str,
    visual: Visual,
    before_ids: Int[Array, "A"],
    after_ids: Int[Array, "B S"],
    after_mask: Bool[Array, "B S"],
    answer_ids: Int[Array, "B L"],
    *,
    key: Array | None = None,
) -> Float[Array, "B L V"]:
    """Teacher-forced logits for each answer token, float32: row i predicts answer_ids[:, i]. Only these rows meet the vocabulary.

    What stands before the answer may end in padding, so its first token is predicted from the last valid row before it. `key` turns dropout on.
    """
    decoder = Decoder(config.decoder, config.mesh.rules)
    variables = {"params": state["params"]["decoder"], "lora": state[f"lora/{name}"]}
    embed = lambda ids: decoder.apply(variables, ids, method=Decoder.embed)
    batch, n = visual.valid.shape
    a, answer = before_ids.shape[0], answer_ids.shape[1]
    asked, asked_valid = question(visual, embed(after_ids), after_mask)
    s = asked.shape[1]
    before = jnp.broadcast_to(embed(before_ids[None]), (batch, a, config.decoder.width)) if a else jnp.zeros((batch, 0, config.decoder.width))
    embeds = jnp.concatenate([before, visual.tokens, asked, embed(answer_ids)], 1)
    valid = jnp.concatenate([jnp.ones((batch, a), bool), visual.valid, asked_valid, jnp.ones((batch, answer), bool)], 1)
    positions = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0)
    text = a + n
    reads = jnp.broadcast_to(jnp.arange(embeds.shape[1]) >= text, valid.shape)
    bias = None if visual.signal is None else jnp.pad(visual.signal, ((0, 0), (a, s + answer), (0, 0)))
    rngs = None if key is None else {"dropout": key}
    last = text + last_valid(asked_valid)
    rows = jnp.concatenate([last[:, None], jnp.broadcast_to(text + s + jnp.arange(answer - 1), (batch, answer - 1))], 1)
    hidden, _ = decoder.apply(
        variables, embeds, positions, valid, reads=reads, signal=bias, summary=visual.summary, rows=rows, deterministic=key is None, rngs=rngs
    )
    return decoder.apply(variables, hidden, method=Decoder.logits)
