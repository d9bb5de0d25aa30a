"""Trains a config: `python -m launch.train tiny [--workdir DIR] [--stages a,b] [field.name=value ...]`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from launch.cli import Parser, run

if TYPE_CHECKING:
    from revision_jax.config import ExperimentConfig


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.train",
        description="Trains the stages of a config one after another. A run that was stopped or killed goes on where it was: give the same command again.",
        epilog="Exit status: 0 trained to the end, 2 bad input, 130 and 143 stopped by Ctrl-C or SIGTERM after saving.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a preset of configs/ (tiny) or a Python file with get_config()")
    parser.add_argument("--workdir", metavar="DIR", type=Path, help="checkpoints, metrics and rendered data (default outputs/<config's name>)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the trained checkpoint is exported (default WORKDIR/checkpoint)")
    parser.add_argument("--init", metavar="DIR", type=Path, help="begin with the weights and tokenizer of this exported checkpoint instead of random ones")
    parser.add_argument("--init-parts", metavar="A,B", help="take only what lies under these of --init's weights, such as params/vision (default: all)")
    parser.add_argument("--stage", "--stages", dest="stages", metavar="A,B", help="only this stage, or these; each starts where the one before it ended")
    parser.add_argument("--tensorboard", action="store_true", help="metrics also for TensorBoard, in WORKDIR/tensorboard (needs tensorboardX)")
    parser.add_argument("--wandb", metavar="PROJECT", help="metrics also to this project of Weights & Biases (needs wandb)")
    parser.add_argument("--profile", metavar="STEPS", help="trace these steps of each stage, such as 10 or 10-12, into WORKDIR/profile")
    several = parser.add_argument_group("several processes", "found without flags under SLURM (srun) and on GKE's TPU slices; all see one work directory")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0; auto: ask jax, as on TPU VMs of a queued resource")
    several.add_argument("--processes", metavar="N", type=int, help="how many there are")
    several.add_argument("--process", metavar="I", type=int, help="which this one is, from 0")
    parser.add_argument("overrides", nargs="*", metavar="field.name=value", help="such as train.seed=3 or train.stages.1a.steps=100")
    return parser.parse_intermixed_args(arguments)


def load_config(name: str) -> ExperimentConfig:
    """The config of a preset's name or of a Python file. Raises UserError naming what there is."""
    from revision_jax.config import ExperimentConfig
    from revision_jax.errors import UserError

    module = _from_file(Path(name)) if name.endswith(".py") else _preset(name)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{name}: has no function get_config()")
    config = module.get_config()
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"{name}: get_config() gives a {type(config).__name__}, must give an ExperimentConfig")
    return config


def _preset(name: str) -> ModuleType:
    import configs
    from revision_jax.errors import UserError

    known = sorted(path.stem for folder in configs.__path__ for path in Path(folder).glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise UserError(f"{name}: no such config; there are {', '.join(known)}, or give the path of a .py file")
    return importlib.import_module(f"configs.{name}")


def _from_file(path: Path) -> ModuleType:
    from revision_jax.errors import UserError

    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(f"{path}: cannot be read as a config ({error})") from error
    return module


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from revision_jax.config import override

    config = override(load_config(options.config), options.overrides)
    workdir = options.workdir or Path("outputs") / config.name
    stages = _names(options.stages) or None

    from revision_jax.sharding import distributed

    distributed.join(options.coordinator, options.processes, options.process)
    from revision_jax.checkpoint import export
    from revision_jax.training.loop import run as train
    from revision_jax.training.profiling import Profile, chosen_steps
    from revision_jax.training.task import make_task
    from revision_jax.training.trackers import tensorboard, wandb

    profile = None if options.profile is None else Profile(chosen_steps(options.profile), workdir / "profile")
    trackers = [tensorboard(workdir / "tensorboard")] if options.tensorboard else []
    trackers += [wandb(options.wandb, workdir, config.to_dict())] if options.wandb else []
    task = make_task(config, workdir, _report, options.init, _names(options.init_parts))
    result = train(config, workdir, task, stages=stages, trackers=trackers, profile=profile)
    if result.stopped:
        return 130 if result.stopped == signal.SIGINT else 143
    dtype = "bfloat16" if config.decoder.dtype == "bfloat16" else "float16"
    state = distributed.collected(result.state)
    if state is not None:
        out = export(state, config, workdir / "tokenizer.json", options.out or workdir / "checkpoint", dtype=dtype)
        print(f"{workdir}: stage {result.stage} done at step {result.step}, checkpoint in {out}")
    distributed.wait("exported")
    return 0


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _report(what: str, done: int, total: int) -> None:
    print(f"{what} ({done}/{total})", flush=True)


if __name__ == "__main__":
    run(main)
