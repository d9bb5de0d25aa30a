"""ReVisionLLM on MAD at its real widths: 768 numbers a frame, a decoder layer of 4096 (32 heads, MLP 11008), 32,000 words, windows and groups as released.

One layer of each tower and random weights, so its answers say nothing. What is shown is that the path holds: the owners' files are imported, the preset's
stages train on them, the checkpoint answers, and the papers' table is written; and that what was planted in the features is found where it lies. Of the 30 test
questions frame retrieval is asked all; the whole search, which makes sparse tokens of 100 windows of 250 frames for each question, the first four.

    python -m pytest -m huge tests/launch/test_mad_end_to_end.py -s          # docs/reproducing.md has what it took
"""

from __future__ import annotations

import json
import resource
import time
from contextlib import contextmanager

import numpy as np
import pytest

from launch import evaluate, train
from tests import mad_path

# Steps and batches alone are small; the rest is the preset's.
OVERRIDES = [
    *("vision.layers=1", "text.layers=1", "decoder.layers=1", "mesh.data=1", "mesh.fsdp=1", "train.log_every=1", "train.checkpoint_every=100"),
    *(f"train.stages.{stage}.steps=3" for stage in mad_path.STAGES),
    *(f"train.stages.{stage}.batch={batch}" for stage, batch in zip(mad_path.STAGES, (4, 4, 2, 2), strict=True)),
]
ASKED = 4


@contextmanager
def told(what: str):
    began = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{what}: {time.perf_counter() - began:.0f} s, at most {peak:.1f} GiB so far", flush=True)


@pytest.mark.huge
def test_from_the_owners_files_to_the_papers_table(tmp_path, capsys):
    with capsys.disabled():
        with told("set made, built and imported"):
            mad_path.make_set(tmp_path, films=3, minutes=40, questions=300, width=768)
        with told("checkpoint of random weights"):
            mad_path.begin(tmp_path, OVERRIDES, "bfloat16")
        queries = ["--queries", str(tmp_path / "sentences")]
        with told("four stages trained, three steps each"):
            assert train.main(mad_path.training(tmp_path, "run", OVERRIDES, f"data.queries={tmp_path / 'queries'}")) == 0
        trained = tmp_path / "run" / "checkpoint"
        with told("frame retrieval"):
            files = ["--json", str(tmp_path / "frames.json")]
            evaluate.main(mad_path.evaluating(tmp_path, trained, *queries, "--top-k", "100", "--baseline", "retrieval", *files))
        with told("evaluated"):
            names = {"--json": "report.json", "--published": "table.md", "--submission": "submission.json"}
            files = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
            evaluate.main(mad_path.evaluating(tmp_path, trained, *queries, "--top-k", "100", "--questions", str(ASKED), *files))
        print((tmp_path / "table.md").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(stage, step) for stage in mad_path.STAGES for step in (1, 2, 3)]
    losses = {stage: [row["loss"] for row in rows if row["stage"] == stage] for stage in mad_path.STAGES}
    assert all(np.isfinite(of).all() and of[-1] < of[0] for of in losses.values()), losses
    found, report = (json.loads((tmp_path / name).read_text()) for name in ("frames.json", "report.json"))
    assert (found["counts"]["questions"], report["counts"]["questions"]) == (30, ASKED)
    assert found["R1@0.3"] >= 90  # the imported frames lie where the annotations say, and the words' directions are in both
    assert len(json.loads((tmp_path / "submission.json").read_text())) == ASKED
    assert all(0 <= report[f"R{rank}@{iou}"] <= 100 for rank in (1, 5, 10, 50, 100) for iou in (0.1, 0.3, 0.5))
