"""The whole of VideoLLaMA3 against transformers in torch: logits within 1e-4 of the largest, and the same 64 greedy tokens.

Text alone, an image, several images, a video with pruning, a batch of unequal prompts. The committed arrays always; torch itself, on other weights, where
it is installed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.chat.engine import Batch, Engine
from revision_jax.data import frames as host_frames
from revision_jax.data.chat_template import Message, Prompt, Shown, encode, render, specials
from revision_jax.data.processing import Rules, kept_tokens
from revision_jax.models.decoder import Decoder
from tests.chat.conftest import loaded
from tests.golden import make_chat as golden


def prompt_of(case: str, engine: Engine, tokenizer, seed: int = 0) -> tuple[Prompt, np.ndarray]:
    """A case as this project makes it: prompt and visual tokens."""
    m, shown, tokens = golden.merge(case), [], [np.zeros((0, engine.config.decoder.width), np.float32)]
    for film in golden.frames(case, seed):
        keep = kept_tokens(host_frames.token_change(film, golden.PATCH, m), engine.config.pruner)
        tokens.append(engine.encode(film, keep, m))
        shown.append(Shown(tuple(map(int, keep.sum(1))), tuple(map(float, range(len(film)))) if case == "video" else None))
    known = specials(tokenizer)
    text = render([Message("user", (*shown, "what is here?"))], Rules("transformers"), known)
    return encode(text, tokenizer, known, sum(place.tokens for place in shown)), np.concatenate(tokens)


@functools.partial(jax.jit, static_argnums=0)
def every_slot(config, params: dict, cache: dict, batch: Batch):
    decoder, weights = Decoder(config), {"params": params}
    embeds = jnp.where(batch.is_visual[..., None], batch.visual, decoder.apply(weights, batch.ids, method=Decoder.embed))
    hidden, _ = decoder.apply(weights, embeds, batch.positions, batch.valid, cache=cache, start=0)
    return decoder.apply(weights, hidden, method=Decoder.logits)


def prompt_logits(engine: Engine, cases: list[tuple[Prompt, np.ndarray]]) -> np.ndarray:
    """Logits behind every slot of the prompts [B S V]. All are read at one length: what stands behind a prompt is seen by none of its slots."""
    batch = engine.batch([prompt for prompt, _ in cases], [tokens for _, tokens in cases])
    rows, length = batch.ids.shape
    batch = Batch(*(np.pad(x, ((0, 0), (0, 256 - length)) + ((0, 0),) * (x.ndim - 2)) for x in batch))
    return np.asarray(every_slot(engine.config.decoder, engine.params["decoder"], engine.new_cache(rows, 256), batch))[:, :length]


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("case", golden.CASES)
def test_one_prompt(case, engine, tokenizer, arrays):
    prompt, tokens = prompt_of(case, engine, tokenizer)
    assert prompt.ids.tolist() == golden.tokenizer().encode(golden.text(case)).ids
    close(prompt_logits(engine, [(prompt, tokens)])[:, :: golden.ROWS], arrays[f"{case}/logits"])
    made, told = engine.generate([prompt], [tokens], golden.STEPS)
    np.testing.assert_array_equal(made, arrays[f"{case}/tokens"])
    close(told[:, ::16], arrays[f"{case}/chosen"])


def test_a_video_drops_tokens_and_keeps_one_of_a_frame_that_stands_still(engine, tokenizer):
    film = golden.frames("video")[0]
    kept = golden.mask(film, 2)
    np.testing.assert_array_equal(kept, kept_tokens(host_frames.token_change(film, golden.PATCH, 2), engine.config.pruner))
    assert kept[0].all() and kept[4].sum() == 1 and 0 < kept[1].sum() < kept.shape[1]
    prompt, tokens = prompt_of("video", engine, tokenizer)
    assert prompt.visual.sum() == len(tokens) == kept.sum()


def test_a_batch_of_unequal_prompts(engine, tokenizer, arrays):
    cases = [prompt_of(case, engine, tokenizer) for case in golden.BATCH]
    name = "+".join(golden.BATCH)
    close(prompt_logits(engine, cases)[:, -1:], arrays[f"{name}/logits"])
    made, told = engine.generate(*zip(*cases, strict=True), golden.STEPS)
    np.testing.assert_array_equal(made, arrays[f"{name}/tokens"])
    close(told[:, ::16], arrays[f"{name}/chosen"])
    for row, case in enumerate(golden.BATCH):  # and a prompt's answer does not depend on its neighbours
        np.testing.assert_array_equal(made[row], arrays[f"{case}/tokens"][0])


@pytest.mark.torch
@pytest.mark.slow
def test_against_torch_itself_on_other_weights(tokenizer):
    pytest.importorskip("torch")
    seed = 3
    state = {name: value.numpy() for name, value in golden.model(seed).state_dict().items()}
    engine = Engine(*loaded(state, golden.config()))
    for cases in (("image",), ("video",), golden.BATCH):
        theirs = golden.reference(cases, seed)
        ours = [prompt_of(case, engine, tokenizer, seed) for case in cases]
        valid = engine.batch([prompt for prompt, _ in ours], [tokens for _, tokens in ours]).valid
        close(prompt_logits(engine, ours)[valid], theirs["logits"][valid])
        made, told = engine.generate(*zip(*ours, strict=True), golden.STEPS)
        np.testing.assert_array_equal(made, theirs["tokens"])
        close(told, theirs["chosen"])
