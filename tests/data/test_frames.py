"""data/frames.py against the formulas they stand for."""

import einops
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import VisionConfig
from revision_jax.data import frames as fr


def random_frames(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# frames, block rows, block columns, patch, merge
sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))


@given(sizes)
@settings(deadline=None)
def test_patches_are_block_major_and_channel_first(size):
    count, block_rows, block_cols, patch, merge = size
    video = random_frames(count, block_rows * merge * patch, block_cols * merge * patch)
    patches = fr.patchify(video, patch, merge)
    assert patches.dtype == np.float32
    # The formula of the reference implementation, t frames at once.
    expected = einops.rearrange(video, "t (hb mh p) (wb mw q) c -> t (hb wb mh mw) (c p q)", mh=merge, mw=merge, p=patch, q=patch)
    np.testing.assert_array_equal(patches, expected)
    grid = (block_rows * merge, block_cols * merge)
    np.testing.assert_array_equal(fr.unpatchify(patches, grid, patch, merge), video)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None)
def test_positions_name_the_place_a_patch_was_cut_from(block_rows, block_cols, merge):
    grid = (block_rows * merge, block_cols * merge)
    where = np.zeros((1, *grid, 3), np.uint8)
    where[0, :, :, 0], where[0, :, :, 1] = np.indices(grid)
    patches = fr.patchify(where, 1, merge)[0]
    rows, cols = fr.positions(grid, merge)
    assert rows.dtype == cols.dtype == np.int32
    np.testing.assert_array_equal(patches[:, 0], rows)
    np.testing.assert_array_equal(patches[:, 1], cols)


def test_encoder_patches_are_normalised_patches():
    config = VisionConfig(patch=4, merge=2, grids=((4, 4),), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.5))
    video = random_frames(3, 16, 24)
    scaled = (video / 255.0 - np.array(config.mean)) / np.array(config.std)
    expected = einops.rearrange(scaled, "t (hb mh p) (wb mw q) c -> t (hb wb mh mw) (c p q)", mh=2, mw=2, p=4, q=4)
    np.testing.assert_allclose(fr.encoder_patches(video, config), expected, atol=2e-6)
    np.testing.assert_allclose(fr.encoder_patches(video, config), fr.patchify(fr.normalise(video, config.mean, config.std), 4, 2), atol=1e-6)


def reference_change(video, patch, merge, std):
    """The float formula as released: normalised pixels, mean over a merged token, times 255."""
    normalised = (video.astype(np.float64) / 255 - 0.5) / np.array(std)
    difference = np.abs(normalised[1:] - normalised[:-1])
    side = patch * merge
    return einops.reduce(difference, "t (r a) (c b) k -> t (r c)", "mean", a=side, b=side) * 255


@given(sizes, st.integers(0, 10_000), st.sampled_from([(0.5, 0.5, 0.5), (0.2, 0.3, 0.7)]))
@settings(deadline=None)
def test_change_equals_the_float_formula(size, seed, std):
    count, block_rows, block_cols, patch, merge = size
    video = random_frames(count + 1, block_rows * merge * patch, block_cols * merge * patch, seed)
    change = fr.token_change(video, patch, merge, std=std)
    assert change.dtype == np.float32 and np.isposinf(change[0]).all()
    np.testing.assert_allclose(change[1:], reference_change(video, patch, merge, std), rtol=1e-6, atol=1e-6)
    continued = fr.token_change(video[1:], patch, merge, previous=video[0], std=std)
    np.testing.assert_array_equal(continued, change[1:])


@pytest.mark.parametrize(("patch", "merge", "total"), [(14, 2, 118), (14, 1, 30)])
def test_the_released_threshold_falls_where_the_sheet_says(patch, merge, total):
    side = patch * merge
    video = np.full((2, side, side, 3), 100, np.uint8)
    for extra, kept in ((total, True), (total - 1, False)):
        flat = np.full(side * side * 3, 100, np.uint8)
        flat[:extra] += 1
        video[1] = flat.reshape(side, side, 3)
        assert bool(fr.token_change(video, patch, merge)[1, 0] > 0.1) is kept


def test_change_does_not_overflow_or_depend_on_its_blocking():
    video = np.zeros((40, 160, 320, 3), np.uint8)
    video[::2] = 255
    np.testing.assert_array_equal(fr.token_change(video, 16, 2)[1:], np.full((39, 50), 510, np.float32))
    video = random_frames(40, 160, 320)
    parts = [fr.token_change(video[i : i + 1], 16, 2, previous=video[i - 1] if i else None) for i in range(40)]
    np.testing.assert_array_equal(np.concatenate(parts), fr.token_change(video, 16, 2))


def test_sizes_that_do_not_divide_are_refused():
    for call in (fr.patchify, fr.token_change):
        with pytest.raises(ValueError, match="do not divide"):
            call(random_frames(2, 20, 32), 8, 2)


def test_resize_keeps_what_fits_and_shrinks_smoothly():
    video = random_frames(2, 32, 48)
    assert fr.resize(video, 32, 48) is video
    ramp = np.broadcast_to(np.linspace(0, 255, 96).astype(np.uint8)[None, None, :, None], (1, 64, 96, 3))
    small = fr.resize(np.ascontiguousarray(ramp), 16, 24)
    assert small.shape == (1, 16, 24, 3) and small.dtype == np.uint8
    assert (np.diff(small[0, 8, :, 0].astype(int)) > 0).all()


def test_grids_follow_the_aspect_ratio_then_the_size():
    config = VisionConfig(patch=14, merge=2, grids=((16, 16), (12, 20), (6, 10), (20, 12)))
    assert fr.choose_grid(480, 480, config) == (16, 16)
    assert fr.choose_grid(720, 1200, config) == (12, 20)
    assert fr.choose_grid(100, 160, config) == (6, 10)
    assert fr.choose_grid(1920, 1080, config) == (20, 12)
    assert fr.choose_grid(30, 50, config) == (6, 10)  # both would need enlargement: the smaller


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(8, 8), (4, 12)]), st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_content_fits_its_bucket(height, width, grid, merge):
    rows, cols = fr.content_grid(height, width, grid, merge)
    assert 0 < rows <= grid[0] and 0 < cols <= grid[1] and rows % merge == 0 and cols % merge == 0


def test_letterbox_says_which_patches_hold_picture():
    boxed, valid = fr.letterbox(np.full((2, 90, 160, 3), 200, np.uint8), (8, 8), 4, 2)
    assert boxed.shape == (2, 32, 32, 3) and valid.shape == (64,)
    brightness = fr.patchify(boxed, 4, 2).max(axis=(0, 2))
    np.testing.assert_array_equal(brightness > 0, valid)
    assert valid.sum() == 4 * 8  # 90 x 160 fills 4 of 8 rows
