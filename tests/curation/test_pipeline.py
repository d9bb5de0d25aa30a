"""The whole of it on a few images: resumed after a kill at any write, measured once, shared between processes, and read by the training data."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

pytest.importorskip("faiss")

from revision_jax.claims import claim
from revision_jax.config import override
from revision_jax.curation import curator as curator_module
from revision_jax.curation import journal as journal_module
from revision_jax.curation import pictures, pipeline
from revision_jax.curation.config import CurationConfig
from revision_jax.curation.curator import Curator, Recipe
from revision_jax.curation.items import read_items
from revision_jax.curation.towers import Towers
from revision_jax.data.datasets.build import build, read
from revision_jax.data.datasets.conversations import Conversation
from revision_jax.errors import UserError
from tests.curation.conftest import picture
from tests.curation.server import completion, serving

RESULTS = ("captions/coarse.jsonl", "captions/short.jsonl", "captions/detailed.jsonl", "dropped.jsonl", "report.json")
FIELDS = ["similarity=0", "block=3", "balance.share=0", "endpoint.tries=2", "endpoint.backoff_s=0.01"]


def recipe_of(images, towers_folder, out, *fields, **models):
    return Recipe(str(images), str(towers_folder), str(out), **models, config=override(CurationConfig(), [*FIELDS, *fields]))


def go(recipe, captions="captions.jsonl"):
    from pathlib import Path

    items = read_items(recipe.images, captions and Path(recipe.images).parent / captions)
    return pipeline.run(Curator(recipe), items)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(out):
    return {name: (out / name).read_bytes() for name in RESULTS if (out / name).exists()}


def captions_of(asked, number):
    """Each picture and question has its own caption, whenever it is asked for."""
    return 200, completion(f"{asked.text} {int(asked.picture.astype(np.int64).sum()) % 9973}")


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curator_module.towers, "Towers", functools.lru_cache(Towers))
        yield


@pytest.fixture
def measured(monkeypatch):
    """What was encoded, compared and decoded, call by call."""
    calls = Counter()
    for owner, name, count in (
        (Towers, "features", lambda self, pictures: len(pictures)),
        (Towers, "similarity", lambda self, features, captions: len(captions)),
    ):
        plain = getattr(owner, name)

        def counted(*args, plain=plain, name=name, count=count):
            calls[name] += count(*args)
            return plain(*args)

        monkeypatch.setattr(owner, name, counted)
    plain_look = pictures.look
    monkeypatch.setattr(pictures, "look", lambda *args: calls.update(["look"]) or plain_look(*args))
    return calls


def test_what_stays_is_training_data_and_what_goes_says_why(images, towers_folder, tmp_path):
    (images / "broken.png").write_bytes(b"")
    with open(tmp_path / "captions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"image": "broken.png", "caption": "a red ring"}\n{"image": "gone.png", "caption": "a red ring"}\n')
    Image.fromarray(picture(9)).save(images / "mute.png")
    with open(tmp_path / "captions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"image": "mute.png"}\n')
    report = go(recipe_of(images, towers_folder, tmp_path / "out"))
    dropped = lines(tmp_path / "out" / "dropped.jsonl")
    assert [(row["image"], row["stage"], row["reason"]) for row in dropped] == [
        ("5.png", "duplicate", "duplicate"), ("6.png", "ratio", "ratio"), ("broken.png", "open", "empty"), ("gone.png", "open", "missing"),
        ("mute.png", "caption", "none"),
    ]  # fmt: skip
    assert dropped[0]["of"] == "1.png" and dropped[0]["measure"] >= dropped[0]["threshold"] == 0.93
    assert (dropped[1]["measure"], dropped[1]["threshold"]) == (10.0, 4.0)
    assert report.images == 10 and report.kept == {"coarse.jsonl": 5} and not report.failed
    assert [(row["stage"], row["images"], row["dropped"]) for row in report.stages] == [
        ("open", 10, 2), ("ratio", 8, 1), ("caption", 7, 1), ("similarity", 6, 0), ("duplicate", 6, 1),
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["stages"] == report.stages and written["config"]["filters"]["max_ratio"] == 4.0
    built = build("conversations", tmp_path / "out" / "captions", tmp_path / "sets", rules=["files=coarse.jsonl", f"media={images}"])
    samples = [Conversation.of(row) for row in read(built, "train")]
    assert sorted(one.media for one in samples) == [(f"{n}.png",) for n in range(5)]
    assert all([turn.role for turn in one.turns] == ["user", "assistant"] and one.turns[0].text.startswith("<image>\n") for one in samples)


@pytest.mark.slow
def test_a_kill_at_any_write_loses_nothing_and_does_nothing_twice(images, towers_folder, tmp_path, measured, monkeypatch):
    with serving(captions_of) as server:
        models = {"short": f"m@{server.url}", "detailed": f"m@{server.url}"}
        recipe = lambda out: recipe_of(images, towers_folder, tmp_path / out, "endpoint.parallel=1", **models)
        go(recipe("whole"))
        once, asked = dict(measured), len(server.asked)
        assert once == {"look": 7, "features": 6, "similarity": 6} and asked == 10
        plain = journal_module.Journal.add

        class Killed(BaseException):
            pass

        measured.clear()
        for torn in (False, True):  # killed behind a write, or in the middle of one
            writes, runs = [0], 0
            while True:
                limit, runs, writes[0] = 1, runs + 1, 0

                def dying(self, rows, torn=torn, limit=limit, writes=writes):
                    rows = list(rows)
                    writes[0] += 1
                    if torn and writes[0] > limit:
                        self.path.parent.mkdir(parents=True, exist_ok=True)
                        with open(self.path, "ab") as file:
                            file.write(json.dumps({"key": rows[0][0]}).encode()[:9])
                        raise Killed
                    plain(self, rows)
                    if not torn and writes[0] >= limit:
                        raise Killed

                monkeypatch.setattr(journal_module.Journal, "add", dying)
                try:
                    go(recipe(f"killed{torn}"))
                except Killed:
                    continue
                break
            assert runs >= 10
            assert results(tmp_path / f"killed{torn}") == results(tmp_path / "whole")
            if not torn:
                assert dict(measured) == once and len(server.asked) == 2 * asked
            measured.clear()


def test_other_thresholds_and_a_second_run_measure_nothing(images, towers_folder, tmp_path, measured):
    go(recipe_of(images, towers_folder, tmp_path / "out"))
    first = results(tmp_path / "out")
    measured.clear()
    go(recipe_of(images, towers_folder, tmp_path / "out", "similarity=1", "duplicates.features=0.5"))
    assert not measured and {row["stage"] for row in lines(tmp_path / "out" / "dropped.jsonl")} == {"ratio", "similarity"}
    go(recipe_of(images, towers_folder, tmp_path / "out"))
    assert not measured and results(tmp_path / "out") == first
    go(recipe_of(images, towers_folder, tmp_path / "out", "filters.max_ratio=20"))  # one more comes as far as the towers
    assert measured == {"features": 1, "similarity": 1}


def test_a_file_that_changed_is_measured_again_and_one_that_moved_is_not(images, towers_folder, tmp_path, measured):
    go(recipe_of(images, towers_folder, tmp_path / "out"))
    measured.clear()
    Image.fromarray(picture(100)).save(images / "2.png")
    shutil.copyfile(images / "3.png", images / "copy")
    (images / "copy").replace(images / "3.png")  # the same bytes with another time
    go(recipe_of(images, towers_folder, tmp_path / "out"))
    assert measured == {"look": 2, "features": 1, "similarity": 1}


def test_images_without_an_answer_are_told_and_asked_for_again(images, towers_folder, tmp_path):
    down = [True]

    def answer(asked, number):
        odd = int(asked.picture.astype(np.int64).sum()) % 2
        return (503, b"") if down[0] and odd else (400, b"too odd") if asked.text.startswith("Bad") else captions_of(asked, number)

    with serving(answer) as server:
        recipe = recipe_of(images, towers_folder, tmp_path / "out", short=f"m@{server.url}")
        report = go(recipe)
        failed = {drop.image for drop in report.failed}
        assert failed and report.kept["short.jsonl"] == 5 - len(failed)
        said = [row for row in lines(tmp_path / "out" / "dropped.jsonl") if row["stage"] == "short"]
        assert {row["image"] for row in said} == failed and all(row["failed"] and "HTTP 503" in row["note"] for row in said)
        down[0], before = False, len(server.asked)
        report = go(recipe)
        assert not report.failed and report.kept["short.jsonl"] == 5 and len(server.asked) - before == len(failed)
        bad = go(replace(recipe, config=override(recipe.config, ["short.prompt=Bad prompt", "endpoint.give_up=50"])))
        assert bad.kept["short.jsonl"] == 0 and not bad.failed  # refused for good: a drop like any other
        rows = [row for row in lines(tmp_path / "out" / "dropped.jsonl") if row["stage"] == "short"]
        assert len(rows) == 5 and all(row["reason"] == "refused" and "HTTP 400" in row["note"] for row in rows)
        before = len(server.asked)
        go(replace(recipe, config=override(recipe.config, ["short.prompt=Bad prompt", "endpoint.give_up=50"])))
        assert len(server.asked) == before
        with pytest.raises(UserError, match="3 images in a row got no answer"):
            go(replace(recipe, config=override(recipe.config, ["short.prompt=Bad again", "endpoint.give_up=3"])))


def test_coarse_captions_by_a_captioner_and_scores_by_a_head_and_by_a_scorer(images, towers_folder, tmp_path):
    width = 16
    save_file({"weight": np.zeros((1, width), np.float32), "bias": np.array([5.0], np.float32)}, tmp_path / "head.safetensors")
    with serving(lambda asked, number: captions_of(asked, number) if "model" in asked.body else (200, {"score": 9 if number % 2 else 1})) as server:
        models = {"coarse": f"m@{server.url}", "aesthetic": str(tmp_path / "head.safetensors")}
        report = go(recipe_of(images, towers_folder, tmp_path / "head", **models), captions=None)
        assert report.kept == {"coarse.jsonl": 5} and "aesthetic" in [row["stage"] for row in report.stages]
        (first, *_) = lines(tmp_path / "head" / "captions" / "coarse.jsonl")
        assert first["conversations"][0]["value"] == "<image>\nDescribe this image in one sentence."
        assert first["conversations"][1]["value"].startswith("Describe this image in one sentence. ")
        report = go(recipe_of(images, towers_folder, tmp_path / "head", "aesthetic=5.5", **models), captions=None)
        assert report.kept == {"coarse.jsonl": 0}
        server.asked.clear()
        report = go(recipe_of(images, towers_folder, tmp_path / "scored", "endpoint.parallel=1", aesthetic=server.url))
        rows = [row for row in lines(tmp_path / "scored" / "dropped.jsonl") if row["stage"] == "aesthetic"]
        assert len(rows) == 3 and all((row["measure"], row["threshold"]) == (1.0, 4.5) for row in rows)


def test_two_at_once_share_the_blocks(images, towers_folder, tmp_path, measured):
    recipe = recipe_of(images, towers_folder, tmp_path / "out", "block=1")
    failures = []

    def one():
        try:
            go(recipe)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and measured == {"look": 7, "features": 6, "similarity": 6}
    go(recipe_of(images, towers_folder, tmp_path / "alone", "block=1"))
    assert results(tmp_path / "out") == results(tmp_path / "alone")


def test_a_block_that_another_has_is_left_and_then_waited_for(images, towers_folder, tmp_path):
    recipe = recipe_of(images, towers_folder, tmp_path / "out")
    order = []
    curator = Curator(recipe)
    plain = curator.measure
    curator.measure = lambda block, given, wait: order.append((block.number, wait)) or plain(block, given, wait)
    with claim(recipe.work / "block" / "000000.jsonl"):
        thread = threading.Thread(target=lambda: pipeline.run(curator, read_items(images, tmp_path / "captions.jsonl")))
        thread.start()
        while (0, True) not in order and thread.is_alive():
            thread.join(0.01)
        assert order == [(0, False), (1, False), (2, False), (0, True)] and thread.is_alive()
    thread.join()
    assert (tmp_path / "out" / "report.json").is_file()


def test_what_cannot_be_done_is_said_at_once(images, towers_folder, tmp_path):
    with pytest.raises(UserError, match="nothing gives captions"):
        go(recipe_of(images, towers_folder, tmp_path / "out"), captions=None)
    save_file({"weight": np.zeros((1, 5), np.float32)}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=r"must be \[out 16\]"):
        Curator(recipe_of(images, towers_folder, tmp_path / "out", aesthetic=str(tmp_path / "head.safetensors")))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be claimed"):
        go(recipe_of(images, towers_folder, tmp_path / "file"))


def test_captions_that_the_towers_cannot_read_are_counted(images, towers_folder, tmp_path):
    rows = lines(tmp_path / "captions.jsonl")
    rows[2]["caption"] = "a <eos> ring"
    rows[3]["caption"] = "<image> a ring"
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = go(recipe_of(images, towers_folder, tmp_path / "out"))
    said = {row["image"]: row["note"] for row in lines(tmp_path / "out" / "dropped.jsonl") if row["stage"] == "caption"}
    assert set(said) == {"2.png", "3.png"} and "<eos>" in said["2.png"] and report.kept == {"coarse.jsonl": 3}
