"""Every dataset from small files in its owners' layout: exact examples, the papers' filters, and what is said about files that are missing or wrong."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from revision_jax.config import ConfigError
from revision_jax.data.datasets import registry
from revision_jax.data.datasets.build import examples, find
from revision_jax.data.synthetic.questions import ask
from revision_jax.data.synthetic.script import make_script
from revision_jax.data.synthetic.write import annotations
from revision_jax.errors import UserError
from tests.data.datasets.owners import built, facts, jsonl, put, random_access

QVHIGHLIGHTS = Path(__file__).parents[4] / "shared" / "data" / "qvhighlights_val.jsonl"


# MAD


def mad(movie, sentence, times, duration=6000.5, **more):
    return {"movie": movie, "sentence": sentence, "timestamps": times, "movie_duration": duration, **more}


def mad_files():
    train = {
        "10": mad("0001_American_Beauty", "  SOMEONE walks in. He\tsmiles. ", [61.25, 64.0], ext_timestamps=[60.0, 65.5]),
        "11": mad("0001_American_Beauty", "Café Zoë opens…", [5990.0, 6003.0], ext_timestamps=[5990.0, 6003.0]),
        "12": mad("0001_American_Beauty", "It ends before it begins.", [70.0, 69.0], ext_timestamps=[69.0, 70.0]),
        "13": mad("0001_American_Beauty", "After the credits", [6100.0, 6101.0], ext_timestamps=[6100.0, 6101.0]),
        "14": mad("0001_American_Beauty", "A negative start.", [-1.0, 2.0], ext_timestamps=[-1.0, 2.0]),
    }
    one = {"7": mad("3001_21", "A man runs.", [1.0, 2.5], 7200.0)}
    return {"MAD_train.json": train, "MAD_val.json": one, "MAD_test.json": {"9": one["7"]}}


def test_mad(tmp_path):
    for name, content in mad_files().items():
        put(tmp_path / "manual", name, content)
    done, found = built("mad", tmp_path)
    movie = "0001_American_Beauty"
    assert [facts(example) for example in found["train"]] == [
        (movie, 6000.5, "10", "someone walks in. he smiles", [[61.25, 64.0]], "one"),
        (movie, 6000.5, "11", "café zoë opens…", [[5990.0, 6000.5]], "one"),
        (movie, 6000.5, "14", "a negative start", [[0.0, 2.0]], "one"),
    ]
    assert [len(found[split]) for split in ("validation", "test")] == [1, 1] and found["test"][0].split == "test"
    assert done.counts["train"] == {"filtered: outside_moment": 1, "filtered: reversed_moment": 1, "kept": 3}
    assert [record["query_id"] for record in random_access(done, "train")] == [b"10", b"11", b"14"]
    assert set(done.metadata["sources"]) == {"MAD_train.json", "MAD_val.json", "MAD_test.json"} and done.metadata["rules"]["ending"] == "bare"


def test_mad_from_its_archive_with_the_extended_times(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    with tarfile.open(folder / "annotations.tar.xz", "w:xz") as archive:
        for name, content in mad_files().items():
            path = put(tmp_path, name, content)
            archive.add(path, f"annotations/{name}")
    done, found = built("mad", tmp_path, "extended", "splits=train", "lowercase=false")
    assert found["train"][0].spans == ((60.0, 65.5),) and found["train"][0].query.startswith("SOMEONE")
    assert [example.query_id for example in found["train"]] == ["10", "11", "12", "14"]
    assert set(done.metadata["sources"]) == {"annotations.tar.xz:annotations/MAD_train.json"} and done.config.startswith("extended-")


def test_the_same_id_twice_in_one_json_object_is_no_accident_that_passes(tmp_path):
    rows = [json.dumps(mad("m", sentence, [1, 2], 100)) for sentence in "abc"]
    put(tmp_path / "manual", "MAD_train.json", f'{{"1": {rows[0]}, "2": {rows[1]}, "1": {rows[2]}}}')
    with pytest.raises(UserError, match=r"1 bad annotation: MAD_train.json: '1' is there twice"):
        built("mad", tmp_path, "", "splits=train")
    done, found = built("mad", tmp_path, "", "splits=train", "on_error=skip")
    assert [example.query for example in found["train"]] == ["a", "b"] and done.counts["train"] == {"kept": 2, "skipped: duplicate_id": 1}


def test_what_is_missing_is_listed_with_where_to_ask(tmp_path):
    put(tmp_path / "manual", "MAD_val.json", mad_files()["MAD_val.json"])
    with pytest.raises(UserError) as error:
        built("mad", tmp_path)
    said = str(error.value)
    assert "MAD_train.json" in said and "MAD_test.json" in said and "MAD_val.json" not in said and "github.com/Soldelli/MAD" in said and "splits=" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"no such folder.*Soldelli"):
        built("mad", tmp_path / "nowhere")


# VidChapters-7M


def test_vidchapters(tmp_path):
    manual = tmp_path / "manual"
    train = {
        "qid": 0, "query": ["Intro", "Über uns!", "?", "All of it"], "vid": "abcdefghijk", "duration": 100, "split": "train",
        "relevant_windows": [[[0.0, 12.5]], [[12.5, 100.4]], [[20.0, 20.0]], [[2.0, 92.0]]],
    }  # fmt: skip
    put(manual, "chapters_vmr_train.json", jsonl(train))
    value = [{"qid": 1, "query": "  ", "vid": "0lmnopqrstuv", "duration": 60, "split": "val", "relevant_windows": [[0.0, 30.0]]},
             {"qid": 2, "query": "The End.", "vid": "12lmnopqrstuv", "duration": 60, "split": "val", "relevant_windows": [[30.0, 60.9]]}]  # fmt: skip
    put(manual, "chapters_vmr_val.json", jsonl(*value))
    done, found = built("vidchapters", tmp_path, "", "splits=train,validation")
    assert [facts(example) for example in found["train"]] == [
        ("abcdefghijk", 100.0, "0-0", "intro", [[0.0, 12.5]], "one"),
        ("abcdefghijk", 100.0, "0-1", "über uns!", [[12.5, 100.0]], "one"),
    ]
    assert [facts(example) for example in found["validation"]] == [("lmnopqrstuv", 60.0, "2", "the end", [[30.0, 60.0]], "one")]
    assert done.counts == {
        "train": {"filtered: longest_share": 1, "filtered: reversed_moment": 1, "kept": 2},
        "validation": {"filtered: empty_query": 1, "kept": 1},
    }


def test_vidchapters_by_video(tmp_path):
    videos = {
        "abcdefghijk": {"duration": 100.5, "timestamps": [[0.0, 50.0], [50.0, 100.5]], "sentences": ["One", "Two"], "path": "abcdefghijk.mp4.npy"},
        "lmnopqrstuv": {"duration": 10.0, "timestamps": [[0.0, 5.0]], "sentences": ["One", "Two, out of step"], "path": "lmnopqrstuv.mp4.npy"},
    }
    put(tmp_path / "manual", "chapters_dvc_test.json", videos)
    with pytest.raises(UserError, match=r"chapters_dvc_test.json: video lmnopqrstuv: is not of the owners' layout"):
        built("vidchapters", tmp_path, "dvc", "splits=test")
    done, found = built("vidchapters", tmp_path, "dvc", "splits=test", "on_error=skip")
    assert [(example.query_id, example.spans) for example in found["test"]] == [("abcdefghijk-0", ((0.0, 50.0),)), ("abcdefghijk-1", ((50.0, 100.5),))]
    assert done.counts["test"] == {"kept": 2, "skipped: malformed": 1}


# MSR-VTT


@pytest.fixture
def msrvtt(tmp_path):
    youtube = "https://www.youtube.com/watch?v=u"
    videos = [
        {"video_id": f"video{n}", "category": 1, "url": f"{youtube}{n}", "start time": 10.5 * n, "end time": 10.5 * n + 12.25, "split": split}
        for n, split in enumerate(("train", "validate", "test"))
    ]
    sentences = [{"sen_id": 10 * n + k, "video_id": f"video{n}", "caption": f"Caption {k} of video {n}."} for n in range(3) for k in range(2)]
    folder = tmp_path / "manual"
    folder.mkdir()
    with zipfile.ZipFile(folder / "msrvtt_data.zip", "w") as archive:
        archive.write(put(tmp_path, "MSRVTT_data.json", {"videos": videos, "sentences": sentences}), "msrvtt_data/MSRVTT_data.json")
        archive.writestr("msrvtt_data/MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo1\n")
        archive.writestr("msrvtt_data/MSRVTT_train.7k.csv", "video_id\nvideo0\n")
        archive.writestr("msrvtt_data/MSRVTT_JSFUSION_test.csv", 'key,vid_key,video_id,sentence\nret0,msr2,video2,"a cat, and a ""dog"""\n')
    return tmp_path


