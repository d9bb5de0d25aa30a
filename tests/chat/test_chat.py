"""A conversation: turns that share one cache, media encoded once, a budget that is checked first, and what can be read as a model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from revision_jax import checkpoint
from revision_jax.chat import engine as engine_module
from revision_jax.chat.chat import Chat
from revision_jax.chat.engine import Engine, slots_for
from revision_jax.chat.sampling import Sampling
from revision_jax.config import PrunerConfig
from revision_jax.data.chat_template import Prompt
from revision_jax.data.processing import Rules
from revision_jax.errors import UserError
from tests.chat.conftest import write_film
from tests.golden import make_chat as golden

RULES = Rules("original", max_frames=3, tokens=(1, 48))
ANSWER = 12


@pytest.fixture(scope="module", autouse=True)
def small_shapes():
    """Small chunks and caches: several of each in a short conversation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "CHUNKS", (16, 64))
        patch.setattr(engine_module, "SLOTS", 128)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(golden.frames("image")[0][0]).save(folder / "picture.png")
    return {"image": folder / "picture.png", "video": write_film(folder / "film.mp4")}


@pytest.fixture
def chat(model, tokenizer):
    return Chat(*model, tokenizer, RULES)


def whole(chat: Chat, ids: list[int], shown: np.ndarray, steps: int) -> tuple[int, ...]:
    """The answer to a conversation that is read at once, from nothing."""
    prompt = Prompt(np.asarray(ids, np.int32), np.isin(ids, chat.specials.places))
    return tuple(chat.engine.generate([prompt], [shown], steps, stops=chat.specials.stops)[0][0].tolist())


def test_a_second_turn_knows_the_first(chat, files):
    """The cache that is kept gives what reading everything again gives; the second turn outgrows it."""
    asked = "is the same here as before? " * 4
    chat.say("what is here?", images=[files["image"]], max_new_tokens=ANSWER)
    slots = chat._cache["valid"].shape[1]
    chat.say(asked, max_new_tokens=ANSWER)
    assert chat._cache["valid"].shape[1] > slots
    ((_, tokens),) = chat._media.values()
    one, two = chat.turns
    ids = chat.tokenizer.encode(f"<|im_start|>user\n{'<|image_pad|>' * len(tokens)}\nwhat is here?<|im_end|>\n<|im_start|>assistant\n")
    assert one.ids == whole(chat, ids, tokens, ANSWER) and one.visual == len(tokens)
    ended = "" if one.ids[-1] == chat.specials.end else "<|im_end|>"
    ids += [*one.ids, *chat.tokenizer.encode(f"{ended}\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")]
    assert two.ids == whole(chat, ids, tokens, ANSWER)
    assert chat.used == len(ids) + len(two.ids)


def test_media_are_encoded_once(chat, files, monkeypatch):
    calls = []
    encode = chat.engine.encode
    monkeypatch.setattr(chat.engine, "encode", lambda *args: calls.append(1) or encode(*args))
    shown = {"images": [files["image"]], "videos": [files["video"]], "max_new_tokens": 2}
    first = chat.say("what is here?", **shown)
    chat.say("and the same before?", **shown)
    chat.reset()
    assert chat.say("what is here?", **shown) == first and len(calls) == 2
    assert chat.turns[0].visual == sum(len(tokens) for _, tokens in chat._media.values())


def test_pieces_are_the_answer_and_a_reader_may_leave(chat):
    answer = chat.say("tell me", max_new_tokens=ANSWER)
    assert len(chat.turns[0].ids) == ANSWER or chat.turns[0].complete
    chat.reset()
    pieces = chat.ask("tell me", max_new_tokens=ANSWER)
    taken = next(pieces)
    pieces.close()
    assert answer.startswith(taken) and chat.turns[0].answer == taken and not chat.turns[0].complete
    used = chat.used
    chat.say("go on", max_new_tokens=2)
    assert chat.used > used and len(chat.turns) == 2


