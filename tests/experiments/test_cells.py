"""What each experiment would measure of the shipped model's config; nothing is asked or trained."""

import json

import pytest

from configs.tiny import get_config
from revision_jax.config import override
from revision_jax.evaluation import figures
from revision_jax.evaluation.baselines import leave_out, searched_alike
from revision_jax.experiments import training
from revision_jax.experiments.all import EXPERIMENTS
from revision_jax.experiments.bench import Bench
from revision_jax.experiments.journal import Journal
from tests.experiments.answers import answers

CELLS = {
    "hierarchies": 4, "levels": 3, "contrastive": 6, "negatives": 18, "confidence": 5, "length": 6, "needle": 20, "pruning": 9, "pruner_place": 2, "time": 9,
    "signal": 5, "distribution": 11,
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(get_config().to_json())
    return Bench(folder, folder / "work", cache=folder / "cache")


@pytest.mark.parametrize("name", CELLS)
def test_cells_have_names_and_settings_of_their_own(bench, name):
    experiment = EXPERIMENTS[name]
    cells = experiment.cells(bench)
    assert len(cells) == CELLS[name] and not (bench.folder / "work").exists()
    Journal(bench.workdir, experiment, "", bench.config).check(cells)
    assert len({json.dumps(cell.settings, sort_keys=True) for cell in cells}) == len(cells)
    assert not experiment.reference or experiment.reference in {cell.row for cell in cells}
    assert experiment.trains == any(cell.seed is not None for cell in cells)
    assert set(experiment.figures) <= {*figures.figures(answers(0.5)), "encoder patches"}


@pytest.mark.parametrize("name", [name for name in CELLS if not EXPERIMENTS[name].trains])
def test_what_is_switched_makes_a_config(bench, name):
    for cell in EXPERIMENTS[name].cells(bench):
        changed = override(bench.config, cell.settings.get("overrides", []))
        leave_out(changed, cell.settings.get("without", []))
        if any(not text.startswith("pruner.") for text in cell.settings.get("overrides", [])):
            assert changed != bench.config and searched_alike(changed) == searched_alike(bench.config)  # the same programs serve both


def test_the_pruner_makes_other_programs(bench):
    assert searched_alike(override(bench.config, ["pruner.threshold=4"])) != searched_alike(bench.config)


def test_trainings_differ_in_what_is_under_test_alone(bench):
    dense = training.ground_stage(bench.config).name
    wanted = {
        "contrastive": {"with": ("absent", 0.5), "without": ("absent", 0)},
        "negatives": {"swap": ("negatives", (("swap", 1.0),)), "all alike": ("negatives", tuple((n, 0.25) for n in ("random", "hard", "cross_video", "swap")))},
        "time": {"none": None, "text timestamps": None, "sinusoidal": None},
    }
    for name, rows in wanted.items():
        made = {cell.row: training.short(bench.config, cell.settings["overrides"], 0, 1.0, 3600.0) for cell in EXPERIMENTS[name].cells(bench)}
        assert rows.keys() <= made.keys() and len({config.to_json() for config in made.values()}) == len(made)
        for row, expected in rows.items():
            language, ground = made[row].train.stages
            assert (language.task, ground.name, language.steps, ground.steps) == ("language", dense, 300, 500)
            assert expected is None or getattr(ground, expected[0]) == expected[1]
    assert {config.decoder.time for config in made.values()} == {"none", "token", "sinusoidal"}


def test_a_short_training_is_a_share_of_its_steps(bench):
    config = training.short(bench.config, (), 7, 0.1, 600.0)
    assert [stage.steps for stage in config.train.stages] == [30, 50] and config.train.seed == 7
    assert (config.data.train_videos, config.data.patch_videos, config.data.duration_s) == (training.TRAIN_VIDEOS, 0, 600.0)
