"""Rows of a stage: the same from any step, in one process or four, in threads or workers; lengths measured once, and again for anything else."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from revision_jax.config import ConfigError, RowConfig
from revision_jax.data import conversation_source
from revision_jax.data import lengths as measuring
from revision_jax.data.conversation import ConversationReader
from revision_jax.data.conversation_source import ConversationSource
from revision_jax.data.pipeline import batches
from revision_jax.errors import UserError
from tests import conversing
from tests.golden import make_conversation as golden


def texts(count: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{"conversations": golden.turns("word " * int(rng.integers(1, 12)), "no " * int(rng.integers(1, 9)))} for _ in range(count)]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return conversing.write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two datasets: every kind of conversation, and texts of many lengths."""
    root = tmp_path_factory.mktemp("built")
    return root, conversing.dataset(root, [*golden.CASES.values(), *golden.CASES.values()]), conversing.dataset(root, texts(23), "texts")


def source_of(built, media, **changes) -> ConversationSource:
    root, *datasets = built
    stage = conversing.stage(**{"mixture": (("all", 1.0), ("texts", 1.0)), "window": 8, **changes})
    config = conversing.config((stage,), root, media)
    reader = ConversationReader(config, stage, conversing.tokenizer(), media)
    before = config.pruner.where == "before_encoder"
    return ConversationSource(config, stage, reader, datasets, [measuring.of(one, reader, before)[0] for one in datasets])


@pytest.fixture(scope="module")
def source(built, media):
    return source_of(built, media)


def conversations(source, steps):
    return [row for step in steps for row in source.conversations(step)]


@pytest.mark.parametrize("chapter", [65_536, 10])
def test_an_epoch_shows_every_conversation_once_and_the_next_one_again_in_another_order(built, media, monkeypatch, chapter):
    monkeypatch.setattr(conversation_source, "CHAPTER", chapter)
    source = source_of(built, media)
    assert source.chapters == (1 if chapter > 35 else 4)
    wanted = sorted([(0, i) for i in range(12)] + [(1, i) for i in range(23)])
    epochs, step = [], 0
    for _ in range(2):
        first = step
        for _ in range(source.chapters):
            planned, at = source.chapter_of(step)
            assert at == 0
            step += planned.steps
        epochs.append(conversations(source, range(first, step)))
        assert sorted(one for row in epochs[-1] for one in row) == wanted
    assert epochs[0] != epochs[1]
    late = source_of(built, media)
    assert conversations(late, [step - 1]) == conversations(source, [step - 1])  # begun there


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_batches_are_a_function_of_the_step_for_any_number_of_processes_and_any_start(built, media):
    changes = {"batch": 4, "mixture": (("all", 1.0), ("texts", 0.5))}
    whole = list(batches(source_of(built, media, **changes), batch=4, steps=6))
    parts = [list(batches(source_of(built, media, **changes), batch=4, steps=6, process_index=p, process_count=4)) for p in range(4)]
    for step, batch in enumerate(whole):
        same(batch, {name: np.concatenate([part[step][name] for part in parts]) for name in batch})
    for step, batch in enumerate(batches(source_of(built, media, **changes), batch=4, steps=6, start=4), start=4):
        same(batch, whole[step])
    assert len({batch["ids"].shape for batch in whole}) == 2  # both shapes of rows occur


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(built, media):
    whole = list(batches(source_of(built, media), batch=2, steps=5))
    stream = batches(source_of(built, media), batch=2, steps=5, start=1, workers=4)
    for step, batch in enumerate(stream, start=1):
        same(batch, whole[step])
    stream.close()


def test_a_row_is_its_conversations_side_by_side(source):
    for step in range(source.chapter_of(0)[0].steps):
        for row, members in enumerate(source.conversations(step)):
            made = source.example(step * 2 + row)
            samples = [source._sample(int(source.starts[dataset]) + number) for dataset, number in members]
            assert made["segments"].max() == len(members)
            for number, sample in enumerate(samples, start=1):
                here = made["segments"] == number
                np.testing.assert_array_equal(made["ids"][here], sample.ids)
                np.testing.assert_array_equal(made["positions"][here], np.arange(len(sample.ids)))
                np.testing.assert_array_equal(made["visual"][here] >= 0, sample.places)
            at = made["label_slots"][made["label_mask"]]
            np.testing.assert_array_equal(made["ids"][at + 1], made["label_ids"][made["label_mask"]])
            np.testing.assert_array_equal(made["segments"][at], made["segments"][at + 1])
            learnt = np.concatenate([sample.ids[sample.learnt] for sample in samples]) if samples else np.zeros(0)
            np.testing.assert_array_equal(made["label_ids"][made["label_mask"]], learnt)


