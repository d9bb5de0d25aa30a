"""ReVisionLLM's adapters, every form: read from the released names, run, against a float64 transcription of the reference sheet's formulas, written back.

The transcription works on the released names and shares no code with the model. Sizes are small; once they are the real ones (768 to 4096).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import AdapterConfig, ExperimentConfig, LevelConfig
from revision_jax.convert import formats
from revision_jax.convert.load import load_state
from revision_jax.convert.source import ArraySource
from revision_jax.errors import UserError
from revision_jax.models import adapter as adapters
from tests.tiny import config as tiny_config

WIDTH, HIDDEN, MLP, HEADS = 16, 24, 20, 4
PREFIX = "base_model.model.model."


def experiment(hidden: int = HIDDEN, heads: int = HEADS, norm: str = "none") -> ExperimentConfig:
    """A sparse level, another, and a dense one. Sizes of the adapters come from the files: here they are wrong on purpose."""
    sparse, dense = (AdapterConfig(kind=kind, width=8, heads=heads, mlp=8, text_layers=1, self_layers=1, norm=norm) for kind in ("sparse", "dense"))
    levels = (
        LevelConfig(name="sparse", kind="sparse", tokens=8, frames=4, adapter=sparse),
        LevelConfig(name="sparse2", kind="sparse", tokens=4, frames=4, adapter=sparse),
        LevelConfig(name="dense", kind="dense", tokens=8, adapter=dense),
    )  # fmt: skip
    base = tiny_config()
    decoder = dataclasses.replace(base.decoder, width=hidden)
    return dataclasses.replace(base, decoder=decoder, grounding=dataclasses.replace(base.grounding, levels=levels))


EXPERIMENT = experiment()


# ------------------------------------------------------------------------------------------------------------------- released files


def linear(random, name: str, out: int, width: int) -> dict[str, np.ndarray]:
    return {f"{name}.weight": random.normal(size=(out, width)) * width**-0.5, f"{name}.bias": 0.2 * random.normal(size=out)}


def norm(random, name: str, width: int) -> dict[str, np.ndarray]:
    return {f"{name}.weight": 1 + 0.2 * random.normal(size=width), f"{name}.bias": 0.2 * random.normal(size=width)}


def encoder(random, root: str, width: int, mlp: int, layers: int = 2) -> dict[str, np.ndarray]:
    """The encoder's tensors under `root`, but for the projections before or after it."""
    file = {f"{root}.global_rep_token": random.normal(size=width), f"{root}.global_rep_pos": random.normal(size=width)}
    for part in ("t2v_encoder", "encoder"):
        for i in range(layers):
            layer = f"{root}.{part}.layers.{i}"
            joined = linear(random, "x", 3 * width, width)
            file |= {f"{layer}.self_attn.in_proj_weight": joined["x.weight"], f"{layer}.self_attn.in_proj_bias": joined["x.bias"]}
            file |= linear(random, f"{layer}.self_attn.out_proj", width, width) | linear(random, f"{layer}.linear1", mlp, width)
            file |= linear(random, f"{layer}.linear2", width, mlp) | norm(random, f"{layer}.norm1", width) | norm(random, f"{layer}.norm2", width)
    return file


