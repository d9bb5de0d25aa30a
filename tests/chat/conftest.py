"""The tiny random model of tests/golden/chat.npz, read by the converter as a checkpoint would be."""

from __future__ import annotations

import dataclasses
import json

import av
import numpy as np
import pytest

from revision_jax.chat.engine import Engine
from revision_jax.config import ExperimentConfig
from revision_jax.convert import formats
from revision_jax.convert.load import load_state
from revision_jax.convert.source import ArraySource
from revision_jax.data.tokenizer import Tokenizer
from tests.golden import make_chat as golden


def loaded(weights: dict[str, np.ndarray], config: dict) -> tuple[ExperimentConfig, dict]:
    """(our config, our state, float32) of a transformers model's weights."""
    source = ArraySource(weights, config)
    found = formats.named("video_llama_3")
    ours = found.config(source, ExperimentConfig(), "")
    ours = dataclasses.replace(ours, decoder=dataclasses.replace(ours.decoder, dtype="float32"))
    return ours, load_state([found.plan(source, ours)], dtype="float32")


def write_film(path, seconds: int = 4, fps: int = 4):
    """A small real file: a square moves over ground that stands still."""
    ground = np.random.default_rng(0).integers(0, 80, (32, 32, 3), dtype=np.uint8)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "10"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for k in range(seconds * fps):
            picture = ground.copy()
            picture[4 + k : 12 + k, 8:16] = (40, 200, 40)
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        sink.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    with np.load(golden.FILE) as file:
        return dict(file)


@pytest.fixture(scope="session")
def weights(arrays) -> dict[str, np.ndarray]:
    return {name.removeprefix("weight/"): value for name, value in arrays.items() if name.startswith("weight/")}


@pytest.fixture(scope="session")
def model(arrays, weights) -> tuple[ExperimentConfig, dict]:
    return loaded(weights, json.loads(str(arrays["config"])))


@pytest.fixture(scope="session")
def engine(model) -> Engine:
    return Engine(*model)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(golden.tokenizer(), {"eos": "<|im_end|>"})
