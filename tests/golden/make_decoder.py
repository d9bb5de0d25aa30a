"""Writes tests/golden/decoder_{llama,qwen2}.npz: a tiny random model of transformers, its inputs and its logits (torch, CPU, float32).

    python tests/golden/make_decoder.py        # needs torch and transformers

`reference` is also what the live parity test compares with. Weights are stored as float16 and used rounded to it, so that the files stay small.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from revision_jax.config import DecoderConfig

CONFIGS = {
    "llama": DecoderConfig(vocab=61, width=32, layers=2, heads=4, kv_heads=4, head_dim=8, mlp=48, norm_eps=1e-5, rope_theta=10000.0),
    "qwen2": DecoderConfig(
        vocab=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, tie_embeddings=True
    ),
}
# What the live test compares as well: the other tying of each family, grouped heads, and a head width that is not width / heads.
LIVE = {
    **CONFIGS,
    "llama_gqa_tied": DecoderConfig(vocab=97, width=48, layers=3, heads=6, kv_heads=2, head_dim=16, mlp=64, norm_eps=1e-5, tie_embeddings=True),
    "qwen2_untied": DecoderConfig(vocab=97, width=48, layers=3, heads=6, kv_heads=3, head_dim=8, mlp=64, norm_eps=1e-6, rope_theta=1e6, qkv_bias=True),
}


def reference(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """{"ids" [B S], "mask" [B S] (left row whole, right row padded in front), "positions", "logits" and
    "logits_bfloat16" [B S V], "weight/<torch name>": ...}."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    c = LIVE[name]
    kind, config_kind = (LlamaForCausalLM, LlamaConfig) if name.startswith("llama") else (Qwen2ForCausalLM, Qwen2Config)
    config = config_kind(
        vocab_size=c.vocab, hidden_size=c.width, num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        intermediate_size=c.mlp, rms_norm_eps=c.norm_eps, rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=c.tie_embeddings, max_position_embeddings=4096, attn_implementation="eager",
    )
    torch.manual_seed(seed)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():  # transformers starts norms at one and biases at zero: anything would fit
        for parameter in model.parameters():
            spread = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((0.3 * spread + 0.7 * (parameter.ndim == 1)).half().float())
    ids = torch.randint(0, c.vocab, (2, 24), generator=generator)
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, :5] = 0
    positions = torch.clamp(torch.cumsum(mask, 1) - 1, min=0) + torch.tensor([[0], [777]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    weights = {f"weight/{key}": value.clone() for key, value in model.state_dict().items() if not (c.tie_embeddings and key == "lm_head.weight")}
    with torch.no_grad():
        narrow = model.to(torch.bfloat16)(input_ids=ids, attention_mask=mask, position_ids=positions).logits.float()
    found = {"ids": ids, "mask": mask.bool(), "positions": positions, "logits": logits, "logits_bfloat16": narrow}
    return {key: value.numpy() for key, value in {**found, **weights}.items()}


def main() -> None:
    for name in CONFIGS:
        arrays = {key: value.astype(np.float16) if key.startswith("weight/") else value for key, value in reference(name).items()}
        path = Path(__file__).parent / f"decoder_{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
