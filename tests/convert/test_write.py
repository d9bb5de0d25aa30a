"""Streaming into our layout and into foreign ones: bytes where they belong, or nothing at all."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from jax import ShapeDtypeStruct
from safetensors import safe_open

from configs.tiny import get_config
from revision_jax import checkpoint, paths
from revision_jax.convert import transforms, write
from revision_jax.convert.load import load_state
from revision_jax.convert.plan import Rule, make_plan
from revision_jax.convert.source import ArraySource, open_source
from revision_jax.convert.transforms import TRANSPOSE
from revision_jax.convert.write import write_checkpoint, write_external, write_torch
from revision_jax.errors import UserError

RANDOM = np.random.default_rng(0)
ARRAYS = {"embed": RANDOM.normal(size=(9, 4)).astype(np.float32), "norm": RANDOM.normal(size=5).astype(np.float32), "scalar": np.array(3, np.float32),
          **{f"up.{i}": RANDOM.normal(size=(6, 4)).astype(np.float32) for i in range(3)}}  # fmt: skip
RULES = (Rule("embed", "params/embed"), Rule("norm", "params/norm"), Rule("scalar", "params/scalar"), Rule("up.{i}", "params/up[{i}]", TRANSPOSE),
         Rule(None, "params/zero"), Rule("extra", "params/extra", optional=True))  # fmt: skip
TARGET = {"params/embed": (9, 4), "params/norm": (5,), "params/scalar": (), "params/up": (3, 4, 6), "params/zero": (2, 3), "params/extra": (7,)}
WANTED = {"params/embed": ARRAYS["embed"], "params/norm": ARRAYS["norm"], "params/scalar": ARRAYS["scalar"], "params/zero": np.zeros((2, 3), np.float32),
          "params/up": np.stack([ARRAYS[f"up.{i}"].T for i in range(3)])}  # fmt: skip


def plan(arrays=ARRAYS):
    return make_plan(RULES, (), ArraySource(arrays), {name: ShapeDtypeStruct(shape, np.float32) for name, shape in TARGET.items()})


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.json"
    path.write_text('{"version": "1.0"}')
    return {"tokenizer.json": path, "text_tokenizer/tokenizer.json": "{}"}


@pytest.mark.parametrize(("block", "tile"), [(write.BLOCK, transforms.TILE), (32, 3)])
def test_a_plan_becomes_a_checkpoint(tmp_path, words, monkeypatch, block, tile):
    monkeypatch.setattr(write, "BLOCK", block)
    monkeypatch.setattr(transforms, "TILE", tile)
    extra = {"adapter/dense": {"count": np.arange(3, dtype=np.int32)}}
    out = write_checkpoint(tmp_path / "out", get_config(), [plan()], words, extra_state=extra, calibration={"threshold": 0.4})
    assert (out / "text_tokenizer" / "tokenizer.json").read_text() == "{}" and checkpoint.is_checkpoint(out)
    read = checkpoint.load(out)
    leaves = paths.flatten(read.state)
    assert read.config == get_config() and read.calibration == {"threshold": 0.4} and read.tokenizer.read_text() == '{"version": "1.0"}'
    assert leaves.pop("adapter/dense/count").tolist() == [0, 1, 2]
    assert set(leaves) == set(WANTED)
    for name, array in WANTED.items():
        np.testing.assert_array_equal(leaves[name], array)
    with safe_open(out / "model.safetensors", framework="numpy") as file:  # the reference reader agrees
        assert set(file.keys()) == {*WANTED, "adapter/dense/count"} and file.metadata()["format"] == "revision_jax"
        np.testing.assert_array_equal(file.get_tensor("params/up"), WANTED["params/up"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast_on_the_way(tmp_path, words, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    extra = {"adapter/x": {"count": np.arange(3, dtype=np.int32)}}
    leaves = paths.flatten(checkpoint.load(write_checkpoint(tmp_path / "out", get_config(), [plan()], words, dtype=dtype, extra_state=extra)).state)
    assert leaves.pop("adapter/x/count").dtype == np.int32
    for name, array in WANTED.items():
        assert leaves[name].dtype == kind
        np.testing.assert_array_equal(leaves[name], array.astype(kind))


def nothing_left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_values_that_do_not_fit_leave_nothing(tmp_path, words):
    arrays = ARRAYS | {"up.1": np.full((6, 4), 1e6, np.float32)}
    with pytest.raises(UserError, match=r"not finite in float16: params/up\[1\]"):
        write_checkpoint(tmp_path / "out", get_config(), [plan(arrays)], words, dtype="float16")
    assert nothing_left(tmp_path) == ["words.json"]
    with pytest.raises(UserError, match="dtype: 'int4'"):
        write_checkpoint(tmp_path / "out", get_config(), [plan()], words, dtype="int4")
    with pytest.raises(UserError, match="given twice: params/embed"):
        write_checkpoint(tmp_path / "out", get_config(), [plan(), plan()], words)


def test_only_our_own_checkpoints_are_replaced(tmp_path, words):
    out = write_checkpoint(tmp_path / "out", get_config(), [plan()], words)
    write_checkpoint(out, get_config(), [plan()], words)
    theirs = tmp_path / "theirs"
    write_external(theirs, ARRAYS.items(), {"model_type": "llama"})
    with pytest.raises(UserError, match="exists and is not a checkpoint"):
        write_checkpoint(theirs, get_config(), [plan()], words)
    with pytest.raises(UserError, match="exists and is not empty"):
        write_external(out, ARRAYS.items(), {})
    assert open_source(theirs).config == {"model_type": "llama"}


def test_a_full_disk_leaves_the_old_one(tmp_path, words, monkeypatch):
    out = write_checkpoint(tmp_path / "out", get_config(), [plan()], words)
    before = (out / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_allocate", full)
    with pytest.raises(UserError, match="No space left"):
        write_checkpoint(out, get_config(), [plan()], words)
    assert (out / "model.safetensors").read_bytes() == before and nothing_left(tmp_path) == ["out", "words.json"]


@pytest.mark.parametrize(("limit", "shards"), [(10**9, 1), (200, 3), (1, 6)])
def test_external_shards(tmp_path, limit, shards):
    out = write_external(tmp_path / "out", ARRAYS.items(), {"a": 1}, limit, stem="adapter_model", config_name="adapter_config.json", files={"notes": "x"})
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == shards and json.loads((out / "adapter_config.json").read_text()) == {"a": 1} and (out / "notes").read_text() == "x"
    source = open_source(out)
    assert set(source.tensors) == set(ARRAYS) and (out / "adapter_model.safetensors.index.json").exists() == (shards > 1)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(source.read(name), array)
    with safe_open(files[0], framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_more_names_than_a_header_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "HEADER", 1024)
    arrays = {f"a_rather_long_name.{i}": np.full(2, i, np.float32) for i in range(20)}
    source = open_source(write_external(tmp_path / "out", arrays.items(), None))
    assert all(source.read(name)[1] == array[1] for name, array in arrays.items()) and len(list((tmp_path / "out").glob("*.safetensors"))) > 2


def test_an_export_that_fails_leaves_nothing(tmp_path):
    def tensors():
        yield "a", np.zeros(3, np.float32)
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        write_external(tmp_path / "out", tensors(), {})
    with pytest.raises(UserError, match="not finite in float16: b"):
        write_external(tmp_path / "out", [("b", np.full(3, 1e9, np.float32))], {}, dtype="float16")
    assert nothing_left(tmp_path) == []


@pytest.mark.torch
def test_torch_files(tmp_path):
    pytest.importorskip("torch")
    arrays = ARRAYS | {"half": ARRAYS["embed"].astype(ml_dtypes.bfloat16)}
    source = open_source(write_torch(tmp_path / "out", arrays.items(), "mm_projector.bin") / "mm_projector.bin")
    for name, array in arrays.items():
        assert source.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(source.read(name), array)


# ----------------------------------------------------------------------------------------------------------------------- loading


def test_state_in_memory():
    leaves = paths.flatten(load_state([plan()], dtype="bfloat16"))
    assert set(leaves) == set(WANTED) and all(leaf.dtype == ml_dtypes.bfloat16 and leaf.flags.writeable for leaf in leaves.values())
    for name, array in WANTED.items():
        np.testing.assert_array_equal(leaves[name], array.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(paths.flatten(load_state([plan()]))["params/up"], WANTED["params/up"])