def test_msrvtt_retrieval(msrvtt):
    done, found = built("msrvtt", msrvtt)
    assert done.config == "9k" and [example.video_id for example in found["train"]] == ["video0", "video0", "video1", "video1"]
    assert facts(found["train"][3]) == ("video1", 12.25, "11", "caption 1 of video 1", [[0.0, 12.25]], "one")
    assert (found["train"][3].source_id, found["train"][3].offset_s) == ("https://www.youtube.com/watch?v=u1", 10.5)
    assert [facts(example) for example in found["test"]] == [("video2", 12.25, "ret0", 'a cat, and a "dog"', [[0.0, 12.25]], "one")]
    assert [example.video_id for example in built("msrvtt", msrvtt, "7k")[1]["train"]] == ["video0", "video0"]
    with pytest.raises(ConfigError, match=r"protocol"):
        built("msrvtt", msrvtt, "", "protocol=8k")


def test_msrvtt_own_split(msrvtt):
    _, found = built("msrvtt", msrvtt, "full")
    ids = {split: [example.query_id for example in rows] for split, rows in found.items()}
    assert ids == {"train": ["0", "1"], "validation": ["10", "11"], "test": ["20", "21"]}
    with pytest.raises(UserError, match=r"protocol '7k' has no split 'validation'"):
        built("msrvtt", msrvtt, "7k", "splits=validation")


