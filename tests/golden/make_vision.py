"""Makes vision.npz: weights, inputs and outputs of tiny random towers of transformers (torch), for parity tests that run without torch.

Run from the repository's root: python -m tests.golden.make_vision
"""

from __future__ import annotations

import pathlib

import numpy as np

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCH = 4
GRIDS = {1: [(3, 5), (4, 4), (1, 7)], 2: [(4, 6), (2, 2), (6, 2)]}  # by merge size: (rows, columns) of images in one call
CLIP_GRID = (3, 3)
VOCAB, LENGTH, EOS = 40, 9, 39


def _randomise(model, seed: int):
    """Every weight random, norms and biases too: as they are made, half of them could be forgotten unseen."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator) * 0.25
        noise = noise + 1.0 if "norm" in name and name.endswith("weight") else noise
        weight.data = noise.half().float()  # float16 holds them exactly: half the size in git
    return model.eval()


def _weights(model) -> dict[str, np.ndarray]:
    return {f"weights/{name}": value.numpy().astype(np.float16) for name, value in model.state_dict().items() if value.is_floating_point()}


def videollama3(seed: int, merge: int) -> dict[str, np.ndarray]:
    import torch
    from transformers.models.video_llama_3 import VideoLlama3VisionConfig, VideoLlama3VisionModel

    model = _randomise(VideoLlama3VisionModel(VideoLlama3VisionConfig(**SIZES, patch_size=PATCH, attn_implementation="eager")), seed)
    grids = GRIDS[merge]
    patches = np.random.default_rng(seed).normal(size=(sum(r * c for r, c in grids), 3 * PATCH**2)).astype(np.float32)
    where = torch.tensor([(1, r, c) for r, c in grids]), torch.tensor([merge] * len(grids))
    with torch.no_grad():
        out = model(torch.tensor(patches), *where, output_hidden_states=True)
        weights = _weights(model)
        narrow = model.to(torch.bfloat16)(torch.tensor(patches).to(torch.bfloat16), *where).last_hidden_state.float().numpy()
    hidden = np.stack([state.numpy() for state in out.hidden_states])
    return {**weights, "patches": patches, "hidden": hidden, "merged": out.last_hidden_state.numpy(), "merged_bfloat16": narrow}


def _images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 3, CLIP_GRID[0] * PATCH, CLIP_GRID[1] * PATCH)).astype(np.float32)


def _vision(model, seed: int, name: str) -> dict[str, np.ndarray]:
    import torch

    images = _images(seed)
    with torch.no_grad():
        out = model(torch.tensor(images), output_hidden_states=True)
    hidden = np.stack([state.numpy() for state in out.hidden_states])
    return {**_weights(model), "images": images, "hidden": hidden, "last": out.last_hidden_state.numpy(), "frame": out[name].numpy()}


def clip_vision(seed: int) -> dict[str, np.ndarray]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return _vision(_randomise(CLIPVisionModel(CLIPVisionConfig(**SIZES, patch_size=PATCH, image_size=CLIP_GRID[0] * PATCH)), seed), seed, "pooler_output")


def siglip_vision(seed: int) -> dict[str, np.ndarray]:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return _vision(_randomise(SiglipVisionModel(SiglipVisionConfig(**SIZES, patch_size=PATCH, image_size=CLIP_GRID[0] * PATCH)), seed), seed, "pooler_output")


def clip_text(seed: int) -> dict[str, np.ndarray]:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(**SIZES, vocab_size=VOCAB, max_position_embeddings=LENGTH, projection_dim=12, eos_token_id=EOS, bos_token_id=38, pad_token_id=EOS)
    model = _randomise(CLIPTextModelWithProjection(config), seed)
    rng = np.random.default_rng(seed)
    lengths = np.array([5, LENGTH, 2])
    ids = rng.integers(2, 38, (3, LENGTH))
    ids[:, 0] = 38
    ids[np.arange(LENGTH) >= lengths[:, None] - 1] = EOS
    with torch.no_grad():
        out = model(torch.tensor(ids))
    return {**_weights(model), "ids": ids, "lengths": lengths, "tokens": out.last_hidden_state.numpy(), "vector": out.text_embeds.numpy()}


def siglip_text(seed: int) -> dict[str, np.ndarray]:
    import torch
    from transformers import SiglipTextConfig, SiglipTextModel

    model = _randomise(SiglipTextModel(SiglipTextConfig(**SIZES, vocab_size=VOCAB, max_position_embeddings=LENGTH, projection_size=16, pad_token_id=1)), seed)
    lengths = np.array([5, LENGTH, 2])
    ids = np.random.default_rng(seed).integers(2, VOCAB, (3, LENGTH))
    ids[np.arange(LENGTH) >= lengths[:, None]] = 1
    with torch.no_grad():
        out = model(torch.tensor(ids))
    return {**_weights(model), "ids": ids, "lengths": lengths, "tokens": out.last_hidden_state.numpy(), "vector": out.pooler_output.numpy()}


MAKERS = {
    "videollama3_merge1": lambda seed: videollama3(seed, 1),
    "videollama3_merge2": lambda seed: videollama3(seed, 2),
    "clip_vision": clip_vision,
    "siglip_vision": siglip_vision,
    "clip_text": clip_text,
    "siglip_text": siglip_text,
}
PATH = pathlib.Path(__file__).with_name("vision.npz")


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