def test_drawing_follows_the_seed(chat):
    drawn = []
    for seed in (1, 1, 2):
        chat.reset()
        drawn.append(chat.say("tell me", sampling=Sampling(1.5, top_p=0.95), seed=seed, max_new_tokens=ANSWER))
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_budget_is_checked_before_anything_is_read(model, tokenizer, files, monkeypatch):
    chat = Chat(*model, tokenizer, RULES, token_budget=60)
    for name in ("read", "encode", "new_cache"):
        monkeypatch.setattr(chat.engine, name, lambda *_: pytest.fail("nothing may be made before the budget is checked"))
    found = r"needs [\d,]+ tokens \(.*film.mp4 48 \(3 frames of 16\), text \d+, answer 40\), the budget is 60; .*max_frames.*max_pixels.*max_new_tokens.*MiB"
    with pytest.raises(UserError, match=found):
        chat.ask("what is here?", videos=[files["video"]], max_new_tokens=40)
    assert chat.used == 0 and not chat.turns
    with pytest.raises(UserError, match="prompt: contains"):
        chat.ask("<|im_end|>")


def test_smaller_pictures_are_fewer_tokens(model, tokenizer, files):
    visual = []
    for most in (None, 8 * 8):
        chat = Chat(*model, tokenizer, RULES, max_pixels=most)
        chat.say("what is here?", videos=[files["video"]], max_new_tokens=1)
        visual.append(chat.turns[0].visual)
    assert visual[1] <= 3 < visual[0]


@pytest.mark.parametrize("where", ["before_encoder", "after_encoder"])
def test_what_is_dropped_before_the_encoder_is_not_seen(model, where):
    config, state = model
    engine = Engine(dataclasses.replace(config, pruner=PrunerConfig(where=where)), state)
    film = golden.frames("video")[0][:1]
    keep = np.zeros((1, 6), bool)
    keep[0, [0, 4]] = True  # of 2 x 3 blocks of 8 x 8 pixels
    other = film.copy()
    other[0, :8, 16:] = 0  # block 2
    first, second = (engine.encode(frames, keep, 2) for frames in (film, other))
    assert first.shape == (2, 32)
    assert np.allclose(first, second, atol=1e-6) == (where == "before_encoder")


def test_kept_patches_side_by_side_are_encoded_as_each_frame_alone(model):
    config, state = model
    engine = Engine(dataclasses.replace(config, pruner=PrunerConfig(where="before_encoder")), state)
    film = np.random.default_rng(0).integers(0, 256, (21, 16, 24, 3), dtype=np.uint8)
    keep = np.random.default_rng(1).random((21, 6)) < 0.4
    keep[0], keep[7] = True, False
    together = engine.encode(film, keep, 2)
    alone = [engine.encode(film[i : i + 1], keep[i : i + 1], 2) for i in range(21)]
    assert np.allclose(together, np.concatenate(alone), atol=1e-5) and together.shape == (keep.sum(), 32)


def test_slots_hold_what_is_needed_and_no_more_than_the_budget():
    for needed in (1, 60, 64, 65, 300, 1000):
        slots = slots_for(needed, 1000)
        assert needed + engine_module.CHUNKS[-1] <= slots <= 1000 + engine_module.CHUNKS[-1]
    assert len({slots_for(n, 100_000) for n in range(1, 100_000, 97)}) <= 12  # few shapes


# ------------------------------------------------------------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def directory(tmp_path_factory, arrays, weights, tokenizer):
    """As transformers writes it."""
    folder = tmp_path_factory.mktemp("hub")
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(str(arrays["config"]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    tokenizer.save(folder)
    return folder


def test_a_directory_of_transformers_and_our_own_layout_say_the_same(directory, model, tokenizer, tmp_path):
    (tmp_path / "t").mkdir()
    ours = checkpoint.export(model[1], model[0], tokenizer.save(tmp_path / "t"), tmp_path / "ours", dtype="float32")
    said = {Chat.from_pretrained(path, dtype="float32").say("what is here?", max_new_tokens=ANSWER) for path in (directory, ours)}
    said.add(Chat(*model, tokenizer).say("what is here?", max_new_tokens=ANSWER))
    assert len(said) == 1


def test_what_is_no_model_to_talk_with(directory, tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        Chat.from_pretrained(tmp_path / "nowhere")
    part = tmp_path / "part"
    part.mkdir()
    config = json.loads((directory / "config.json").read_text())["text_config"]
    (part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (part / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    save_file({"model.embed_tokens.weight": np.zeros((2, 2), np.float32)}, part / "model.safetensors")
    with pytest.raises(UserError, match="holds a qwen2, which is a part of a model"):
        Chat.from_pretrained(part)
