"""`launch.bench train`: a decoder's LoRA step beside the same step in PyTorch, waiting for data, and what splitting over devices and processes costs.

step       forward, backward and AdamW of LoRA pairs on q, k, v, o and the MLP over a frozen decoder, cross-entropy of the answers alone: at tiny's sizes,
           and one layer of the 7B at real width. The peer is transformers' model with the same weights, PEFT's LoRA and torch's AdamW, eager and
           `torch.compile`d, on as many threads as there are cores. Runs take turns, medians; the losses of the first step must agree.
data       `launch.train tiny`, all stages, with few steps on two short films: the share of the time that each stage waits for batches.
splitting  tiny's first stage on 1, 2, 4, 8 forced host devices and by 1, 2, 4 processes: seconds a step to those of one, and how far the losses are apart.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.benches.commands import timed
from revision_jax.config import DecoderConfig, LoraConfig
from revision_jax.errors import UserError

REPEATS = 7
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# (decoder, rows, positions, answer's tokens): tiny's stage 1-A, and ReVisionLLM's with its 250 frames
SHAPES = {
    "tiny": (DecoderConfig(vocab=512, width=128, layers=3, heads=4, kv_heads=2, head_dim=32, mlp=384, scan=False), 32, 290, 8),
    "one layer of the 7B": (DecoderConfig(vocab=32000, width=4096, layers=1, heads=32, kv_heads=32, head_dim=128, mlp=11008, scan=False), 1, 320, 16),
}


def train(options: argparse.Namespace) -> dict[str, float | int]:
    figures: dict[str, float | int] = {}
    for name, (decoder, rows, positions, answer) in SHAPES.items():
        seconds = steps(decoder, rows, positions, answer)
        ours = statistics.median(seconds.pop("ours"))
        figures[f"{name}: a step (s)"] = ours
        for peer, values in seconds.items():
            figures[f"{name}: times as fast as {peer}"] = statistics.median(values) / ours
    return {**figures, **waiting(options.workdir / "train"), **splitting(options.workdir / "train")}


# -------------------------------------------------------------------------------------------------------------------------------- step


def steps(decoder: DecoderConfig, rows: int, positions: int, answer: int, repeats: int = REPEATS, compiled: bool = True) -> dict[str, list[float]]:
    """Seconds of single steps of ours and of the peers, in turns, compilation left out. Raises UserError without torch and PEFT, or if the losses differ."""
    try:
        import peft  # noqa: F401
        import torch
    except ImportError as error:
        raise UserError(f"bench train: needs torch and peft ({error}): pip install torch peft") from error
    decoder = DecoderConfig(**{**vars(decoder), "lora": LoraConfig(rank=8, alpha=16.0, dropout=0.0)})
    torch.set_num_threads(os.cpu_count() or 1)
    model = _peer(decoder)
    ids = torch.randint(0, decoder.vocab, (rows, positions), generator=torch.Generator().manual_seed(1))
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    taken = {"ours": _ours(decoder, weights, ids.numpy(), answer), "PyTorch eager": _torch(model, ids, answer, False)}
    if compiled:
        taken["torch.compile"] = _torch(_peer(decoder), ids, answer, True)
    losses = {name: take() for name, take in taken.items()}
    if max(losses.values()) - min(losses.values()) > 1e-3 * abs(losses["ours"]):
        raise UserError(f"bench train: not the same step, the first losses are {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in taken}
    for _ in range(repeats):
        for name, take in taken.items():
            began = time.perf_counter()
            take()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _peer(decoder: DecoderConfig):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=decoder.vocab, hidden_size=decoder.width, num_hidden_layers=decoder.layers, num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads, head_dim=decoder.head_dim, intermediate_size=decoder.mlp, rms_norm_eps=decoder.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": decoder.rope_theta}, attn_implementation="sdpa",
    ))  # fmt: skip


def _torch(model, ids, answer: int, compiled: bool) -> Callable[[], float]:
    import peft
    import torch

    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=list(TARGETS))).train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4, weight_decay=0.0)
    labels = ids.clone()
    labels[:, :-answer] = -100
    run = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = run(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _ours(decoder: DecoderConfig, weights: dict, ids, answer: int) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from revision_jax.models.decoder import Decoder, init_lora

    def stacked(name: str) -> np.ndarray:
        return np.stack([weights[f"model.layers.{i}.{name}.weight"].T for i in range(decoder.layers)])

    attention = {name: {"kernel": stacked(f"self_attn.{name}_proj")} for name in "qkvo"}
    mlp = {name: {"kernel": stacked(f"mlp.{name}_proj")} for name in ("gate", "up", "down")}
    norms = {"attention_norm": {"scale": stacked("input_layernorm")}, "mlp_norm": {"scale": stacked("post_attention_layernorm")}}
    base = jax.device_put({
        "embed": {"embedding": weights["model.embed_tokens.weight"]}, "head": {"kernel": weights["lm_head.weight"].T},
        "norm": {"scale": weights["model.norm.weight"]}, "layers": {"attention": attention, "mlp": mlp, **norms},
    })  # fmt: skip
    optimizer, rows = optax.adamw(1e-4, weight_decay=0.0), len(ids)
    where = jnp.broadcast_to(jnp.arange(ids.shape[1] - answer - 1, ids.shape[1] - 1), (rows, answer))

    def loss(lora: dict, base: dict, ids: jax.Array) -> jax.Array:
        model, variables = Decoder(decoder), {"params": base, "lora": lora}
        places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        embeds = model.apply(variables, ids, method=Decoder.embed)
        hidden, _ = model.apply(variables, embeds, places, jnp.ones(ids.shape, bool), rows=where)
        logits = model.apply(variables, hidden, method=Decoder.logits)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, -answer:]).mean()

    def stepped(lora: dict, state: tuple, base: dict, ids: jax.Array) -> tuple:
        value, gradients = jax.value_and_grad(loss)(lora, base, ids)
        updates, state = optimizer.update(gradients, state, lora)
        return optax.apply_updates(lora, updates), state, value

    run, lora = jax.jit(stepped, donate_argnums=(0, 1)), init_lora(decoder, jax.random.key(0))
    held = [lora, jax.jit(optimizer.init)(lora)]

    def step() -> float:
        *held[:], value = run(*held, base, ids)
        return float(value)

    return step


# ------------------------------------------------------------------------------------------------------------------ data and splitting


def waiting(workdir: Path) -> dict[str, float]:
    """Share of the time that each stage of tiny waits for batches."""
    from configs.tiny import get_config
    from revision_jax.training.metrics import read_rows

    names = [stage.name for stage in get_config().train.stages]
    shutil.rmtree(workdir / "data", ignore_errors=True)
    few = [f"train.stages.{name}.steps=40" for name in names]
    films = ["data.train_videos=2", "data.patch_videos=1", "data.duration_s=1800", "train.stages.2-nested.absent=0", "train.log_every=20"]
    timed([sys.executable, "-m", "launch.train", "tiny", "--workdir", str(workdir / "data"), *few, *films])
    rows = {row["stage"]: row["wait_share"] for row in read_rows(workdir / "data" / "metrics.jsonl")}  # the last row of each: compilation is in the first
    return {f"stage {name}: share of the time waiting for data": rows[name] for name in names}


def splitting(workdir: Path) -> dict[str, float]:
    """Seconds a step of tiny's first stage, to those of one device of one process, and the largest relative difference of a loss."""
    figures: dict[str, float] = {}
    one = _split(workdir, 1, 1)
    for devices, processes in ((2, 1), (4, 1), (8, 1), (1, 2), (1, 4)):
        rows = _split(workdir, devices, processes)
        what = f"{devices} devices" if processes == 1 else f"{processes} processes"
        apart = max(abs(row["loss"] / first["loss"] - 1) for row, first in zip(rows, one, strict=True))
        figures[f"{what}: seconds a step, to one"] = _step(rows) / _step(one)
        figures[f"{what}: largest relative difference of a loss"] = apart
    return figures


def _step(rows: Sequence[dict]) -> float:
    return statistics.median(row["step_s_p50"] for row in rows[3:])


def _split(workdir: Path, devices: int, processes: int) -> list[dict]:
    from revision_jax.training.metrics import read_rows

    folder = workdir / f"{devices}x{processes}"
    shutil.rmtree(folder, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "launch.train", "tiny", "--stage", "pretrain", "--workdir", str(folder), "train.log_every=1"]
    command += ["train.stages.pretrain.steps=12", "train.stages.pretrain.batch=16"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    flags = lambda index: ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process", str(index)] if processes > 1 else []
    kept = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, *flags(index)], **kept) for index in range(processes)]
    for process in started:
        errors = process.communicate()[1]
        if process.returncode:
            last = errors.strip().splitlines()[-1] if errors.strip() else "no message"
            raise UserError(f"bench train: {devices} devices, {processes} processes: failed ({last})")
    return read_rows(folder / "metrics.jsonl")
