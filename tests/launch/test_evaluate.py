"""Arguments that do not go together are refused before anything is loaded."""

import pytest

from launch import evaluate
from launch.cli import run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "imagenet"], "'imagenet' is not one of synthetic, folder, mad"),
        (["--dataset", "mad"], "--data: a folder must be given with --dataset mad"),
        (["--dataset", "folder"], "--data: a folder of annotated videos"),
        (["--dataset", "synthetic", "--videos", "films"], "--videos: is for the datasets"),
        (["--dataset", "folder", "--data", "x", "--split", "test"], "--split"),
    ],
)
def test_arguments_about_data(capsys, arguments, says):
    with pytest.raises(SystemExit) as caught:
        run(lambda: evaluate.main(arguments))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and says in error and error.count("\n") == 1
