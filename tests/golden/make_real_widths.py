"""Makes real_widths.npz: what torch gives at the released widths, with one layer a tower and a vocabulary of 1,024, in float32 and in bfloat16.

Run from the repository's root: python -m tests.golden.make_real_widths     # needs torch and transformers, and 5 GB of memory

Neither weights (a gigabyte) nor inputs are stored: NumPy draws them anew from the seed. Of every output `sample` is kept, some thousand numbers of all its
rows and columns.
"""

from __future__ import annotations

import json
import pathlib
import zlib

import numpy as np

from tests.golden.make_convert import IMAGE, VIDEO, inputs_of, samples

PATH = pathlib.Path(__file__).with_name("real_widths.npz")
KEPT = 1500
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 1, "num_attention_heads": 16}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
# What config.json says of each model, but for its model_type.
CONFIGS: dict[str, dict] = {
    "navit": {**SO400M, "num_hidden_layers": 2, "patch_size": 14},
    "clip": {
        "projection_dim": 768,
        "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 16, "patch_size": 14,
                          "image_size": 56, "projection_dim": 768},
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 1, "num_attention_heads": 12, "vocab_size": 1024,
                        "max_position_embeddings": 77, "eos_token_id": 39, "bos_token_id": 38, "pad_token_id": 39},
    },
    "siglip": {"vision_config": {**SO400M, "patch_size": 14, "image_size": 56}, "text_config": {**SO400M, "vocab_size": 1024, "max_position_embeddings": 64}},
    "llama2_7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 1024,
        "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "tie_word_embeddings": False,
    },
    "qwen2.5_7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 1, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 1024,
        "rms_norm_eps": 1e-6, "rope_parameters": ROPE, "tie_word_embeddings": False,
    },
    "videollama3_2b": {
        "vision_config": {**SO400M, "patch_size": 14}, "image_token_id": IMAGE, "video_token_id": VIDEO, "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 1, "num_attention_heads": 12,
            "num_key_value_heads": 2, "vocab_size": 1024, "rms_norm_eps": 1e-6, "rope_parameters": ROPE, "tie_word_embeddings": False,
        },
    },
}  # fmt: skip
GRIDS = [(6, 12), (10, 4), (2, 2)]  # rows, columns of the images that the encoder sees in one call, merged 2 x 2


def sample(array: np.ndarray) -> np.ndarray:
    """About KEPT numbers of an array, of all its rows and columns."""
    flat = np.asarray(array, np.float32).reshape(-1)
    return flat[:: max(1, len(flat) // KEPT) | 1]  # odd: not always the same columns


def weights(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """Random float32 weights of a size that keeps the activations of a wide model in range; norms and biases random as well."""
    made = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        scale = 0.1 if len(shape) < 2 else min(0.02, float(np.prod(shape[1:])) ** -0.5)
        noise = rng.standard_normal(shape, np.float32)
        noise *= np.float32(scale)
        made[name] = np.asarray(noise + np.float32("norm" in name and name.endswith("weight")))
    return made


def inputs(name: str, seed: int) -> dict[str, np.ndarray]:
    """What a model is shown."""
    rng = np.random.default_rng(seed)
    if name == "navit":
        return {"patches": rng.normal(size=(sum(rows * columns for rows, columns in GRIDS), 588)).astype(np.float32)}
    if name in ("clip", "siglip"):
        lengths = np.array([5, 9, 2])
        ids = rng.integers(2, 38, (3, 9))
        if name == "clip":
            ids[np.arange(3), lengths - 1] = 39
        ids = np.where(np.arange(9) < lengths[:, None], ids, 39 if name == "clip" else 1)
        return {"images": rng.normal(size=(2, 3, 56, 56)).astype(np.float32), "ids": ids, "lengths": lengths}
    if name == "videollama3_2b":
        return samples(seed, patch=14)["both"]
    return {"ids": rng.integers(0, 1024, (1, 12))}


def _model(name: str):
    import transformers as hf

    kinds = {
        "navit": (hf.VideoLlama3VisionModel, hf.VideoLlama3VisionConfig), "clip": (hf.CLIPModel, hf.CLIPConfig), "siglip": (hf.SiglipModel, hf.SiglipConfig),
        "llama2_7b": (hf.LlamaForCausalLM, hf.LlamaConfig), "qwen2.5_7b": (hf.Qwen2ForCausalLM, hf.Qwen2Config),
        "videollama3_2b": (hf.VideoLlama3ForConditionalGeneration, hf.VideoLlama3Config),
    }  # fmt: skip
    model, config = kinds[name]
    return model._from_config(config(**CONFIGS[name]), attn_implementation="eager").eval()


def _outputs(name: str, model, shown: dict[str, np.ndarray], dtype) -> dict[str, np.ndarray]:
    import torch

    tensor = lambda array: torch.tensor(array).to(dtype) if array.dtype == np.float32 else torch.tensor(array)
    shown_ = {key: tensor(array) for key, array in shown.items()}
    with torch.no_grad():
        if name == "navit":
            grid, merge = torch.tensor([(1, *grid) for grid in GRIDS]), torch.tensor([2] * len(GRIDS))
            found = {"merged": model(shown_["patches"], grid, merge).last_hidden_state}
        elif name in ("clip", "siglip"):
            text = model.text_model(input_ids=shown_["ids"]).last_hidden_state
            found = {
                "frame": model.get_image_features(shown_["images"]).pooler_output, "vector": model.get_text_features(shown_["ids"]).pooler_output,
                "tokens": text[torch.arange(9) < shown_["lengths"][:, None]],
            }  # fmt: skip
        elif name == "videollama3_2b":
            given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs_of("both", shown, torch).items()}
            found = {"logits": model(**given).logits[0]}
        else:
            found = {"logits": model(input_ids=shown_["ids"]).logits}
    return {key: value.float().numpy() for key, value in found.items()}


def reference(name: str, seed: int) -> dict[str, np.ndarray]:
    """{"config", "shapes": JSON, output: its sample in float32, "bfloat16/" + output: in bfloat16}."""
    import torch

    model = _model(name)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point() and "inv_freq" not in key}
    missing, unexpected = model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()}, strict=False)
    assert not unexpected and all("position_ids" in key or "inv_freq" in key for key in missing), (missing, unexpected)
    found = {"config": np.array(json.dumps(model.config.to_dict(), default=str)), "shapes": np.array(json.dumps(shapes))}
    for prefix, dtype in (("", torch.float32), ("bfloat16/", torch.bfloat16)):
        outputs = _outputs(name, model.to(dtype), inputs(name, seed), dtype)
        found |= {prefix + key: sample(value) for key, value in outputs.items()}
    return found


def load(name: str) -> dict[str, np.ndarray]:
    """One case of the committed file."""
    with np.load(PATH) as file:
        return {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}


def main() -> None:
    arrays = {f"{name}/{key}": value for name in CONFIGS for key, value in reference(name, seed=0).items()}
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.name}: {len(arrays)} arrays, {PATH.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
