"""The commands that pages tell people to type are ones that the programs take."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from launch.train import load_config
from revision_jax.config import override

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("launch/*/README.md")])


def commands(page: Path) -> list[list[str]]:
    """The words of every `python -m launch.*` in a page's blocks of shell; those that stand for several ([optional], ...) are left out."""
    found = []
    for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            started = re.search(r"python -m (launch\.\S.*)", line)
            if started is not None and kind in ("", "bash", "sh"):
                words = shlex.split(started[1].replace("$I", "0"), comments=True)  # of a loop
                words = words[: words.index("&")] if "&" in words else words
                if not any(word == "..." or word[:1] == "[" or (word[-1:] == "]" and "=" not in word) for word in words):
                    found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_a_page_parse(page):
    for module, *words in commands(page):
        options = importlib.import_module(module).parse(words)
        if module in ("launch.train", "launch.plan") and re.fullmatch(r"[a-z0-9_]+", options.config):  # not a file of one's own
            override(load_config(options.config), options.overrides)


def test_commands_are_found_and_wrong_ones_are_told(tmp_path):
    page = tmp_path / "page.md"
    lines = "python -m launch.train tiny \\\n    train.seed=3   # note\npython -m launch.train tiny [--stage A]\n"
    page.write_text(f"# A page\n\n```bash\n{lines}```\n`python -m launch.x` and\n\n```python\npython -m launch.y\n```\n")
    assert commands(page) == [["launch.train", "tiny", "train.seed=3"]]
    page.write_text("```\npython -m launch.evaluate --data-set mad\n```\n")
    with pytest.raises(Exception, match="--data-set"):
        test_commands_on_a_page_parse(page)
