"""LoRA directories of PEFT (adapter_config.json, adapter_model.safetensors or .bin), both ways, kept apart as a level's LoRA or merged into the base.

Theirs per layer and module: lora_A [rank, in], lora_B [out, rank], scaled by alpha / rank, or alpha / sqrt(rank) with `use_rslora`. Ours, stacked over
the layers: a [in, rank], b [rank, out], the same scale in `DecoderConfig.lora`. A module that the LoRA leaves alone has zeros in ours.

Source: PEFT's LoraConfig and lora.Linear (https://github.com/huggingface/peft); LoRA arXiv 2106.09685; rsLoRA arXiv 2312.03732.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from revision_jax import paths
from revision_jax.config import DecoderConfig, ExperimentConfig, LoraConfig, SignalConfig
from revision_jax.convert.formats import Format
from revision_jax.convert.llama import module_names
from revision_jax.convert.plan import Ignore, Plan, Rule
from revision_jax.convert.source import Source
from revision_jax.convert.transforms import TRANSPOSE
from revision_jax.errors import UserError

MODEL = "base_model.model.model"  # what PEFT calls the `model` of a LlamaForCausalLM
CONFIG = "adapter_config.json"
# Fields that change what the numbers mean -> values that do not.
PLAIN: dict[str, tuple] = {
    "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None), "modules_to_save": (None, []), "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None), "layers_to_transform": (None, []), "layer_replication": (None, []), "lora_bias": (False, None),
    "use_qalora": (False, None), "trainable_token_indices": (None, []), "target_parameters": (None, []),
}  # fmt: skip


def lora_config(values: Mapping[str, Any], where: str) -> LoraConfig:
    """Rank, scale and dropout that an adapter_config.json describes. Raises UserError with every finding, variants of LoRA that are not plain among them."""
    problems = [] if values.get("peft_type") == "LORA" else [f"peft_type is {values.get('peft_type')!r}, must be 'LORA'"]
    rank, alpha = values.get("r"), values.get("lora_alpha")
    problems += [] if isinstance(rank, int) and rank > 0 else [f"r must be a positive whole number, is {rank!r}"]
    problems += [] if isinstance(alpha, (int, float)) else [f"lora_alpha must be a number, is {alpha!r}"]
    problems += [f"{name} is {values[name]!r}, must be {plain[0]!r}" for name, plain in PLAIN.items() if name in values and values[name] not in plain]
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}")
    return LoraConfig(rank, float(alpha), float(values.get("lora_dropout") or 0.0), bool(values.get("use_rslora", False)))


def present(source: Source) -> list[str]:
    """Our names ("attention/q") of the linear layers that a LoRA changes."""
    suffixes = {name: re.compile(rf"\.{re.escape(theirs)}\.lora_[AB]\b") for name, theirs in module_names().items()}
    return [name for name, suffix in suffixes.items() if any(suffix.search(tensor) for tensor in source.tensors)]


def lora_leaves(decoder: DecoderConfig, level: str) -> dict[str, Any]:
    """The LoRA pairs of a level (jax.ShapeDtypeStruct by full path), without the search signal's parameters."""
    import jax

    from revision_jax.models.decoder import init_lora

    bare = dataclasses.replace(decoder, signal=SignalConfig())
    return {f"lora/{level}/{name}": leaf for name, leaf in paths.flatten(jax.eval_shape(lambda: init_lora(bare, jax.random.key(0)))).items()}


def lora_rules(level: str, modules: Sequence[str] | None = None, model: str = MODEL) -> tuple[Rule, ...]:
    """Rules of a LoRA on `modules` (default: all of a block); the others are zero."""
    rules = []
    for name, theirs in module_names().items():
        for ours, side in (("a", "A"), ("b", "B")):
            target = f"lora/{level}/layers/{name}/{ours}"
            if modules is None or name in modules:
                rules.append(Rule(f"{model}.layers.{{i}}.{theirs}.lora_{side}.weight", target + "[{i}]", TRANSPOSE))
            else:
                rules.append(Rule(None, target))
    return tuple(rules)


