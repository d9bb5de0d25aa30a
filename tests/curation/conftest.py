"""A tiny model with towers, and a folder of images with a few of everything."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from revision_jax import checkpoint
from revision_jax.data.synthetic.language import COLOUR_WORDS, SHAPE_WORDS
from revision_jax.data.tokenizer import build_word_tokenizer
from tests.grounding.conftest import noisy_state
from tests.tiny import config as tiny_config

WORDS = ["a small large plain striped in front of behind passes is there can be seen", *(" ".join(w) for w in (*COLOUR_WORDS.values(), *SHAPE_WORDS.values()))]


@pytest.fixture(scope="session")
def towers_folder(tmp_path_factory):
    """Random towers: what they say means nothing, but it is always the same."""
    folder = tmp_path_factory.mktemp("towers")
    config = tiny_config()
    return checkpoint.export(noisy_state(config), config, build_word_tokenizer(WORDS, 200, 300).save(folder), folder / "tiny", dtype="float32")


def picture(seed: int, height: int = 80, width: int = 96) -> np.ndarray:
    """Something to see: blocks of colour."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))


@pytest.fixture
def images(tmp_path):
    """images/0.png ... 6.png, captions.jsonl: 5 is like 1, 6 a strip."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        shown = picture(number)
        if number == 5:
            shown = (picture(1) * 0.95).astype(np.uint8)
        if number == 6:
            shown = picture(6, 64, 640)
        Image.fromarray(shown).save(folder / f"{number}.png")
    rows = [{"image": f"{number}.png", "caption": f"a red ring {number}"} for number in range(7)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
