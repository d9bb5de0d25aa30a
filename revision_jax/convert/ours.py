"""This project's own checkpoints as a source: the base of a command that adds parts, and what an export reads.

The stacked layers of the decoder and its LoRAs are given a layer at a time, as a foreign checkpoint gives them.
"""

from __future__ import annotations

from revision_jax import checkpoint
from revision_jax.config import ConfigError, ExperimentConfig
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Plan, Step
from revision_jax.convert.source import Source
from revision_jax.convert.transforms import SAME, Transform
from revision_jax.errors import UserError

STACKED = ("params/decoder/layers/", "lora/")


def _layer(index: int) -> Transform:
    return Transform(f"layer {index}", lambda x: x[index], lambda x: x)


def plan(source: Source) -> Plan:
    """Every tensor of one of our checkpoints under its own name."""
    steps = []
    for name, info in source.tensors.items():
        if name.startswith(STACKED) and "/layers/" in name:
            steps += [Step(name, name, i, _layer(i)) for i in range(info.shape[0])]
        else:
            steps.append(Step(name, name, None, SAME))
    return Plan(steps, source.tensors, source)


def _config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    try:
        return ExperimentConfig.from_dict(source.config, checkpoint.CONFIG)
    except ConfigError as error:
        raise UserError(f"{source.path}: {error}") from error


class _Ours(Format):
    def plan(self, source: Source, config: ExperimentConfig, level: str = "", dtype: str | None = None) -> Plan:
        made = plan(source)
        known = {name: tuple(leaf.shape) for name, leaf in self.target(config).items()}
        wrong = [text for text in checkpoint.mismatches({name: info.shape for name, info in source.tensors.items()}, known) if "is missing" not in text]
        if wrong:
            raise UserError(f"{source.path}: {len(wrong)} tensors do not match {checkpoint.CONFIG}: {'; '.join(wrong)}")
        return made


FORMAT = _Ours(
    name="revision_jax",
    says="a checkpoint of this project, as the base of what is added",
    detect=lambda source: source.metadata.get("format") == checkpoint.FORMAT["format"],
    config=_config,
    rules=lambda config, level: (),
    prefixes=lambda config, level: ("params", *(f"{kind}/{item.name}" for kind in ("lora", "adapter") for item in config.grounding.levels)),
)
