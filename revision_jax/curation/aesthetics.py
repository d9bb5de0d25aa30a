"""How good an image looks: a small head over the towers' image vectors, or a user's own scorer behind an HTTP endpoint.

A head is a safetensors file of linear layers, in the manner of LAION's predictors over CLIP vectors: `weight` [1 E] and `bias` [1] for a single layer
(LAION-Aesthetics V1), `layers.0.weight` [1024 E], `layers.0.bias`, `layers.2.weight` ... for several (V2, whose dropouts take up the numbers between). They
are applied in the order of their numbers, with nothing between them unless the file's metadata says `activation`: relu. Vectors come in with unit length.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from safetensors import SafetensorError, safe_open

from revision_jax.curation.endpoint import Endpoint
from revision_jax.curation.pictures import Picture, data_url
from revision_jax.errors import UserError

ACTIVATIONS = ("none", "relu")


class Head:
    """A linear or multi-layer head; scores in its own unit."""

    def __init__(self, path: str | Path, width: int | None = None):
        """width: of the vectors, if it is known. Raises UserError for what is no such file, and for layers that do not follow from one another."""
        path = Path(path)
        try:
            with safe_open(path, "numpy") as file:
                tensors = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118  not a dict
                self.activation = (file.metadata() or {}).get("activation", "none")
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"{path}: not readable as a safetensors file of a head ({' '.join(str(error).split())[:160]})") from None
        if self.activation not in ACTIVATIONS:
            raise UserError(f"{path}: activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        weights = sorted((name for name in tensors if re.fullmatch(r"(.*\.)?weight", name)), key=_numbered)
        others = set(tensors) - set(weights) - {_bias(name) for name in weights}
        if not weights or others:
            raise UserError(f"{path}: a head has tensors NAME.weight and NAME.bias; it has {', '.join(sorted(others or tensors)) or 'none'}")
        self.layers = [(tensors[name], tensors.get(_bias(name), np.zeros(len(tensors[name]), np.float32))) for name in weights]
        wide = width
        for name, (weight, bias) in zip(weights, self.layers, strict=True):
            if weight.ndim != 2 or bias.shape != weight.shape[:1] or (wide is not None and weight.shape[1] != wide):
                wanted = "a matrix" if wide is None else f"[out {wide}]"
                raise UserError(f"{path}: {name} has shape {weight.shape} and its bias {bias.shape}; the weight must be {wanted}, the bias as long as it")
            wide = weight.shape[0]
        if wide != 1:
            raise UserError(f"{path}: {weights[-1]} gives {wide} numbers; a score is one")
        if not all(np.isfinite(array).all() for layer in self.layers for array in layer):
            raise UserError(f"{path}: holds what is not a finite number")
        self.width = self.layers[0][0].shape[1]

    def scores(self, vectors: Num[np.ndarray, "n E"]) -> Float[np.ndarray, "n"]:
        """Scores of image vectors, which need not have unit length; float32."""
        x = np.asarray(vectors, np.float32)
        x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        for number, (weight, bias) in enumerate(self.layers):
            if number and self.activation == "relu":
                x = np.maximum(x, 0)
            x = x @ weight.T + bias
        return x[:, 0]


def head_identity(path: str | Path) -> str:
    """A hash of the file, 16 hex digits."""
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()


def _numbered(name: str) -> tuple:
    """Sorts layers.10 behind layers.2."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part)


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


class HttpScorer:
    """A user's scorer: it is sent {"image": data URL} and answers {"score": number}."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint

    @property
    def identity(self) -> str:
        return self.endpoint.identity

    def score(self, picture: Picture) -> float:
        """Raises what `Endpoint.post` raises."""
        config = self.endpoint.config
        return self.endpoint.post("", {"image": data_url(picture, config.side, config.quality)}, _score)


def _score(answer: Any) -> float:
    score = answer["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not np.isfinite(score):
        raise ValueError(f"score must be a finite number, is {score!r:.40}")
    return float(score)
