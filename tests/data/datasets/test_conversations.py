"""VideoLLaMA3's annotation format: its five kinds of samples, its repairs, and what can't be trained on."""

import math

import pytest

from revision_jax.data.datasets.build import build, read
from revision_jax.data.datasets.conversations import Conversation, ConversationRules, Turn, conversation
from revision_jax.data.datasets.schema import Problem
from revision_jax.errors import UserError
from tests.data.datasets.owners import jsonl, put


def talk(question="<image>\nWhat is it?", answer="A cat."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


IMAGE = {"id": 3, "image": ["images/a.jpg"], "conversations": talk()}
IMAGES = {"image": ["a.jpg", "b.jpg"], "video": None, "conversations": talk("<image> and <image>: what changed?\n", "Die Größe.\n\n  - viel")}
VIDEO = {"video": ["film.mp4"], "image": None, "conversations": [{"from": "system", "value": "Be brief."}, *talk("<video>\nWhen?", "At 3 s.")]}
TEXT = {"conversations": talk("What is 2 + 2?", "4"), "image": None, "video": None}
STREAM = {
    "stream": True, "video": ["live.mp4"], "start_time": 10, "end_time": 70.5,
    "conversation": [{"role": "user", "content": "Tell me when it rains.", "time": 12.0}, {"role": "assistant", "content": "Now.", "time": 31.5}],
}  # fmt: skip


def test_the_five_kinds_read_back_from_disk(tmp_path):
    put(tmp_path / "manual", "a.json", [IMAGE, IMAGES])
    put(tmp_path / "manual", "b.jsonl", jsonl(VIDEO, TEXT, STREAM))
    put(tmp_path / "manual", "notes.txt", "not read")
    built = build("conversations", tmp_path / "manual", tmp_path / "out")
    source = read(built, "train")
    found = [Conversation.of(source[number]) for number in (4, 3, 2, 1, 0)][::-1]
    assert [one.modality for one in found] == ["image", "image", "video", "text", "stream"]
    assert [one.sample_id for one in found] == ["a.json[0]", "a.json[1]", "b.jsonl:1", "b.jsonl:2", "b.jsonl:3"]
    assert [one.media for one in found] == [("images/a.jpg",), ("a.jpg", "b.jpg"), ("film.mp4",), (), ("live.mp4",)]
    assert [(turn.role, turn.text) for turn in found[1].turns] == [("user", "<image> and <image>: what changed?\n"), ("assistant", "Die Größe.\n\n  - viel")]
    assert [turn.role for turn in found[2].turns] == ["system", "user", "assistant"] and math.isnan(found[2].turns[1].time_s)
    assert found[4].turns == (Turn("user", "Tell me when it rains.", 12.0), Turn("assistant", "Now.", 31.5))
    assert (found[4].start_s, found[4].end_s) == (10.0, 70.5) and math.isnan(found[0].start_s)
    assert built.counts == {"train": {"kept": 5}} and set(built.metadata["sources"]) == {"a.json", "b.jsonl"}


def of(row, **rules):
    return conversation("f:1", row, ConversationRules(**rules))


def test_repairs_are_those_of_the_original_and_can_be_refused():
    led = {**IMAGE, "conversations": [{"from": "gpt", "value": "Hello."}, *talk()]}
    assert [turn.role for turn in of(led).turns] == ["user", "assistant"] and len(of(led, repair=False).turns) == 3
    untagged = {"image": ["a.jpg", "b.jpg"], "conversations": [{"from": "system", "value": "S"}, *talk("What?", "<image> is a tag")]}
    assert [turn.text for turn in of(untagged).turns] == ["S", "<image><image>What?", "<image> is a tag"]
    assert of(untagged, repair=False).reason == "placeholders"
    assert of({"video": "film.mp4", "conversations": talk("When?")}).media == ("film.mp4",)
    assert of({"video": "film.mp4", "conversations": talk("When?")}).turns[0].text == "<video>When?"


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        ({**IMAGE, "conversations": talk("<image><image> two?")}, "placeholders", "has 2 <image> in the questions for 1 file"),
        ({**IMAGES, "conversations": talk("<image> one?")}, "placeholders", "has 1 <image> in the questions for 2 files"),
        ({**TEXT, "conversations": talk()}, "placeholders", "1 <image> in the questions for 0 files"),
        ({**IMAGE, "conversations": talk("<image><video>?")}, "placeholders", "1 <video>"),
        ({**IMAGE, "video": ["b.mp4"]}, "malformed", "images and videos"),
        ({**VIDEO, "video": ["a.mp4", "b.mp4"]}, "malformed", "names 2 videos"),
        ({**IMAGE, "conversations": talk()[:1]}, "no_answer", "no question with an answer"),
        ({**IMAGE, "conversations": talk()[::-1]}, "no_answer", "no question with an answer"),
        ({**IMAGE, "conversations": []}, "no_answer", "no question"),
        ({"image": ["a.jpg"]}, "malformed", "no field 'conversations'"),
        ({**IMAGE, "conversations": [{"from": "bot", "value": "x"}]}, "malformed", "'bot'"),
        ({**IMAGE, "conversations": [{"from": "human", "value": None}]}, "malformed", "text is None"),
        ({**IMAGE, "conversations": talk(answer="\udfff")}, "not_utf8", "surrogate"),
        ({**IMAGE, "image": ["../a.jpg"]}, "path", "leads out"),
        ({**IMAGE, "image": ["/data/a.jpg"]}, "path", "leads out"),
        ({**IMAGE, "image": [{"bytes": ""}]}, "malformed", "is not the path of a file"),
        ({**IMAGE, "image": 5}, "malformed", "not of VideoLLaMA3's format"),
        ("text", "malformed", "not of VideoLLaMA3's format"),
        ({**STREAM, "end_time": 10}, "moment", "0 <= start < end"),
        ({**STREAM, "start_time": None}, "moment", "start_time None"),
        ({**STREAM, "conversation": STREAM["conversation"][::-1]}, "moment", "a turn at 12.0 s must lie between"),
        ({**STREAM, "end_time": 20}, "moment", "a turn at 31.5 s"),
        ({**STREAM, "conversation": STREAM["conversation"][:1]}, "no_answer", "no answer"),
        ({**STREAM, "video": None}, "malformed", "not of VideoLLaMA3's format"),
    ],
)
def test_what_cannot_be_trained_on(row, reason, says):
    found = of(row)
    assert isinstance(found, Problem) and found.reason == reason and says in str(found) and str(found).startswith("f:1: ")


