"""The same work as Beam pipelines, on the direct runner."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("faiss")

from launch import cli, curate, curate_beam
from tests.curation.conftest import images, towers_folder  # noqa: F401  fixtures
from tests.curation.server import completion, serving
from tests.launch.test_curate import RESULTS, arguments, said


def test_without_beam_one_line_says_so(images, towers_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: curate_beam.main(arguments(images, towers_folder, tmp_path / "out")))
    assert ended.value.code == 2 and 'pip install "revision-jax[beam]"' in capsys.readouterr().err


def test_the_files_are_those_of_one_machine(images, towers_folder, tmp_path, capsys):  # noqa: F811
    pytest.importorskip("apache_beam")
    with serving(lambda asked, number: (200, completion(said(asked)))) as server:
        models = ["--short", f"m@{server.url}", "--detailed", f"m@{server.url}"]
        assert curate.main(arguments(images, towers_folder, tmp_path / "one", *models)) == 0
        once = len(server.asked)
        beams = ["--", "--runner=DirectRunner"]
        assert curate_beam.main(arguments(images, towers_folder, tmp_path / "beam", *models, *beams)) == 0
        assert len(server.asked) == 2 * once
        assert curate_beam.main(arguments(images, towers_folder, tmp_path / "beam", *models)) == 0 and len(server.asked) == 2 * once
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "beam" / name).read_bytes() for name in RESULTS)
    assert not (tmp_path / "beam" / "work" / "errors.txt").exists()


def test_what_a_worker_says_ends_the_run_in_one_line(images, towers_folder, tmp_path, capsys):  # noqa: F811
    pytest.importorskip("apache_beam")
    with serving(lambda asked, number: (401, b"who are you")) as server, pytest.raises(SystemExit) as ended:
        cli.run(lambda: curate_beam.main(arguments(images, towers_folder, tmp_path / "out", "--short", f"m@{server.url}")))
    error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "the key is wrong or missing" in error[-1] and error[-1].startswith("error: ")
