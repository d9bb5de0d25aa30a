"""Writes tests/golden/lora.npz: a LoRA directory of PEFT over the model of decoder_llama.npz, and the logits PEFT gives with it (torch, CPU, float32).

    python tests/golden/make_lora.py        # needs torch, transformers and peft

`lora_model` also makes the live comparison's models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SETTINGS = {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"], "lora_dropout": 0.1}


def lora_model(weights: dict[str, np.ndarray], config, settings: dict, seed: int = 0):
    """A PeftModel over a LLaMA or Qwen2 with these weights (None: random), its pairs random: PEFT starts them at no change."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from revision_jax.convert.llama import external_config

    values = {key: value for key, value in external_config(config).items() if key not in ("architectures", "model_type")}
    torch.manual_seed(seed)
    base = Qwen2ForCausalLM(Qwen2Config(**values)) if config.qkv_bias else LlamaForCausalLM(LlamaConfig(**values))
    if weights is not None:
        base.load_state_dict({name: torch.from_numpy(np.asarray(array, np.float32)) for name, array in weights.items()}, strict=not config.tie_embeddings)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_((0.3 * torch.randn(parameter.shape)).half().float())
    return model


def main() -> None:
    import tempfile

    import torch
    from safetensors.numpy import load_file

    from tests.golden.make_decoder import CONFIGS

    folder = Path(__file__).parent
    weights = {key.removeprefix("weight/"): value for key, value in np.load(folder / "decoder_llama.npz").items() if key.startswith("weight/")}
    model = lora_model(weights, CONFIGS["llama"], SETTINGS)
    ids = np.arange(2 * 7).reshape(2, 7) * 3 % CONFIGS["llama"].vocab
    with torch.no_grad():
        found = {"ids": ids, "logits": model(input_ids=torch.from_numpy(ids)).logits.numpy()}
    with tempfile.TemporaryDirectory() as written:
        model.save_pretrained(written)
        found |= {f"lora/{name}": array.astype(np.float16) for name, array in load_file(Path(written) / "adapter_model.safetensors").items()}
        found["config"] = np.array(json.dumps({**json.loads((Path(written) / "adapter_config.json").read_text()), "base_model_name_or_path": "the-base"}))
    np.savez_compressed(folder / "lora.npz", **found)
    print(f"lora.npz: {(folder / 'lora.npz').stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
