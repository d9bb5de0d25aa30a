"""The command: what it prints, and one line and status 2 for bad input."""

import pytest

from launch import datasets
from launch.cli import run
from revision_jax.data.datasets import registry
from tests.data.datasets.owners import jsonl, put

ROW = {"video_id": "v", "duration_s": 60, "query": "a dog barks", "moments": [[1, 9]]}


def test_the_list_names_every_dataset_and_where_it_is_asked_for(capsys):
    datasets.main(["list"])
    said = capsys.readouterr().out
    for name in registry.NAMES:
        assert f"\n{name}: " in f"\n{said}" and registry.builder(name).ASKED in said


def test_a_build_prints_its_counts(tmp_path, capsys):
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW, {**ROW, "moments": [[9, 1]]}))
    put(tmp_path / "manual", "test.jsonl", jsonl(ROW))
    where = ["--manual", str(tmp_path / "manual"), "--out", str(tmp_path / "out")]
    datasets.main(["build", "jsonl", *where, "--rule", "splits=train,test", "--rule", "on_error=skip"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(tmp_path / "out" / "jsonl" / "default-")) and lines[0].endswith("1.0.0")
    assert lines[1:] == ["  train: 1 kept, 1 skipped: reversed_moment", "  test: 1 kept"]


def test_an_imitation_prints_what_it_holds_and_is_built_by_the_same_command(tmp_path, capsys):
    datasets.main(["imitate", "mad", "--out", str(tmp_path / "mad"), "--minutes", "2", "--questions", "30", "--width", "8"])
    assert capsys.readouterr().out.splitlines()[1:] == ["  train: 1 films, 24 questions", "  val: 1 films, 3 questions", "  test: 1 films, 3 questions"]
    datasets.main(["build", "mad", "--manual", str(tmp_path / "mad"), "--out", str(tmp_path / "built")])
    assert capsys.readouterr().out.splitlines()[1:] == ["  train: 24 kept", "  validation: 3 kept", "  test: 3 kept"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required"), (["build", "imagenet"], "not one of mad"), (["build", "mad"], "github.com/Soldelli/MAD"), (["build", "jsonl/9k"], "no preset"),
        (["build", "jsonl", "--rule", "on_error=maybe"], "on_error"), (["build", "jsonl"], "train.jsonl:1"), (["imitate", "jsonl"], "invalid choice"),
        (["imitate", "mad", "--films", "1"], "--films"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path, capsys, arguments, says):
    put(tmp_path / "manual", "train.jsonl", "{}\n")
    where = ["--out", str(tmp_path / "out")] if arguments else []
    where += ["--manual", str(tmp_path / "manual")] if arguments[:1] == ["build"] else []
    with pytest.raises(SystemExit) as caught:
        run(lambda: datasets.main([*arguments, *where]))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and says in error and not (tmp_path / "out").exists()
