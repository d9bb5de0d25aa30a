"""Finding and reading the owners' files: archives that lie, text that is none, and lines that are named by their number."""

import io
import tarfile
import zipfile

import pytest

from revision_jax.data.datasets.files import OwnersFile, Wanted, climbs, each, find, json_lines, json_value, lines, members, table
from revision_jax.data.datasets.schema import Problem
from revision_jax.errors import UserError
from tests.data.datasets.owners import put


def tar(path, *entries, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            content = b"{}" if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("a/b.json", False), ("a..b/c", False), ("..a", False), ("./a", False), ("../a", True), ("a/../../b", True), ("/etc/x", True), ("C:\\x", True),
        ("a\\..\\b", True), ("\\\\host\\x", True), ("a\0b", True),
    ],
)  # fmt: skip
def test_paths_that_climb(name, out):
    assert climbs(name) == out


def test_archives_with_paths_that_lead_out_or_links_are_refused(tmp_path):
    plain = tarfile.REGTYPE
    assert members(tar(tmp_path / "good.tar.gz", ("d", tarfile.DIRTYPE), ("d/a.json", plain))) == ["d/a.json"]
    bad = [("../a.json", plain), ("/a.json", plain), ("a.json", tarfile.SYMTYPE), ("a.json", tarfile.LNKTYPE), ("a", tarfile.FIFOTYPE)]
    for number, entry in enumerate(bad):
        with pytest.raises(UserError, match=r"bad\d.tar.gz: refused"):
            members(tar(tmp_path / f"bad{number}.tar.gz", ("good.json", plain), entry))
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        info = zipfile.ZipInfo("a.json")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match=r"link.zip: refused"):
        members(tmp_path / "link.zip")


def test_broken_archives_are_named(tmp_path):
    good = tar(tmp_path / "a.tar.xz", ("MAD_train.json", tarfile.REGTYPE), mode="w:xz")
    cut = put(tmp_path, "cut.tar.xz", good.read_bytes()[: good.stat().st_size // 2])
    for path in (cut, put(tmp_path, "text.zip", "no archive at all"), put(tmp_path, "empty.tar", b"")):
        with pytest.raises(UserError, match=rf"{path.name}.*cannot be read|{path.name}: is not an archive"):
            members(path)


def test_find_looks_at_the_top_then_below_then_into_archives(tmp_path):
    wanted = Wanted("train", ("train.json", "training.json"), ("all.tar.gz",))
    assert find(tmp_path, wanted) is None
    tar(tmp_path / "all.tar.gz", ("deep/training.json", tarfile.REGTYPE))
    inside = find(tmp_path, wanted)
    assert inside.name == "all.tar.gz:deep/training.json" and inside.open().read() == b"{}"
    below = put(tmp_path / "x", "train.json", {})
    assert find(tmp_path, wanted).path == below
    put(tmp_path / "y", "train.json", {})
    with pytest.raises(UserError, match=r"train.json more than once \(x.*y"):
        find(tmp_path, wanted)
    at_the_top = put(tmp_path, "train.json", {})
    assert find(tmp_path, wanted).path == at_the_top


def file(tmp_path, content, name="f.txt"):
    return OwnersFile(put(tmp_path, name, content))


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    found = dict(lines(file(tmp_path, b"\xef\xbb\xbfone\r\n\r\n  \nfour\n\xff\xfe\nsix")))
    assert list(found) == ["f.txt:1", "f.txt:4", "f.txt:5", "f.txt:6"]
    assert (found["f.txt:1"], found["f.txt:4"], found["f.txt:6"]) == ("one", "four", "six")
    assert found["f.txt:5"].reason == "not_utf8" and "0xff at 1" in found["f.txt:5"].what


def test_json_lines_that_are_none(tmp_path):
    content = '{"a": 1}\n{"a": 1,\n{"a": 1, "a": 2}\n' + "[" * 100_000 + "\nnull\n"
    found = [value for _, value in json_lines(file(tmp_path, content))]
    assert found[0] == {"a": 1} and found[4] is None
    assert [problem.reason for problem in found[1:4]] == ["malformed"] * 3 and "twice" in found[2].what


def test_a_json_file_that_is_none(tmp_path):
    assert json_value(file(tmp_path, '{"a": {"b": 1}}')) == ({"a": {"b": 1}}, [])
    value, problems = json_value(file(tmp_path, '{"a": 1, "b": 2, "a": 3}'))
    assert value == {"a": 1, "b": 2} and [problem.what for problem in problems] == ["'a' is there twice"]
    for content, says in ((b'{"a":\n"\xff"}', r"f.txt:2 is not UTF-8 \(byte 0xff\)"), ("{", "not JSON"), ("", "not JSON")):
        with pytest.raises(UserError, match=says):
            json_value(file(tmp_path, content))


def test_tables(tmp_path):
    found = list(table(file(tmp_path, 'id,note,length\na,"x, ""y""",1.5\nb\nc,\xe9,2\n'), "id", "length"))
    assert found[0] == ("f.txt:2", {"id": "a", "note": 'x, "y"', "length": "1.5"}) and found[2][1]["note"] == "é"
    assert isinstance(found[1][1], Problem) and found[1][0] == "f.txt:3"
    with pytest.raises(UserError, match=r"has no column length; it has id, note"):
        list(table(file(tmp_path, "id,note\na,b\n"), "id", "length"))
    with pytest.raises(UserError, match="it has none"):
        list(table(file(tmp_path, ""), "id"))


def test_rows_of_another_layout_become_problems():
    rows = [("1", {"a": 1}), ("2", {}), ("3", None), ("4", Problem("4", "not_utf8", "x"))]
    found = list(each(rows, lambda where, row: Problem(where, "seen", str(row["a"]))))
    assert [(problem.where, problem.reason) for problem in found] == [("1", "seen"), ("2", "malformed"), ("3", "malformed"), ("4", "not_utf8")]
    assert "no field 'a'" in found[1].what


def test_a_file_that_is_gone(tmp_path):
    gone = file(tmp_path, "x")
    gone.path.unlink()
    with pytest.raises(UserError, match=r"f.txt: cannot be read"):
        gone.digest()