def released(form: str, width: int = WIDTH, hidden: int = HIDDEN, mlp: int = MLP, layers: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """What a released file of this form holds, float32, by names without prefixes."""
    random = np.random.default_rng(seed)
    if form == "dense":
        file = linear(random, "mm_projector", hidden, width)
    elif form == "sparse":
        file = encoder(random, "mm_projector", width, mlp, layers) | linear(random, "mm_projector.mm_projector", hidden, width)
    elif form == "alternate":
        file = encoder(random, "cross_attn", width, mlp) | linear(random, "cross_attn.mm_projector", hidden, width)
        file |= linear(random, "mm_projector", hidden, width) | norm(random, "alternate_layer_norm", hidden)
    else:  # alternate with a text projection
        file = encoder(random, "cross_attn", hidden, mlp) | linear(random, "cross_attn.text_mm_projector", hidden, width)
        file |= linear(random, "mm_projector", hidden, width) | norm(random, "alternate_layer_norm", hidden)
    return {name: array.astype(np.float32) for name, array in file.items()}


def source(file: dict[str, np.ndarray], prefix: str = PREFIX) -> ArraySource:
    return ArraySource({prefix + name: array for name, array in file.items()}, path="non_lora_trainables.bin")


def converted(
    file: dict[str, np.ndarray], level: str, base: ExperimentConfig = EXPERIMENT, name: str = "revisionllm", prefix: str = PREFIX
) -> tuple[ExperimentConfig, dict]:
    """(the config with the file's sizes, the state that it fills)."""
    form = formats.named(name)
    config = form.config(source(file, prefix), base, level)
    return config, load_state([form.plan(source(file, prefix), config, level)])


# ---------------------------------------------------------------------------------------- the sheet's formulas, one example at a time


def affine(file, name, x):
    return x @ file[f"{name}.weight"].T + file[f"{name}.bias"]


def normed(file, name, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * file[f"{name}.weight"] + file[f"{name}.bias"]


def attention(file, name, q, k, v, heads):
    width = q.shape[-1]
    weight, bias = np.split(file[f"{name}.in_proj_weight"], 3), np.split(file[f"{name}.in_proj_bias"], 3)
    q, k, v = ((x @ w.T + b).reshape(len(x), heads, -1).swapaxes(0, 1) for x, w, b in zip((q, k, v), weight, bias, strict=True))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(width // heads)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return affine(file, f"{name}.out_proj", (shares @ v).swapaxes(0, 1).reshape(-1, width))


def feed_forward(file, name, x):
    return affine(file, f"{name}.linear2", np.maximum(affine(file, f"{name}.linear1", x), 0.0))


def sine(count: int, width: int) -> np.ndarray:
    """Index 1..T divided by (T + 1e-6), times 2 pi; temperature 10000; sines and cosines interleaved."""
    phase = np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi
    angle = phase[:, None] / 10000.0 ** (2 * np.arange(width // 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(count, width)


def encoded(file: dict, root: str, frames: np.ndarray, query: np.ndarray, heads: int = HEADS) -> np.ndarray:
    """Steps 1 to 3: [global token, frames] after the last layer, [1 + T, width]."""
    width = frames.shape[-1]
    position = sine(len(frames), width)
    for i in range(2):  # text to video: the global token stays out, text has position zero
        layer = f"{root}.t2v_encoder.layers.{i}"
        y = frames + attention(file, f"{layer}.self_attn", frames + position, query + 0.0, query, heads)
        z = feed_forward(file, layer, normed(file, f"{layer}.norm1", y))  # norm1 on the side path alone
        frames = normed(file, f"{layer}.norm2", y + z)
    x = np.concatenate([file[f"{root}.global_rep_token"][None], frames])
    position = np.concatenate([file[f"{root}.global_rep_pos"][None], position])
    for i in range(2):  # self-attention, post-norm; no position in the values
        layer = f"{root}.encoder.layers.{i}"
        x = normed(file, f"{layer}.norm1", x + attention(file, f"{layer}.self_attn", x + position, x + position, x, heads))
        x = normed(file, f"{layer}.norm2", x + feed_forward(file, layer, x))
    return x


def transcription(form: str, step: str, file: dict, frames: np.ndarray, query: np.ndarray, heads: int = HEADS, norm: bool = True) -> np.ndarray:
    """The tokens of one window in float64. step: "even" (one token [1, hidden]) or "odd" (a token a frame); "cls" and "temporal" forms have no steps."""
    file = {name: array.astype(np.float64) for name, array in file.items()}
    frames, query = frames.astype(np.float64), query.astype(np.float64)
    if form == "dense":
        return affine(file, "mm_projector", frames)
    if form == "sparse":
        x = encoded(file, "mm_projector", frames, query, heads)
        return affine(file, "mm_projector.mm_projector", x[:1] if step == "even" else x[1:])
    if step == "odd":
        tokens = affine(file, "mm_projector", frames)
    elif form == "alternate":
        tokens = affine(file, "cross_attn.mm_projector", encoded(file, "cross_attn", frames, query, heads)[:1])
    else:
        tokens = encoded(file, "cross_attn", affine(file, "mm_projector", frames), affine(file, "cross_attn.text_mm_projector", query), heads)[:1]
    return normed(file, "alternate_layer_norm", tokens) if norm else tokens


FORMS = [  # form, level, step of the transcription
    ("dense", "dense", "odd"),
    ("sparse", "sparse", "even"),
    ("sparse", "dense", "odd"),  # "temporal"
    ("alternate", "sparse", "even"),
    ("alternate", "dense", "odd"),
    ("text projection", "sparse", "even"),
    ("text projection", "dense", "odd"),
]


def tokens(config: ExperimentConfig, state: dict, level: str, frames, query, frame_mask=None, query_mask=None) -> np.ndarray:
    """What our adapter makes of a batch: [B, 1 or T, H]."""
    one = config.grounding.level(level).adapter
    module = adapters.make_adapter(one, config.decoder.width)
    variables = {"params": jax.tree.map(jnp.asarray, state[f"adapter/{level}"])}
    frame_mask = np.ones(frames.shape[:2], bool) if frame_mask is None else frame_mask
    query_mask = np.ones(query.shape[:2], bool) if query_mask is None else query_mask
    arrays = (frames, frame_mask, query, query_mask) if one.reads_query else (frames,)
    out = module.apply(variables, *map(jnp.asarray, arrays))  # not compiled: operations of one shape are compiled once for all tests
    out = np.asarray(out[0] if one.reads_query else out)
    return out[:, None] if one.kind == "sparse" else out


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def serves(form: str, level: str) -> str:
    """The levels that a file of this form is for: the alternate ones serve two."""
    return level if form in ("dense", "sparse") else "sparse,dense"


@pytest.mark.parametrize(("form", "level", "step"), FORMS)
def test_every_form_equals_the_transcription(form, level, step):
    file = released(form)
    config, state = converted(file, serves(form, level))
    random = np.random.default_rng(1)
    frames, query = random.normal(size=(2, 9, WIDTH)).astype(np.float32), random.normal(size=(2, 5, WIDTH)).astype(np.float32)
    frame_mask, query_mask = np.arange(9) < np.array([[9], [7]]), np.arange(5) < np.array([[5], [2]])
    found = tokens(config, state, level, frames, query, frame_mask, query_mask)
    for b in range(2):
        wanted = transcription(form, step, file, frames[b, frame_mask[b]], query[b, query_mask[b]])
        assert error(found[b, : len(wanted)], wanted) < 1e-5


# The text projection's encoder, which no script uses, would have 1.3 GB at this size; the alternate form's is the sparse one's.
@pytest.mark.parametrize(("form", "level", "step"), [FORMS[0], FORMS[1], FORMS[2], FORMS[4]])
def test_every_form_equals_the_transcription_at_the_real_widths(form, level, step):
    file = released(form, 768, 4096, 2048)
    config, state = converted(file, serves(form, level), experiment(4096, heads=8))
    random = np.random.default_rng(1)
    frames, query = random.normal(size=(1, 250, 768)).astype(np.float32), random.normal(size=(1, 12, 768)).astype(np.float32)
    assert error(tokens(config, state, level, frames, query)[0], transcription(form, step, file, frames[0], query[0], heads=8)) < 1e-5


def test_the_norm_can_be_skipped_without_being_lost():
    """As the released evaluation does."""
    file = released("alternate")
    config, state = converted(file, "sparse,dense", experiment(norm="skipped"))
    assert config.grounding.level("dense").adapter.norm == "skipped"
    frames = np.random.default_rng(1).normal(size=(1, 3, WIDTH)).astype(np.float32)
    assert error(tokens(config, state, "dense", frames, frames)[0], transcription("alternate", "odd", file, frames[0], frames[0], norm=False)) < 1e-5
    np.testing.assert_array_equal(state["adapter/dense"]["alternate_layer_norm"]["weight"], file["alternate_layer_norm.weight"])


def test_a_norm_that_is_skipped_need_not_be_there():
    config, _ = converted(released("sparse"), "sparse", experiment(norm="skipped"))
    assert config.grounding.level("sparse").adapter.norm == "none"
    form, wanted = formats.named("revisionllm"), experiment(norm="applied")
    with pytest.raises(UserError, match=r"missing: .*alternate_layer_norm\.weight"):
        form.plan(source(released("sparse")), form.config(source(released("sparse")), wanted, "sparse"), "sparse")


# ------------------------------------------------------------------------------------------------------------------ names and sizes


def test_sizes_come_from_the_file():
    config, _ = converted(released("sparse"), "sparse")
    found = config.grounding.level("sparse").adapter
    assert (found.kind, found.width, found.inner, found.mlp, found.text_layers, found.self_layers, found.heads) == ("sparse", WIDTH, 0, MLP, 2, 2, HEADS)
    assert config.grounding.level("dense") == EXPERIMENT.grounding.level("dense")
    config, _ = converted(released("sparse"), "dense")
    assert config.grounding.level("dense").adapter.kind == "temporal"
    config, _ = converted(released("text projection"), "sparse,dense")
    found = config.grounding.level("sparse").adapter
    assert (found.width, found.inner, found.norm) == (WIDTH, HIDDEN, "applied")
    assert config.grounding.level("dense").adapter == dataclasses.replace(EXPERIMENT.grounding.level("dense").adapter, width=WIDTH, norm="applied")


@pytest.mark.parametrize("prefix", ["", "model.", "model.model.", "base_model.model.", "base_model.model.model.", "base_model.base_model.model.model.model."])
def test_names_may_carry_any_prefix(prefix):
    file = released("dense")
    _, state = converted(file, "dense", prefix=prefix)
    np.testing.assert_array_equal(state["adapter/dense"]["mm_projector"]["weight"], file["mm_projector.weight"])


def test_the_dense_file_can_be_empty():
    """A frozen projector leaves nothing to save: VTimeLLM's own file gives it."""
    form = formats.named("revisionllm")
    assert form.config(source({}), EXPERIMENT, "dense") == EXPERIMENT
    plan = form.plan(source({}), EXPERIMENT, "dense")
    assert plan.steps == () and set(plan.unfilled) == {"adapter/dense/mm_projector/weight", "adapter/dense/mm_projector/bias"}


def test_one_file_can_serve_several_levels_and_parts_that_no_level_wants_are_left():
    _, state = converted(released("sparse"), "sparse,sparse2")
    one, other = (state[f"adapter/{name}"]["encoder"]["layers"]["1"]["linear1"]["bias"] for name in ("sparse", "sparse2"))
    np.testing.assert_array_equal(one, other)
    _, state = converted(released("alternate"), "sparse")
    assert set(state["adapter/sparse"]) == {"global_rep_token", "global_rep_pos", "t2v_encoder", "encoder", "mm_projector", "alternate_layer_norm"}
    _, state = converted(released("alternate"), "dense")
    assert set(state["adapter/dense"]) == {"mm_projector", "alternate_layer_norm"}


def test_formats_are_told_apart():
    assert formats.detect(source(released("sparse"))).name == formats.detect(source(released("alternate"))).name == "revisionllm"
    assert formats.detect(source({})).name == "revisionllm"  # by the file's name
    assert formats.detect(ArraySource({f"model.{name}": array for name, array in released("dense").items()}, path="mm_projector.bin")).name == "vtimellm"


# ------------------------------------------------------------------------------------------------------------------------ the way back


@pytest.mark.parametrize(
    ("form", "level"),
    [("dense", "dense"), ("sparse", "sparse"), ("sparse", "sparse,sparse2"), ("sparse", "dense"), ("alternate", "sparse,dense"),
     ("text projection", "sparse,dense")],
)
def test_what_is_written_is_what_was_read(form, level):
    file = released(form)
    config, state = converted(file, level)
    leaves = paths.flatten(state)
    written = dict(formats.named("revisionllm").export_plan(config, level).backward(lambda path, index: leaves[path]))
    assert {name.removeprefix(PREFIX) for name in written} == set(file)
    for name, array in file.items():
        np.testing.assert_array_equal(written[PREFIX + name], array)


def test_levels_that_have_grown_apart_are_not_written_as_one():
    config, state = converted(released("alternate"), "sparse,dense")
    leaves = paths.flatten(state)
    leaves["adapter/dense/alternate_layer_norm/bias"] = leaves["adapter/dense/alternate_layer_norm/bias"] + 1
    with pytest.raises(UserError, match=r"adapter/\w+/alternate_layer_norm/bias and adapter/\w+/alternate_layer_norm/bias \(both"):
        list(formats.named("revisionllm").export_plan(config, "sparse,dense").backward(lambda path, index: leaves[path]))


# -------------------------------------------------------------------------------------------------------------------------- errors


def test_what_does_not_fit_is_named():
    form, file = formats.named("revisionllm"), released("sparse")
    with pytest.raises(UserError, match=r"levels\.sparse \(sparse\) needs an encoder, which the file lacks"):
        form.config(source(released("dense")), EXPERIMENT, "sparse,dense")
    with pytest.raises(UserError, match=r"level: .*no level 'hour'; there are sparse, sparse2, dense"):
        form.config(source(file), EXPERIMENT, "hour")
    with pytest.raises(UserError, match=r"holds neither mm_projector\.weight nor an encoder"):
        form.config(source({"lm_head.weight": np.zeros((3, 3), np.float32)}), EXPERIMENT, "dense")
    config, _ = converted(file, "sparse")
    broken = {name: array for name, array in file.items() if "norm2" not in name} | {"mm_projector.extra": np.zeros(3, np.float32)}
    with pytest.raises(UserError) as error_:
        form.plan(source(broken), config, "sparse")
    assert "mm_projector.extra" in str(error_.value) and "encoder.layers.1.norm2.weight" in str(error_.value)
    with pytest.raises(UserError, match=r"width 20 does not divide into 8 heads"):
        form.config(source(released("sparse", width=20)), experiment(heads=8), "sparse")
    with pytest.raises(UserError, match=r"of another shape: .*mm_projector\.weight"):
        wide = experiment(hidden=HIDDEN + 4)
        form.plan(source(file), form.config(source(file), wide, "sparse"), "sparse")