def check_base(source: Source, lora: LoraConfig, decoder: DecoderConfig, model: str = MODEL) -> None:
    """Raises one UserError if the pairs are not of this rank, or not made for this decoder: its layers and widths."""
    shapes = {name: tuple(leaf.shape) for name, leaf in lora_leaves(dataclasses.replace(decoder, lora=lora), "x").items()}
    pattern = re.compile(rf"{re.escape(model)}\.layers\.(\d+)\.(?P<module>[\w.]+)\.lora_(?P<side>[AB])\.weight")
    ours = {theirs: name for name, theirs in module_names().items()}
    ranks: dict[int, list[str]] = {}
    widths: dict[tuple, list[str]] = {}
    layers = set()
    for name, info in source.tensors.items():
        match = pattern.fullmatch(name)
        if match is None or match["module"] not in ours or len(info.shape) != 2:
            continue  # the plan tells
        layers.add(int(match[1]))
        rank, width = info.shape if match["side"] == "A" else info.shape[::-1]
        leaf = shapes[f"lora/x/layers/{ours[match['module']]}/{match['side'].lower()}"]
        wanted = leaf[1] if match["side"] == "A" else leaf[2]
        if rank != lora.rank:
            ranks.setdefault(rank, []).append(name)
        if width != wanted:
            widths.setdefault((match["module"], "in" if match["side"] == "A" else "out", width, wanted), []).append(name)
    problems = [f"{CONFIG} says rank {lora.rank}, {len(names)} tensors have rank {rank} (such as {names[0]})" for rank, names in sorted(ranks.items())]
    if layers and layers != set(range(decoder.layers)):
        problems.append(f"it is made for {max(layers) + 1} layers ({len(layers)} given), the base has {decoder.layers}")
    problems += [f"{module} has {width} features {side}, the base has {wanted}" for module, side, width, wanted in widths]
    if problems:
        name = source.config.get("base_model_name_or_path")
        raise UserError(f"{source.path}: the LoRA does not fit (its base is {name!r}): {'; '.join(problems)}")


def _config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    found = lora_config(source.config, f"{source.path}/{CONFIG}")
    view = _view(source)
    listed = source.config.get("target_modules")
    absent = [theirs for name, theirs in module_names().items() if isinstance(listed, list) and theirs.split(".")[1] in listed and name not in present(view)]
    if absent:
        raise UserError(f"{source.path}: target_modules of {CONFIG} names {', '.join(absent)}, of which there are no tensors")
    wanted = base.decoder.lora
    if level and wanted.rank and (wanted.rank, wanted.scale) != (found.rank, found.scale):
        raise UserError(f"{source.path}: the LoRA has rank {found.rank} and scale {found.scale:g}, the model's levels have rank {wanted.rank} and scale "
                        f"{wanted.scale:g}; all levels share one rank")  # fmt: skip
    check_base(view, found, base.decoder)
    if level and level not in [item.name for item in base.grounding.levels]:
        known = ", ".join(item.name for item in base.grounding.levels) or "none"
        raise UserError(f"{source.path}: {level!r} is not a level of the config; there are {known} (a config with levels: --config)")
    lora = found if not wanted.rank else wanted
    return dataclasses.replace(base, decoder=dataclasses.replace(base.decoder, lora=lora))


def _view(source: Source) -> Source:
    """Without the adapter's name, which older files have: lora_A.default.weight."""
    return source.renamed(lambda name: name.replace(".default.weight", ".weight"))


def external_config(lora: LoraConfig, base: str | None = None) -> dict[str, Any]:
    """The adapter_config.json that PEFT opens."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank, "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout, "use_rslora": lora.rank_stabilised, "target_modules": [name.split(".")[1] for name in module_names().values()],
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None, "init_lora_weights": True,
    }  # fmt: skip


class _Lora(Format):
    """Its rules depend on the modules that the directory holds."""

    def plan(self, source: Source, config: ExperimentConfig, level: str = "", dtype: str | None = None) -> Plan:
        from revision_jax.convert.plan import make_plan

        view = _view(source)
        return make_plan(lora_rules(level, present(view)), self.ignores(config, level), view, self.target(config, level), dtype)


FORMAT = _Lora(
    name="peft",
    says="a LoRA directory of PEFT, for one level (peft:LEVEL) or to be merged",
    detect=lambda source: source.config.get("peft_type") == "LORA",
    config=_config,
    rules=lambda config, level: lora_rules(level),
    ignores=lambda config, level: (Ignore("*.rotary_emb.inv_freq", "computed from rope_theta"),),
    prefixes=lambda config, level: (f"lora/{level}",),
    leaves=lambda config, level: lora_leaves(config.decoder, level),
    external=lambda config, level: external_config(config.decoder.lora),
    needs_level=True,
    writable=True,
    weights="adapter_model",
    config_name=CONFIG,
)


# ----------------------------------------------------------------------------------------------------------------------- merging


def merged(kernel: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """kernel [in, out] + scale * a [in, rank] b [rank, out], in float32, in the kernel's dtype. Two arrays of the kernel's size in float32 at most."""
    wide = lambda x: x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    total = wide(a) @ (wide(b) * scale)
    total += kernel
    return total.astype(kernel.dtype)


class Merged(Plan):
    """A decoder's plan that gives its kernels with the LoRA of another plan folded in."""

    def __init__(self, plan: Plan, lora: Plan, level: str, scale: float):
        super().__init__(plan.steps, plan.target, plan.source, plan.unfilled)
        self._plan, self._lora, self._prefix, self._scale = plan, lora, f"lora/{level}/", scale

    def read(self, path: str, index: int | None = None) -> np.ndarray:
        array = self._plan.read(path, index)
        stem = self._prefix + path.removeprefix("params/decoder/").removesuffix("/kernel")
        if index is None or f"{stem}/a" not in self._lora.target:
            return array
        return merged(array, self._lora.read(f"{stem}/a", index), self._lora.read(f"{stem}/b", index), self._scale)
