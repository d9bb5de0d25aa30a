"""The page: escaped, self-contained, linked to the video, with the way to each answer."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from revision_jax.errors import UserError
from revision_jax.ui import page, path, view
from tests.ui.sample import moment, result

NASTY = """<script>alert('1')</script> & "quoted" <img src=x onerror=alert(2)>"""


class Tags(HTMLParser):
    """Collects start tags, and checks that they are closed in order."""

    VOID = ("meta", "img", "rect", "path")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def frames(_path):
    return lambda seconds: np.full((160, 200, 3), int(seconds) % 256, np.uint8)


def tags(text, name):
    return [attrs for tag, attrs in Tags(text).tags if tag == name]


def test_what_people_type_is_text():
    text = page.html(result(query=NASTY, path="/films/<b>&.mp4"), "/films/out.html", frames)
    assert len(tags(text, "script")) == 1 and len(tags(text, "b")) == 1  # the page's own
    assert all("onerror" not in attrs for _, attrs in Tags(text).tags)
    assert "&lt;script&gt;alert(&#x27;1&#x27;)" in text


def test_nothing_is_loaded_from_elsewhere():
    text = page.html(result(), "out/page.html", frames)
    assert not tags(text, "link")
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in tags(text, "img"))
    assert not re.search(r'https?://|(src|href)="//|@import|url\(', text)


def test_the_video_is_linked_relative_and_quoted(tmp_path):
    text = page.html(result(path=str(tmp_path / "my films" / "a#1.mp4")), tmp_path / "out" / "page.html")
    assert tags(text, "video")[0]["src"] == "../my%20films/a%231.mp4"
    assert tags(text, "img") == []


def test_each_moment_can_be_clicked_and_is_pictured():
    text = page.html(result(), "page.html", frames)
    rows = [attrs for attrs in tags(text, "button") if attrs.get("class") == "moment"]
    assert [attrs["data-at"] for attrs in rows] == ["740.00", "20.00"]
    assert len(tags(text, "img")) == 4  # start and middle of the answer and of the weaker candidate
    assert "1 weaker candidate<" in text and "not present" in text and "cannot play" in text


def test_a_frame_that_cannot_be_read_leaves_no_hole():
    assert tags(page.html(result(), "page.html", lambda _: lambda seconds: None), "img") == []


def test_pictures_are_small():
    import base64
    import io

    from PIL import Image

    data = page.picture(np.zeros((1080, 1920, 3), np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(data.split(",")[1])))
    assert image.size == (320, 180)


def test_the_way_leads_through_kept_windows():
    question = view.read(result()).questions[0]
    steps = path.way(question, question.moments[0])
    assert [(level.name, w.start_s) for level, w in steps] == [("sparse", 700.0), ("dense", 690.0)]
    assert path.way(question, view.Found(2000.0, 2010.0, 0.5, True)) == []
    assert path.svg(question, question.moments[0], 3600.0).count('class="way"') == 2


def test_several_videos_and_many_moments():
    many = result()
    many["results"][0]["moments"] = [moment(float(i), i + 0.5, 0.9, True) for i in range(60)]
    text = page.html([many, result(path="b.mkv")], "page.html", frames)
    assert len(tags(text, "video")) == 2
    assert len(tags(text, "img")) == 2 * page.PICTURED + 4


def test_written_whole(tmp_path):
    written = page.write_page(tmp_path / "deep" / "p.html", result())
    assert written.read_text().startswith("<!doctype html>") and len(list(written.parent.iterdir())) == 1
    with pytest.raises(UserError, match="could not be written"):
        page.write_page(written / "below.html", result())
    with pytest.raises(UserError, match=r"launch\.ground"):
        page.write_page(tmp_path / "q.html", {"results": 3})
