"""`launch.bench length` on a small model: what it counts, and that a nested level keeps the language model's part from growing with the film."""

from __future__ import annotations

import argparse

import pytest
from PIL import Image

from configs.tiny import get_config
from launch.benches import curves
from launch.benches import length as bench
from tests.grounding.conftest import config, state, tokenizer  # noqa: F401  fixtures
from tests.grounding.test_grounder import folder  # noqa: F401


@pytest.mark.slow
def test_every_length_is_measured(folder, tmp_path, monkeypatch):  # noqa: F811
    lengths = {"1 min": 60, "10 min": 600, "40 min": 2400, "2 h": 7200}
    for name, value in {"LENGTHS": lengths, "LAST": "2 h", "BEFORE": "40 min"}.items():
        monkeypatch.setattr(bench, name, value)
    by_turns = bench.by_turns
    monkeypatch.setattr(bench, "by_turns", lambda makers: by_turns(makers, 1))
    figures = bench.length(argparse.Namespace(checkpoint=str(folder), workdir=tmp_path))
    nested, flat = ({name: figures[f"{way}: {name}, tokens of the language model"] for name in lengths} for way in ("as configured", "without nested levels"))
    assert nested["10 min"] == flat["10 min"] < flat["40 min"] < flat["2 h"]  # the nested level begins at half an hour
    assert nested["2 h"] - nested["40 min"] < 0.5 * (flat["2 h"] - flat["40 min"])
    assert nested["2 h"] / nested["40 min"] < 3 < 1.2 * flat["2 h"] / flat["40 min"]
    memory = {name: figures[f"as configured: {name}, MB of device memory"] for name in lengths}
    assert memory["2 h"] < 1.2 * max(memory["10 min"], memory["40 min"])  # one of these fills its batches, the other half of them
    assert figures["as configured: 2 h to 40 min, tokens of the language model"] == nested["2 h"] / nested["40 min"]
    assert all(value > 0 for name, value in figures.items() if name != "picture")
    assert Image.open(figures["picture"]).size == (4 * curves.WIDTH + curves.MARGIN, curves.HEIGHT)


def test_levels_are_left_out_that_stages_are_trained_for():
    shipped = get_config()
    assert any(stage.level == "nested" for stage in shipped.train.stages)
    assert [level.name for level in bench.without(shipped, "nested").grounding.levels] == ["sparse", "dense", "patch", "flat"]
