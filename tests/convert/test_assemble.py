"""Parts that make a model together, on disk and in memory; and a model of which parts are missing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from revision_jax import checkpoint, paths
from revision_jax.convert import formats, peft
from revision_jax.convert.assemble import Part, assemble, is_foreign
from revision_jax.convert.llama import QWEN2
from revision_jax.convert.write import write_checkpoint, write_external
from revision_jax.errors import UserError
from revision_jax.grounding.grounder import Grounder
from revision_jax.models.quantize import STACKS
from tests.grounding.conftest import WORDS, build_word_tokenizer, small_config


def random_leaves(target, seed):
    random = np.random.default_rng(seed)
    return {name: (0.2 * random.normal(size=leaf.shape)).astype(np.float32) for name, leaf in target.items()}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A small model of ours, another decoder as a Qwen2 directory, and a LoRA for the dense level as PEFT writes it."""
    folder = tmp_path_factory.mktemp("parts")
    config = small_config()
    everything = ("params", *(f"{kind}/{level.name}" for kind in ("lora", "adapter") for level in config.grounding.levels))
    (folder / "words").mkdir()
    words = build_word_tokenizer(WORDS, numbers=64, vocab_size=128).save(folder / "words")
    checkpoint.export(paths.unflatten(random_leaves(formats.target(config, everything), 0)), config, words, folder / "ours", dtype="float32")
    decoder = random_leaves(QWEN2.target(config), 1)
    read = lambda path, index: decoder[path] if index is None else decoder[path][index]
    write_external(folder / "qwen", QWEN2.export_plan(config).backward(read), QWEN2.external(config, ""), files={"tokenizer_config.json": "{}"})
    import tokenizers

    inner = tokenizers.Tokenizer.from_file(str(words))
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(folder / "qwen" / "tokenizer.json"))
    pairs = random_leaves(peft.FORMAT.target(config, "dense"), 2)
    tensors = peft.FORMAT.export_plan(config, "dense").backward(lambda path, index: pairs[path][index])
    write_external(folder / "lora", tensors, peft.FORMAT.external(config, "dense"), stem="adapter_model", config_name="adapter_config.json")
    return [Part(folder / "lora", "peft", "dense"), Part(folder / "ours"), Part(folder / "qwen", "qwen2")], decoder, pairs


def test_a_grounder_of_parts_is_the_grounder_of_the_converted_checkpoint(tmp_path, parts):
    given, decoder, pairs = parts
    made = assemble(given)
    assert not made.lacking and not made.notes
    assert made.config.decoder == dataclasses.replace(small_config().decoder, dtype="float32") and made.config.grounding == small_config().grounding
    out = write_checkpoint(tmp_path / "out", made.config, made.plans, made.files)
    one, other = Grounder.from_parts(given, cache_dir=tmp_path / "cache"), Grounder.from_pretrained(out, cache_dir=tmp_path / "cache")
    assert one.config == other.config and one.programs.tokenizer.encode("a red ring") == other.programs.tokenizer.encode("a red ring")
    first, second = (paths.flatten(grounder.programs.state) for grounder in (one, other))
    assert set(first) == set(second)
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name])
    for name, leaf in (decoder | pairs).items():
        for path, row in paths.slices(name, leaf.shape, STACKS):  # a Grounder holds the decoder's layers apart
            np.testing.assert_array_equal(first[path], leaf if row is None else leaf[row])


def test_what_is_missing_is_said(tmp_path, parts):
    given, *_ = parts
    preset = small_config()
    with pytest.raises(UserError, match=r"no part gives adapter/dense, .*lora/sparse, .*params/vision: \d+ of the config's \d+ tensors"):
        Grounder.from_parts([given[0], given[2]], preset)
    with pytest.raises(UserError, match=r"qwen: nothing to search with: levels with an adapter and a LoRA each, and an image-text pair, are missing; .*chat"):
        Grounder.from_pretrained(given[2].path)


def test_foreign_or_ours(tmp_path, parts):
    given, *_ = parts
    assert [is_foreign(part.path) for part in given] == [True, False, True]
    assert is_foreign(given[0].path / "adapter_model.safetensors") and not is_foreign(tmp_path) and not is_foreign(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("[1")
    assert not is_foreign(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(3))
    assert not is_foreign(tmp_path)
