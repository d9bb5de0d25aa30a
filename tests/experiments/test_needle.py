"""One moment in a haystack: where it lies, that it is whole and nowhere else, and that frames are read right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.experiments.needle import MARGIN_S, Spliced, haystack
from revision_jax.grounding.levels import Window
from revision_jax.grounding.source import ArraySource, Source, gather


def film(frames: int, rate: float = 1.0) -> ArraySource:
    """Each frame is its own number."""
    return ArraySource({"frame": np.arange(frames, dtype=np.float32)[:, None]}, rate, frames / rate, "film")


def shown(source: Source) -> np.ndarray:
    return source.read_frames(0, source.frames)[1]["frame"][:, 0].astype(int)


@settings(max_examples=60)
@given(
    frames=st.integers(60, 200), start=st.floats(0, 150), lasts=st.floats(1, 20), rate=st.sampled_from([1.0, 2.0]), factor=st.floats(0.6, 7),
    depth=st.floats(0, 1),
)  # fmt: skip
def test_the_moment_is_whole_and_nowhere_else(frames, start, lasts, rate, factor, depth):
    start = min(start, frames / rate - lasts)
    moment, length_s = (start, start + lasts), factor * frames / rate
    first, stop = max(0, int(np.floor((start - MARGIN_S) * rate))), min(frames, int(np.ceil((moment[1] + MARGIN_S) * rate)))
    if round(length_s * rate) < stop - first:
        with pytest.raises(ValueError, match="haystack"):
            haystack(moment, frames, rate, length_s, depth)
        return
    pieces, truth = haystack(moment, frames, rate, length_s, depth)
    numbers = shown(Spliced(film(frames, rate), pieces))
    assert len(numbers) == round(length_s * rate)
    place = int(np.flatnonzero(numbers == first)[0])
    assert numbers[place : place + stop - first].tolist() == list(range(first, stop))  # in one piece
    inside = (numbers >= first) & (numbers < stop)
    assert inside.sum() == stop - first  # once
    rest = numbers[~inside]
    expected = np.r_[0:first, stop:frames]
    assert rest.tolist() == np.resize(expected, len(rest)).tolist()  # the film's rest, over and over
    assert truth[1] - truth[0] == pytest.approx(lasts) and truth[0] - place / rate == pytest.approx(start - first / rate)
    assert place == round(depth * (len(numbers) - (stop - first)))


def test_a_moment_that_is_all_of_the_film_makes_no_haystack():
    with pytest.raises(ValueError, match="haystack"):
        haystack((2.0, 58.0), 60, 1.0, 600.0, 0.5)


def test_frames_are_read_across_pieces_as_from_one_film():
    source = Spliced(film(50), ((10, 14), (0, 10), (40, 50)))
    whole = [*range(10, 14), *range(0, 10), *range(40, 50)]
    assert isinstance(source, Source) and source.frames == len(whole) == 24 and source.duration_s == 24
    for first in range(24):
        for stop in (first, first + 1, first + 7, 99):
            times, arrays = source.read_frames(first, stop, iter(["frame"]))
            assert arrays["frame"][:, 0].tolist() == whole[first:stop] and times.tolist() == list(range(first, min(stop, 24)))
    windows = [Window(0.0, 8.0, 8.0), Window(16.0, 24.0, 8.0)]
    arrays, valid = gather(source, windows, 8, ("frame",))
    assert valid.all() and arrays["frame"][:, :, 0].astype(int).tolist() == [whole[:8], whole[16:]]
    assert Spliced(film(50), ((0, 24),)).key != source.key
