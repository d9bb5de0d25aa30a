import subprocess
import sys
from pathlib import Path

import pytest

from configs.tiny import get_config
from launch.train import load_config, main, parse
from revision_jax.config import ConfigError
from revision_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_preset_and_a_file_give_the_same_config():
    assert load_config("tiny") == load_config(str(ROOT / "configs" / "tiny.py")) == get_config()


def test_overrides_may_stand_anywhere():
    options = parse(["tiny", "train.seed=3", "--stages", "1a,2", "mesh.data=2"])
    assert options.overrides == ["train.seed=3", "mesh.data=2"] and options.stages == "1a,2"


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["nosuch"], r"nosuch: no such config; there are .*tiny"),
        (["nosuch.py"], "nosuch.py: no such config file"),
        (["tiny", "train.sead=3"], r"train\.sead: unknown field; known are seed"),
        (["tiny", "vision.width=-1"], r"vision\.width: must be above 0"),
        (["tiny", "--stage"], "see --help"),
        ([], "CONFIG"),
    ],
)
def test_bad_input_is_one_line_that_names_it(arguments, told):
    with pytest.raises((UserError, ConfigError), match=told):
        main(arguments)


def test_a_file_that_is_no_config_is_named(tmp_path):
    path = tmp_path / "mine.py"
    for text, told in (("x = 1", "has no function get_config"), ("def get_config(): return 3", "gives a int"), ("def (", "cannot be read as a config")):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            load_config(str(path))


def test_exit_status_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "launch.train", "tiny", "colour=red", "--workdir", str(tmp_path / "w")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: colour: unknown field") and done.stderr.count("\n") == 1 and not done.stdout
    assert not (tmp_path / "w").exists()
