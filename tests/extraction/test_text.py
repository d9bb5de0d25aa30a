"""extraction/text.py: what the store gives back is what the tower says, and whose it is."""

import dataclasses

import jax
import numpy as np
import pytest

from revision_jax.config import ConfigError
from revision_jax.data.prompts import encode_query
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.errors import UserError
from revision_jax.extraction import text as text_extraction
from revision_jax.models import revision
from tests.grounding.conftest import config, noisy_state, state, tokenizer  # noqa: F401  fixtures

QUERIES = ["a red ring turns green", "a blue square", "small circles", "a blue square", "a green star"]


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_extraction, "BATCH", 3)
        yield


@pytest.fixture(scope="module")
def store(config, state, tokenizer, tmp_path_factory):  # noqa: F811
    return text_extraction.extract_queries(config, state["params"], tokenizer, QUERIES, tmp_path_factory.mktemp("text") / "queries")


def test_what_is_stored_is_what_the_tower_says(store, config, state, tokenizer):  # noqa: F811
    assert len(store) == 4 and list(store.texts()) == [*QUERIES[:3], QUERIES[4]]
    store.require(text_extraction.text_identity(config, state["params"]))
    alone = jax.jit(lambda params, ids, mask: revision.encode_text(config, params, ids, mask))
    for query in QUERIES:
        ids, mask = encode_query(tokenizer, query, config.grounding.query_len, config.text.suffix)
        said, found = alone(state["params"], ids[None], mask[None]), store.read(query)
        assert found["tokens"].dtype == np.float16 and found["tokens"].shape == (mask.sum(), config.text.width)
        np.testing.assert_allclose(found["tokens"], np.asarray(said["tokens"])[0, : mask.sum()], atol=5e-3)
        np.testing.assert_allclose(found["vectors"], np.asarray(said["vectors"])[0], atol=5e-3)


def test_other_weights_are_another_encoder(store, config):  # noqa: F811
    with pytest.raises(UserError, match="made by"):
        store.require(text_extraction.text_identity(config, noisy_state(config, 1)["params"]))


def test_a_bad_query_leaves_nothing(config, state, tokenizer, tmp_path):  # noqa: F811
    for query, message in (("", "empty"), ("red " * 100, "at most")):
        with pytest.raises(UserError, match=message):
            text_extraction.extract_queries(config, state["params"], tokenizer, [*QUERIES, query], tmp_path / "queries")
    assert not list(tmp_path.iterdir())


def test_no_query_at_all(config, state, tokenizer, tmp_path):  # noqa: F811
    assert len(text_extraction.extract_queries(config, state["params"], tokenizer, [], tmp_path / "queries")) == 0
    assert len(TextFeatureStore(tmp_path / "queries")) == 0


def test_a_model_without_a_text_tower(config, state):  # noqa: F811
    signal = dataclasses.replace(config.decoder, signal=dataclasses.replace(config.decoder.signal, enabled=False))
    with pytest.raises(ConfigError, match="no text tower"):
        text_extraction.text_identity(dataclasses.replace(config, text=None, decoder=signal), state["params"])
