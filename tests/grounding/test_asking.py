"""Grounding by asking: a model that is only talked to, window by window, and what its words mean in seconds of the film."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from launch import cli, ground
from revision_jax import Grounder, checkpoint
from revision_jax.chat.chat import Chat
from revision_jax.config import ConfigError
from revision_jax.data.processing import Rules
from revision_jax.errors import UserError
from revision_jax.grounding.asking import AskingGrounder, spans_in
from revision_jax.grounding.levels import Window
from tests.chat.conftest import arrays, model, tokenizer, weights, write_film  # noqa: F401  fixtures
from tests.golden import make_chat as golden

RULES = Rules("original", max_frames=8, tokens=(1, 400))
SAYS = "\n1-4"  # the prompt's last character, then the answer


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("From 3.5 to 7 seconds.", [(3.5, 7.0)]),
        ("The event happens from 3 seconds to 12.25 seconds", [(3.0, 10.0)]),
        ("3s - 7s, and again 8.0-9.5", [(3.0, 7.0), (8.0, 9.5)]),
        ("between 1 and 2; between 1 and 2", [(1.0, 2.0)]),
        ("from 7 to 3", []),
        ("from 11 to 12", []),
        ("It does not happen.", []),
    ],
)
def test_what_an_answer_names(text, spans):
    assert spans_in(text, 10.0) == spans


@pytest.fixture(scope="module")
def told(model, tokenizer, tmp_path_factory):  # noqa: F811
    """(directory of a model of ours that answers "1-4" whatever it is shown, a film of 4 s). Its blocks add nothing, its head turns a letter into the next."""
    config, state = model
    ids = [*tokenizer.encode(SAYS), tokenizer.id("<|im_end|>")]
    assert len(set(ids)) == len(SAYS) + 1
    decoder = {**state["params"]["decoder"], "layers": {**state["params"]["decoder"]["layers"]}}
    layers = decoder["layers"]
    layers["attention"] = {**layers["attention"], "o": {"kernel": 0 * layers["attention"]["o"]["kernel"]}}
    layers["mlp"] = {**layers["mlp"], "down": {"kernel": 0 * layers["mlp"]["down"]["kernel"]}}
    embedding, head = np.array(decoder["embed"]["embedding"]), np.zeros(decoder["embed"]["embedding"].shape[::-1], np.float32)
    for place, (letter, following) in enumerate(itertools.pairwise(ids)):
        embedding[letter] = np.eye(len(head))[place]
        head[place, following] = 5.0
    decoder |= {"embed": {"embedding": embedding}, "head": {"kernel": head}, "norm": {"scale": np.ones(len(head), np.float32)}}
    level = dataclasses.replace(config.grounding.levels[0], span_s=2.0, stride_s=1.0)
    config = dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, tie_embeddings=False), grounding=dataclasses.replace(config.grounding, levels=(level,))
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("told")
    (folder / "words").mkdir()
    state = {**state, "params": {**state["params"], "decoder": decoder}}
    out = checkpoint.export(state, config, tokenizer.save(folder / "words"), folder / "model", dtype="float32")
    return out, write_film(folder / "film.mp4")


def test_windows_are_asked_and_their_seconds_are_the_film_s(told):
    folder, film = told
    grounder = Grounder.from_pretrained(folder)
    assert isinstance(grounder, AskingGrounder) and grounder.chat.say("tell me") == "1-4"
    one, other = grounder.ground(film, ["a red ring", "a blue square"], top_k=2)
    # Windows [0, 2), [1, 3), [2, 4): "1 to 4" is cut at each one's end.
    assert [(m.start_s, m.end_s) for m in one.moments] == [(1.0, 2.0), (2.0, 3.0)] == [(m.start_s, m.end_s) for m in other.moments]
    assert all(0.5 < m.confidence < 1 for m in one.moments) and one.query == "a red ring"
    assert [(window["start_s"], window["kept"]) for window in one.levels[0]["windows"]] == [(0.0, True), (1.0, True), (2.0, False)]
    assert one.present and not grounder.ground(film, ["a red ring"], threshold=1.0)[0].present
    (late,) = grounder.ground(film, ["a red ring"], start_s=2.5)
    assert [(m.start_s, m.end_s) for m in late.moments] == [(3.5, 4.0)]


def test_all_questions_share_a_window_s_frames_and_get_what_they_get_alone(model, tokenizer, tmp_path):  # noqa: F811
    film = write_film(tmp_path / "film.mp4")
    grounder = AskingGrounder(Chat(*model, tokenizer, RULES))
    window, queries = Window(0.0, 4.0, 180.0), ["a red ring", "something else altogether"]
    together = grounder._answers(grounder.encode(film), window, queries)
    alone = [grounder._answers(grounder.encode(film), window, [query])[0] for query in queries]
    assert [text for text, _ in together] == [text for text, _ in alone]
    np.testing.assert_allclose([sure for _, sure in together], [sure for _, sure in alone], rtol=1e-4)
    said = Chat(*model, tokenizer, RULES).say(grounder.question.format(query="a red ring"), videos=[film], max_new_tokens=64)
    assert said == together[0][0]  # and what a conversation about the film gives


def test_a_random_model_names_nothing_and_that_is_counted(model, tokenizer, tmp_path):  # noqa: F811
    film = write_film(tmp_path / "film.mp4")
    (answer,) = AskingGrounder(Chat(*model, tokenizer, RULES)).ground(film, ["a red ring"])
    assert not answer.present and not answer.moments and answer.levels[0]["parse_failures"] == 1


def test_what_cannot_be_asked(told, model, tokenizer, tmp_path):  # noqa: F811
    folder, film = told
    grounder = Grounder.from_pretrained(folder)
    with pytest.raises(UserError, match="nothing to search from 5 s"):
        grounder.ground(film, ["a red ring"], start_s=5.0)
    with pytest.raises(UserError):
        grounder.check("")
    with pytest.raises(ConfigError, match="no text tower, which searching needs"):
        Grounder.from_pretrained(folder, ask=False)
    with pytest.raises(UserError, match=r"token budget: this turn needs .*film\.mp4"):
        AskingGrounder(Chat(*model, tokenizer, RULES, token_budget=20)).ground(film, ["a red ring"])


def test_the_command(told, tmp_path):
    folder, film = told
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: ground.main([str(film), "--query", "a red ring", "--checkpoint", str(folder), "--json", str(tmp_path / "out.json")]))
    assert ended.value.code == 0
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["video"]["duration_s"] == pytest.approx(4.0) and [m["start_s"] for m in read["results"][0]["moments"]] == [1.0, 2.0, 3.0]


def test_a_directory_of_transformers_as_it_is(arrays, weights, tokenizer, tmp_path):  # noqa: F811
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(str(arrays["config"]), encoding="utf-8")
    tokenizer.save(tmp_path)
    grounder = Grounder.from_pretrained(tmp_path)
    assert isinstance(grounder, AskingGrounder) and grounder.level.span_s == 180.0 and grounder.level.stride_s == 90.0
    assert golden.SPECIAL[3] in grounder.chat.specials.image
