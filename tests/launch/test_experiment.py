"""`launch.experiment` from end to end with a very small random model and films of a minute: each kind of experiment, a kill, and bad input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import experiment
from launch.cli import run
from revision_jax import checkpoint, paths
from revision_jax.config import StageConfig, TrainConfig
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.experiments.all import EXPERIMENTS
from revision_jax.experiments.bench import Bench
from tests.grounding.conftest import WORDS, noisy_state, small_config

ROOT = Path(__file__).parents[2]
SHORT = ["--videos", "1", "--duration", "60"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint whose config has the stages that experiments train."""
    place, small = tmp_path_factory.mktemp("model"), small_config()
    stages = (
        StageConfig(name="language", task="language", train=("params/decoder", "adapter/dense"), batch=4, learning_rate=1e-3),
        StageConfig(name="1a", level="dense", train=("lora/dense", "adapter/dense"), batch=4, learning_rate=1e-3, negatives=(("random", 1.0),)),
    )
    levels = tuple(dataclasses.replace(level, min_duration_s=90.0) if level.kind == "nested" else level for level in small.grounding.levels)
    grounding = dataclasses.replace(small.grounding, levels=levels, query_len=32, prompt_len=48)
    text = dataclasses.replace(small.text, max_len=32)
    config = dataclasses.replace(small, grounding=grounding, text=text, train=TrainConfig(stages=stages))
    build_word_tokenizer(WORDS, numbers=256, vocab_size=320).save(place)
    return checkpoint.export(noisy_state(config), config, place / "tokenizer.json", place / "small", dtype="float32")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Films, features and compiled programs are made once for all experiments."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def _terminates():
    """The command listens for SIGTERM; the tests' own process does as before."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def command(name, model, workdir, out, *more):
    return [name, "--checkpoint", str(model), "--workdir", str(workdir), "--cache", str(workdir / "cache"), "--out", str(out), *SHORT, *more]


def records(workdir, name):
    return {file.stem: json.loads(file.read_text()) for file in (workdir / name / "cells").glob("*.json")}


def made(name, model, workdir, out, *more) -> tuple[str, dict]:
    """The page and the cells' records, of an experiment run to its end."""
    assert experiment.main(command(name, model, workdir, out, *more)) == 0
    with Image.open(out / f"{name}.png") as image:
        image.verify()
    text = (out / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n") and str(workdir) not in text and f"python -m launch.experiment {name} --videos 1 --duration 60" in text
    assert not list(workdir.rglob("*.new"))
    return text, records(workdir, name)


@pytest.mark.slow
def test_levels(model, workdir, tmp_path):
    text, cells = made("hierarchies", model, workdir, tmp_path)
    assert list(cells) and set(cells) == {"1-dense", "2-sparse-dense", "3-sparse-dense-patch", "4-nested-sparse-dense-patch"}
    prompts = [cells[name]["figures"]["prompts"] for name in sorted(cells)]
    tokens = [cells[name]["figures"]["tokens"] for name in sorted(cells)]
    assert prompts[1] < prompts[2] < prompts[3] and tokens[1] < tokens[2] and min(prompts) > 0
    assert "Less **1: dense**" in text and "visual tokens" in text
    _, cells = made("levels", model, workdir, tmp_path)
    assert cells["dense-only"]["figures"]["window_recall"] is None and cells["both"]["figures"]["window_recall"] is not None


@pytest.mark.slow
def test_measures_of_the_same_answers(model, workdir, tmp_path):
    text, cells = made("confidence", model, workdir, tmp_path)
    spans = {tuple((q["query_id"], *q["moments"][0].values())[:3] for q in record["questions"]) for record in cells.values()}
    assert len(cells) == 5 and len(spans) == 1  # one pass: the answers are the same
    confidences = {tuple(q["moments"][0]["confidence"] for q in record["questions"]) for record in cells.values()}
    assert len(confidences) == 5 and "AUROC of right" in text
    kept = {file: file.stat().st_mtime_ns for file in (workdir / "answers").rglob("*.jsonl")}
    (workdir / "confidence" / "cells" / "max-entropy.json").unlink()
    made("confidence", model, workdir, tmp_path)
    assert kept == {file: file.stat().st_mtime_ns for file in (workdir / "answers").rglob("*.jsonl")}  # nor asked again for a cell that is gone


@pytest.mark.slow
def test_lengths_and_depths(model, workdir, tmp_path):
    text, cells = made("length", model, workdir, tmp_path)
    assert set(cells) == {"1-min", "3-min", "9-min", "10-min-one-film-repeated-one-target"} and "| others |" in text
    assert cells["9-min"]["questions"][0]["duration_s"] == 540
    asked = cells["10-min-one-film-repeated-one-target"]["questions"]
    assert all(q["duration_s"] == 600 and len(q["truth"]) == 1 and 0 <= q["truth"][0][0] < q["truth"][0][1] <= 600 for q in asked)
    assert cells["10-min-one-film-repeated-one-target"]["figures"]["tokens"] > cells["1-min"]["figures"]["tokens"]


@pytest.mark.slow
def test_pruning_before_and_after_the_encoder(model, workdir, tmp_path):
    text, cells = made("pruner_place", model, workdir, tmp_path)
    before, after = (cells[f"{place}-the-encoder"]["figures"]["encoder patches"] for place in ("before", "after"))
    assert 0 < before < after and "encoder patches" in text


@pytest.mark.slow
def test_first_level_by_decoder_or_similarity(model, workdir, tmp_path):
    _, cells = made("signal", model, workdir, tmp_path)
    ranked = {name: tuple(tuple(map(tuple, q["windows"])) for q in record["questions"]) for name, record in cells.items() if record["questions"][0]["windows"]}
    assert len(ranked) == 4 and len(set(ranked.values())) >= 3  # another share, another order of windows
    assert cells["no-search-frame-retrieval"]["figures"]["prompts"] == 0


@pytest.mark.slow
def test_trainings_of_their_own(model, workdir, tmp_path):
    short = ["--seeds", "3", "--steps", "0.006"]
    text, cells = made("contrastive", model, workdir, tmp_path, *short)
    assert set(cells) == {"with-seed-3", "without-seed-3"} and "--seeds 3" in text and "Training steps: 2 in `language`, 3 in `ground`." in text
    trained = [file.parent for file in (workdir / "trained").glob("*/checkpoint")]
    configs = [checkpoint.load_config(place / "checkpoint") for place in trained]
    stages = sorted((stage.name, stage.steps, stage.absent, config.train.seed) for config in configs for stage in config.train.stages)
    assert stages == [("1a", 3, 0.0, 3), ("1a", 3, 0.5, 3), ("language", 2, 0.5, 3)]  # both go on from one decoder that points
    assert len({(place / "corpus").resolve() for place in trained}) == 1  # encoded once for all of them
    logs = {place: (place / "train.log").stat().st_size for place in trained}
    (workdir / "contrastive" / "cells" / "with-seed-3.json").unlink()
    made("contrastive", model, workdir, tmp_path, *short)
    assert logs == {place: (place / "train.log").stat().st_size for place in trained}  # a lost cell is asked again, not trained again
    files, bench = list((workdir / "contrastive" / "cells").glob("*.json")), Bench(model, workdir)
    times = {file: file.stat().st_mtime_ns for file in files}
    shipped = checkpoint.load(model)
    state, config = paths.flatten(shipped.state), shipped.config
    changed = state | {"params/decoder/norm/scale": 2 * np.ones(config.decoder.width, np.float32)}
    other = checkpoint.export(paths.unflatten(changed), config, model / "tokenizer.json", tmp_path / "other", dtype="float32")
    assert Bench(other, workdir).identity != bench.identity and Bench(other, workdir).encoders == bench.encoders
    made("contrastive", other, workdir, tmp_path, *short)
    assert times == {file: file.stat().st_mtime_ns for file in files}  # nor for another decoder over the same encoders
    for name in ("params/vision/patch_embed/kernel", "params/similarity/scale"):
        changed = {key: value + 0.5 if key == name else value for key, value in state.items()}
        moved = checkpoint.export(paths.unflatten(changed), config, model / "tokenizer.json", tmp_path / name.replace("/", "-"), dtype="float32")
        assert Bench(moved, workdir).encoders != bench.encoders


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_cell_it_was_at(model, workdir, tmp_path):
    """Killed with one cell finished and another half-written: the first is kept as it is, the second measured again."""
    arguments = command("distribution", model, workdir, tmp_path)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-m", "launch.experiment", *arguments], cwd=ROOT, **quiet)
    folder = workdir / "distribution" / "cells"
    deadline = time.monotonic() + 1200
    while len(list(folder.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # and those that render for it
    process.wait()
    finished = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    assert 2 <= len(finished) < 11 and not (tmp_path / "distribution.md").exists()
    half = finished[1]
    half.write_text(half.read_text()[:300])
    times = {file: file.stat().st_mtime_ns for file in finished}
    text, cells = made("distribution", model, workdir, tmp_path)
    assert len(cells) == 11 and half.stat().st_mtime_ns != times[half]
    assert all(file.stat().st_mtime_ns == times[file] for file in finished if file != half)
    assert cells["coloured-grounds"]["about"]["settings"]["films"]["style"] == {"grounds": "coloured"}
    assert text.count("| the same |") == 8 and text.count("| others |") == 2  # unseen pairs are asked for in other films, as are all together
    os.utime(half, ns=(1, 1))
    made("distribution", model, workdir, tmp_path)
    assert half.stat().st_mtime_ns == 1  # a third time nothing is left to do


def test_the_list_names_every_experiment(capsys):
    experiment.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS) and len(lines) == 12
    assert [line.split()[0] for line in lines if line.endswith("(trains)")] == ["contrastive", "negatives", "time"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["alchemy"], "alchemy: no such experiment; there are hierarchies, levels,"),
        ([], "NAME: which experiment; there are"),
        (["levels", "--videos", "0"], "--videos: must be at least 1, is 0"),
        (["levels", "--duration", "5"], "--duration: must lie in 60..4800"),
        (["levels", "--seeds", "0,x"], "--seeds: must be whole numbers"),
        (["levels", "--seeds", "1,1"], "--seeds: must differ"),
        (["levels", "--steps", "0"], "--steps: must lie in (0, 1]"),
        (["levels", "--checkpoint", "nowhere"], "nowhere: no such checkpoint folder"),
        (["levels", "--colour"], "(see --help)"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(lambda: experiment.main(arguments))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_that_an_experiment_has_nothing_to_ask_of_is_refused(tmp_path, capsys):
    small = small_config()
    dense = dataclasses.replace(small, grounding=dataclasses.replace(small.grounding, levels=small.grounding.levels[2:3]))
    build_word_tokenizer(WORDS, numbers=256, vocab_size=320).save(tmp_path)
    place = checkpoint.export({"params": {"x": np.zeros(1)}}, dense, tmp_path / "tokenizer.json", tmp_path / "dense")
    refusals = {
        "levels": "no sparse and dense level", "pruning": "no patch level", "pruner_place": "no patch level", "signal": "no sparse level",
        "time": "no language stage",
    }  # fmt: skip
    for name, says in refusals.items():
        with pytest.raises(SystemExit) as ended:
            run(lambda name=name: experiment.main(command(name, place, tmp_path / "work", tmp_path / "out")))
        error = capsys.readouterr().err
        assert ended.value.code == 2 and says in error and error.startswith("error: ") and error.count("\n") == 1
