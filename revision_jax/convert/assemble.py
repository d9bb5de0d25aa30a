"""A model from the parts that a user names: which format each is, the config they make together, their plans, their tokenizers.

    assemble([Part("VideoLLaMA3-2B")])                                              one directory, whole
    assemble([Part("vicuna-7b", "llama"), Part("clip-vit-large-patch14", "clip"), Part("stage-2", "peft", "dense"), ...], preset)

A part that is a checkpoint of this project is the base: what later parts give replaces what it holds. A LoRA without a level is merged into the
decoder. Nothing is read but headers, configs and tokenizers until the plans are applied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from revision_jax import checkpoint, paths
from revision_jax.config import ConfigError, DecoderConfig, ExperimentConfig, LoraConfig
from revision_jax.convert import formats, ours, peft, sentencepiece
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Plan
from revision_jax.convert.source import CONFIGS, SAFETENSORS, TORCH, Source, open_source, read_json
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError

TOKENIZER = checkpoint.TOKENIZER


class Part(NamedTuple):
    """One directory or file. format: "" finds it out. level: of a LoRA or an adapter."""

    path: str | Path
    format: str = ""
    level: str = ""


class Assembled(NamedTuple):
    """What parts make together. files: name in a checkpoint -> file, or its content."""

    config: ExperimentConfig
    plans: list[Plan]
    files: dict[str, Path | str]
    notes: list[str]  # what a user should know, one line each
    lacking: list[str]  # leaves of the config's state that no part gives


class _Opened(NamedTuple):
    part: Part
    source: Source
    format: Format


def assemble(
    parts: Sequence[Part], base: ExperimentConfig | None = None, *, dtype: str | None = None, merge_lora: bool = False, tokenizer: str | Path | None = None
) -> Assembled:
    """Checked plans of all parts. base: a preset with the levels that LoRAs and adapters belong to; without one, what the parts say is all there is.

    dtype: see `make_plan`. merge_lora: LoRAs without a level are merged into the decoder. tokenizer: a file instead of the decoder's own.
    Raises one UserError with the findings of all parts.
    """
    problems: list[str] = []
    opened = [one for part in parts if (one := _collect(problems, lambda part=part: _open(part))) is not None]
    config = base or dataclasses.replace(ExperimentConfig(), text=None, decoder=DecoderConfig(lora=LoraConfig(rank=0)))
    # A LoRA is told by the decoder that it belongs to, wherever that was named.
    opened.sort(key=lambda one: (one.format is not ours.FORMAT, one.format is peft.FORMAT))
    plans: list[tuple[_Opened, Plan]] = []
    if not problems:
        for one in opened:
            if not _merges(one):
                config = _collect(problems, lambda one=one, config=config: one.format.config(one.source, config, one.part.level)) or config
    configured = not problems
    if configured:
        for one in opened:
            if not _merges(one):
                plan = _collect(problems, lambda one=one: one.format.plan(one.source, config, one.part.level, dtype))
                plans += [(one, plan)] if plan is not None else []
    for one in [] if problems else filter(_merges, opened):
        if merge_lora:
            plans = _collect(problems, lambda one=one, plans=plans: _merge(one, config, plans, dtype)) or plans
        else:
            problems.append(f"{one.part.path}: a LoRA needs a level to be kept apart (--source peft:LEVEL), or is merged into the decoder (--merge-lora)")
    if not problems:
        plans = _without_replaced(plans)
        problems += _given_twice(plans)
    files = _collect(problems, lambda: _files(opened, config, tokenizer)) if configured else {}
    if problems:
        raise UserError("; ".join(problems))
    lacking, count = _lacking(config, [plan for _, plan in plans])
    notes = [*_other_bases(opened, config)]
    notes += [f"no part gives {', '.join(paths.heads(lacking))}: {len(lacking)} of the config's {count} tensors"] if lacking else []
    return Assembled(config, [plan for _, plan in plans], files, notes, lacking)


def is_foreign(path: str | Path) -> bool:
    """Whether a path is no checkpoint of this project, but of another: a file of weights, or a directory whose config.json names its model."""
    path = Path(path)
    if path.is_file():
        return path.suffix in SAFETENSORS + TORCH
    try:
        return any("model_type" in read_json(path / name) or "peft_type" in read_json(path / name) for name in CONFIGS if (path / name).is_file())
    except (UserError, TypeError):
        return False


def _collect(problems: list[str], function: Callable[[], Any]) -> Any:
    """What the function gives; None, and its complaint among the problems, if it raises one."""
    try:
        return function()
    except UserError as error:
        problems.append(str(error))
        return None


def _open(part: Part) -> _Opened:
    form = formats.named(part.format) if part.format else None
    source = open_source(part.path)
    form = form or formats.detect(source)
    if form.needs_level and not part.level and form is not peft.FORMAT:
        raise UserError(f"{part.path}: {form.name} belongs to a level: {form.name}:LEVEL")
    return _Opened(part, source, form)


def _merges(one: _Opened) -> bool:
    return one.format is peft.FORMAT and not one.part.level


def _merge(one: _Opened, config: ExperimentConfig, plans: list[tuple[_Opened, Plan]], dtype: str | None) -> list[tuple[_Opened, Plan]]:
    """The plans with a LoRA folded into the one that holds the decoder."""
    holders = [i for i, (_, plan) in enumerate(plans) if any(paths.under(path, "params/decoder") for path in plan.target)]
    if not holders:
        raise UserError(f"{one.part.path}: there is no decoder to merge the LoRA into; name its base as well")
    apart = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, lora=LoraConfig(rank=0)))
    found = one.format.config(one.source, apart, "").decoder.lora
    lora = one.format.plan(one.source, dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, lora=found)), "", dtype)
    at = holders[-1]
    return [*plans[:at], (plans[at][0], peft.Merged(plans[at][1], lora, "", found.scale)), *plans[at + 1 :]]


def _without_replaced(plans: list[tuple[_Opened, Plan]]) -> list[tuple[_Opened, Plan]]:
    given = {path for one, plan in plans if one.format is not ours.FORMAT for path in plan.target}
    return [(one, plan.without(given) if one.format is ours.FORMAT else plan) for one, plan in plans]


def _given_twice(plans: list[tuple[_Opened, Plan]]) -> Iterator[str]:
    first: dict[str, Part] = {}
    for one, plan in plans:
        twice = [path for path in plan.target if path in first]
        if twice:
            yield f"{one.part.path} and {first[twice[0]].path} both give {', '.join(paths.heads(twice))}"
        first |= dict.fromkeys(plan.target, one.part)


def _other_bases(opened: Sequence[_Opened], config: ExperimentConfig) -> Iterator[str]:
    """LoRAs that fit the decoder but name another base than the one that is given. A name can be any path, so this is worth a word and no more."""
    names = {name for one in opened if one.format is not ours.FORMAT and "params/decoder" in one.format.prefixes(config, one.part.level)
             for name in (Path(one.source.path).resolve().name, Path(str(one.source.config.get("_name_or_path") or "")).name) if name}  # fmt: skip
    for one in opened:
        base = one.source.config.get("base_model_name_or_path") if one.format is peft.FORMAT else None
        if base and names and not any(name.lower() in base.lower() for name in names):
            yield f"{one.part.path} was trained on {base!r}; its shapes fit {' or '.join(sorted(names))}, see that these are the same weights"


def _lacking(config: ExperimentConfig, plans: Sequence[Plan]) -> tuple[list[str], int]:
    """Leaves of the config's state that no plan fills, and how many there are in all."""
    given = {path for plan in plans for path in plan.target if path not in plan.unfilled}
    wanted = formats.target(config, ("params", *(f"{kind}/{level.name}" for kind in ("lora", "adapter") for level in config.grounding.levels)))
    return [path for path in wanted if path not in given], len(wanted)


