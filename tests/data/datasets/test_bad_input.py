"""Whatever is wrong with annotations or features, training gets a clear error or a counted omission, and never a wrong example."""

import os
import zipfile

import h5py
import numpy as np
import pytest

from revision_jax.data import features
from revision_jax.data.corpus import Corpus
from revision_jax.data.datasets.build import build
from revision_jax.data.datasets.corpus import BEHIND, train_videos
from revision_jax.data.feature_import import import_videos
from revision_jax.data.feature_sources import open_source
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, FeatureStore
from revision_jax.data.windows import overlaps_any
from revision_jax.errors import UserError
from tests.data.datasets.owners import built, jsonl, put
from tests.data.memory_store import E
from tests.data.revision_stages import config, make, source

SECONDS = 300.0
GOOD = {"video_id": "good", "duration_s": SECONDS, "query": "a man walks", "moments": [[100.0, 110.0]]}


def row(**changes):
    return {**GOOD, **changes}


def store(folder, video, seconds=SECONDS, width=E, rate=1.0, encoder="encoder", values=None):
    frames = round(seconds * rate)
    arrays = np.zeros((frames, width), np.float16) if values is None else values
    arrays[:, 0], arrays[:, 1] = np.arange(frames), 1.0
    with FeatureWriter(features.store_path(folder, video), FeatureHeader(f"id:{video}", encoder, rate, seconds, {"frame": ((width,), "float16")})) as writer:
        writer.append(np.arange(frames) / rate, {"frame": arrays})


# ---------------------------------------------------------------------------------------------------------------------- annotations

