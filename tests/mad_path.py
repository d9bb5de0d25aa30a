"""MAD's path from its owners' files to a table, as a person walks it, at any width: the preset and what a test changes of it."""

from __future__ import annotations

from pathlib import Path

import jax

import configs
from launch import datasets, import_features, train
from revision_jax import checkpoint
from revision_jax.config import override
from revision_jax.data.synthetic import planted
from revision_jax.data.tokenizer import FILE
from revision_jax.models.revision import init_state
from tests.real_tokenizers import LINES, byte_level, sentencepiece_like

PRESET = str(Path(configs.__file__).parent / "revisionllm_7b_mad.py")
STAGES = ("1a", "1b", "2", "2-33")
SENTENCES = [f"The {s} {a} the {o}." for s, a, o in zip(planted.SUBJECTS, planted.ACTIONS, planted.OBJECTS, strict=True)]
WORDS, CAPTIONS = sentencepiece_like((*LINES, *SENTENCES), 480), byte_level(("<|startoftext|>", "<|endoftext|>"))
FRAMES, TOKENS, TEXTS = planted.FRAMES, planted.TOKENS, planted.TEXTS


def make_set(folder: Path, films: int, minutes: float, questions: int, width: int) -> None:
    """`folder`/manual as the owners give it out, built to datasets, and imported to stores, queries (of tokens) and sentences (of tokens and vectors)."""
    numbers = ["--films", str(films), "--minutes", str(minutes), "--questions", str(questions), "--width", str(width)]
    datasets.main(["imitate", "mad", "--out", str(folder / "manual"), *numbers])
    datasets.main(["build", "mad", "--manual", str(folder / "manual"), "--out", str(folder / "datasets")])
    built, shared = str(folder / "datasets" / "mad"), ["--width", str(width)]
    import_features.main([str(folder / "manual" / FRAMES), "--rate", "5", "--durations", built, "--out", str(folder / "stores"), *shared])
    for source, out in ((TOKENS, "queries"), (TEXTS, "sentences")):
        import_features.main([str(folder / "manual" / source), "--queries", built, "--out", str(folder / out), *shared])


def begin(folder: Path, overrides: list[str], dtype: str) -> None:
    """`folder`/begin: a checkpoint of random weights in `launch.convert`'s layout, with tokenizers of its own."""
    tokenizers = folder / "tokenizers"
    (tokenizers / checkpoint.TEXT_TOKENIZER).mkdir(parents=True)
    (tokenizers / FILE).write_text(WORDS.to_str())
    (tokenizers / checkpoint.TEXT_TOKENIZER / FILE).write_text(CAPTIONS.to_str())
    config = override(train.load_config(PRESET), overrides)
    checkpoint.export(init_state(config, jax.random.key(1)), config, tokenizers / FILE, folder / "begin", dtype=dtype)


def training(folder: Path, workdir: str, overrides: list[str], *more: str, features: str = "stores") -> list[str]:
    """Arguments of launch.train."""
    where = [f"data.root={folder / 'datasets'}", f"data.features={folder / features}"]
    return [PRESET, "--workdir", str(folder / workdir), "--init", str(folder / "begin"), *overrides, *where, *more]


def evaluating(folder: Path, trained: Path, *more: str, features: str = "stores") -> list[str]:
    """Arguments of launch.evaluate."""
    where = ["--data", str(folder / "datasets"), "--features", str(folder / features), "--cache", str(folder / "cache")]
    return ["--checkpoint", str(trained), "--dataset", "mad", *where, *more]