# --------------------------------------------------------------------------------------------------------------------- tokenizers


def beside(folder: Path) -> dict[str, Path | str]:
    """The files of `checkpoint.BESIDE` that a directory has; a sentencepiece model where it has no tokenizer.json is turned into one."""
    folder = folder if folder.is_dir() else folder.parent
    files: dict[str, Path | str] = {name: folder / name for name in checkpoint.BESIDE if (folder / name).is_file()}
    if TOKENIZER not in files and (folder / sentencepiece.FILE).is_file():
        files[TOKENIZER] = sentencepiece.to_json(folder / sentencepiece.FILE)
    return files


def tokenizer(files: Mapping[str, Path | str], folder: str = "") -> Tokenizer | None:
    """The tokenizer among a model's files, of a folder such as checkpoint.TEXT_TOKENIZER; None where there is none. Raises UserError."""
    file = files.get(f"{folder}/{TOKENIZER}" if folder else TOKENIZER)
    if file is None:
        return None
    return Tokenizer.load(file) if isinstance(file, Path) else Tokenizer.parse(file)


def _files(opened: Sequence[_Opened], config: ExperimentConfig, own: str | Path | None) -> dict[str, Path | str]:
    """The decoder's tokenizer and, in a folder of its own, that of a text tower which comes from another part. Raises UserError if one is unfit."""
    files: dict[str, Path | str] = {}
    decoder, problems = False, []
    for one in opened:
        prefixes = [prefix.split("/")[1] for prefix in one.format.prefixes(config, one.part.level) if prefix.startswith("params/")]
        whole = one.format is ours.FORMAT
        decoder |= whole or "decoder" in prefixes
        if whole or "decoder" in prefixes:
            found = beside(Path(one.source.path))
            files |= found
            folder = Path(one.source.path) / checkpoint.TEXT_TOKENIZER
            files |= {f"{checkpoint.TEXT_TOKENIZER}/{name}": file for name, file in (beside(folder) if whole and folder.is_dir() else {}).items()}
            if TOKENIZER in found and own is None:
                problems += _unfit(found, one.format.special_tokens(config), config.decoder.vocab, str(one.part.path))
        elif "text" in prefixes:
            files |= {f"{checkpoint.TEXT_TOKENIZER}/{name}": file for name, file in beside(Path(one.source.path)).items() if name.startswith("tokenizer")}
    if own is not None:
        files[TOKENIZER] = Path(own)
        wanted = [token for one in opened for token in one.format.special_tokens(config)]
        problems += _unfit(files, wanted, config.decoder.vocab, str(own))
    if decoder and TOKENIZER not in files:
        problems.append(f"no {TOKENIZER} and no {sentencepiece.FILE} beside the decoder's weights; put one there, or name one to launch.convert (--tokenizer FILE)")
    if problems:
        raise UserError("; ".join(problems))
    return files