BAD_ROWS = {
    "no moment": ('{"video_id": "good", "duration_s": 300, "query": "x"}', "no_moment", "train.jsonl:2: lacks moments|has no moment"),
    "moment outside": (jsonl(row(query="x", moments=[[290, 310]])), "outside_moment", r"train\.jsonl:2: moment 1 \[290, 310\] must lie inside"),
    "moment reversed": (jsonl(row(query="x", moments=[[20, 10]])), "reversed_moment", r"train\.jsonl:2: moment 1 \[20, 10\] must begin before it ends"),
    "id twice": (jsonl(row(query="x", query_id="1")), "duplicate_id", r"train\.jsonl:2: .*'1'"),
    "not UTF-8": (b'{"video_id": "good", "duration_s": 300, "query": "caf\xe9", "moments": []}\n', "not_utf8", r"train\.jsonl:2: is not UTF-8 \(byte 0xe9"),
    "another length": (jsonl(row(query="x", duration_s=200.0)), "duration", r"train\.jsonl:2: .*200"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_annotation_is_an_error_or_a_counted_skip(tmp_path, name):
    bad, reason, says = BAD_ROWS[name]
    bad = bad if isinstance(bad, bytes) else bad.encode()
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "train.jsonl").write_bytes(jsonl(GOOD).encode() + bad)
    with pytest.raises(UserError, match=says) as caught:
        build("jsonl", tmp_path / "manual", tmp_path / "out")
    assert "1 bad annotation" in str(caught.value) and "on_error=skip" in str(caught.value) and not (tmp_path / "out").exists()
    made = build("jsonl", tmp_path / "manual", tmp_path / "out", rules=["on_error=skip"])
    assert made.counts["train"] == {"kept": 1, f"skipped: {reason}": 1}


def test_an_archive_whose_paths_climb_out_is_refused(tmp_path):
    (tmp_path / "manual").mkdir()
    with zipfile.ZipFile(tmp_path / "manual" / "captions.zip", "w") as archive:
        archive.writestr("../../train.json", "{}")
    with pytest.raises(UserError, match=r"captions\.zip: refused, it holds paths that lead out of it, or links: '\.\./\.\./train\.json'"):
        build("activitynet_captions", tmp_path / "manual", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotations")
    rows = [row(), row(query="the end", moments=[[299.0, 300.0]]), row(video_id="bad", query="a dog barks"), row(video_id="bad", query="it rains", moments=[])]
    put(folder / "manual", "train.jsonl", jsonl(*rows))
    return built("jsonl", folder)[1]["train"]


def spoilt(folder, what):
    """Stores of both videos, that of "bad" spoilt."""
    store(folder, "good")
    if what == "missing":
        return
    if what == "NaN":  # as a program would that does not look
        values = np.zeros((round(SECONDS), E), np.float16)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(features.records, "has_nan", lambda array: False)
            values[150, 3] = np.nan
            store(folder, "bad", values=values)
        return
    store(folder, "bad", **{"short": {"seconds": 280.0}, "width": {"width": E + 1}, "rate": {"rate": 2.0}, "encoder": {"encoder": "another"}}.get(what, {}))
    if what == "truncated":
        path = features.store_path(folder, "bad")
        os.truncate(path, path.stat().st_size // 2)


FAULTS = {
    "missing": ("missing features", "bad has none"),
    "short": ("short features", r"bad\.features ends at 280\.0 s of 300\.0 s"),
    "width": ("other width", rf"frame vectors of width {E + 1}, the config's are {E}"),
    "rate": ("other rate", r"bad\.features has 2 frames a second, the config's grounding\.rate is 1"),
    "encoder": ("other encoder", r"bad\.features was made by 'another', wanted is 'encoder'"),
    "truncated": ("damaged features", r"bad\.features: not a complete feature store"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_features_that_do_not_fit_are_listed_or_left_out_and_counted(tmp_path, examples, what):
    reason, says = FAULTS[what]
    spoilt(tmp_path, what)
    with pytest.raises(UserError, match=says) as caught:
        train_videos(config(), examples, tmp_path, encoder="encoder")
    assert "1 of 2 videos without usable features" in str(caught.value) and "\n" not in str(caught.value)
    videos, counts = train_videos(config(), examples, tmp_path, "skip", "encoder")
    assert [video.video_id for video in videos] == ["good"] and counts == {"used": 1, reason: 1}


def test_a_store_that_holds_nan_ends_the_run_at_the_window_that_would_show_it(tmp_path, examples):
    spoilt(tmp_path, "NaN")
    videos, _ = train_videos(config(), examples, tmp_path)
    with pytest.raises(UserError, match=r"bad\.features: frame from 120 s on holds what is not a number \(NaN\)"):
        FeatureStore(videos[1].store).read_frames(0, 300)
    curriculum = make(Corpus(videos), "1a", examples={"long_events": "cut"})
    with pytest.raises(UserError, match="not a number"):
        for index in range(400):
            assert np.isfinite(curriculum.example(index)["frames"]).all()


def test_a_moment_behind_the_end_of_the_features_is_never_shown(tmp_path, examples):
    """Features may be up to two seconds short, the annotation's last second then is not there to be shown."""
    store(tmp_path, "good", seconds=298.5)
    store(tmp_path, "bad")
    with pytest.raises(UserError, match=r"1 questions about what the features do not show: good: 'the end' happens after the end of its features at 298\.0 s"):
        train_videos(config(), examples, tmp_path)
    videos, counts = train_videos(config(), examples, tmp_path, "skip")
    assert counts == {"used": 2, BEHIND: 1} and [question.query for question in videos[0].questions] == ["a man walks"]


def test_what_is_left_makes_right_examples(tmp_path, examples):
    spoilt(tmp_path, "short")
    videos, _ = train_videos(config(), examples, tmp_path, "skip")
    curriculum = make(Corpus(videos), "1a", absent=0.5, examples={"long_events": "cut"})
    for index in range(20):
        example = curriculum.example(index)
        film, numbers = source(example["frames"], example["frame_mask"])
        shown = film == 1 and overlaps_any(curriculum.question.moments, float(numbers[0]), float(numbers[0]) + 60)
        assert shown == (curriculum.answer is not None)


@pytest.mark.parametrize("what", ["group missing", "NaN", "width", "short"])
def test_an_owners_hdf5_is_refused_or_what_is_bad_is_counted(tmp_path, what):
    values = np.random.default_rng(0).normal(size=(150 if what == "short" else 1500, E + (what == "width"))).astype(np.float32)
    if what == "NaN":
        values[700, 2] = np.nan
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["good"] = np.ones((1500, E), np.float16)
        if what != "group missing":
            file["bad"] = values
    asked = {"encoder": "clip", "rate": 5.0, "width": E, "durations": {"good": SECONDS, "bad": SECONDS}, "ids": ["good", "bad"]}
    width = rf"shape \(1500, {E + 1}\)"
    says = {"group missing": "holds no group or dataset 'bad'", "NaN": r"frame 700 \(140 s\)", "width": width, "short": "ends after 30 s"}
    with pytest.raises(UserError, match=says[what]):
        import_videos(open_source(tmp_path / "f.h5"), tmp_path / "error", **asked)
    result = import_videos(open_source(tmp_path / "f.h5"), tmp_path / "skip", on_bad="skip", **asked)
    assert (result.written, sum(result.skipped.values())) == (1, 1)
    assert not features.store_path(tmp_path / "skip", "bad").exists() and FeatureStore(features.store_path(tmp_path / "skip", "good")).frames == 1500

