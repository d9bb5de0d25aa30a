"""A run that begins with the weights of an exported checkpoint."""

import dataclasses

import jax
import numpy as np
import pytest

from revision_jax import checkpoint, paths
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.errors import UserError
from revision_jax.models.revision import init_state
from revision_jax.sharding.mesh import make_mesh
from revision_jax.sharding.parameters import axes_of
from revision_jax.sharding.rules import tree_shardings
from revision_jax.sharding.strategies import rules_named
from revision_jax.training.task import begin_from
from tests import tiny


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint that lacks the patch level."""
    folder = tmp_path_factory.mktemp("exported")
    build_word_tokenizer(["a red ring"], numbers=20, vocab_size=300).save(folder)
    state = {name: tree for name, tree in tiny.state(5).items() if not name.endswith("/patch")}
    return checkpoint.export(state, tiny.config(), folder / "tokenizer.json", folder / "checkpoint"), state


@pytest.mark.parametrize("parts", [(), ("params/vision", "lora/dense")], ids=["all", "parts"])
def test_what_the_checkpoint_has_is_taken_and_the_rest_is_fresh(exported, tmp_path, parts):
    directory, state = exported
    config = tiny.config()
    abstract = jax.eval_shape(lambda: init_state(config, jax.random.key(0)))
    load = begin_from(config, directory, tmp_path, parts)
    made = paths.flatten(load(tree_shardings(abstract, make_mesh(config.mesh), rules_named(config.mesh.rules), axes_of)))
    fresh, stored = paths.flatten(tiny.state(config.train.seed)), paths.flatten(state)
    assert set(made) == set(fresh) and any(name not in stored for name in made)
    stored = {name: leaf for name, leaf in stored.items() if not parts or name.startswith(tuple(f"{part}/" for part in parts))}
    assert stored
    for name, leaf in made.items():
        expected = np.asarray(stored[name], np.float16).astype(np.float32) if name in stored else fresh[name]
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, err_msg=name)
    assert (tmp_path / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()


def test_all_misfits_are_told_at_once(exported, tmp_path):
    config = tiny.config()
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, mlp=32))
    with pytest.raises(UserError, match=r"fc1/bias has shape \(24,\), config says \(32,\).*fc2/kernel"):
        begin_from(config, exported[0], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_tokenizer_is_refused(exported, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not the tokenizer of"):
        begin_from(tiny.config(), exported[0], tmp_path)
