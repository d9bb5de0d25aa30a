"""Released models of full size with random weights, for measuring and testing without them: the files are as large and as many as the real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers

from revision_jax.config import ExperimentConfig
from revision_jax.convert import formats
from revision_jax.convert.write import SHARD, write_external
from revision_jax.data.tokenizer import SPECIAL


def random_checkpoint(folder: str | Path, name: str, config: ExperimentConfig, *, shard_bytes: int = SHARD, seed: int = 0) -> Path:
    """A directory of the format `name` that a model of this config would be released as: bfloat16 numbers below 2, config.json, a tokenizer.

    One tensor lies in memory at a time. Raises what `write_external` raises.
    """
    form, random = formats.named(name), np.random.default_rng(seed)
    target = form.target(config)

    def read(path: str, index: int | None) -> np.ndarray:
        shape = tuple(target[path].shape)[0 if index is None else 1 :]
        bits = np.frombuffer(random.bytes(2 * math.prod(shape)), np.uint16) & 0xBFFF  # without the exponent's highest bit: finite and below 2
        numbers = bits.view(ml_dtypes.bfloat16)
        # A kernel is transposed on its way out, and then lies in order.
        return numbers.reshape(shape[::-1]).T if path.endswith("kernel") and len(shape) == 2 else numbers.reshape(shape)

    external = form.external(config, "") if form.external else None
    files = {"tokenizer.json": _tokenizer(form.special_tokens(config))}
    return write_external(folder, form.export_plan(config).backward(read), external, shard_bytes, stem=form.weights, files=files)


def _tokenizer(special: Sequence[str]) -> str:
    """A tokenizer that knows a few tokens: the model's special ones."""
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({token: i for i, token in enumerate(SPECIAL)}, unk_token="<unk>"))
    inner.add_special_tokens([*SPECIAL, *special])
    return inner.to_str()
