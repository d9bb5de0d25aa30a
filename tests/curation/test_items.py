"""Folders and lists of images, and what is wrong with a list."""

import json

import pytest

from revision_jax.curation.items import Item, blocks_of, read_items
from revision_jax.errors import UserError


def listed(tmp_path, *rows):
    file = tmp_path / "list.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_folder_without_a_list(tmp_path):
    for name in ("b.PNG", "deep/a.jpg", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert read_items(tmp_path) == [Item("b.PNG", "b.PNG"), Item("deep/a.jpg", "deep/a.jpg")]


def test_both_forms_of_a_list_in_its_order(tmp_path):
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}, {"from": "gpt", "value": "And a dog."}]
    file = listed(tmp_path, {"image": "b.jpg", "caption": "Größe"}, {"image": ["a.jpg"], "id": 7, "conversations": talk}, {"image": "c.jpg"})
    assert read_items(tmp_path, file) == [Item("b.jpg", "b.jpg", "Größe"), Item("7", "a.jpg", "A cat."), Item("c.jpg", "c.jpg")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"image": ', "list.jsonl:2: is not JSON"), ([1], 'list.jsonl:2: is no object with "image"'), ({"caption": "x"}, "list.jsonl:2: image must be"),
        ({"image": ["a.jpg", "b.jpg"]}, "must be the path of one image"), ({"image": "../a.jpg"}, "leads out of the images' folder"),
        ({"image": "/etc/a.jpg"}, "leads out"), ({"image": "ok.jpg"}, "'ok.jpg' is already the id of list.jsonl:1"),
        ({"image": "b.jpg", "caption": 3}, "caption must be text"), ({"image": "b.jpg", "id": True}, "id must be text or a whole number"),
        ({"image": "b.jpg", "conversations": ["x"]}, "not of VideoLLaMA3's format"), ({"image": "\ud800.jpg"}, "must be the path of one image"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        read_items(tmp_path, listed(tmp_path, {"image": "ok.jpg"}, row))


def test_nothing_to_clean(tmp_path):
    for folder, file, said in (
        (tmp_path / "no", None, "no such folder"), (tmp_path, None, "holds no file that ends like an image's"),
        (tmp_path, tmp_path / "no.jsonl", "no such file"), (tmp_path, listed(tmp_path), "lists no image"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_items(folder, file)


def test_a_list_that_grows_leaves_the_blocks_before():
    items = [Item(str(n), f"{n}.jpg") for n in range(10)]
    blocks, more = blocks_of(items, 4), blocks_of([*items, Item("x", "x.jpg")], 4)
    assert [block.name for block in blocks] == ["000000", "000001", "000002"] and [len(block.items) for block in blocks] == [4, 4, 2]
    assert more[:2] == blocks[:2]
