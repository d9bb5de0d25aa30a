"""The loss of packed rows: equal to transformers' on the same conversations, equal to each conversation by itself, and blind to what pads hold."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import RowConfig
from revision_jax.convert import formats
from revision_jax.data import frames as host_frames
from revision_jax.data.conversation import Sample, Shot, runs
from revision_jax.data.media import Pictures
from revision_jax.data.packed_row import packed_row
from revision_jax.data.pipeline import stack
from revision_jax.data.processing import kept_tokens
from revision_jax.models import segments
from revision_jax.training import conversation_loss as losses
from revision_jax.training.conversation_loss import conversation_loss
from tests import conversing
from tests.chat.conftest import loaded
from tests.golden import make_chat, make_conversation

SHAPE = RowConfig(512, 192, 80, ((3, 80), (2, 100)))
STAGE = conversing.stage()


def sample(case: str, seed: int = 0) -> Sample:
    """A conversation of make_chat, with its answer."""
    config, _ = conversing.model()
    ids, learnt = make_conversation.answered(case, seed)
    places = np.isin(ids, [make_chat.tokenizer().token_to_id(token) for token in ("<|image_pad|>", "<|video_pad|>")])
    shots = []
    for film in make_chat.frames(case, seed):
        merge = make_chat.merge(case)
        keep = kept_tokens(host_frames.token_change(film, make_chat.PATCH, merge), config.pruner)
        shots.append(Shot(Pictures(film, keep), merge))
    return Sample(ids, learnt, places, tuple(shots))


def row(samples: list[Sample], shape: RowConfig = SHAPE, before_encoder: bool = False) -> dict[str, np.ndarray]:
    planned = [[run for shot in one.shots for run in runs(shot, make_chat.PATCH, before_encoder)] for one in samples]
    return packed_row(samples, planned, shape, conversing.model()[0].vision, before_encoder)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(config, state, batch):
    return jax.value_and_grad(lambda state: conversation_loss(config, STAGE, state, batch), has_aux=True)(state)


def together(cases, state=None, seed: int = 0, config=None):
    """((loss, metrics), gradients) of conversations packed into rows of one batch; cases: of each row."""
    own, weights = conversing.model()
    batch = stack([row([sample(case, seed) for case in members]) for members in cases])
    return loss_and_gradients(config or own, weights if state is None else state, batch)


def largest(tree) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def packed():
    """All four conversations in one row, and an empty row beside it."""
    return together([make_chat.CASES, ()])


@pytest.fixture(scope="module")
def apart():
    """Each conversation in a row of its own, one after another: (losses, labels, gradients)."""
    found = [together([(case,), ()]) for case in make_chat.CASES]
    labels = [sample(case).learnt.sum() for case in make_chat.CASES]
    return [float(value) for (value, _), _ in found], labels, [gradients for _, gradients in found]


def test_it_is_the_loss_of_transformers(apart):
    arrays = make_conversation.load()
    for value, case in zip(apart[0], make_chat.CASES, strict=True):
        assert value == pytest.approx(float(arrays[f"loss/{case}"]), rel=1e-5)


def test_a_packed_row_has_the_loss_and_gradients_of_its_conversations(packed, apart):
    (value, metrics), gradients = packed
    losses_of, labels, gradients_of = apart
    assert float(value) == pytest.approx(np.average(losses_of, weights=labels), rel=1e-5)
    expected = jax.tree.map(lambda *parts: sum(part * count for part, count in zip(parts, labels, strict=True)) / sum(labels), *gradients_of)
    difference = jax.tree.map(lambda a, b: a - b, gradients, expected)
    assert largest(difference) < 1e-5 * largest(expected)
    assert float(metrics["conversations"]) == 4 and 0 < float(metrics["accuracy"]) < 1
    assert float(metrics["filled"]) == pytest.approx(sum(len(sample(case).ids) for case in make_chat.CASES) / 1024)


def test_gradients_are_those_of_transformers(packed):
    """Through the table of the converter, which also turns what is stored the other way round."""
    arrays = make_conversation.load()
    config, _ = conversing.model()
    gradients = {name: np.asarray(leaf) for name, leaf in paths.flatten(packed[1]).items()}
    plan = formats.named("video_llama_3").export_plan(config, "patch")
    found = dict(plan.backward(lambda path, index: gradients[path] if index is None else gradients[path][index]))
    for name in make_conversation.GRADIENTS:
        theirs = arrays[f"gradient/{name}"]
        assert np.abs(found[name] - theirs).max() <= 1e-4 * np.abs(theirs).max(), name


def test_the_order_of_a_row_changes_nothing(packed):
    (value, _), gradients = together([("video", "text"), ("images", "image")])
    assert float(value) == pytest.approx(float(packed[0][0]), rel=1e-5)
    assert largest(jax.tree.map(lambda a, b: a - b, gradients, packed[1])) < 1e-5 * largest(gradients)


def test_garbage_in_pads_changes_nothing(packed):
    config, state = conversing.model()
    batch = stack([row([sample(case) for case in make_chat.CASES]), row([])])
    rng = np.random.default_rng(0)
    empty = batch["segments"] == 0
    batch["ids"] = np.where(empty, rng.integers(0, 264, empty.shape), batch["ids"]).astype(np.int32)
    batch["positions"] = np.where(empty, 10**6, batch["positions"]).astype(np.int32)
    batch["visual"] = np.where(empty, rng.integers(-1, SHAPE.visual, empty.shape), batch["visual"]).astype(np.int32)
    shown = int((batch["visual"][0][~empty[0]] >= 0).sum())
    batch["parts"][0, shown:], batch["parts"][1] = rng.integers(0, 400, batch["parts"][0, shown:].shape), 7
    unlearnt = ~batch["label_mask"]
    batch["label_ids"], batch["label_slots"] = np.where(unlearnt, 99, batch["label_ids"]), np.where(unlearnt, 5, batch["label_slots"])
    for k in range(2):
        blank = batch[f"pictures_{k}"] == 0
        batch[f"pixels_{k}"][blank] = rng.integers(0, 256, batch[f"pixels_{k}"][blank].shape)
        batch[f"rows_{k}"][blank] = batch[f"columns_{k}"][blank] = 77
    (value, _), gradients = loss_and_gradients(config, state, batch)
    assert float(value) == pytest.approx(float(packed[0][0]), rel=1e-6)
    assert largest(jax.tree.map(lambda a, b: a - b, gradients, packed[1])) < 1e-6 * largest(gradients)


@pytest.mark.slow
def test_long_rows_and_many_labels_are_gone_through_in_parts(packed, monkeypatch):
    """Blocks of attention, chunks of labels, layers computed again: the same numbers."""
    monkeypatch.setattr(losses, "CHUNK", 7)
    monkeypatch.setattr(segments, "BLOCK", 2 * 4 * 512 * 100)
    config, _ = conversing.model()
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, remat="full"))
    (value, metrics), gradients = together([make_chat.CASES, ()], config=config)
    assert float(value) == pytest.approx(float(packed[0][0]), rel=1e-5) and float(metrics["accuracy"]) == float(packed[0][1]["accuracy"])
    assert largest(jax.tree.map(lambda a, b: a - b, gradients, packed[1])) < 1e-5 * largest(gradients)


def test_a_row_of_text_alone_needs_no_encoder():
    config, state = conversing.model()
    shape = RowConfig(64, 0, 32, ())
    (value, _), gradients = loss_and_gradients(config, state, stack([row([sample("text")], shape)]))
    assert float(value) == pytest.approx(float(make_conversation.load()["loss/text"]), rel=1e-5)
    assert largest(gradients["params"]["vision"]) == 0 and largest(gradients["adapter/patch"]) == 0


@pytest.mark.torch
@pytest.mark.slow
def test_against_torch_itself_on_other_weights():
    pytest.importorskip("torch")
    seed = 5
    theirs = make_conversation.reference(seed)
    weights = {name: value.detach().numpy() for name, value in make_chat.model(seed).state_dict().items()}
    _, state = loaded(weights, make_chat.config())
    for case in make_chat.CASES:
        (value, _), _ = together([(case,), ()], state, seed)
        assert float(value) == pytest.approx(float(theirs[f"loss/{case}"]), rel=1e-5)
