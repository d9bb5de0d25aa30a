import json

import jax.numpy as jnp
import numpy as np
import pytest

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