@pytest.mark.parametrize("where", ["after_encoder", "before_encoder"])
def test_visual_tokens_are_gathered_from_the_patches_that_they_are_made_of(built, media, where, monkeypatch):
    """Each token's four patches, wherever they lie in the slots, are those of its block, with the rows and columns of its frame."""
    config, state = conversing.model()
    pruned = dataclasses.replace(config, pruner=dataclasses.replace(config.pruner, where=where))
    monkeypatch.setattr(conversing, "model", lambda: (pruned, state))
    source = source_of(built, media)
    patch = 4
    for step in range(source.chapter_of(0)[0].steps):
        for row, members in enumerate(source.conversations(step)):
            made = source.example(step * 2 + row)
            if "parts" not in made:
                continue
            slots = range(len(source.asked.rows[source.chapter_of(0)[0].shapes[step]].slots))
            flat = lambda name, made=made, slots=slots: np.concatenate([made[f"{name}_{k}"].reshape(-1, *made[f"{name}_{k}"].shape[2:]) for k in slots])
            pixels, rows, columns, pictures = (flat(name) for name in ("pixels", "rows", "columns", "pictures"))
            tokens = iter(made["parts"])
            for dataset, number in members:
                for shot in source._sample(int(source.starts[dataset]) + number).shots:
                    frames, keep = shot.pictures
                    across = frames.shape[2] // (patch * shot.merge)
                    for frame, kept in zip(frames, keep, strict=True):
                        for token in np.flatnonzero(kept):
                            top, left = token // across * shot.merge, token % across * shot.merge
                            for part in next(tokens):
                                r, c = rows[part], columns[part]
                                assert top <= r < top + shot.merge and left <= c < left + shot.merge and pictures[part] > 0
                                square = frame[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
                                np.testing.assert_array_equal(pixels[part], square.transpose(2, 0, 1).reshape(-1))


# ------------------------------------------------------------------------------------------------------------------------- lengths


def test_lengths_are_kept_and_go_on_where_a_run_was_killed(built, media, monkeypatch):
    texts_only = built[2]
    monkeypatch.setattr(measuring, "PART", 5)
    stage = conversing.stage(fps=2.0)  # of their own
    reader = ConversationReader(conversing.config((stage,), media, media), stage, conversing.tokenizer(), media)
    said = []
    measuring.make(texts_only, reader, share=(0, 2), report=lambda *line: said.append(line))
    where = measuring.folder(texts_only, reader)
    assert sorted(path.name for path in where.iterdir()) == [f"part-0000{i}.npz" for i in (0, 2, 4)] and len(said) == 3
    with pytest.raises(UserError, match="no lengths for this tokenizer"):
        measuring.load(texts_only, reader)
    before = (where / "part-00002.npz").stat().st_mtime_ns
    lengths, problems = measuring.of(texts_only, reader)
    assert len(lengths) == 23 and not problems and sorted(path.name for path in where.iterdir()) == ["lengths.npz", "problems.json"] and before
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("measured again"))
    again, _ = measuring.of(texts_only, reader)
    np.testing.assert_array_equal(again.tokens, lengths.tokens)


def test_anything_that_decides_lengths_is_part_of_their_identity(built, media):
    _, all_kinds, texts_only = built

    def name(dataset=all_kinds, tokenizer=None, **changes):
        stage = conversing.stage(**changes)
        reader = ConversationReader(conversing.config((stage,), media, media), stage, tokenizer or conversing.tokenizer(), media)
        return measuring.identity(dataset, reader)

    other = golden.tokenizer([*golden.OWN, "<|more|>"])
    changed = [{"image_merge": 2}, {"pruning": False}, {"visual": 128}, {"fps": 2.0}, {"stream_ends": True}, {"max_frames": 2}, {"dataset": texts_only}]
    names = [name(), *(name(**change) for change in changed), name(tokenizer=type(conversing.tokenizer())(other, {"eos": "<|im_end|>"}))]
    assert len(set(names)) == len(names) and name(window=3, batch=8, rows=(RowConfig(),)) == name()


def test_what_cannot_be_read_is_known_and_what_is_too_long_is_told(tmp_path, media):
    rows = [*golden.CASES.values(), {"image": ["none.png"], "conversations": golden.turns("<image>What?", "No.")}, *texts(1)]
    rows.append({"conversations": golden.turns("Go", "on and on " * 80)})
    built = conversing.dataset(tmp_path, rows)
    stage = conversing.stage()
    config = conversing.config((stage,), tmp_path, media)
    reader = ConversationReader(config, stage, conversing.tokenizer(), media)
    lengths, problems = measuring.of(built, reader)
    assert list(problems) == ["6"] and "none.png: not readable as an image" in problems["6"] and lengths.tokens[6] == 0
    assert json.loads((measuring.folder(built, reader) / "problems.json").read_text()) == problems
    source = ConversationSource(config, stage, reader, [built], [lengths])
    told = "\n".join(source.report())
    assert "all: 7 conversations an epoch (weight 1); 1 cannot be read and 1 are too long for any row" in told
    planned = source.chapter_of(0)[0]
    assert f"an epoch is {planned.steps} steps of 2 rows" in told and "filled" in told and "the encoder's slots" in told
    short = conversing.stage(rows=(RowConfig(8, 0, 8, ()),))
    with pytest.raises(ConfigError, match=r"stages\.talk\.conversation\.rows: none of the conversations of all fits"):
        ConversationSource(config, short, reader, [built], [lengths])


def test_media_that_changed_since_are_refused(tmp_path):
    media = conversing.write_media(tmp_path / "media")
    built = conversing.dataset(tmp_path, [golden.CASES["image"]])
    stage = conversing.stage()
    config = conversing.config((stage,), tmp_path, media)
    reader = ConversationReader(config, stage, conversing.tokenizer(), media)
    source = ConversationSource(config, stage, reader, [built], [measuring.of(built, reader)[0]])
    (media / "a.png").write_bytes((media / "b.png").read_bytes())
    with pytest.raises(UserError, match="has changed since it was measured; delete"):
        [source.example(index) for index in range(2)]
