"""Items made in a thread are the same items, no more of them than wanted, and nothing goes on once nobody asks."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.data.ahead import ahead


@given(st.lists(st.integers()), st.integers(1, 5))
def test_the_same_items_in_the_same_order(items, depth):
    assert list(ahead(iter(items), depth)) == items


def test_an_error_comes_in_its_place():
    def items():
        yield 1
        yield 2
        raise ValueError("no third")

    found = []
    with pytest.raises(ValueError, match="no third"):
        found.extend(ahead(items()))
        pytest.fail("the error was lost")
    stream = ahead(items())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="no third"):
        next(stream)


def test_at_most_so_many_are_made_before_they_are_asked_for():
    made, third = [], threading.Event()

    def items():
        for number in range(100):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    stream = ahead(items(), 2)
    assert next(stream) == 0 and third.wait(10)
    assert len(made) <= 4  # one is used, two wait, one may be under way
    stream.close()
    assert len(made) <= 5


def test_leaving_closes_what_makes_the_items():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    stream = ahead(items(), 3)
    next(stream)
    stream.close()
    assert closed.is_set() and not [thread for thread in threading.enumerate() if thread.name == "ahead"]
