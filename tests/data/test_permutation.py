import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.data.permutation import permuted


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.binary(min_size=1, max_size=16))
def test_every_place_is_taken_once(count, key):
    assert sorted(permuted(index, count, key) for index in range(count)) == list(range(count))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 2**40), st.data())
def test_numbers_of_any_size_stay_apart(count, data):
    indices = data.draw(st.sets(st.integers(0, count - 1), max_size=20))
    places = {permuted(index, count, b"key") for index in indices}
    assert len(places) == len(indices) and all(0 <= place < count for place in places)


def test_keys_give_orders_that_have_nothing_in_common():
    orders = [[permuted(index, 1000, key) for index in range(1000)] for key in (b"epoch 0", b"epoch 1")]
    assert orders[0] == [permuted(index, 1000, b"epoch 0") for index in range(1000)]
    same = sum(a == b for a, b in zip(*orders, strict=True))
    assert same < 12  # one, on average
    steps = [b - a for a, b in zip(orders[0], orders[0][1:], strict=False)]
    assert len(set(steps)) > 500


def test_an_index_outside_is_refused():
    for index in (-1, 3):
        with pytest.raises(ValueError, match="not below 3"):
            permuted(index, 3, b"k")
