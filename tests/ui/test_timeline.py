"""The picture: its size, and that what it must show is there in its place."""

import copy
import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from revision_jax.errors import UserError
from revision_jax.ui import timeline
from tests.ui.sample import moment, result


def columns_of(image, colour):
    pixels = np.asarray(image)
    return np.flatnonzero((pixels == ImageColor.getrgb(colour)).all(axis=-1).any(axis=0))


def test_png_has_the_width_asked_for_and_grows_with_the_questions():
    image = Image.open(io.BytesIO(timeline.png(result(), width=1000)))
    assert image.width == 1000 and image.format == "PNG"
    more = result()
    more["results"] *= 3
    assert timeline.draw_timeline(more, width=1000).height > image.height + 200


def test_the_moment_is_drawn_where_it_is():
    one = result()
    one["results"] = one["results"][:1]
    one["results"][0]["moments"] = [moment(900.0, 1800.0, 0.9, True)]
    image = np.asarray(timeline.draw_timeline(one, width=1080))  # axis of 1000 pixels from 40
    rows = np.flatnonzero((image == ImageColor.getrgb(timeline.FOUND)).all(axis=-1).sum(axis=1) > 200)
    middle = image[rows[len(rows) // 2]]
    found = np.flatnonzero((middle == ImageColor.getrgb(timeline.FOUND)).all(axis=-1))
    assert abs(found[0] - (40 + 250)) <= 2 and abs(found[-1] - (40 + 500)) <= 2


def test_a_short_moment_of_a_long_video_is_still_seen():
    long = result(duration=32_400.0)
    long["results"] = long["results"][:1]
    without = copy.deepcopy(long)
    without["results"][0]["moments"] = []
    seen = columns_of(timeline.draw_timeline(long), timeline.FOUND)
    x = 40 + 1520 * 746 / 32_400
    assert (np.abs(seen - x) <= 4).sum() >= 6


def test_scores_run_from_pale_to_deep():
    light = [sum(timeline.heat(score)) for score in np.linspace(0, 1, 11).tolist()]
    assert light == sorted(light, reverse=True)


def test_overlong_questions_and_many_moments_stay_inside():
    crowded = result(query="very " * 400)
    crowded["results"][0]["moments"] = [moment(float(10 * i), float(10 * i + 5), 0.9, True) for i in range(30)]
    image = np.asarray(timeline.draw_timeline(crowded, width=900))
    assert (image[:, :20] == 255).all() and (image[:, -20:] == 255).all()


def test_write_is_whole_and_says_what_is_wrong(tmp_path):
    path = timeline.write_timeline(tmp_path / "new" / "t.png", result())
    assert Image.open(path).width == timeline.WIDTH
    assert [p.name for p in path.parent.iterdir()] == ["t.png"]
    with pytest.raises(UserError, match=r"launch\.ground"):
        timeline.png({"video": {}})
