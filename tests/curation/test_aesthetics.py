"""Heads in LAION's two layouts, and what is no head; a scorer behind HTTP."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from revision_jax.curation.aesthetics import Head, HttpScorer
from revision_jax.curation.config import EndpointConfig
from revision_jax.curation.endpoint import Endpoint, Unavailable
from revision_jax.errors import UserError
from tests.curation.conftest import picture
from tests.curation.server import serving

RNG = np.random.default_rng(0)
VECTORS = (RNG.normal(size=(5, 8)) * 3).astype(np.float16)
UNIT = VECTORS.astype(np.float64) / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)


def layer(out, wide):
    return RNG.normal(size=(out, wide)).astype(np.float32), RNG.normal(size=out).astype(np.float32)


def saved(tmp_path, tensors, **metadata):
    save_file(tensors, tmp_path / "head.safetensors", metadata=metadata or None)
    return tmp_path / "head.safetensors"


def test_a_linear_head(tmp_path):
    weight, bias = layer(1, 8)
    head = Head(saved(tmp_path, {"weight": weight, "bias": bias}), 8)
    assert np.allclose(head.scores(VECTORS), (UNIT @ weight.T + bias)[:, 0], atol=1e-5) and head.scores(VECTORS).dtype == np.float32


def test_layers_go_by_their_numbers_with_or_without_an_activation(tmp_path):
    widths = {"layers.0": (6, 8), "layers.2": (5, 6), "layers.10": (1, 5)}  # as text, 10 comes before 2
    layers = {name: layer(*shape) for name, shape in widths.items()}
    tensors = {f"{name}.{kind}": array for name, pair in layers.items() for kind, array in zip(("weight", "bias"), pair, strict=True)}
    for activation in ("none", "relu"):
        expected = UNIT
        for number, name in enumerate(widths):
            if number and activation == "relu":
                expected = np.maximum(expected, 0)
            expected = expected @ layers[name][0].T + layers[name][1]
        head = Head(saved(tmp_path, tensors, activation=activation), 8)
        assert np.allclose(head.scores(VECTORS), expected[:, 0], atol=1e-4)
    assert np.allclose(Head(saved(tmp_path, tensors)).scores(VECTORS), Head(saved(tmp_path, tensors, activation="none")).scores(VECTORS))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"weight": np.zeros((1, 7), np.float32)}, r"weight has shape \(1, 7\).*must be \[out 8\]"),
        ({"weight": np.zeros((2, 8), np.float32)}, "gives 2 numbers"),
        ({"weight": np.zeros(8, np.float32)}, r"weight has shape \(8,\)"), ({"scale": np.zeros(1, np.float32)}, "it has scale"),
        ({"weight": np.zeros((1, 8), np.float32), "running_mean": np.zeros(1, np.float32)}, "it has running_mean"),
        ({"weight": np.zeros((1, 8), np.float32), "bias": np.zeros(2, np.float32)}, r"its bias \(2,\)"),
        ({"weight": np.full((1, 8), np.inf, np.float32)}, "not a finite number"),
    ],
)  # fmt: skip
def test_what_is_no_head(tmp_path, tensors, said):
    with pytest.raises(UserError, match=said):
        Head(saved(tmp_path, tensors), 8)


def test_files_that_are_none(tmp_path):
    (tmp_path / "x").write_bytes(b"pickle")
    for path in (tmp_path / "x", tmp_path / "nothing"):
        with pytest.raises(UserError, match="not readable as a safetensors file of a head"):
            Head(path)
    with pytest.raises(UserError, match="activation 'tanh' is not one of none, relu"):
        Head(saved(tmp_path, {"weight": np.zeros((1, 8), np.float32)}, activation="tanh"))


def test_a_scorer_behind_http():
    with serving(lambda asked, number: (200, {"score": [6, 5.5, "7", None, True][min(number, 4)]})) as server:
        scorer = HttpScorer(Endpoint(server.url, EndpointConfig(tries=1)))
        assert scorer.score(picture(0)) == 6.0 and scorer.score(picture(1)) == 5.5
        assert server.asked[0].path == "/v1" and np.abs(server.asked[0].picture.astype(int) - picture(0)).mean() < 12
        for _ in range(3):
            with pytest.raises(Unavailable, match="makes no sense"):
                scorer.score(picture(0))
