"""What `launch.bench startup` asks of each process, and the clock that it and other benches use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from launch.benches.commands import timed
from launch.benches.startup import answer
from revision_jax.errors import UserError
from tests.grounding.conftest import config, state, tokenizer  # noqa: F401  fixtures
from tests.grounding.test_grounder import folder, write_video  # noqa: F401


@pytest.mark.slow
def test_the_parts_are_the_whole(folder, tmp_path):  # noqa: F811
    video = write_video(tmp_path / "film.mp4", seconds=30)
    seconds = answer(str(folder), str(tmp_path / "cache"), str(video), "a red ring")
    whole = seconds.pop("import to first answer (s)")
    assert list(seconds) == ["import (s)", "model read (s)", "features found (s)", "first answer (s)"]
    assert all(part > 0 for part in seconds.values()) and sum(seconds.values()) == pytest.approx(whole)


def test_a_command_is_timed_from_outside():
    said = "import sys; print('said'); print('x' * 100_000, file=sys.stderr); sum(range(10**6))"
    # In a small process of its own: what a large one starts begins with its size, as Linux counts peaks.
    code = f"import json, sys; from launch.benches.commands import timed; print(json.dumps(timed([sys.executable, '-c', {said!r}])._asdict()))"
    run = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert run["printed"] == "said\n" and min(run["cpu_seconds"], run["seconds"]) > 0 and 1 < run["peak_mib"] < 1000
    with pytest.raises(UserError, match=r"failed \(no such thing\)"):
        timed([sys.executable, "-c", "import sys; sys.exit('no such thing')"])
