"""What each kind of stage minimises: pure functions (config, state, batch, key) -> (loss, metrics), float32 scalars.

Batches are the arrays of `data/curriculum.py`. Encoders are frozen wherever their features are read from the store. Metrics are those of `means.py`; every
stage tells "tokens", those that its decoder (in pretrain its towers) sees, and "slots", pads included. Where the batch may be gone through in parts
(`stage.accumulate`), "loss" is the mean that the loss is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from revision_jax.config import ExperimentConfig, StageConfig
from revision_jax.models import revision
from revision_jax.models import signal as search_signal
from revision_jax.training.means import Mean, Metrics

PHRASE = 0.5  # weight of each phrase's contrastive loss beside the whole caption's
ORDER = 1.0  # weight of telling what covers from what is covered, of the things that a picture shows: few pairs, and the hardest
MOTION = 4.0  # weight of the squared error of the way that captions say; it is learnt in a few hundred steps and then costs nothing


def stage_loss(config: ExperimentConfig, stage: StageConfig, constants: dict) -> Callable[[dict, dict, Array], tuple[Array, Metrics]]:
    """The stage's `loss(state, batch, key)`. constants: {"number_ids": Int[M], "before_ids": Int[A]} from the tokenizer and the level's prompt."""
    if stage.task == "pretrain":
        return lambda state, batch, key: contrastive_loss(config, state, batch, stage.keep)
    if stage.task == "language":
        return lambda state, batch, key: language_loss(config, state, batch, constants, key)
    return lambda state, batch, key: grounding_loss(config, stage, state, batch, constants, key)


# ----------------------------------------------------------------------------------------------------------------------- pre-training


def contrastive_loss(config: ExperimentConfig, state: dict, batch: dict, keep: float = 1.0) -> tuple[Array, Metrics]:
    """Sigmoid loss over all (image, caption) pairs, as SigLIP's, with exact labels.

    batch: images uint8 (B, h, w, 3); caption_ids / caption_mask (B, C, S), each image's captions, half of which hold and half are hard negatives;
    labels (B, B C): does image b show what caption j says? phrase_labels (B, F, B C): does it show the f-th thing that it speaks of? travels (B, C, 2):
    the way that each caption says (rows, columns; zeros for none). tag_ids / tag_mask (B, A, S), captions of one attribute, the same for every image (A / 2
    of things, then A / 2 of things that cover others or are covered), and tag_labels (B, A).
    Own captions, both kinds of tags and other images' captions make about a quarter of the loss each; then the same for each phrase, and of those that name a
    part, own ones once more in the pictures of a pair.
    keep: share of each image's blocks of patches that are encoded, those with the most contrast (see `revision.encode_images`).
    """
    params, labels = state["params"], batch["labels"]
    images, captions = labels.shape
    features = revision.encode_images(config, params, batch["images"], keep)
    ids, mask = (jnp.concatenate([batch[f"caption_{name}"].reshape(captions, -1), batch[f"tag_{name}"][0]]) for name in ("ids", "mask"))
    text = revision.encode_text(config, params, ids, mask)
    vectors = text["vectors"]
    logits = pair_logits(config, params, features, vectors[:, 0])
    logits, tag_logits = logits[:, :captions], logits[:, captions:]
    own = (jnp.arange(captions) // (captions // images))[None] == jnp.arange(images)[:, None]

    def pair_loss(logits: Array, labels: Array) -> tuple[Array, Array]:
        losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
        # The others are many, but told apart at a glance.
        return jnp.sum(losses * own) / jnp.sum(own), 8.0 * jnp.sum(losses * ~own) / jnp.sum(~own)

    own_loss, other_loss = pair_loss(logits, labels)
    tag_losses, tags = optax.sigmoid_binary_cross_entropy(tag_logits, batch["tag_labels"].astype(jnp.float32)), tag_logits.shape[1] // 2
    # Which of two things covers the other is the finest point of a picture, so only the pictures of such a pair are asked.
    pair = jnp.any(batch["tag_labels"][:, tags:], 1, keepdims=True)
    tag_loss = jnp.mean(tag_losses[:, :tags])
    part_loss = jnp.sum(tag_losses[:, tags:] * pair) / jnp.maximum(jnp.sum(pair) * tags, 1)
    hit = (logits > 0) == labels
    metrics = {
        "own_accuracy": jnp.sum(hit * own) / jnp.sum(own),
        "hard_negative_accuracy": jnp.sum(hit * own * ~labels) / jnp.maximum(jnp.sum(own * ~labels), 1),
        "own_recall": jnp.sum(hit * own * labels) / jnp.maximum(jnp.sum(own * labels), 1),
        "tag_accuracy": jnp.mean(((tag_logits > 0) == batch["tag_labels"])[:, :tags]),
        "part_accuracy": jnp.sum(((tag_logits > 0) == batch["tag_labels"])[:, tags:] * pair) / jnp.maximum(jnp.sum(pair) * tags, 1),
        "own_loss": own_loss,
        "other_loss": other_loss,
        "tag_loss": tag_loss,
        "part_loss": part_loss,
        "scale": jnp.exp(params["similarity"]["scale"]),
        **_filled(mask, jnp.ones(features["tokens"].shape[:2], bool)),
    }
    loss = own_loss + other_loss + tag_loss + part_loss
    for number in range(config.text.phrases):
        said, shown = pair_logits(config, params, features, vectors[:captions, 1 + number]), batch["phrase_labels"][:, number]
        loss = loss + PHRASE * sum(pair_loss(said, shown))
        metrics[f"phrase_accuracy_{number}"] = jnp.sum(((said > 0) == shown) * own) / jnp.sum(own)
        if number >= 2:
            seen = own & batch["phrase_labels"][:, number - 2] & pair
            order = optax.sigmoid_binary_cross_entropy(said, shown.astype(jnp.float32))
            loss = loss + ORDER * jnp.sum(order * seen) / jnp.maximum(jnp.sum(seen), 1)
            other_part = seen & ~shown  # there, but in front of something instead of behind it
            metrics[f"other_part_refused_{number}"] = jnp.sum((said <= 0) * other_part) / jnp.maximum(jnp.sum(other_part), 1)
    if config.text.motion:
        said, true = text["motion"][:captions], batch["travels"].reshape(captions, 2)
        moving = jnp.any(true != 0, -1)
        along = jnp.sum(said * true, -1)
        loss = loss + MOTION * jnp.mean(jnp.square(said - true))
        metrics["motion_recall"] = jnp.sum((along > 0.5) * moving) / jnp.maximum(jnp.sum(moving), 1)
    return loss, metrics


def pair_logits(config: ExperimentConfig, params: dict, features: dict, vector: Float[Array, "C E"]) -> Float[Array, "B C"]:
    """Log-odds that image b shows caption c, for every pair, by the configured similarity."""
    if config.decoder.signal.similarity == "pooled":
        return search_signal.token_logits(params["similarity"], features["frame"][:, None, None], vector[None])[..., 0]
    unit = search_signal.unit
    cosine = jnp.einsum("bne,ce->bcn", unit(features["tokens"]), unit(vector))
    logits = jnp.exp(params["similarity"]["scale"]) * cosine + params["similarity"]["bias"]
    return search_signal.frame_logits(logits)


def language_loss(config: ExperimentConfig, state: dict, batch: dict, constants: dict, key: Array) -> tuple[Array, Metrics]:
    """Captioning of images, and pointing at spans in sequences of sentences: what a released language model brings along.

    The towers are frozen. Captioning reads the merged patch tokens through the patch level's projector; pointing reads the text vectors of
    captions (close to the image tokens that show them, after contrastive training) as if they were frames, with noise.
    batch: images, caption_ids/mask (B, C, S), full_ids/mask (B, L) answers, point_slots (B, T) number of the caption (of B C) or -1, point_query (B,),
    point_after_ids/mask, point_answer_ids/mask.
    """
    state = _encoders_frozen(state)
    features = revision.encode_images(config, state["params"], batch["images"])
    flat = lambda x: x.reshape(-1, x.shape[-1])
    text = revision.encode_text(config, state["params"], flat(batch["caption_ids"]), flat(batch["caption_mask"]))
    vectors = text["vectors"]

    levels = {level.kind: level for level in config.grounding.levels if not level.baseline}
    tokens = jnp.asarray(features["tokens"])[:, None]
    valid = jnp.ones(tokens.shape[:2], bool)
    change = jnp.full(tokens.shape[:3], jnp.inf)
    visual, _ = revision.patch_visual(
        _with_budget(config, levels["patch"].name, tokens.shape[2]), state, levels["patch"].name, tokens, change, valid, constants["number_ids"]
    )
    after = jnp.zeros((tokens.shape[0], 1), jnp.int32) + constants["caption_id"]
    caption_logits = revision.answer_logits(
        config, state, levels["patch"].name, visual, constants["before_ids"], after, jnp.ones_like(after, bool), batch["full_ids"]
    )
    caption = answer_loss(caption_logits, batch["full_ids"], batch["full_mask"], jnp.ones(tokens.shape[0]))

    unit = search_signal.unit(vectors[:, 0])
    slots, query = batch["point_slots"], unit[batch["point_query"]]
    noise, blank = jax.random.split(key)
    shown = jnp.where(slots[..., None] >= 0, unit[slots], 0.0) + 0.05 * jax.random.normal(noise, (*slots.shape, unit.shape[-1]))
    level = jax.nn.sigmoid(12.0 * jnp.einsum("rte,re->rt", shown, query) - 9.0)
    level = jnp.clip(level + 0.05 * jax.random.normal(blank, level.shape), 0.0, 1.0)
    level = jnp.repeat(level[..., None], vectors.shape[1], -1)
    motion = None if text["motion"] is None else text["motion"][batch["point_query"]]
    match = search_signal.Match(level, jnp.full((*level.shape, 2), 0.5), motion)
    visual = revision.dense_visual(config, state, levels["dense"].name, shown, jnp.ones(slots.shape, bool), constants["number_ids"], match)
    point_logits = revision.answer_logits(
        config, state, levels["dense"].name, visual, constants["before_ids"], batch["point_after_ids"], batch["point_after_mask"], batch["point_answer_ids"]
    )
    point = answer_loss(point_logits, batch["point_answer_ids"], batch["point_answer_mask"], jnp.ones(slots.shape[0]))
    metrics = {"caption_loss": caption[0], "caption_accuracy": caption[1], "point_loss": point[0], "point_accuracy": point[1]}
    shown = jnp.ones(features["tokens"].shape[:2], bool), batch["full_mask"], slots >= 0, batch["point_after_mask"], batch["point_answer_mask"]
    return caption[0].value + point[0].value, {**metrics, **_filled(*shown)}


def _encoders_frozen(state: dict) -> dict:
    """The state with no gradient into vision, text tower and similarity."""
    params = {name: tree if name == "decoder" else jax.lax.stop_gradient(tree) for name, tree in state["params"].items()}
    return {**state, "params": params}


def _with_budget(config: ExperimentConfig, name: str, budget: int) -> ExperimentConfig:
    levels = tuple(dataclasses.replace(level, budget=budget) if level.name == name else level for level in config.grounding.levels)
    return dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=levels))


# ------------------------------------------------------------------------------------------------------------------------- grounding


def grounding_loss(config: ExperimentConfig, stage: StageConfig, state: dict, batch: dict, constants: dict, key: Array) -> tuple[Array, Metrics]:
    """Next-token cross-entropy on the answer alone, for one level's batch."""
    level = config.grounding.level(stage.level)
    state = _encoders_frozen(state)
    text = query_features(config, state["params"], batch)
    visual = level_visual(config, state, level.name, batch, text, batch["query_mask"], constants["number_ids"])
    logits = revision.answer_logits(
        config, state, level.name, visual, constants["before_ids"], batch["after_ids"], batch["after_mask"], batch["answer_ids"], key=key
    )
    loss, accuracy = answer_loss(logits, batch["answer_ids"], batch["answer_mask"], batch["weight"])
    # The first token decides between a span and "not present": told apart because it is learnt last.
    first = jnp.argmax(logits[:, 0], -1) == batch["answer_ids"][:, 0]
    before = jnp.ones((len(first), len(constants["before_ids"])), bool)
    masks = before, visual.valid, visual.cues_valid, batch["after_mask"], batch["answer_mask"]
    filled = _filled(*(mask for mask in masks if mask is not None))
    return loss.value, {"loss": loss, "accuracy": accuracy, "decision": Mean.of(first, jnp.ones(first.shape)), **filled}


