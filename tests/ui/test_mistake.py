"""The picture of a wrong answer: what it must show is there in its place, and it is small."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from revision_jax.evaluation.outcome import Outcome
from revision_jax.evaluation.worst import Judged
from revision_jax.ui import mistake

TRUTH, ANSWER = (900.0, 910.0), (1800.0, 1820.0)


def judged(truth=(TRUTH,), accepted=True, survivors=((800.0, 1000.0),)):
    kind = "one" if truth else "absent"
    return Judged(Outcome("film", "q", "a red ring", kind, 3600.0, truth, ((*ANSWER, 0.9, accepted), (300.0, 310.0, 0.1, False)), survivors=survivors))


def pictures(one, shape=(90, 160, 3), grain=False):
    dice = np.random.default_rng(0)
    seconds = [second for row in mistake.rows(one) for second in row.seconds]
    return {second: (second, (dice.integers(0, 256, shape) if grain else np.full(shape, 77)).astype(np.uint8)) for second in seconds}


def columns_of(image, colour, lane):
    top = mistake.HEADER + mistake.STEP * lane
    return np.flatnonzero((np.asarray(image)[top : top + mistake.LANE] == ImageColor.getrgb(colour)).all(axis=-1).any(axis=0))


def test_frames_of_the_truth_and_of_the_answer():
    truth, answer = mistake.rows(judged())
    assert truth.seconds == (901.0, 903.0, 905.0, 907.0, 909.0) and answer.seconds[0] == 1802.0
    assert "00:15:00.0 - 00:15:10.0" in truth.title and "confidence 0.90" in answer.title and "IoU 0.00" in answer.title
    assert [row.title.split("  ")[0] for row in mistake.rows(judged(accepted=False))] == ["truth", "best candidate, refused"]
    only = mistake.rows(judged(truth=()))
    assert len(only) == 1 and only[0].title.startswith("first answer") and "IoU" not in only[0].title


def test_lanes_show_where_everything_lies():
    image = mistake.draw(judged(), None)
    left, right = mistake.MARGIN + mistake.LABELS, mistake.WIDTH - mistake.MARGIN
    for lane, (colour, second) in enumerate([(mistake.TRUE, 905.0), (mistake.FOUND, 1810.0), (mistake.WEAK, 305.0)]):
        seen = columns_of(image, colour, lane)
        assert 5 <= len(seen) <= 12 and abs(seen.mean() - (left + (right - left) * second / 3600)) < 3, lane
    assert mistake.draw(judged(survivors=None), None).height == image.height - mistake.STEP


def test_frames_stand_in_their_rows_and_lacking_ones_are_told():
    one = judged()
    frames = pictures(one)
    image = np.asarray(mistake.draw(one, frames))
    assert (image == 77).all(axis=-1).sum() == 10 * 90 * 160
    del frames[903.0]
    assert (np.asarray(mistake.draw(one, frames)) == 77).all(axis=-1).sum() == 9 * 90 * 160
    assert np.asarray(mistake.draw(one, {})).shape[0] > mistake.draw(one, None).height


@pytest.mark.parametrize("grain", [False, True])
def test_files_are_small_whatever_is_filmed(grain):
    one = judged()
    data = mistake.png(mistake.draw(one, pictures(one, (mistake.FRAME, mistake.FRAME, 3), grain)))
    assert len(data) <= mistake.LIMIT and Image.open(io.BytesIO(data)).format == "PNG"
    assert grain or Image.open(io.BytesIO(data)).width == mistake.WIDTH
