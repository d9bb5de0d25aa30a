"""From a video file to seconds: the public API, its cache, its JSON, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import av
import numpy as np
import pytest

from revision_jax import checkpoint
from revision_jax.data.video import probe, read_frames
from revision_jax.errors import UserError
from revision_jax.grounding import answer
from revision_jax.grounding.confidence import FEATURES, Calibrator
from revision_jax.grounding.found import Candidate, Found
from revision_jax.grounding.grounder import Grounder, expected_shapes
from revision_jax.paths import flatten

SECONDS = 75


def write_video(path, seconds=SECONDS, fps=4, restless=False):
    """A moving square over noise, which stays as it is or is another in every frame: a small real file."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "30"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for k in range(round(seconds * fps)):
            picture = rng.integers(0, 80, ground.shape, dtype=np.uint8) if restless else ground.copy()
            at = k % 24
            picture[at : at + 8, 8:16] = (220, 40, 40) if k // 40 % 2 else (40, 200, 40)
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        sink.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "film.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, config, state, tokenizer):
    """A checkpoint folder of the small model."""
    out = tmp_path_factory.mktemp("model") / "small"
    file = tokenizer.save(tmp_path_factory.mktemp("tokenizer"))
    return checkpoint.export(state, config, file, out)


@pytest.fixture(scope="module")
def grounder(folder, tmp_path_factory):
    return Grounder.from_pretrained(folder, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_a_video_is_answered_and_the_second_time_comes_from_disk(grounder, video, monkeypatch):
    encoded = grounder.encode(video)
    assert encoded.seconds > 0 and encoded.duration_s == pytest.approx(SECONDS) and encoded.source.frames == SECONDS
    answers = grounder.ground(encoded, ["A red ring.", "a blue square"], top_k=3, threshold=0.0)
    for one in answers:
        assert one.present and 1 <= len(one.moments) <= 3 and one.moments[0].accepted
        assert all(0 <= m.start_s < m.end_s <= SECONDS for m in one.moments)
        assert [level["name"] for level in one.levels] == ["sparse", "dense", "patch"]
        assert one.seconds["encode"] == encoded.seconds
    assert grounder.ground(encoded, ["a red ring"], threshold=1.0)[0].present is False
    part = grounder.ground(encoded, ["a red ring"], start_s=20, end_s=45)[0]
    assert all(20 <= m.start_s < m.end_s <= 45 for m in part.moments)

    def never(*args, **kwargs):
        raise AssertionError("encoded again")

    monkeypatch.setattr("revision_jax.extraction.video.extract", never)
    again = grounder.encode(video)
    assert again.seconds == 0 and again.source.key == encoded.source.key
    repeated = grounder.ground(str(video), ["A red ring.", "a blue square"], top_k=3, threshold=0.0)
    assert [a.moments for a in repeated] == [a.moments for a in answers]
    data = json.loads(json.dumps(grounder.to_json(encoded, answers)))
    assert set(data) == {"video", "results"} and set(data["video"]) == {"path", "duration_s", "fps"}
    for result in data["results"]:
        assert set(result) == {"query", "present", "moments", "levels", "seconds"}
        assert set(result["moments"][0]) == {"start_s", "end_s", "start", "end", "confidence", "accepted"}
        assert all(isinstance(v, float) for v in result["seconds"].values())


@pytest.mark.slow
def test_a_later_process_reads_every_program(grounder, folder, video):
    """`compile` makes all that a video asks for ready, and stores it: another model of the same config, as in a new process, traces nothing."""
    done = []
    count = grounder.compile(lambda *progress: done.append(progress))
    assert count == 9 and done == [(k, count) for k in range(count)]  # the encoder, a question, and seven of four levels
    later = Grounder.from_pretrained(folder, cache_dir=grounder.cache_dir)
    assert later.compile() == count
    compiled = later.programs.compiled
    later.ground(video, ["a red ring"])
    assert later.programs.compiled == compiled and sum(compiled.values()) == count - 1
    assert sum(later.programs.stored(*key).traced for key in compiled) == 0


def test_a_damaged_store_is_made_anew(grounder, video):
    encoded = grounder.encode(video)
    store = encoded.source.store.path
    store.write_bytes(b"not a store")
    assert grounder.encode(video).source.frames == encoded.source.frames


def test_bad_calls_say_what_is_wrong(grounder, video):
    encoded = grounder.encode(video)
    for arguments, message in (
        ({"queries": [""]}, "query is empty"),
        ({"queries": ["ring " * 200]}, "query has 200 tokens, at most"),
        ({"queries": ["ring"], "top_k": 0}, "top_k"),
        ({"queries": ["ring"], "threshold": 1.5}, "threshold"),
        ({"queries": ["ring"], "start_s": 80.0}, "nothing to search from 80 s"),
        ({"queries": ["ring"], "start_s": 30.0, "end_s": 20.0}, "nothing to search"),
    ):
        with pytest.raises(UserError, match=message):
            grounder.ground(encoded, **arguments)


def test_checkpoints_that_do_not_fit_are_refused(folder, state, config, tokenizer, tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        Grounder.from_pretrained(tmp_path / "nowhere", cache_dir=tmp_path)
    other = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, mlp=48))
    wrong = checkpoint.export(state, other, tokenizer.save(tmp_path), tmp_path / "wrong")
    with pytest.raises(UserError) as error:
        Grounder.from_pretrained(wrong, cache_dir=tmp_path)
    for part in ("gate", "up", "down"):
        assert f"mlp/{part}/kernel has shape" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_model_has_the_tensors_its_config_says(config, state):
    assert expected_shapes(config) == {name: tuple(leaf.shape) for name, leaf in flatten(state).items()}


