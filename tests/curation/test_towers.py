"""The shipped tiny model as towers: its features do not depend on their batch, and captions that hold fit better than others."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import checkpoint
from revision_jax.curation import towers
from revision_jax.curation.towers import Towers
from revision_jax.data.synthetic.language import phrase
from revision_jax.data.synthetic.stills import still, still_queries
from revision_jax.data.synthetic.world import Dice, shows
from revision_jax.errors import UserError
from revision_jax.models import revision
from tests.curation.conftest import picture

TINY = Path(__file__).parents[2] / "checkpoints" / "tiny"


@pytest.fixture(scope="module")
def tiny():
    return Towers(TINY)


@pytest.mark.slow
def test_right_captions_fit_and_wrong_ones_do_not(tiny):
    pictures, captions, right = [], [], []
    seed = 0
    while len(pictures) < 64:
        shown, drawn = still(10**6 + seed)
        seed += 1
        for query in still_queries(drawn, 2, Dice("towers", seed)) if drawn else ():
            if query.form == "static":
                pictures.append(tiny.fit(shown))
                captions.append(phrase(query, Dice("words", seed)))
                right.append(shows(query, drawn))
    right = np.array(right[:64])
    features = tiny.features(pictures[:64])
    values = tiny.similarity(features, [tiny.caption_ids(caption) for caption in captions[:64]])
    assert values.dtype == np.float32 and (values[right] >= 0.5).mean() > 0.85 and (values[~right] < 0.5).mean() > 0.85
    # A caption alone, and with others; and by the functions that answer questions.
    again = tiny.similarity(features[5:6], [tiny.caption_ids(captions[5])])
    assert np.allclose(again, values[5:6], atol=1e-5)
    ids, mask = tiny.caption_ids(captions[5])
    vectors = revision.encode_text(tiny.config, tiny.params, jnp.asarray(ids[None]), jnp.asarray(mask[None]))["vectors"][:, :1]
    one = {name: jnp.asarray(array[None]) for name, array in features[5].items()}
    direct, _ = revision.similarity(tiny.config, tiny.params, one["frame"], one["tokens"], vectors)
    assert np.allclose(jax.device_get(direct)[0, 0], values[5], atol=1e-4)


def test_features_do_not_depend_on_their_batch(towers_folder):
    made = Towers(towers_folder)
    pictures = [made.fit(picture(number, *size)) for number, size in enumerate([(80, 96), (96, 64), (160, 160)] * 25)]
    whole = made.features(pictures)
    assert set(whole[0]) == {"frame", "tokens"} and whole[0]["frame"].dtype == np.float16
    for number in (0, 40, 74):
        (alone,) = made.features([pictures[number]])
        assert all(np.array_equal(alone[name], whole[number][name]) for name in alone)
    assert not np.array_equal(whole[0]["frame"], whole[1]["frame"])


def test_long_captions_lose_their_end_and_control_tokens_are_refused(towers_folder):
    made = Towers(towers_folder)
    ids, mask = made.caption_ids("a red ring " * 40)
    assert mask.all() and ids[-1] == made.tokenizer.eos
    for text in ("a <eos> ring", "  "):
        with pytest.raises(UserError):
            made.caption_ids(text)


def test_identity_is_of_the_files_and_a_model_without_text_is_refused(towers_folder, tmp_path):
    assert towers.identity(TINY) != towers.identity(towers_folder) and towers.width(TINY) == 96
    with pytest.raises(UserError, match="no such checkpoint folder"):
        towers.identity(tmp_path / "no")
    import dataclasses

    from tests.grounding.conftest import noisy_state
    from tests.tiny import config as tiny_config

    config = tiny_config()
    mute = dataclasses.replace(config, text=None, decoder=dataclasses.replace(config.decoder, signal=dataclasses.replace(config.decoder.signal, enabled=False)))
    folder = checkpoint.export(noisy_state(mute), mute, TINY / "tokenizer.json", tmp_path / "mute")
    with pytest.raises(UserError, match="no text tower that shares a space"):
        Towers(folder)
