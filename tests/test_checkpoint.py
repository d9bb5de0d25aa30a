import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from configs.tiny import get_config
from revision_jax import checkpoint, paths
from revision_jax.checkpoint import export, load, load_config, set_calibration
from revision_jax.errors import UserError


@pytest.fixture
def state():
    random = np.random.default_rng(0)
    return {
        "params": {"text": {"w": random.normal(size=(3, 4)).astype(np.float32)}, "similarity": {"scale": np.float32(2.5)}},
        "lora/dense": {"q": {"a": random.normal(size=(2, 4, 2)).astype(np.float32)}},
        "adapter/dense": {"count": np.arange(3, dtype=np.int32)},
    }


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"version": "1.0"}')
    return path


def shapes(state):
    return {name: np.shape(leaf) for name, leaf in paths.flatten(state).items()}


def test_what_is_written_is_read_again(tmp_path, state, tokenizer):
    out = export(state, get_config(), tokenizer, tmp_path / "out", calibration={"temperature": 1.5})
    assert sorted(path.name for path in out.iterdir()) == ["calibration.json", "config.json", "model.safetensors", "tokenizer.json"]
    config, read, words, calibration = load(out, shapes(state))
    assert config == get_config() == load_config(out)
    assert words.read_text() == tokenizer.read_text() and calibration == {"temperature": 1.5}
    assert set(read) == set(state)
    for name, leaf in paths.flatten(state).items():
        stored = paths.flatten(read)[name]
        assert stored.shape == np.shape(leaf)
        if leaf.dtype.kind == "f":
            assert stored.dtype == np.float16
            np.testing.assert_array_equal(stored, leaf.astype(np.float16))
        else:
            np.testing.assert_array_equal(stored, leaf)
    assert paths.flatten(load(out, dtype="float32").state)["params/text/w"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes(tmp_path, state, tokenizer, dtype):
    read = load(export(state, get_config(), tokenizer, tmp_path / "out", dtype=dtype)).state
    wanted = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    np.testing.assert_array_equal(read["params"]["text"]["w"], state["params"]["text"]["w"].astype(wanted))
    assert load(tmp_path / "out").calibration is None


def test_expected_may_be_made_from_the_config(tmp_path, state, tokenizer):
    out = export(state, get_config(), tokenizer, tmp_path / "out")
    seen = []
    load(out, lambda config: seen.append(config) or shapes(state))
    assert seen == [get_config()]


def test_every_mismatch_is_listed_in_one_line(tmp_path, state, tokenizer):
    out = export(state, get_config(), tokenizer, tmp_path / "out")
    expected = shapes(state)
    del expected["adapter/dense/count"]
    expected["params/vision/w"] = (7,)
    expected["params/text/w"] = (4, 3)
    with pytest.raises(UserError) as error:
        load(out, expected)
    told = str(error.value)
    assert "\n" not in told and "3 tensors" in told
    assert "adapter/dense/count is not part of the model" in told
    assert "params/vision/w is missing" in told
    assert "params/text/w has shape (3, 4), config says (4, 3)" in told


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, state, tokenizer, missing):
    out = export(state, get_config(), tokenizer, tmp_path / "out")
    (out / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load(out)


def test_unreadable_files_are_named(tmp_path, state, tokenizer):
    out = export(state, get_config(), tokenizer, tmp_path / "out")
    with pytest.raises(UserError, match="no such checkpoint"):
        load(tmp_path / "nowhere")
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated"):
        load(out)
    (out / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        load(out)
    values = get_config().to_dict() | {"colour": 1}
    (out / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="unknown field colour"):
        load_config(out)


def test_export_replaces_a_checkpoint_but_nothing_else(tmp_path, state, tokenizer):
    out = export(state, get_config(), tokenizer, tmp_path / "out", calibration={"temperature": 1.0})
    export(state, dataclasses.replace(get_config(), name="second"), tokenizer, out)
    assert load_config(out).name == "second" and load(out).calibration is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not a checkpoint"):
        export(state, get_config(), tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_failed_export_leaves_the_old_one_and_no_rest(tmp_path, state, tokenizer, monkeypatch):
    out = export(state, get_config(), tokenizer, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        export(state, get_config(), tokenizer, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "words.json"]


def test_values_that_do_not_fit_are_refused(tmp_path, state, tokenizer):
    state["params"]["text"]["w"][0, 0] = 1e6
    with pytest.raises(UserError, match="not finite in float16: params/text/w"):
        export(state, get_config(), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="dtype: 'int8'"):
        export(state, get_config(), tokenizer, tmp_path / "out", dtype="int8")
    with pytest.raises(UserError, match="no such tokenizer"):
        export(state, get_config(), tmp_path / "none.json", tmp_path / "out")


def test_calibration_can_be_set_later(tmp_path, state, tokenizer):
    out = export(state, get_config(), tokenizer, tmp_path / "out")
    set_calibration(out, {"threshold": 0.4})
    assert load(out).calibration == {"threshold": 0.4}
    with pytest.raises(UserError, match="not a checkpoint"):
        set_calibration(tmp_path, {})