# Charades-STA


def charades(tmp_path, sentences, test="3MSZA 24.3 30.4##person turn a light on.\n"):
    columns = "id,subject,scene,script,length\n"
    put(tmp_path / "manual", "charades_sta_train.txt", sentences)
    put(tmp_path / "manual", "charades_sta_test.txt", test)
    put(tmp_path / "manual", "Charades/Charades_v1_train.csv", columns + 'AO8RW,HR43,Kitchen,"A person, ""quoted"".",33.67\nXYZ12,HR43,Kitchen,x,10.00\n')
    put(tmp_path / "manual", "Charades/Charades_v1_test.csv", columns + "3MSZA,HR43,Kitchen,x,30.96\n")


def test_charades_sta(tmp_path):
    lines = ["AO8RW 0.0 6.9##a person is putting a book on a shelf.", "", "AO8RW 30.1 40.0##another person leaves."]
    charades(tmp_path, "\r\n".join([*lines, "XYZ12 5.0 5.0##nothing.", "XYZ12 12 14##late."]) + "\r\n")
    done, found = built("charades_sta", tmp_path)
    assert [facts(example) for example in found["train"]] == [
        ("AO8RW", 33.67, "train-1", "a person is putting a book on a shelf", [[0.0, 6.9]], "one"),
        ("AO8RW", 33.67, "train-3", "another person leaves", [[30.1, 33.67]], "one"),
    ]
    assert [facts(example) for example in found["test"]] == [("3MSZA", 30.96, "test-1", "person turn a light on", [[24.3, 30.4]], "one")]
    assert done.counts["train"] == {"filtered: outside_moment": 1, "filtered: reversed_moment": 1, "kept": 2}


