"""Opening foreign checkpoints: what is found, what is read, and every way in which a file can be wrong."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from revision_jax.convert.source import ArraySource, open_source
from revision_jax.errors import UserError

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RANDOM.normal(size=(3, 4)).astype(np.float32),
    "a.bias": RANDOM.normal(size=5).astype(ml_dtypes.bfloat16),
    "b.weight": RANDOM.normal(size=(2, 2, 2)).astype(np.float16),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def sharded(tmp_path):
    """Two shards and an index, as transformers writes them."""
    names = list(ARRAYS)
    table = {}
    for i, part in enumerate((names[:2], names[2:]), start=1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: ARRAYS[name] for name in part}, tmp_path / file, metadata={"format": "pt"})
        table |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def same(source):
    assert set(source.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        info, read = source.tensors[name], source.read(name)
        assert (info.shape, info.dtype) == (array.shape, array.dtype) == (read.shape, read.dtype)
        np.testing.assert_array_equal(read, array)


def test_shards_with_an_index(sharded):
    source = open_source(sharded)
    same(source)
    assert source.config == {"model_type": "llama"} and source.metadata == {"format": "pt"}
    assert source.tensors["b.weight"].file.name == "model-00002-of-00002.safetensors"


def test_shards_without_an_index_and_single_files(sharded, tmp_path):
    (sharded / "model.safetensors.index.json").unlink()
    same(open_source(sharded))
    save_file(ARRAYS, sharded / "model.safetensors")  # preferred: shards may be what an older save left
    same(open_source(sharded))
    assert open_source(sharded).tensors["scalar"].file.name == "model.safetensors"
    other = sharded / "other"
    other.mkdir()
    save_file(ARRAYS, other / "anything.safetensors")
    same(open_source(other))
    same(open_source(other / "anything.safetensors"))


def test_a_tensor_is_mapped_not_copied(sharded):
    array = open_source(sharded).read("a.weight")
    assert not array.flags.owndata and not array.flags.writeable


def test_an_adapter_directory_has_the_adapter_s_config(tmp_path):
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert open_source(tmp_path).config == open_source(tmp_path / "adapter_model.safetensors").config == {"r": 4}


def test_renamed(sharded):
    view = open_source(sharded).renamed(lambda name: name.removeprefix("a.") if name.startswith("a.") else None)
    assert list(view.tensors) == ["a.weight".removeprefix("a."), "bias"] and view.config["model_type"] == "llama"
    np.testing.assert_array_equal(view.read("bias"), ARRAYS["a.bias"])
    with pytest.raises(UserError, match=r"a\.weight and a\.bias are both x|a\.bias and a\.weight are both x"):
        ArraySource(ARRAYS).renamed(lambda name: "x")


def test_array_source():
    same(ArraySource(ARRAYS, {"r": 1}))


# ----------------------------------------------------------------------------------------------------------------------- damaged


def complaint(path) -> str:
    with pytest.raises(UserError) as error:
        open_source(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_there(tmp_path):
    assert "no such file" in complaint(tmp_path / "nowhere")
    assert "no weights there" in complaint(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "not a file of weights" in complaint(tmp_path / "notes.txt")
    for name in ("one", "two"):
        save_file({"x": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    assert "one.safetensors, two.safetensors" in complaint(tmp_path)


def test_missing_shards(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in complaint(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    assert "model-00002-of-00002.safetensors is missing" in complaint(sharded)


def test_everything_wrong_is_told_at_once(sharded):
    index = sharded / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"] |= {"ghost": "model-00001-of-00002.safetensors", "far": "../elsewhere.safetensors", "lost": "model-00007-of-00002.safetensors"}
    index.write_text(json.dumps(table))
    whole = (sharded / "model-00002-of-00002.safetensors").read_bytes()
    (sharded / "model-00002-of-00002.safetensors").write_bytes(whole[:-4])
    (sharded / "config.json").write_text("{")
    told = complaint(sharded)
    for part in ("ghost lies in model-00001", "../elsewhere.safetensors", "model-00007-of-00002.safetensors is missing",
                 "model-00002-of-00002.safetensors is trunc",
                 "config.json: not readable"):  # fmt: skip
        assert part in told, part


@pytest.mark.parametrize("length", [0, 5, 60])
def test_truncated_headers(tmp_path, length):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:length])
    assert "model.safetensors is truncated" in complaint(tmp_path)


def test_a_header_that_lies(tmp_path):
    def write(header, data=b"1234"):
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)

    write({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})
    assert "x has shape (2,)" in complaint(tmp_path)
    write({"x": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}})
    assert "dtype Q4" in complaint(tmp_path)
    write({"x": {"dtype": "F32", "shape": [1]}})
    assert "not readable" in complaint(tmp_path)
    write([1])
    assert "not readable" in complaint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in complaint(tmp_path)


def test_a_name_in_two_shards(sharded):
    save_file({name: ARRAYS[name] for name in ("b.weight", "scalar", "empty", "a.bias")}, sharded / "model-00002-of-00002.safetensors")
    assert "a.bias is also in model-00001" in complaint(sharded)


# ------------------------------------------------------------------------------------------------------------------------- torch


def torch_arrays(torch):
    return {name: torch.from_numpy(np.array(array, np.float32)).to(getattr(torch, str(np.asarray(array).dtype))) for name, array in ARRAYS.items()}


@pytest.mark.torch
@pytest.mark.parametrize("old", [False, True])
def test_torch_files(tmp_path, old):
    torch = pytest.importorskip("torch")
    torch.save(torch_arrays(torch), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    same(open_source(tmp_path))
    same(open_source(tmp_path / "pytorch_model.bin"))
    torch.save({"state_dict": torch_arrays(torch)}, tmp_path / "other.pt")
    same(open_source(tmp_path / "other.pt"))


@pytest.mark.torch
def test_sharded_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    arrays, names = torch_arrays(torch), list(ARRAYS)
    for i, part in enumerate((names[:3], names[3:]), start=1):
        torch.save({name: arrays[name] for name in part}, tmp_path / f"pytorch_model-{i:05d}-of-00002.bin")
    same(open_source(tmp_path))
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    assert "pytorch_model-00001-of-00002.bin is missing" in complaint(tmp_path)


class Harmful:
    ran = False

    def __reduce__(self):
        return setattr, (Harmful, "ran", True)


@pytest.mark.torch
def test_a_pickle_that_wants_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": Harmful()}, tmp_path / "pytorch_model.bin")
    assert "refused" in complaint(tmp_path) and not Harmful.ran
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Harmful()}))
    assert "pytorch_model.bin" in complaint(tmp_path) and not Harmful.ran


@pytest.mark.torch
def test_other_torch_files_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    assert "does not hold a table of tensors" in complaint(tmp_path)
    torch.save(torch_arrays(torch), tmp_path / "pytorch_model.bin")
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    assert "pytorch_model.bin: " in complaint(tmp_path)


def test_without_torch_one_line_says_so(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "install torch" in complaint(tmp_path)
