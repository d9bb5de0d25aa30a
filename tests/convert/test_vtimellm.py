"""VTimeLLM's projector: read whatever stands before its names, run, and written back."""

import dataclasses

import numpy as np
import pytest

from revision_jax import paths
from revision_jax.convert import formats
from revision_jax.convert.source import ArraySource
from revision_jax.errors import UserError
from tests.convert.test_revisionllm import EXPERIMENT, HIDDEN, WIDTH, converted, error, experiment, released, tokens, transcription

FILE = released("dense")
FORM = formats.named("vtimellm")


@pytest.mark.parametrize("prefix", ["", "model.", "model.model.", "base_model.model.model."])
def test_it_equals_the_formula_and_comes_back(prefix):
    config, state = converted(FILE, "dense", name="vtimellm", prefix=prefix)
    assert config.grounding.level("dense").adapter == dataclasses.replace(EXPERIMENT.grounding.level("dense").adapter, width=WIDTH)
    frames = np.random.default_rng(1).normal(size=(1, 5, WIDTH)).astype(np.float32)
    assert error(tokens(config, state, "dense", frames, frames)[0], transcription("dense", "odd", FILE, frames[0], frames[0])) < 1e-6
    leaves = paths.flatten(state)
    written = dict(FORM.export_plan(config, "dense").backward(lambda path, index: leaves[path]))
    assert set(written) == {"model.mm_projector.weight", "model.mm_projector.bias"}  # as released
    for name, array in FILE.items():
        np.testing.assert_array_equal(written[f"model.{name}"], array)


def test_it_is_known_by_its_two_names():
    given = ArraySource({f"model.{name}": array for name, array in FILE.items()}, path="mm_projector.bin")
    assert formats.detect(given).name == "vtimellm"
    assert not FORM.detect(ArraySource({**FILE, "lm_head.weight": np.zeros((2, 2), np.float32)}))


def test_two_names_of_one_tensor_are_refused():
    twice = ArraySource({f"{prefix}{name}": array for name, array in FILE.items() for prefix in ("model.", "model.model.")})
    with pytest.raises(UserError, match=r"model\.mm_projector\.weight and model\.model\.mm_projector\.weight"):
        FORM.config(twice, EXPERIMENT, "dense")


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"levels\.sparse\.adapter\.kind: 'sparse' reads more than one linear layer"):
        FORM.config(ArraySource(FILE), EXPERIMENT, "sparse")
    with pytest.raises(UserError, match=r"level: an adapter belongs to one; the levels are sparse, sparse2, dense"):
        FORM.config(ArraySource(FILE), EXPERIMENT, "")
    with pytest.raises(UserError, match=r"mm_projector\.weight is missing"):
        FORM.config(ArraySource({"mm_projector.bias": FILE["mm_projector.bias"]}), EXPERIMENT, "dense")
    other = experiment(hidden=HIDDEN + 1)  # a decoder of another width
    with pytest.raises(UserError, match=r"of another shape: model\.mm_projector\.weight has shape \(24, 16\)"):
        FORM.plan(ArraySource(FILE), FORM.config(ArraySource(FILE), other, "dense"), "dense")
    with pytest.raises(UserError, match=r"missing: model\.mm_projector\.bias"):
        FORM.plan(ArraySource({"mm_projector.weight": FILE["mm_projector.weight"]}), EXPERIMENT, "dense")