def _unfit(files: dict[str, Path | str], special: Sequence[str], vocab: int, where: str) -> list[str]:
    """What is wrong with a tokenizer: unreadable, without a token that the model needs, or with more tokens than the model has."""
    try:
        found = tokenizer(files)
    except UserError as error:
        return [str(error)]
    absent = [token for token in special if not found.has(token)]
    problems = [f"{where}: the tokenizer has no token {', '.join(absent)}, which the model needs"] if absent else []
    if found.vocab_size > vocab:
        problems.append(f"{where}: the tokenizer has {found.vocab_size} tokens, the model {vocab}")
    return problems


# ------------------------------------------------------------------------------------------------------------------------- export


class Export(NamedTuple):
    """What is to be written in a foreign format."""

    format: Format
    tensors: Iterator[tuple[str, Any]]
    config: dict | None
    files: dict[str, Path | str]
    notes: list[str]


def export(path: str | Path, target: str, level: str = "", *, merge_lora: str | None = None) -> Export:
    """A checkpoint of this project as the format `target`. merge_lora: the level whose LoRA is folded into the decoder.

    Raises UserError: not a checkpoint of this project, a format that is only read or needs a level, a level that is none, tensors that are missing.
    """
    form = formats.named(target)
    source = open_source(path)
    if not ours.FORMAT.detect(source):
        raise UserError(f"{path}: not a checkpoint of this project; only such can be exported")
    if form.needs_level and not level:
        raise UserError(f"target: {form.name} belongs to a level: {form.name}:LEVEL")
    config = ours.FORMAT.config(source, ExperimentConfig(), "")
    try:
        for name in filter(None, (merge_lora, *level.split(","))):
            config.grounding.level(name)
        way = form.export_plan(config, level)
        outside = form.external(config, level) if form.external else None
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error
    plan: Plan = ours.plan(source)
    lacking = [name for name in way.target if name not in source.tensors]
    if lacking:
        raise UserError(f"{path}: has no {', '.join(paths.heads(lacking))} ({len(lacking)} tensors), which {form.name} needs")
    notes = []
    if merge_lora is not None:
        plan = peft.Merged(plan, plan, merge_lora, config.decoder.lora.scale)
    for name in filter(None, {merge_lora, *level.split(",")} if form is peft.FORMAT or merge_lora else ()):
        pairs = peft.lora_leaves(config.decoder, name)
        left = [leaf for leaf in source.tensors if paths.under(leaf, f"lora/{name}") and leaf not in pairs]
        if left:
            notes.append(f"{', '.join(left)}: the search signal has no place in {form.name} and is left out; without visual tokens it changes nothing")
    return Export(form, way.backward(plan.read), outside, beside(Path(path)), notes)