def test_charades_lines_that_are_wrong_are_named_with_their_number(tmp_path):
    charades(tmp_path, b"AO8RW 0.0 6.9##fine.\nNOONE 1 2##who?\nAO8RW 1 2 no marks\nAO8RW one 2##a\nAO8RW 1 2##caf\xe9\nAO8RW 3##b\n")
    with pytest.raises(UserError) as error:
        built("charades_sta", tmp_path)
    said = str(error.value)
    assert "5 bad annotations" in said and "charades_sta_train.txt:2: video 'NOONE' is not in Charades_v1_train.csv" in said
    assert "charades_sta_train.txt:3: has no ##" in said and "charades_sta_train.txt:4" in said and "charades_sta_train.txt:6" in said
    assert "charades_sta_train.txt:5: is not UTF-8 (byte 0xe9 at 15)" in said
    done, found = built("charades_sta", tmp_path, "", "on_error=skip")
    assert len(found["train"]) == 1
    assert done.counts["train"] == {"kept": 1, "skipped: malformed": 3, "skipped: not_utf8": 1, "skipped: unknown_video": 1}


# ActivityNet Captions


def test_activitynet_captions(tmp_path):
    videos = {
        "v_QOlSCBRmfWY": {
            "duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60.81], [60.0, 59.0], [56.26, 83.5]],
            "sentences": ["A young woman is seen\nstanding.", " The girl dances around the room.", "Reversed.", "She continues."],
        }
    }  # fmt: skip
    put(tmp_path / "manual", "train.json", videos)
    put(tmp_path / "manual", "val_1.json", {"v_a": {"duration": 10, "timestamps": [[0, 5]], "sentences": ["One."]}})
    put(tmp_path / "manual", "val_2.json", {"v_a": {"duration": 10, "timestamps": [[1, 5]], "sentences": ["Other."]}})
    done, found = built("activitynet_captions", tmp_path)
    assert [facts(example) for example in found["train"]] == [
        ("v_QOlSCBRmfWY", 82.73, "v_QOlSCBRmfWY-0", "A young woman is seen standing.", [[0.83, 19.86]], "one"),
        ("v_QOlSCBRmfWY", 82.73, "v_QOlSCBRmfWY-1", "The girl dances around the room.", [[17.37, 60.81]], "one"),
        ("v_QOlSCBRmfWY", 82.73, "v_QOlSCBRmfWY-3", "She continues.", [[56.26, 82.73]], "one"),
    ]
    assert found["validation"][0].query == "One." and found["test"][0].query == "Other."
    assert done.counts["train"] == {"filtered: reversed_moment": 1, "kept": 3}
    assert find(tmp_path / "out", "activitynet_captions") == done


# QVHighlights


def test_qvhighlights(tmp_path):
    moments = [[0, 16], [40, 42]]
    rows = [
        {"qid": 8737, "query": "A family plays.", "duration": 126, "vid": "bP5KfdFJzC4_660.0_810.0", "relevant_windows": moments, "saliency_scores": []},
        {"qid": 8738, "query": "An odd name", "duration": 150, "vid": "odd-name", "relevant_windows": [[0, 150]]},
    ]
    put(tmp_path / "manual", "highlight_train_release.jsonl", jsonl(*rows))
    put(tmp_path / "manual", "highlight_val_release.jsonl", jsonl(rows[0]))
    test = {key: value for key, value in rows[1].items() if key != "relevant_windows"}
    put(tmp_path / "manual", "highlight_test_release.jsonl", jsonl(test))
    done, found = built("qvhighlights", tmp_path)
    first, second = found["train"]
    assert facts(first) == ("bP5KfdFJzC4_660.0_810.0", 126.0, "8737", "A family plays.", [[0.0, 16.0], [40.0, 42.0]], "several")
    assert (first.source_id, first.offset_s, second.source_id) == ("bP5KfdFJzC4", 660.0, "") and second.kind == "one"
    assert set(done.counts) == {"train", "validation"} and random_access(done, "train")[0]["moments"].tolist() == [[0.0, 16.0], [40.0, 42.0]]
    with pytest.raises(UserError, match=r"highlight_test_release.jsonl:1: has no moment"):
        built("qvhighlights", tmp_path, "", "splits=test")
    with pytest.raises(UserError, match=r"left without an example.*filtered: no_moment"):
        built("qvhighlights", tmp_path, "", "splits=test", "no_moment=drop")


