"""A two-stage task of a few hundred numbers, with the shape of the real one: a frozen base, a part per level, a copy between stages.

`python -m tests.training.toy_task WORKDIR [config overrides]` trains it and prints one JSON line; the tests start it in processes of its
own, with other device counts or to be killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time

import numpy as np

from revision_jax.config import ExperimentConfig, GroundingConfig, LevelConfig, StageConfig, TrainConfig, override

WIDTH, RANK, OUT = 16, 4, 8


def toy_config(**train) -> ExperimentConfig:
    defaults = {
        "seed": 3, "checkpoint_every": 5, "keep": 2, "log_every": 1,
        "stages": (
            StageConfig(name="base", level="toy", train=("params",), steps=12, batch=8, learning_rate=1e-2, weight_decay=0.1),
            StageConfig(name="fine", level="toy", train=("lora/fine",), copies=(("lora/coarse", "lora/fine"),), steps=10, batch=16, learning_rate=3e-2),
        ),
    }
    return ExperimentConfig(name="toy", grounding=GroundingConfig(levels=(LevelConfig(name="toy"),)), train=TrainConfig(**{**defaults, **train}))


@dataclasses.dataclass(frozen=True)
class ToyExamples:
    """Linear targets; example i of a stage is a function of (seed, stage, i) alone."""

    seed: int
    stage: int
    sleep_s: float = 0.0

    def example(self, index: int) -> dict[str, np.ndarray]:
        time.sleep(self.sleep_s)
        random = np.random.default_rng((self.seed, self.stage, index))
        x = random.normal(size=WIDTH).astype(np.float32)
        return {"x": x, "y": np.tanh(x[:OUT] - x[-OUT:]), "index": np.int64(index)}


def toy_axes(name: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    return {
        "params/first/kernel": ("embed", "mlp"), "params/first/bias": ("mlp",), "params/blocks/kernel": ("layers", "mlp", "embed"),
        "params/last/kernel": ("embed", "vocab"), "params/scale": (),
        "lora/coarse/a": ("embed", "rank"), "lora/coarse/b": ("rank", "mlp"), "lora/fine/a": ("embed", "rank"), "lora/fine/b": ("rank", "mlp"),
    }[name]


def toy_state() -> dict:
    import jax

    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*shape):
        return jax.random.normal(next(keys), shape) * shape[-2] ** -0.5

    def low():
        return {"a": normal(WIDTH, RANK), "b": 0.1 * normal(RANK, 32)}

    return {
        "params": {
            "first": {"kernel": normal(WIDTH, 32), "bias": jax.numpy.zeros(32)}, "blocks": {"kernel": normal(2, 32, WIDTH)},
            "last": {"kernel": normal(WIDTH, OUT)}, "scale": jax.numpy.ones(()),
        },
        "lora/coarse": low(), "lora/fine": low(),
    }


def made_state() -> dict:
    """`toy_state` as one compiled call; op by op it takes ten times as long."""
    import jax

    return jax.jit(toy_state)()


def toy_loss(stage: StageConfig):
    import jax
    import jax.numpy as jnp

    def loss(state, batch, key):
        params, low = state["params"], state["lora/fine"]
        x = batch["x"] + 0.01 * jax.random.normal(key, batch["x"].shape)  # randomness as dropout has it
        hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        if stage.name == "fine":
            hidden = hidden + x @ low["a"] @ low["b"]
        hidden = jnp.tanh(hidden @ params["blocks"]["kernel"].sum(0))
        error = jnp.mean(jnp.square(params["scale"] * (hidden @ params["last"]["kernel"]) - batch["y"]))
        return error, {"index_sum": jnp.sum(batch["index"]).astype(jnp.float32)}

    return loss


def toy_task(config: ExperimentConfig, sleep_s: float = 0.0, **hooks):
    from revision_jax.training.loop import Task

    order = [stage.name for stage in config.train.stages]

    def examples(stage: StageConfig) -> ToyExamples:
        return ToyExamples(config.train.seed, order.index(stage.name), sleep_s)

    return Task(init_state=toy_state, make_loss=toy_loss, make_examples=examples, axes=toy_axes, **hooks)


def die_in_save(step: str) -> None:
    """The process is killed when all of this step's checkpoint has been written, and it would get its name."""

    def dying(rename):
        def renamed(source, target, *more, **named):
            if os.path.basename(target) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(source, target, *more, **named)

        return renamed

    os.rename, os.replace = dying(os.rename), dying(os.replace)


def main(argv: list[str]) -> None:
    """WORKDIR [--sleep S] [--die-in-save STEP] [--process I N PORT] [dotted overrides]"""
    import jax

    workdir, rest = argv[0], argv[1:]
    sleep_s = 0.0
    if rest[:1] == ["--sleep"]:
        sleep_s, rest = float(rest[1]), rest[2:]
    if rest[:1] == ["--die-in-save"]:
        die_in_save(rest[1])
        rest = rest[2:]
    if rest[:1] == ["--process"]:
        from revision_jax.sharding import distributed

        index, count, port = map(int, rest[1:4])
        distributed.join(f"localhost:{port}", count, index)
        rest = rest[4:]
    from revision_jax import paths
    from revision_jax.training.loop import run

    config = override(toy_config(), rest)
    result = run(config, workdir, toy_task(config, sleep_s))
    leaves = {name: np.asarray(leaf).tobytes().hex() for name, leaf in paths.flatten(result.state).items() if leaf.is_fully_addressable}
    print(json.dumps({"stage": result.stage, "step": result.step, "stopped": result.stopped, "devices": jax.device_count(), "leaves": leaves}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
