import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.models.rope import angles_1d, angles_2d, inverse_frequencies, rotate


def reference(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Each channel pair (j, j + d/2) as a complex number times e^(i angle), in float64."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles.astype(np.float64))[:, :, None]
    return np.concatenate([turned.real, turned.imag], -1)


def test_rotation_is_complex_multiplication():
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 5, 3, 8)).astype(np.float32), rng.integers(0, 500, (2, 5))
    angles = angles_1d(jnp.asarray(positions), 8, 10_000.0)
    expected = positions[..., None] * 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(angles, expected, rtol=1e-6)
    np.testing.assert_allclose(rotate(jnp.asarray(x), angles), reference(x, np.asarray(angles)), atol=1e-6)


def test_2d_angles_put_the_row_first_with_frequencies_of_half_a_head():
    rows, cols = jnp.asarray([[0, 3, 2]]), jnp.asarray([[1, 0, 7]])
    frequencies = 100.0 ** (-np.arange(2) / 2)
    expected = np.concatenate([np.asarray(rows)[..., None] * frequencies, np.asarray(cols)[..., None] * frequencies], -1)
    np.testing.assert_allclose(angles_2d(rows, cols, 8, 100.0), expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(0, 3000), first=st.integers(0, 50), second=st.integers(0, 50))
def test_scores_depend_on_the_distance_alone(shift, first, second):
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def scored(a, b):
        turn = lambda x, at: rotate(x, angles_1d(jnp.asarray([[at]]), 16, 10_000.0))
        return float((turn(q, a) * turn(k, b)).sum())

    assert abs(scored(first, second) - scored(first + shift, second + shift)) < 5e-3


def test_low_precision_keeps_float32_angles():
    x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    angles = angles_1d(jnp.asarray([[9999]]), 4, 10_000.0)
    assert angles.dtype == jnp.float32 and inverse_frequencies(4, 1e4).dtype == np.float32
    out = rotate(x, angles)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32)[0, 0, 0], reference(np.ones((1, 1, 1, 4)), np.asarray(angles))[0, 0, 0], atol=1e-2)