@pytest.mark.skipif(not QVHIGHLIGHTS.is_file(), reason=f"needs {QVHIGHLIGHTS.name}, the owners' validation annotations, beside the project")
def test_the_real_qvhighlights_validation_split(tmp_path):
    put(tmp_path / "manual", "highlight_val_release.jsonl", QVHIGHLIGHTS.read_bytes())
    done, found = built("qvhighlights", tmp_path, "", "splits=validation")
    rows = found["validation"]
    assert done.counts == {"validation": {"kept": 1550}} and len(rows) == len({row.query_id for row in rows}) == 1550
    # counted with jq, not with this program
    assert len({row.video_id for row in rows}) == 1519 and sum(len(row.moments) for row in rows) == 2803
    assert sum(row.kind == "several" for row in rows) == 530
    assert facts(rows[0])[0::2] == ("NUsG9BgSes0_210.0_360.0", "2579", [[82.0, 150.0]]) and rows[0].duration_s == 150.0
    assert rows[0].query == "A girl and her mother cooked while talking with each other on facetime." and rows[0].offset_s == 210.0
    assert facts(rows[1])[2:5] == ("5071", "A woman sitting in front of a desk wearing headphones and using her laptop", [[118.0, 136.0]])
    assert rows[2].spans == ((56.0, 76.0), (96.0, 150.0)) and rows[2].source_id == "NUsG9BgSes0"
    assert all(0 <= start < end <= row.duration_s for row in rows for start, end in row.spans)


# Ego4D


def ego4d_query(query, start, end, base=1000.0):
    times = {"clip_start_sec": start, "clip_end_sec": end, "video_start_sec": base + start, "video_end_sec": base + end}
    return {**times, "query": query, "template": "Objects: Where is X?"}


def ego4d_files(folder, *queries):
    notes = [{"annotation_uid": "ann-1", "language_queries": list(queries)}]
    clip = {"clip_uid": "clip-1", "video_start_sec": 1000.0, "video_end_sec": 1480.25, "annotations": notes}
    put(folder, "nlq_train.json", {"version": "1.0", "videos": [{"video_uid": "video-1", "clips": [clip]}]})
    put(folder, "ego4d.json", {"videos": [{"video_uid": "video-1", "duration_sec": 3600.5}]})


def test_ego4d_nlq(tmp_path):
    unasked = {"clip_start_sec": 1.0, "clip_end_sec": 2.0, "video_start_sec": 1001.0, "video_end_sec": 1002.0}
    ego4d_files(
        tmp_path / "manual", ego4d_query("Where did I put the Spoon??", 10.5, 12.0), unasked, ego4d_query("What is it", 30.0, 30.0),
        ego4d_query(" Who is there ", 470.0, 481.0), ego4d_query(None, 1.0, 2.0),
    )  # fmt: skip
    done, found = built("ego4d_nlq", tmp_path, "", "splits=train")
    assert [facts(example) for example in found["train"]] == [
        ("clip-1", 480.25, "ann-1_0", "where did i put the spoon?", [[10.5, 12.0]], "one"),
        ("clip-1", 480.25, "ann-1_3", "who is there?", [[470.0, 480.25]], "one"),
    ]
    first = found["train"][0]
    assert (first.category, first.source_id, first.offset_s) == ("Objects: Where is X?", "video-1", 1000.0)
    assert done.counts["train"] == {"filtered: empty_query": 2, "filtered: reversed_moment": 1, "kept": 2}
    _, whole = built("ego4d_nlq", tmp_path, "video", "splits=train")
    assert facts(whole["train"][0]) == ("video-1", 3600.5, "ann-1_0", "where did i put the spoon?", [[1010.5, 1012.0]], "one")
    put(tmp_path / "manual", "ego4d.json", {"videos": []})
    with pytest.raises(UserError, match=r"'video-1' is not in ego4d.json"):
        built("ego4d_nlq", tmp_path, "video", "splits=train")


