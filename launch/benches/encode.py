"""`launch.bench encode`: the vision tower over frames, whole and pruned before the encoder, beside transformers' `video_llama_3` tower in PyTorch.

The tower is ViT-S's size (21 M parameters) with 2-D RoPE and merging, random weights, the same in all (first outputs must agree, or it stops), float32.
Frames of 16:9 (196 x 336 pixels). Pictures: the rendered world at one frame a second, and the files of `--films`, frames spread over each of them. Every run
starts from bytes: ours cuts and normalises on the host, decides what is kept, puts the kept patches side by side (`data/compaction.py`) and encodes them; the
peer gets the same patches of whole frames, eager and compiled. Runs take turns, A B A B; medians. "Share of the ideal": the time saved, to that of a tower
that costs 1 / kept share. Kept shares are also told at other thresholds, in DiffFP's unit (0.1: as released).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from launch.benches.commands import by_turns, rendered
from revision_jax.config import ExperimentConfig, PrunerConfig, VisionConfig
from revision_jax.errors import UserError

TOWER = VisionConfig(width=384, layers=12, heads=6, mlp=1536, patch=14, grids=((14, 24),), merge=2, pool="none")
FRAMES, TOGETHER = 48, 4  # of a run, of one device call
THRESHOLD, OTHERS = 1.0, (0.1, 1.0, 2.0, 4.0)  # the first is that of the preset `revision_2b`
TOLERANCE = 1e-3  # of the largest output


def encode(options: argparse.Namespace) -> dict[str, float | int]:
    """Seconds for the frames of each film, how many times as fast as the peers this is, and what pruning saves."""
    films = {"world": pictures(rendered(options.workdir, 600), FRAMES)} | {path.name: pictures(path, FRAMES) for path in options.films}
    keeps = {name: kept(frames, THRESHOLD) for name, frames in films.items()}
    world = films["world"]
    ours, pruned, peers = towers()
    agree(ours, pruned, peers, world)
    runs = {"ours": lambda: ours(world), **{name: (lambda peer=peer: peer(world)) for name, peer in peers.items()}}
    runs |= {f"pruned {name}": (lambda name=name: pruned(films[name])) for name in films}
    seconds = by_turns({name: (lambda run=run: run) for name, run in runs.items()})
    figures: dict[str, float | int] = {f"not pruned: times as fast as {name}": seconds[name] / seconds["ours"] for name in peers}
    for name, keep in keeps.items():
        share = float(keep.mean())
        gain = seconds["ours"] / seconds[f"pruned {name}"]
        figures |= {f"{name}: pruned, times as fast as not pruned": gain, f"{name}: share of the ideal": gain * share}
        figures |= {f"{name}: kept share at {threshold:g}": float(kept(films[name], threshold).mean()) for threshold in OTHERS}
    return figures | {f"{name} (s)": value for name, value in seconds.items()} | {"frames": FRAMES}


def pictures(path: Path, count: int) -> np.ndarray:
    """uint8 [count h w 3] in the tower's grid, at one frame a second, or at the rate that spreads them over a shorter film."""
    from revision_jax.data.video import probe, read_frames

    (rows, columns), patch = TOWER.grids[0], TOWER.patch
    rate = max(1.0, count / probe(path).duration_s)
    found = np.concatenate([chunk.frames for chunk in read_frames(path, rate, size=(rows * patch, columns * patch), end_s=count / rate)])
    if len(found) < count:
        found = np.concatenate([found, np.repeat(found[-1:], count - len(found), 0)])  # a tick that rounding lost
    return found[:count]


def kept(frames: np.ndarray, threshold: float) -> np.ndarray:
    """[T N], DiffFP's decision."""
    from revision_jax.data import pruning

    return pruning.kept(frames, TOWER.patch, TOWER.merge, PrunerConfig(threshold=threshold), TOWER.std)