def test_the_calibrations_threshold_counts(config, state, tokenizer, tmp_path):
    n = len(FEATURES)
    fitted = Calibrator(FEATURES, (0.0,) * n, (1.0,) * n, (0.0,) * n, 0.0, 1.0, 0.83)
    assert Grounder(config, state, tokenizer, fitted, tmp_path).threshold == 0.83
    assert Grounder(config, state, tokenizer, None, tmp_path).threshold == config.grounding.threshold


def test_answers_stay_inside_the_video():
    found = Found("q", (Candidate(-0.2, 4.00049, 0.9), Candidate(9.9996, 12.0, 0.4), Candidate(3.0, 3.0001, 0.2)), (), (), {"dense": 0.5})
    said = answer.answer(found, 0.4, 10.0, {"encode": 1.0})
    assert said.moments == (answer.Moment(0.0, 4.0, 0.9, True),)  # rounded to nothing: dropped
    assert said.present and said.seconds == {"encode": 1.0, "dense": 0.5}
    assert answer.answer(found, 0.95, 10.0).present is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        said.present = False


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00:00.0"), (59.96, "00:01:00.0"), (3723.44, "01:02:03.4"), (36000, "10:00:00.0"), (-1, "00:00:00.0")])
def test_timestamps(seconds, text):
    assert answer.timestamp(seconds) == text


def test_clips_hold_what_was_asked_for(video, tmp_path):
    from revision_jax.data.clips import cut

    path = cut(video, 10.0, 13.5, tmp_path / "sub" / "clip.mp4")
    info = probe(path)
    assert info.duration_s == pytest.approx(3.5, abs=0.3) and (info.width, info.height) == (32, 32)
    clip = next(iter(read_frames(path, 4.0))).frames
    whole = next(iter(read_frames(video, 4.0, start_s=10.0, end_s=13.5))).frames
    assert len(clip) == len(whole) == 14
    assert np.abs(clip.astype(int) - whole).mean() < 8  # the same pictures, compressed twice
    with pytest.raises(UserError, match="no frame between"):
        cut(video, 500.0, 510.0, tmp_path / "none.mp4")
    assert not (tmp_path / "none.mp4").exists() and not list(tmp_path.glob(".*"))


def test_importing_the_package_imports_no_jax():
    code = "import sys, revision_jax; from revision_jax import UserError; assert 'jax' not in sys.modules and 'Grounder' in dir(revision_jax)"
    subprocess.run([sys.executable, "-c", code], check=True)
    import revision_jax

    assert revision_jax.Grounder is Grounder
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        revision_jax.Nothing  # noqa: B018
