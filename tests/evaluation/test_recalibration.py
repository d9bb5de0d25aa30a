"""One more map on a fitted calibrator: what is stored gives the very confidences that were fitted, and the command says what it cannot use."""

import json

import numpy as np
import pytest

from launch import calibrate
from launch.cli import run
from revision_jax.errors import UserError
from revision_jax.evaluation import fitting, recalibration, report
from revision_jax.evaluation.outcome import Outcome
from revision_jax.grounding.confidence import Calibrator

PLAIN = Calibrator(("score",), (0.0,), (1.0,), (1.0,), 0.3, 1.5, 0.4)


def run_of(count=300, seed=0):
    """(features of each first candidate, outcomes): too sure by far, every third question absent."""
    rng = np.random.default_rng(seed)
    rows = [{"score": float(z)} for z in rng.normal(0, 3, count)]
    outcomes = []
    for number, row in enumerate(rows):
        confidence, absent = PLAIN.apply(row), number % 3 == 0
        right = not absent and rng.uniform() < 0.2 + 0.6 * confidence
        span = (10.0, 20.0) if right else (50.0, 60.0)
        found = ((*span, confidence, confidence >= 0.4),)
        outcomes.append(Outcome(f"film {number % 10}", str(number), "a ring", "absent" if absent else "one", 3600.0, () if absent else ((10.0, 20.0),), found))
    return rows, outcomes


@pytest.mark.parametrize("kind", recalibration.KINDS)
def test_what_is_stored_gives_what_was_fitted(kind):
    rows, outcomes = run_of()
    stored = recalibration.recalibrated({**PLAIN.to_dict(), "baselines": {"flat": 1}}, outcomes, kind, {"dataset": "world"})
    made = Calibrator.from_dict(json.loads(json.dumps(stored)))
    confidence, correct = recalibration._answers(outcomes)
    _, apply = recalibration.fit_map(kind, confidence, correct)
    np.testing.assert_allclose([made.apply(row) for row in rows], apply(confidence), atol=1e-6)
    assert stored["baselines"] == {"flat": 1} and stored["recalibrated_on"] == {"dataset": "world", "kind": kind, "questions": 300}
    alarms = stored["false_alarms"]
    assert alarms["questions"] == alarms["hours"] == 100
    np.testing.assert_allclose(alarms["confidences"], sorted(apply(confidence[::3]), reverse=True))


def test_held_out_answers_are_more_honest():
    _, outcomes = run_of(1500)
    found = recalibration.compare(outcomes)
    assert set(found) == {"none", *recalibration.KINDS}
    for kind in ("platt", "isotonic"):
        assert all(found[kind][name] < found["none"][name] for name in ("ECE", "Brier", "log loss"))


def test_a_map_is_not_judged_by_what_it_was_fitted_on(monkeypatch):
    _, outcomes = run_of()
    seen = []
    plain = recalibration.fit_map
    monkeypatch.setattr(recalibration, "fit_map", lambda kind, confidence, correct: seen.append(len(confidence)) or plain(kind, confidence, correct))
    recalibration.compare(outcomes)
    assert seen == [240] * (3 * recalibration.FOLDS)  # eight of ten films each time


def test_what_cannot_be_fitted_is_told():
    _, outcomes = run_of()
    curved = recalibration.recalibrated(PLAIN.to_dict(), outcomes, "isotonic", {})
    with pytest.raises(UserError, match="isotonic curve already"):
        recalibration.recalibrated(curved, outcomes, "platt", {})
    with pytest.raises(UserError, match="present and absent"):
        recalibration.recalibrated(PLAIN.to_dict(), [one for one in outcomes if one.present], "platt", {})
    with pytest.raises(UserError, match="curve must rise"):
        Calibrator.from_dict({**PLAIN.to_dict(), "curve": [[0, 0], [0.5, 0.7], [0.6, 0.2], [1, 1]]})


@pytest.fixture(scope="module")
def made():
    """The report of a run of that model."""
    about = {"method": "model", "settings": {"threshold": PLAIN.threshold, "without": []}, "dataset": "synthetic", "split": "validation", "videos": 10}
    return report.build(run_of(60)[1], about, resamples=20)


@pytest.fixture
def files(made, tmp_path):
    """(report, checkpoint folder) that belong together."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "calibration.json").write_text(json.dumps(PLAIN.to_dict()))
    report.save(tmp_path / "run.json", made)
    return tmp_path / "run.json", folder


def test_command_compares_and_stores(files, capsys):
    path, folder = files
    before = (folder / "calibration.json").read_text()
    calibrate.main([str(path), "--checkpoint", str(folder)])
    assert (folder / "calibration.json").read_text() == before and "isotonic" in capsys.readouterr().out
    calibrate.main([str(path), "--checkpoint", str(folder), "--kind", "platt"])
    stored = fitting.stored(folder)
    assert stored["recalibrated_on"] == {"dataset": "synthetic", "split": "validation", "videos": 10, "kind": "platt", "questions": 60}
    assert fitting.threshold_for(folder, 0.1) >= fitting.threshold_for(folder, 0.5)
    with pytest.raises(UserError, match="evaluate the checkpoint again"):  # these answers were given by the calibration before
        calibrate.main([str(path), "--checkpoint", str(folder), "--kind", "platt"])


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        ({}, ["--kind", "magic"], "--kind: 'magic' is not one of temperature, platt, isotonic"),
        ({"method": "flat"}, [], "is no run of the whole model"),
        ({"split": "test"}, [], "test is for the exam"),
    ],
)
def test_bad_arguments_are_one_line(files, capsys, change, more, says):
    path, folder = files
    made = json.loads(path.read_text())
    made["run"] |= change
    path.write_text(json.dumps(made))
    with pytest.raises(SystemExit) as caught:
        run(lambda: calibrate.main([str(path), "--checkpoint", str(folder), *more]))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and says in error and error.count("\n") == 1
