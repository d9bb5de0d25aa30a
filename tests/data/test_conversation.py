"""Tokens and labels of conversations against VideoLLaMA3's own trainer, and what cannot be trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from revision_jax.config import PrunerConfig
from revision_jax.data.conversation import ConversationReader, centre, runs
from revision_jax.data.datasets.conversations import Conversation, ConversationRules, Turn, conversation
from revision_jax.data.frames import token_change
from revision_jax.data.processing import kept_tokens
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError
from tests import conversing
from tests.golden import make_conversation as golden


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return conversing.write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def arrays():
    return golden.load()


def reader(media, tokenizer=None, pruner=None, **changes) -> ConversationReader:
    config = conversing.model()[0]
    config = config if pruner is None else dataclasses.replace(config, pruner=pruner)
    asked = {"pruning": False, "visual": 10240, "max_frames": 180, **changes}
    return ConversationReader(config, conversing.stage(**asked), tokenizer or conversing.tokenizer(), media)


def case(name: str) -> Conversation:
    return conversation(name, golden.CASES[name], ConversationRules())


@pytest.mark.parametrize("name", golden.CASES)
def test_tokens_and_labels_are_those_of_the_original_trainer(name, media, arrays):
    tokenizer = Tokenizer(golden.tokenizer(), {"eos": "<|im_end|>"})
    sample = reader(media, tokenizer, image_merge=golden.MERGES[name] if name != "stream" else 1, stream_ends=True).read(case(name))
    np.testing.assert_array_equal(sample.ids, arrays[f"{name}/ids"])
    np.testing.assert_array_equal(np.where(sample.learnt, sample.ids, -100), arrays[f"{name}/labels"])
    assert sample.places.sum() == sum(shot.pictures.keep.sum() for shot in sample.shots)


def test_the_vocabulary_of_transformers_has_other_places_and_the_same_text(media, arrays):
    known = conversing.tokenizer()
    for name, place in (("images", "<|image_pad|>"), ("video", "<|video_pad|>")):
        sample = reader(media).read(case(name))
        own = Tokenizer(golden.tokenizer(), {"eos": "<|im_end|>"})
        assert (sample.ids[sample.places] == known.id(place)).all()
        theirs = arrays[f"{name}/ids"]
        assert [known.token(i) for i in sample.ids[~sample.places]] == [own.token(i) for i in theirs[theirs != own.id("<image>")]]


def test_boxes_pass_as_text_and_a_system_line_is_no_answer(media):
    read = reader(media)
    sample = read.read(case("untagged"))
    assert golden.BOX in read.tokenizer.decode(sample.ids[sample.learnt])
    turns = (Turn("system", "Be brief."), Turn("user", "Go"), Turn("assistant", "No."))
    sample = read.read(Conversation("s", "text", (), turns, "train"))
    assert read.tokenizer.decode(sample.ids[sample.learnt]) == "No." and sample.ids[sample.learnt][-1] == read.specials.end
    text = read.tokenizer._inner.decode(sample.ids.tolist(), skip_special_tokens=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"


def test_a_video_keeps_what_changed_and_a_stream_what_was_shown_before_the_last_turn(media):
    video = reader(media, pruning=True).read(case("video"))
    (shot,) = video.shots
    expected = kept_tokens(token_change(shot.pictures.frames, 4, 2), PrunerConfig())
    np.testing.assert_array_equal(shot.pictures.keep, expected)
    assert expected.sum() == video.places.sum() < expected.size and expected[0].all()
    stream = reader(media, pruning=True).read(case("stream"))
    (shot,) = stream.shots
    assert len(shot.pictures.frames) == 2  # those at 1 and 2 s; the one at 3 s is after the last turn
    text = reader(media).tokenizer._inner.decode(stream.ids[~stream.places].tolist(), skip_special_tokens=False)
    assert text.startswith("<|stream_start|>stream\nTime 0.0s: \n<|stream_end|>\n<|im_start|>user\nTell me") and "stream\nTime 1.0s: \n" in text
    assert not stream.learnt[stream.ids == reader(media).tokenizer.id("<|stream_end|>")].any()  # replies alone, unless asked


def test_frames_and_sizes_follow_the_stage(media):
    (shot,) = reader(media, max_frames=2).read(case("video")).shots
    assert len(shot.pictures.frames) == 2
    (shot,) = reader(media, fps=2.0).read(case("video")).shots
    assert len(shot.pictures.frames) == 8
    (shot,) = reader(media, visual=32).read(case("video")).shots  # four frames share 32 tokens
    assert shot.pictures.keep.shape == (4, 4) or shot.pictures.keep.size <= 64
    (shot,) = reader(media, image_merge=2, visual=64).read(case("image")).shots
    assert shot.merge == 2 and shot.pictures.keep.all()


def test_what_cannot_be_trained_on_names_the_sample(media, tmp_path):
    turns = (Turn("user", "Go <|im_end|> on"), Turn("assistant", "No."))
    with pytest.raises(UserError, match=r"^s: a turn holds <\|im_end\|>"):
        reader(media).read(Conversation("s", "text", (), turns, "train"))
    with pytest.raises(UserError, match=r"^image: .*a\.png: not readable"):
        reader(tmp_path).read(case("image"))
    with pytest.raises(UserError, match=r"^video: .*film\.mp4: no such file"):
        reader(tmp_path).read(case("video"))
    with pytest.raises(UserError, match=r"^s: holds nothing to learn"):
        reader(media).read(Conversation("s", "text", (), (Turn("user", "Go"),), "train"))
    without = Tokenizer(golden.tokenizer(golden.OWN[:4]), {"eos": "<|im_end|>"})
    with pytest.raises(UserError, match=r"lacks <\|stream_start\|>, <\|stream_end\|>"):
        reader(media, without).read(case("stream"))
    late = dataclasses.replace(case("stream"), start_s=100.0, end_s=110.0)
    with pytest.raises(UserError, match="shows nothing between 100 and 110 s"):
        reader(media).read(late)


def test_dropped_tokens_may_be_left_out_of_the_encoder(media):
    (shot,) = reader(media, pruning=True).read(case("video")).shots
    counts = shot.pictures.keep.sum(1)
    assert runs(shot, 4, before_encoder=False) == [(4, 64)]
    before = runs(shot, 4, before_encoder=True)
    assert [size for count, size in before for _ in range(count)] == (4 * counts).tolist()


def test_the_middle_of_a_block_is_what_merging_takes():
    import jax.numpy as jnp

    from revision_jax.models.vision import merge_tokens

    rng = np.random.default_rng(0)
    for merge in (1, 2, 3, 4):
        patches = rng.normal(size=(1, 4 * merge * merge, 5)).astype(np.float32)
        blocks = patches.reshape(4, merge * merge, 5)[:, centre(merge)]
        np.testing.assert_allclose(merge_tokens(jnp.asarray(patches), (2 * merge, 2 * merge), merge)[0], blocks.mean(1), atol=1e-6)