def towers() -> tuple[Callable, Callable, dict[str, Callable]]:
    """(ours of whole frames, ours of kept patches, the peers of whole frames), each from bytes to merged tokens [M D]. Raises UserError without torch."""
    import functools

    import jax
    import jax.numpy as jnp

    from revision_jax.convert.formats import named
    from revision_jax.convert.load import load_state
    from revision_jax.convert.source import ArraySource
    from revision_jax.data import frames as host_frames
    from revision_jax.data.compaction import lines
    from revision_jax.models import revision

    model, settings = peer()
    source = ArraySource({name: value.numpy() for name, value in model.state_dict().items()}, settings)
    base, form = ExperimentConfig(vision=TOWER, text=None), named("navit")
    config = form.config(source, base, "")
    params = jax.tree.map(jnp.asarray, load_state([form.plan(source, config)]))["params"]
    (rows, columns), merge = TOWER.grids[0], TOWER.merge
    count = rows * columns
    index = [np.broadcast_to(x, (TOGETHER, count)) for x in host_frames.positions((rows, columns), merge)]
    whole = np.ones((TOGETHER, count), bool)
    encoded = jax.jit(functools.partial(revision.encode_frames, config), static_argnums=(5, 6))

    def run(*arrays: np.ndarray, segments: np.ndarray | None = None) -> jax.Array:
        return encoded(params, *arrays, (merge, count // merge), "vision", segments)["tokens"]

    def ours(frames: np.ndarray) -> np.ndarray:
        parts = (frames[first : first + TOGETHER] for first in range(0, len(frames), TOGETHER))
        return np.concatenate([np.asarray(run(host_frames.encoder_patches(part, TOWER), *index, whole)).reshape(-1, TOWER.width) for part in parts])

    def pruned(frames: np.ndarray) -> np.ndarray:
        keep = kept(frames, THRESHOLD)  # deciding is a part of the work
        out = np.zeros((int(keep.sum()), TOWER.width), np.float32)
        for part in lines(frames, keep, TOWER, count, TOGETHER):
            there = part.tokens >= 0
            tokens = run(part.patches, part.rows, part.columns, part.segments > 0, segments=part.segments)
            out[part.tokens[there]] = np.asarray(tokens)[there]
        return out

    return ours, pruned, {"PyTorch eager": peer_run(model, False), "torch.compile": peer_run(model, True)}


def peer():
    """(transformers' tower, random, and its config). Raises UserError where it is not installed."""
    try:
        import torch
        from transformers.models.video_llama_3 import VideoLlama3VisionConfig, VideoLlama3VisionModel
    except ImportError as error:
        raise UserError(f"bench encode: needs torch and transformers ({error}): pip install torch transformers") from error
    torch.manual_seed(0)
    config = VideoLlama3VisionConfig(
        hidden_size=TOWER.width, intermediate_size=TOWER.mlp, num_hidden_layers=TOWER.layers, num_attention_heads=TOWER.heads, patch_size=TOWER.patch,
        attn_implementation="sdpa",
    )  # fmt: skip
    return VideoLlama3VisionModel(config).eval(), config.to_dict()


def peer_run(model, compiled: bool) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    from revision_jax.data import frames as host_frames

    tower, (rows, columns) = torch.compile(model) if compiled else model, TOWER.grids[0]

    def run(frames: np.ndarray) -> np.ndarray:
        out = []
        for first in range(0, len(frames), TOGETHER):
            part = host_frames.encoder_patches(frames[first : first + TOGETHER], TOWER)
            where = torch.tensor([[len(part), rows, columns]]), torch.tensor([TOWER.merge])
            with torch.inference_mode():
                out.append(tower(torch.from_numpy(part.reshape(-1, part.shape[-1])), *where).last_hidden_state.numpy())
        return np.concatenate(out)

    return run


def agree(ours: Callable, pruned: Callable, peers: dict[str, Callable], frames: np.ndarray) -> None:
    """Raises UserError where the towers do not say the same of some frames, or pruning changes what is said of a frame that is kept whole."""
    some = frames[:TOGETHER]
    mine = ours(some)
    first = len(mine) // len(some)  # frame one is kept whole
    found = {**{name: (peer(some), mine) for name, peer in peers.items()}, "pruned": (pruned(some)[:first], mine[:first])}
    for name, (theirs, wanted) in found.items():
        apart = float(np.abs(theirs - wanted).max() / np.abs(wanted).max())
        if apart > TOLERANCE:
            raise UserError(f"bench encode: not the same tower, {name} differs by {apart:.2g} of the largest output")
