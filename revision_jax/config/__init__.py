"""Every static size and every choice of the system, as frozen dataclasses.

One class per part: `models.py`, `levels.py`, `examples.py`, `conversations.py`, `training.py`, and here what they make up together. `__post_init__` validates;
a wrong value raises `ConfigError` with one line that names the field, what it is and what would be right. Presets live in `configs/` and are plain Python:
`get_config() -> ExperimentConfig`. A config is JSON both ways (`to_dict`, `from_dict`), which is how it travels inside a checkpoint, and takes dotted
overrides from the command line (`override`).

Axis legend, used in every shape of the project: B batch, T frames (time), P patches of a frame, N visual tokens, S text positions,
D vision width, H decoder width, K heads, G KV heads, V vocabulary, W windows, Q queries, E width of the aligned image-text space,
C channels of the search signal.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from revision_jax.config.conversations import ConversationConfig, RowConfig
from revision_jax.config.examples import NEGATIVES, ExampleConfig
from revision_jax.config.fields import ConfigError, _build, _check
from revision_jax.config.levels import GroundingConfig, LevelConfig, PromptConfig
from revision_jax.config.models import AdapterConfig, DecoderConfig, LoraConfig, PrunerConfig, SignalConfig, TextConfig, VisionConfig
from revision_jax.config.training import DataConfig, MeshConfig, StageConfig, TrainConfig

__all__ = [
    "NEGATIVES",
    "AdapterConfig",
    "Config",
    "ConfigError",
    "ConversationConfig",
    "DataConfig",
    "DecoderConfig",
    "ExampleConfig",
    "ExperimentConfig",
    "GroundingConfig",
    "LevelConfig",
    "LoraConfig",
    "MeshConfig",
    "PromptConfig",
    "PrunerConfig",
    "RowConfig",
    "SignalConfig",
    "StageConfig",
    "TextConfig",
    "TrainConfig",
    "VisionConfig",
    "override",
]  # fmt: skip


@dataclass(frozen=True)
class ExperimentConfig:
    name: str = "experiment"
    # Frame vectors and tokens of the feature store: all levels but, where it has an encoder of its own, the patch level.
    vision: VisionConfig = field(default_factory=VisionConfig)
    patch_vision: VisionConfig | None = None  # the patch level's own encoder; None: `vision` serves all levels
    # None: no text tower (VideoLLaMA3 alone); such a model chats, but its sparse levels cannot search
    text: TextConfig | None = field(default_factory=TextConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        if self.decoder.signal.enabled:
            _check(self.text is not None, "text", "the search signal compares frames with the query: it needs a text tower")
            _check(
                self.vision.output == self.text.projection,
                "text.projection",
                f"{self.text.projection} differs from the frame vectors' width {self.vision.output}: the search signal compares them",
            )
        if self.patch_vision is not None:
            _check(not self.patch_vision.projection, "patch_vision.projection", "must be 0: the patch level's tokens go to its adapter as they are")
            for level in self.grounding.levels:
                wide = self.patch_vision.output
                fits = level.kind != "patch" or level.adapter.width == wide
                _check(fits, f"levels.{level.name}.adapter.width", f"{level.adapter.width} differs from the patch encoder's {wide}")
        if self.pruner.where == "before_encoder" and any(level.kind == "patch" for level in self.grounding.levels):
            vision = self.encoder(self.patch_encoder)
            frames_alone = vision.class_token or vision.pool == "attention"
            wrong = f"must be 'after_encoder': frames that share a line can have neither the class token nor the pooling head of {self.patch_encoder!r}"
            _check(not frames_alone, "pruner.where", wrong)
        names = {level.name for level in self.grounding.levels}
        for stage in self.train.stages:
            _check(
                stage.task in ("pretrain", "language") or stage.level in names,
                f"stages.{stage.name}.level",
                f"{stage.level!r} is not a level; there are {', '.join(sorted(names)) or 'none'}",
            )
            if stage.task == "conversation":
                self._check_conversation(stage)

    def _check_conversation(self, stage: StageConfig) -> None:
        where = f"stages.{stage.name}"
        adapter, vision = self.grounding.level(stage.level).adapter, self.encoder(self.patch_encoder)
        _check(adapter.kind == "mlp", f"{where}.level", f"{stage.level}: conversations need a level with an 'mlp' adapter, VideoLLaMA3's projector")
        _check(vision.position == "rope2d", f"{self.patch_encoder}.position", f"conversations show pictures of any size: 'rope2d', not {vision.position!r}")
        _check(not vision.projection, f"{self.patch_encoder}.projection", "must be 0: the projector reads the encoder's tokens as they are")
        _check(adapter.width == vision.width, f"levels.{stage.level}.adapter.width", f"{adapter.width} differs from the encoder's {vision.width}")
        loras = [prefix for prefix in stage.train if prefix.startswith("lora")]
        _check(not loras, f"{where}.train", f"{', '.join(loras)}: conversations are answered by the bare decoder, which no LoRA is part of")

    @property
    def patch_encoder(self) -> str:
        """Which encoder the patch level looks with: the name of its config and of its parameters under "params"."""
        return "vision" if self.patch_vision is None else "patch_vision"

    def encoder(self, name: str) -> VisionConfig:
        """The config of "vision" or "patch_vision". Raises ConfigError where the model has no such encoder."""
        found = {"vision": self.vision, "patch_vision": self.patch_vision}.get(name)
        _check(found is not None, name, "this model has no such encoder")
        return found

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, sort_keys=True)

    @staticmethod
    def from_dict(values: dict, where: str = "config") -> ExperimentConfig:
        return _build(ExperimentConfig, values, where)


Config = TypeVar("Config")


def override(config: Config, assignments: list[str] | tuple[str, ...]) -> Config:
    """A config (any frozen dataclass) with dotted overrides, such as `train.seed=3`, `train.stages.1.steps=100` or `train.stages.1a.steps=100` (by name).

    Values are JSON, or plain text where they are not. Raises ConfigError for a field that does not exist.
    """
    values = dataclasses.asdict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        _check(bool(equals), assignment, "an override is written field.name=value")
        try:
            new = json.loads(text)
        except json.JSONDecodeError:
            new = text
        node: Any = values
        keys = path.split(".")
        for depth, key in enumerate(keys):
            where = ".".join(keys[: depth + 1])
            if isinstance(node, (list, tuple)):
                names = [item.get("name") if isinstance(item, dict) else None for item in node]
                index = names.index(key) if key in names else int(key) if key.isdigit() and int(key) < len(node) else None
                _check(index is not None, where, f"no such item; there are {', '.join(str(n) for n in names)}")
                key = index
            else:
                _check(isinstance(node, dict) and key in node, where, f"unknown field; known are {', '.join(node) if isinstance(node, dict) else 'none'}")
            if depth == len(keys) - 1:
                node[key] = new
            else:
                if isinstance(node[key], tuple):
                    node[key] = list(node[key])
                node = node[key]
    return _build(type(config), values, "config")
