"""What the patch level looks with: an encoder of its own (`ExperimentConfig.patch_vision`), before or after the pruner (`PrunerConfig.where`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import checkpoint, paths
from revision_jax.config import ConfigError, ExperimentConfig, PrunerConfig, VisionConfig
from revision_jax.data import video as files
from revision_jax.evaluation.baselines import Model
from revision_jax.extraction import video as extraction
from revision_jax.grounding.grounder import Grounder
from revision_jax.grounding.levels import Window
from revision_jax.models import revision
from tests.grounding.conftest import noisy_state, small_config
from tests.grounding.test_grounder import write_video

OWN = VisionConfig(width=24, layers=1, heads=2, mlp=32, patch=4, grids=((8, 8),), merge=2, pool="none")


def two_encoders(width: int = 24) -> ExperimentConfig:
    config = small_config()
    levels = tuple(
        dataclasses.replace(level, adapter=dataclasses.replace(level.adapter, width=width)) if level.kind == "patch" else level
        for level in config.grounding.levels
    )
    return dataclasses.replace(config, patch_vision=OWN, grounding=dataclasses.replace(config.grounding, levels=levels))


@pytest.fixture(scope="module")
def model():
    config = two_encoders()
    return config, noisy_state(config)


def test_its_parameters_stand_beside_the_others(model):
    config, state = model
    assert config.patch_encoder == "patch_vision" and small_config().patch_encoder == "vision"
    assert state["params"]["patch_vision"]["patch_embed"]["kernel"].shape == (48, 24)
    assert state["adapter/patch"]["readout"]["0"]["weight"].shape == (32, 24)
    before, after = (paths.flatten(revision.abstract_state(c)) for c in (small_config(), config))
    assert {name for name in set(after) - set(before) if not name.startswith("params/patch_vision/")} == set()
    assert ExperimentConfig.from_dict(config.to_dict()) == config


def test_what_was_stored_before_there_was_one_still_loads():
    assert checkpoint.load_config(Path(__file__).parents[2] / "checkpoints" / "tiny").patch_vision is None


def test_the_widths_must_fit():
    with pytest.raises(ConfigError, match=r"levels.patch.adapter.width: 16 differs from the patch encoder's 24"):
        two_encoders(width=16)
    with pytest.raises(ConfigError, match="patch_vision: this model has no such encoder"):
        small_config().encoder("patch_vision")


def test_the_patch_level_sees_its_own_encoders_tokens(model, tokenizer, tmp_path):
    config, state = model
    video = write_video(tmp_path / "film.mp4", seconds=10)
    info = files.probe(video)
    assert extraction.frame_size(config, info) == extraction.frame_size(config, info, "patch_vision") == (32, 32)
    grounder = Grounder(config, state, tokenizer, cache_dir=tmp_path)
    encoded = grounder.encode(video)
    level = config.grounding.level("patch")
    (arrays,) = grounder._patch_features(encoded, [Window(2.0, 6.0, 4.0)], level)
    assert arrays["tokens"].shape == (8, 16, 24) and arrays["change"].shape == (8, 16) and arrays["valid"].all()
    images = grounder._pictures(encoded, Window(2.0, 6.0, 4.0), level)
    expected = revision.encode_images(config, state["params"], jnp.asarray(images), encoder="patch_vision")["tokens"]
    np.testing.assert_allclose(arrays["tokens"].astype(np.float32), expected, atol=5e-3)
    assert extraction.encoder_identity(config, state["params"]) != extraction.encoder_identity(config, state["params"], "patch_vision")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["shared", "its own"])
def test_where_everything_changes_the_pruner_s_place_does_not_matter(encoder, tokenizer, tmp_path):
    """Threshold 0 and a film that is never still: nothing is dropped, and the answers are the same."""
    whole = small_config() if encoder == "shared" else two_encoders()
    grounding = dataclasses.replace(whole.grounding, levels=whole.grounding.levels[2:])  # dense and patch
    config = dataclasses.replace(whole, grounding=grounding, pruner=PrunerConfig(threshold=0.0, budgets=(16,)))
    after = Grounder(config, noisy_state(whole), tokenizer, cache_dir=tmp_path)
    before = Model(overrides=("pruner.where=before_encoder",)).bounded(after)
    assert before.config.pruner.where == "before_encoder" and before.programs is after.programs
    video = after.encode(write_video(tmp_path / "film.mp4", seconds=40, restless=True))
    expected, found = (one.ground(video, ["a red ring", "a blue square"]) for one in (after, before))
    assert before.encoded_patches > 0 and after.encoded_patches > 0
    for one, other in zip(expected, found, strict=True):
        assert [(m.start_s, m.end_s) for m in one.moments] == [(m.start_s, m.end_s) for m in other.moments]
        np.testing.assert_allclose([m.confidence for m in one.moments], [m.confidence for m in other.moments], atol=1e-3)
    seen = {key[2].where: arrays for key, arrays in after._patches.items() if arrays is not None}
    assert set(seen) == {"after_encoder", "before_encoder"} and all((arrays["change"][arrays["valid"]] > 0).all() for arrays in seen.values())
