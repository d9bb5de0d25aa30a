"""Bicubic resizing of position tables against torch, and what must hold of any resizing."""

import numpy as np
import pytest

from revision_jax.convert.positions import cubic_matrix, resize_table, resized


@pytest.mark.torch
@pytest.mark.parametrize(("before", "after"), [((5, 5), (9, 7)), ((27, 27), (16, 16)), ((3, 3), (3, 8)), ((1, 1), (4, 4))])
def test_equals_torch(before, after):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(before[0] * before[1], 6)).astype(np.float32)
    picture = torch.tensor(table.reshape(1, *before, 6)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(picture, size=after, mode="bicubic", align_corners=False)[0].permute(1, 2, 0).reshape(-1, 6)
    np.testing.assert_allclose(resize_table(table, before, after), theirs.numpy(), atol=1e-5)


def test_constants_and_straight_lines_stay():
    for before, after in ((7, 12), (12, 7), (3, 3)):
        np.testing.assert_allclose(cubic_matrix(before, after).sum(axis=1), 1, atol=1e-6)
    line = np.arange(20.0)[:, None]
    inside = (np.arange(30) + 0.5) * 20 / 30 - 0.5
    np.testing.assert_allclose((cubic_matrix(20, 30) @ line)[4:-4, 0], inside[4:-4], atol=0.06)  # this kernel bends a line a little
    table = np.arange(18.0).reshape(9, 2)
    assert resize_table(table, (3, 3), (3, 3)) is table


def test_class_rows_are_left_out_and_odd_tables_refused():
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.testing.assert_array_equal(resized((3, 3), classes=1).forward(table), table[1:])
    with pytest.raises(ValueError, match="10 positions are no square grid"):
        resized((3, 3)).forward(table)
