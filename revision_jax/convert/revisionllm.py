"""ReVisionLLM's `non_lora_trainables.bin`: the adapters, in every form that its code can save.

    form        names (behind "base_model.model.model.", any number of "base_model." and "model.")     fills
    dense       nothing at all, or mm_projector.{weight, bias}                                         dense levels
    sparse      mm_projector.{global_rep_token, t2v_encoder..., encoder..., mm_projector...}           sparse levels ("cls")
    temporal    the same names: the encoder is read at the frames                                      dense levels
    alternate   cross_attn.{as sparse}, mm_projector.{weight, bias}, alternate_layer_norm.{weight, bias}
                                                                              sparse levels (even steps) and dense levels (odd steps)
    with text projection: cross_attn has text_mm_projector and no projection of its own, frames go through mm_projector first

What of a file a level gets follows from the level's kind, so `level` names all levels that one file serves ("sparse-100,sparse-33", or
"sparse,dense" for the alternate form). The released weights of one form never say which of "sparse" and "temporal" they were trained as.

Our adapters have the released names and layouts (models/adapter.py): every rule is a rename.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from revision_jax.config import AdapterConfig, ExperimentConfig, LevelConfig
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Ignore, Rule
from revision_jax.convert.source import Source
from revision_jax.convert.vtimellm import LINEAR, leaves_of, levels_of, linear_width, under, with_adapters
from revision_jax.errors import UserError

PREFIX = "base_model.model.model."  # as released
ROOTS = ("mm_projector.", "cross_attn.")  # where an encoder may lie
NORM = ("alternate_layer_norm.weight", "alternate_layer_norm.bias")
MODULES = ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
LAYER = ("self_attn.in_proj_weight", "self_attn.in_proj_bias", *(f"{module}.{kind}" for module in MODULES for kind in ("weight", "bias")))


def _root(tensors) -> str | None:
    """Where the encoder lies, None where there is none. tensors: names without the prefix."""
    return next((root for root in ROOTS if f"{root}global_rep_token" in tensors), None)


# ------------------------------------------------------------------------------------------------------------------------- config


def _config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    """The levels' adapters with the sizes that the file has. Heads are not in it: the config's stay.

    A norm in the file is applied unless the config skips it; one that the config skips need not be in the file (the sparse adapter of 1-B has none).
    """
    view, levels = under("")(source), levels_of(base, level)
    if not view.tensors and all(one.kind == "dense" for one in levels):
        return base  # a frozen projector leaves nothing to save
    root = _root(view.tensors)
    encoder = _encoder_fields(view, root) if root else {}
    linear = LINEAR[0] in view.tensors
    wrong = [f"levels.{one.name} ({one.kind}) needs {'a linear layer' if one.kind == 'patch' else 'an encoder'}, which the file lacks"
             for one in levels if (one.kind == "patch" and not linear) or (one.kind in ("sparse", "nested") and not root)]  # fmt: skip
    if not linear and not root:
        wrong = [f"holds neither {LINEAR[0]} nor an encoder ({ROOTS[0]}global_rep_token)"]
    if wrong:
        raise UserError(f"{source.path}: {'; '.join(wrong)}")

    def fields(one: LevelConfig) -> dict:
        norm = {"none": "applied"} if NORM[0] in view.tensors else {"skipped": "none"}
        norm = norm.get(one.adapter.norm, one.adapter.norm)
        if one.kind in ("sparse", "nested"):
            return {"kind": "sparse", "norm": norm, **encoder}
        if linear:
            return {"kind": "dense", "norm": norm, "width": linear_width(view, LINEAR[0]), "inner": 0}
        return {"kind": "temporal", "norm": norm, **encoder}

    return with_adapters(base, levels, fields)


def _encoder_fields(view: Source, root: str) -> dict:
    """`AdapterConfig`'s sizes of an encoder: width, inner, mlp, layers."""
    token = view.tensors[f"{root}global_rep_token"].shape
    hidden = view.tensors.get(f"{root}encoder.layers.0.linear1.weight")
    if len(token) != 1 or hidden is None or len(hidden.shape) != 2:
        raise UserError(f"{view.path}: {root}global_rep_token must have one axis and {root}encoder.layers.0.linear1.weight two")
    projected = f"{root}text_mm_projector.weight"
    width = linear_width(view, projected) if projected in view.tensors else token[0]
    count = lambda part: 1 + max((int(m[1]) for name in view.tensors if (m := re.match(rf"{re.escape(root + part)}\.layers\.(\d+)\.", name))), default=-1)
    return {
        "width": width, "inner": token[0] if projected in view.tensors else 0, "mlp": hidden.shape[0], "text_layers": count("t2v_encoder"),
        "self_layers": count("encoder"),
    }  # fmt: skip


