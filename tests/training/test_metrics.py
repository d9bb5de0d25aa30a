import json

import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ConfigError
from revision_jax.training.metrics import MetricsLog, NotFinite, cut_rows, read_rows


def test_rows_are_means_since_the_row_before(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", "1a", 5, 2)
    rows = [log.add(step, {"loss": jnp.float32(step), "learning_rate": jnp.float32(0.1 * step)}) for step in range(1, 6)]
    assert [row and row["step"] for row in rows] == [None, 2, None, 4, 5]
    assert [row["loss"] for row in read_rows(tmp_path / "m.jsonl")] == [1.5, 3.5, 5.0]
    assert read_rows(tmp_path / "m.jsonl")[0]["learning_rate"] == pytest.approx(0.2)  # of the row's last step


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_value_that_is_no_number_stops_with_the_step(tmp_path, name):
    log = MetricsLog(tmp_path / "m.jsonl", "1a", 5, 1)
    with pytest.raises(NotFinite, match=f"stage 1a, step 3: {name} is nan.*learning_rate"):
        log.add(3, {"loss": jnp.float32(1.0), name: jnp.float32(np.nan)})


def test_rows_of_steps_to_come_are_cut_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [{"stage": "a", "step": 5}, {"stage": "b", "step": 1}, {"stage": "b", "step": 2}, {"stage": "b", "step": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "b", "st')
    cut_rows(path, ["a"], "b", 2)
    assert read_rows(path) == rows[:3]
    cut_rows(path, [], "a", 0)
    assert path.read_text() == ""
    cut_rows(tmp_path / "none.jsonl", [], "a", 0)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_row_tells_speed_waiting_and_the_share_of_the_peak(tmp_path):
    seen = []
    log = MetricsLog(tmp_path / "m.jsonl", "1a", 4, 2, batch=8, peak=1e6, trackers=[lambda step, row: seen.append((step, row))], before=100)
    log.wait(1e-9)
    for step in (1, 2):
        row = log.add(step, {"loss": jnp.float32(step), "tokens": jnp.float32(30), "slots": jnp.float32(40)}, flops=500.0)
    assert seen == [(102, row)] and read_rows(tmp_path / "m.jsonl") == [row]
    assert row["tokens_per_s"] / row["steps_per_s"] == pytest.approx(30) and row["slots_per_s"] / row["steps_per_s"] == pytest.approx(40)
    assert row["mfu"] / row["steps_per_s"] == pytest.approx(500 / 1e6) and 0 < row["wait_share"] < 1
    assert 0 < row["step_s_p50"] <= row["step_s_p95"] and "tokens" not in row
    assert "memory_gib" not in row  # a CPU does not tell
    plain = MetricsLog(tmp_path / "p.jsonl", "1a", 4, 1)
    assert "mfu" not in plain.add(1, {"loss": jnp.float32(1)}, flops=500.0)  # an unknown chip


def test_skipped_steps_are_counted_and_too_many_in_a_row_stop(tmp_path, capsys):
    log = MetricsLog(tmp_path / "m.jsonl", "1a", 100, 4, batch=8, skip=True)
    for step, loss in enumerate((1.0, np.inf, 3.0, np.nan), 1):
        row = log.add(step, {"loss": jnp.float32(loss)})
    assert row["skipped"] == 2 and row["loss"] == 2.0
    assert "stage 1a, step 2: loss is inf (examples 8 to 15 of the stage); skipped" in capsys.readouterr().err
    assert log.since_saved("loss") == 2.0 and log.since_saved("loss") is None
    with pytest.raises(NotFinite, match=r"step 13: loss is nan .*the 10th in a row"):
        for step in range(5, 20):
            log.add(step, {"loss": jnp.float32(np.nan)})


def test_the_metric_of_the_best_must_exist(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", "1a", 100, 4)
    log.add(1, {"loss": jnp.float32(1)})
    with pytest.raises(ConfigError, match=r"stages\.1a\.best: no metric 'accuracy'; there are loss"):
        log.since_saved("accuracy")
