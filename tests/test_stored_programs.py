"""Programs that outlive the process: what is read back, what is made anew, and that nothing on the disk can do harm."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import stored_programs
from revision_jax.stored_programs import StoredProgram, program_folder, stored_json


class Pair(NamedTuple):
    total: jax.Array
    nothing: None
    parts: dict


jax.export.register_namedtuple_serialization(Pair, serialized_name="tests.Pair")


def function(state: dict, xs: list) -> Pair:
    return Pair(state["w"] @ xs[0] + xs[1], None, {"a": xs[0].astype(jnp.float16)})


ARGS = ({"w": np.eye(3, dtype=np.float32)}, [np.arange(3, dtype=np.float32), np.ones(3, np.float32)])


def program(identity: str = "one", name: str = "sum") -> StoredProgram:
    return StoredProgram(function, name, identity)


def answers(program: StoredProgram) -> bool:
    out = program(*ARGS)
    assert isinstance(out, Pair) and out.nothing is None and out.parts["a"].dtype == jnp.float16
    np.testing.assert_array_equal(out.total, [1.0, 2.0, 3.0])
    return program.traced == 0  # read back


@pytest.fixture
def folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    yield tmp_path / "xla" / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


def stored(folder) -> list:
    return sorted(folder.iterdir())


def test_the_second_one_reads_what_the_first_one_traced(folder):
    assert program_folder() == folder
    first, second = program(), program()
    assert not answers(first) and first.count == 1
    assert len(stored(folder)) == 1 and b"sum" not in stored(folder)[0].name.encode()
    assert answers(second) and second.count == 1
    assert answers(second) and second.count == 1  # ready
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ARGS)
    third = program()
    third.prepare(*shapes)
    assert answers(third) and third.count == 1


def test_what_differs_has_a_file_of_its_own(folder, monkeypatch):
    assert not answers(program())
    assert not answers(program(identity="two")) and not answers(program(name="other"))
    half = program()
    half(*jax.tree.map(lambda x: x.astype(np.float16), ARGS))
    assert half.traced == 1
    assert answers(program())
    monkeypatch.setattr(stored_programs, "source_digest", lambda: "changed code")
    assert not answers(program())
    monkeypatch.setattr(stored_programs, "versions", lambda: ("0.0.1",))
    assert not answers(program())
    assert len(stored(folder)) == 6
    with jax.default_matmul_precision("highest"):
        assert not answers(program())


def test_the_source_is_this_packages(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    code = tmp_path / "models" / "a.py"
    code.write_text("x = 1\n")
    monkeypatch.setattr(stored_programs, "__file__", str(tmp_path / "stored_programs.py"))
    source = stored_programs.source_digest.__wrapped__
    before = source()
    assert before == source()
    code.write_text("x = 2\n")
    assert source() != before


@pytest.mark.parametrize("harm", ["cut", "empty", "garbage", "flipped", "another's"])
def test_a_file_that_is_not_whole_is_made_anew(folder, harm):
    assert not answers(program())
    (file,) = stored(folder)
    data = file.read_bytes()
    if harm == "another's":
        assert not answers(program(identity="two"))
        data = next(other for other in stored(folder) if other != file).read_bytes()
    harmed = {"cut": data[: len(data) // 2], "empty": b"", "garbage": b"\x80\x04" * 500, "flipped": data[:-1] + bytes([data[-1] ^ 1]), "another's": data}
    file.write_bytes(harmed[harm])
    assert not answers(program())  # traced again
    assert answers(program())  # and stored again


def test_without_a_folder_nothing_is_kept(tmp_path, folder):
    jax.config.update("jax_compilation_cache_dir", None)
    assert program_folder() is None and not answers(program()) and not answers(program())
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    assert program_folder() is None
    (tmp_path / "file").write_text("in the way")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
    assert not answers(program())  # cannot be written: answers all the same
    assert stored_json("n", "one", lambda: [1]) == [1]


def test_what_was_not_used_for_longest_goes_first(folder, monkeypatch):
    for age, identity in enumerate(("old", "used", "new")):
        assert not answers(program(identity))
        (made,) = (file for file in stored(folder) if file.stat().st_mtime_ns > 10**18)
        os.utime(made, ns=(10**9 * (age + 1),) * 2)
    assert answers(program("used"))  # which counts as a use
    size = stored(folder)[0].stat().st_size
    monkeypatch.setattr(stored_programs, "LIMIT", int(3.5 * size))
    assert not answers(program("fourth")) and len(stored(folder)) == 3
    assert answers(program("used")) and answers(program("new")) and answers(program("fourth"))
    assert not answers(program("old"))


def test_values_are_found_out_once(folder):
    assert stored_json("shapes", "one", lambda: {"a": [1, 2]}) == {"a": [1, 2]}
    assert stored_json("shapes", "one", lambda: None) == {"a": [1, 2]}
    assert stored_json("shapes", "two", lambda: None) is None


CHILD = """
import sys, jax, numpy as np
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from revision_jax.stored_programs import StoredProgram
double, x = StoredProgram(lambda x: x * 2, "double", ""), np.arange(4.0, dtype=np.float32)
assert double(x).tolist() == [0, 2, 4, 6]
first = double.traced
other = StoredProgram(lambda x: x * 2, "double", "")
assert other(jax.device_put(x, jax.devices()[1])).devices() == {jax.devices()[1]} and other.traced == 1
print(first)
"""


@pytest.mark.slow
def test_two_processes_at_once(folder):
    """Both answer, one file is left and nothing else; this process reads it. On a device that is not the first nothing stored is used."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", CHILD, str(folder.parent)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0] and "1" in said
    assert len(stored(folder)) == 1
    double = StoredProgram(lambda x: x * 2, "double", "")
    assert double(np.ones(4, np.float32)).tolist() == [2, 2, 2, 2] and double.traced == 0