# ExtremeWhenBench


def test_extremewhenbench(tmp_path):
    row = {
        "qid": "-WnyRMZqV1U_q042", "video_id": "-WnyRMZqV1U", "source_corpus": "VideoMME", "question": "When does an elderly woman speak?",
        "correct_interval": [1805, 1822], "duration_s": 17, "video_duration_s": 4271, "category": "reaction",
    }  # fmt: skip
    put(tmp_path / "manual", "extremewhenbench.jsonl", jsonl(row, {**row, "qid": "b", "correct_interval": [4270, 4272]}))
    done, found = built("extremewhenbench", tmp_path)
    assert [facts(example)[2:5] for example in found["test"]] == [
        ("-WnyRMZqV1U_q042", "When does an elderly woman speak?", [[1805.0, 1822.0]]), ("b", "When does an elderly woman speak?", [[4270.0, 4271.0]]),
    ]  # fmt: skip
    assert found["test"][0].category == "VideoMME/reaction" and done.counts == {"test": {"kept": 2}}
    put(tmp_path / "manual", "extremewhenbench.jsonl", jsonl({**row, "correct_interval": []}, {**row, "qid": "c", "correct_interval": [4271, 4300]}))
    with pytest.raises(UserError, match=r"2 bad annotations: .*:1: has no moment.*:2: moment 1 \[4271, 4300\] must lie inside the video's 4271 s"):
        built("extremewhenbench", tmp_path)


# the rendered world


def test_synthetic_world(tmp_path):
    script = make_script(5, 60.0, 5)
    about = annotations(script, ask(script, 6))  # what launch.synthesize writes
    put(tmp_path / "manual", "five/annotations.json", about)
    done, found = built("synthetic_world", tmp_path)
    assert [facts(example) for example in found["user"]] == [
        ("five", 60.0, f"five/{q['query_id']}", q["query"], [[round(s, 3), round(e, 3)] for s, e in q["moments"]], q["kind"]) for q in about["queries"]
    ]
    assert {example.kind for example in found["user"]} > {"one"} and set(done.metadata["sources"]) == {"five/annotations.json"}
    with pytest.raises(UserError, match=r"left without an example"):
        built("synthetic_world", tmp_path, "exam")


# all of them


def test_every_name_has_a_builder_with_a_place_to_ask_and_rules():
    for name in registry.NAMES:
        builder = registry.builder(name)
        assert builder.name == name and builder.ASKED and builder.RULES and builder.__doc__
        assert {config.name for config in builder.BUILDER_CONFIGS} == set(builder.RULES)
    with pytest.raises(UserError, match=r"'imagenet' is not one of mad, vidchapters"):
        registry.builder("imagenet")


def test_an_archive_whose_paths_climb_out_is_refused(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    with tarfile.open(folder / "annotations.tar.xz", "w:xz") as archive:
        for name in ("../../MAD_train.json", "annotations/MAD_train.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(UserError, match=r"annotations.tar.xz: refused.*'../../MAD_train.json'"):
        built("mad", tmp_path)
    with zipfile.ZipFile(folder / "msrvtt_data.zip", "w") as archive:
        archive.writestr("/etc/MSRVTT_data.json", "{}")
    with pytest.raises(UserError, match=r"msrvtt_data.zip: refused"):
        built("msrvtt", tmp_path)


def test_examples_without_a_build_are_those_of_the_build(tmp_path):
    for name, content in mad_files().items():
        put(tmp_path / "manual", name, content)
    builder = registry.builder("mad")
    direct = list(builder.examples("train", tmp_path / "manual", builder.RULES["default"]))
    done, found = built("mad", tmp_path)
    assert [facts(example) for example in direct] == [facts(example) for example in found["train"]] == [facts(example) for example in examples(done, "train")]