def test_absolute_paths_and_missing_files_by_rule(tmp_path):
    assert of({**IMAGE, "image": ["/data/a.jpg"]}, absolute_paths=True).media == ("/data/a.jpg",)
    assert of({**IMAGE, "image": ["/data/../a.jpg"]}, absolute_paths=True).reason == "path"
    assert of(IMAGE, media=str(tmp_path)).reason == "missing_media"
    put(tmp_path, "images/a.jpg", b"")
    assert isinstance(of(IMAGE, media=str(tmp_path)), Conversation)


def test_bad_samples_stop_the_build_or_are_counted(tmp_path):
    put(tmp_path / "manual", "a.jsonl", jsonl(IMAGE, {**IMAGE, "conversations": []}) + "{\n")
    with pytest.raises(UserError, match=r"2 bad annotations: a.jsonl:2: has no question.*; a.jsonl:3: is not JSON"):
        build("conversations", tmp_path / "manual", tmp_path / "out")
    built = build("conversations", tmp_path / "manual", tmp_path / "out", "", ["on_error=skip"])
    assert built.counts == {"train": {"kept": 1, "skipped: malformed": 1, "skipped: no_answer": 1}}
    with pytest.raises(UserError, match=r"lacks b.json"):
        build("conversations", tmp_path / "manual", tmp_path / "out", "", ["files=a.jsonl,b.json"])
    put(tmp_path / "other", "a.json", {"not": "a list"})
    with pytest.raises(UserError, match=r"a.json: must hold a list"):
        build("conversations", tmp_path / "other", tmp_path / "out")
    with pytest.raises(UserError, match=r"lacks any .json or .jsonl file"):
        (tmp_path / "empty").mkdir()
        build("conversations", tmp_path / "empty", tmp_path / "out")