def query_features(config: ExperimentConfig, params: dict, batch: dict) -> dict:
    """What the text tower says about the batch's queries (`revision.encode_text`), or what was stored of it (`data.queries`)."""
    if "query_tokens" not in batch:
        return revision.encode_text(config, params, batch["query_ids"], batch["query_mask"])
    stored = {name: batch[f"query_{name}"].astype(jnp.float32) for name in ("tokens", "vectors")}
    return {**stored, "motion": batch["query_motion"].astype(jnp.float32) if config.text.motion else None}


def level_visual(
    config: ExperimentConfig, state: dict, name: str, batch: dict, text: dict, query_mask: Bool[Array, "B S"], number_ids: Int[Array, "M"]
) -> revision.Visual:
    """The visual tokens of a batch, by the level's kind."""
    level, params = config.grounding.level(name), state["params"]
    if level.kind == "patch":
        arrays = batch["tokens"], batch["change"], batch["frame_mask"]
        return revision.patch_visual(config, state, name, *arrays, number_ids, text["vectors"], text["motion"])[0]
    if level.kind == "dense":
        seen, where = revision.similarity(config, params, batch["frames"], batch["tokens"], text["vectors"][:, None])
        match = search_signal.Match(seen, where, text["motion"])
        return revision.dense_visual(config, state, name, batch["frames"], batch["frame_mask"], number_ids, match, text["tokens"], query_mask)
    sparse = config.grounding.below(name) if level.kind == "nested" else level
    windows = batch["window_mask"].shape[1]
    seen, _ = revision.similarity(config, params, batch["frames"], batch["tokens"], text["vectors"][:, None, None])
    window_level = search_signal.top_mean(seen, batch["frame_mask"], config.decoder.signal.top)
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    spread = lambda x, times: jnp.repeat(x, times, 0)
    tokens, summary = revision.sparse_tokens(
        config, state, sparse.name, flat(batch["frames"]), flat(batch["frame_mask"]), spread(text["tokens"], windows), spread(query_mask, windows)
    )
    valid, summary = batch["window_mask"], summary.reshape(-1, windows, summary.shape[-1])
    if level.kind == "nested":  # a run of windows is to the nested adapter what a window of frames is to the sparse one
        length = sparse.run_length(level)
        runs = windows // length
        split = lambda x: x.reshape(-1, runs, length, *x.shape[2:])
        inside = split(valid)
        tokens, _ = revision.sparse_tokens(
            config, state, name, flat(split(jax.lax.stop_gradient(summary))), flat(inside), spread(text["tokens"], runs), spread(query_mask, runs)
        )
        window_level, valid = search_signal.top_mean(split(window_level), inside, 1), jnp.any(inside, -1)
    match = search_signal.Match(window_level, None, text["motion"])
    return revision.window_visual(config, state, name, tokens.reshape(*valid.shape, -1), valid, number_ids, match)


def answer_loss(logits: Float[Array, "B L V"], ids: Int[Array, "B L"], mask: Bool[Array, "B L"], weight: Float[Array, "B"]) -> tuple[Mean, Mean]:
    """(cross-entropy of the answers' tokens, each weighted as its answer is; share of tokens that are the likeliest)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    return Mean.of(losses, mask * weight[:, None]), Mean.of(jnp.argmax(logits, -1) == ids, mask)


def _filled(*masks: Bool[Array, "..."]) -> dict[str, Array]:
    """How many tokens there are, and how many slots for them."""
    return {"tokens": sum(jnp.sum(mask, dtype=jnp.float32) for mask in masks), "slots": jnp.float32(sum(mask.size for mask in masks))}
