"""Makes convert.npz: whole tiny random models of transformers (torch) with their config.json, inputs and outputs, for parity without torch.

Run from the repository's root: python -m tests.golden.make_convert

Weights are stored as float16 and used rounded to it. What is not stored is drawn anew from the seed.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from tests.golden.make_vision import CLIP_GRID, EOS, LENGTH, PATCH, SIZES, VOCAB, _images, _randomise, _weights

PATH = pathlib.Path(__file__).with_name("convert.npz")
IMAGE, VIDEO = 95, 96  # placeholder tokens
DECODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}
# Samples of VideoLLaMA3: (kind, frames, rows, columns, merge) of what they show.
SAMPLES = {
    "image": [("image", 1, 4, 6, 1)],
    "images": [("image", 1, 3, 2, 1), ("image", 1, 4, 4, 2), ("image", 1, 2, 2, 1)],
    "video": [("video", 4, 4, 6, 2)],
    "both": [("image", 1, 2, 3, 1), ("video", 2, 6, 2, 2)],
    "text": [],
}


def _state(model) -> dict[str, np.ndarray]:
    config = model.config.to_dict()
    return {**_weights(model), "config": np.array(json.dumps(config, default=str))}


def _ids(seed: int, end: int | None, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of three queries and their lengths; `end` closes each."""
    lengths = np.array([5, LENGTH, 2])
    ids = np.random.default_rng(seed).integers(2, 38, (3, LENGTH))
    if end is not None:
        ids[np.arange(3), lengths - 1] = end
    return np.where(np.arange(LENGTH) < lengths[:, None], ids, pad), lengths


def clip(seed: int) -> dict[str, np.ndarray]:
    import torch
    from transformers import CLIPConfig, CLIPModel

    vision = {**SIZES, "patch_size": PATCH, "image_size": CLIP_GRID[0] * PATCH, "projection_dim": 12}
    text = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "eos_token_id": EOS, "bos_token_id": 38, "pad_token_id": EOS}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=12))
    return _towers(model, seed, *_ids(seed, EOS, EOS), torch)


def siglip(seed: int) -> dict[str, np.ndarray]:
    import torch
    from transformers import SiglipConfig, SiglipModel

    vision = {**SIZES, "patch_size": PATCH, "image_size": CLIP_GRID[0] * PATCH}
    text = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
    return _towers(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)), seed, *_ids(seed, None, 1), torch)


def _towers(model, seed: int, ids: np.ndarray, lengths: np.ndarray, torch) -> dict[str, np.ndarray]:
    """An image-text pair's weights, inputs and outputs; image and text features as they are before they get unit length."""
    model, images = _randomise(model, seed), _images(seed)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-2.25)
        out = model(pixel_values=torch.tensor(images), input_ids=torch.tensor(ids))
        seen = model.vision_model(torch.tensor(images), output_hidden_states=True)
        image_features = model.get_image_features(torch.tensor(images)).pooler_output
        text_features = model.get_text_features(torch.tensor(ids)).pooler_output
    found = {
        "images": images, "ids": ids, "lengths": lengths, "hidden": torch.stack(seen.hidden_states).numpy(), "last": seen.last_hidden_state.numpy(),
        "pooled": seen.pooler_output.numpy(), "frame": image_features.numpy(), "tokens": out.text_model_output.last_hidden_state.numpy(),
        "vector": text_features.numpy(), "logits": out.logits_per_image.numpy(),
    }  # fmt: skip
    return {**_state(model), **found}


def samples(seed: int, patch: int = PATCH) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of each of SAMPLES: "ids" with placeholders, "patches" one after another, "keep" over the merged tokens."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shown in SAMPLES.items():
        ids, patches, keep = [rng.integers(0, 90, 4)], [np.zeros((0, 3 * patch**2))], [np.zeros(0, bool)]
        for kind, frames, rows, columns, merge in shown:
            patches.append(rng.normal(size=(frames * rows * columns, 3 * patch**2)))
            mask = np.ones((frames, rows * columns // merge**2), bool)
            mask[1:] = rng.random(mask[1:].shape) < 0.4
            mask[1:, 0] |= ~mask[1:].any(1)
            keep.append(mask.reshape(-1))
            for frame in mask:
                ids += [np.full(frame.sum(), IMAGE if kind == "image" else VIDEO), rng.integers(0, 90, 3)]
        ids.append(rng.integers(0, 90, 5))
        made[name] = {"ids": np.concatenate(ids), "patches": np.concatenate(patches).astype(np.float32), "keep": np.concatenate(keep)}
    return made


def inputs_of(name: str, sample: dict[str, np.ndarray], torch) -> dict:
    """A sample as the model of transformers takes it."""
    inputs = {"input_ids": torch.tensor(sample["ids"])[None]}
    start = kept = 0
    for kind in ("image", "video"):
        grids, merges, patches, keep = [], [], [], []
        start = kept = 0
        for shown, frames, rows, columns, merge in SAMPLES[name]:
            count, tokens = frames * rows * columns, frames * rows * columns // merge**2
            if shown == kind:
                grids.append((frames, rows, columns))
                merges.append(merge)
                patches.append(sample["patches"][start : start + count])
                keep.append(sample["keep"][kept : kept + tokens])
            start, kept = start + count, kept + tokens
        if grids:
            pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
            inputs |= {pixels: torch.tensor(np.concatenate(patches)), f"{kind}_grid_thw": torch.tensor(grids), f"{kind}_merge_sizes": torch.tensor(merges)}
            if kind == "video":
                inputs["video_compression_mask"] = torch.tensor(np.concatenate(keep))
    return inputs


def video_llama_3(seed: int, tied: bool = True) -> dict[str, np.ndarray]:
    import torch
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

    config = VideoLlama3Config(
        vision_config={**SIZES, "patch_size": PATCH}, image_token_id=IMAGE, video_token_id=VIDEO, tie_word_embeddings=tied,
        text_config={"model_type": "qwen2", **DECODER, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    )  # fmt: skip
    model, found = _randomise(VideoLlama3ForConditionalGeneration(config), seed), {}
    with torch.no_grad():
        for name, sample in samples(seed).items():
            found |= {f"{name}/{key}": value for key, value in sample.items()}
            found[f"{name}/logits"] = model(**inputs_of(name, sample, torch)).logits[0].numpy()
    weights = _state(model)
    if tied:
        weights.pop("weights/lm_head.weight")
    return {**weights, **found}


MAKERS = {"clip": clip, "siglip": siglip, "video_llama_3": video_llama_3}


def load(name: str) -> dict[str, np.ndarray]:
    """One case of the committed file."""
    with np.load(PATH) as file:
        return {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}


def main() -> None:
    arrays = {f"{name}/{key}": value for name, make in MAKERS.items() for key, value in make(seed=0).items()}
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.name}: {len(arrays)} arrays, {PATH.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