def _detect(source: Source) -> bool:
    """By the encoder's names; a dense model's file, which can be empty, is known by its own name alone."""
    return _root(under("")(source).tensors) is not None or source.path.name.startswith("non_lora_trainables")


# -------------------------------------------------------------------------------------------------------------------------- rules


def _encoder_rules(adapter: AdapterConfig, root: str) -> list[tuple[str, str]]:
    """(their name, ours below adapter/<level>) of an encoder under `root`."""
    names = ["global_rep_token", "global_rep_pos"]
    for part, count in (("t2v_encoder", adapter.text_layers), ("encoder", adapter.self_layers)):
        names += [f"{part}.layers.{i}.{name}" for i in range(count) for name in LAYER]
    kinds = ("weight", "bias")
    names += [f"{'text_mm_projector' if adapter.inner else 'mm_projector'}.{kind}" for kind in kinds]
    rules = [(root + name, name.replace(".", "/")) for name in names]
    return rules + ([(name, name.replace(".", "/")) for name in LINEAR] if adapter.inner else [])


def _rules(config: ExperimentConfig, level: str) -> Sequence[Rule]:
    rules = []
    levels = levels_of(config, level)
    adapters = [one.adapter for one in levels]
    # Where a linear layer has the name "mm_projector", the encoder is "cross_attn". Both can be read; an export writes the first.
    linear = any(not adapter.reads_query or adapter.inner for adapter in adapters)
    alternate = any(adapter.norm != "none" for adapter in adapters) and not any(adapter.kind == "temporal" for adapter in adapters)
    roots = ROOTS[::-1] if linear or alternate else ROOTS
    for one in levels:
        if one.adapter.reads_query:
            names = [pair for root in roots for pair in _encoder_rules(one.adapter, root)]
        else:
            names = [(name, name.replace(".", "/")) for name in LINEAR]
        if one.adapter.norm != "none":
            names += [(name, name.replace(".", "/")) for name in NORM]
        optional = not one.adapter.reads_query  # a frozen projector is not in the file
        rules += [Rule(PREFIX + theirs, f"adapter/{one.name}/{ours}", optional=optional) for theirs, ours in dict.fromkeys(names)]
    return rules


def _ignores(config: ExperimentConfig, level: str) -> Sequence[Ignore]:
    adapters = [one.adapter for one in levels_of(config, level)]
    ignored = []
    if not any(adapter.reads_query for adapter in adapters):
        ignored.append(Ignore(f"{PREFIX}cross_attn.*", "the encoder of the even steps; no sparse level was asked for"))
    elif all(adapter.reads_query and not adapter.inner for adapter in adapters):
        ignored += [Ignore(PREFIX + name, "the linear layer of the odd steps; no dense level was asked for") for name in LINEAR]
    return ignored


FORMAT = Format(
    name="revisionllm",
    says="ReVisionLLM's non_lora_trainables.bin: dense, sparse, temporal and alternate adapters",
    detect=_detect,
    config=_config,
    rules=_rules,
    ignores=_ignores,
    prefixes=lambda config, level: [f"adapter/{one.name}" for one in levels_of(config, level)],
    leaves=leaves_of,
    view=under(PREFIX),
    needs_level=True,
    writable=True,
    weights="non_lora_trainables.bin",
)
