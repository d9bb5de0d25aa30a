"""Writes tests/golden/chat.npz: a whole VideoLLaMA3 of transformers with tiny random weights, what it is shown, its logits and 64 greedy tokens.

    python tests/golden/make_chat.py        # needs torch and transformers

Cases: text alone, an image, several images, a video with pruning, and a batch of the first and third, which are unequal. Frames, masks and patches are made
here from the formulas of the released processors, not by this project. Weights are stored as float16 and used rounded to it.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FILE = Path(__file__).parent / "chat.npz"
PATCH, STEPS, ROWS = 4, 64, 7  # one row of prompt logits in ROWS is stored
WORDS = ["Time", "what", "happens", "here", "?", "is", "the", "same", "as", "before", "tell", "me"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"]
CASES = ("text", "image", "images", "video")
BATCH = ("text", "images")  # of unequal length


def tokenizer():
    """Bytes and control tokens, as `tokenizers.Tokenizer`: any text is spelt, and byte-level decoding is exercised."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    return inner


def config() -> dict:
    """config.json of the model."""
    first = 256
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return {
        "model_type": "video_llama_3", "image_token_id": first + 3, "video_token_id": first + 4, "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "video_llama_3_vision", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "patch_size": PATCH, "num_channels": 3,
        },
        "text_config": {
            "model_type": "qwen2", "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_parameters": rope, "tie_word_embeddings": True, "max_position_embeddings": 4096,
        },
    }  # fmt: skip


def frames(case: str, seed: int = 0) -> list[np.ndarray]:
    """What a case shows: uint8 [T h w 3] each, of sides that divide by PATCH x merge. In the video half of the blocks stand still, one frame altogether."""
    rng = np.random.default_rng([seed, len(case)])
    picture = lambda count, h, w: rng.integers(0, 256, (count, h, w, 3), dtype=np.uint8)
    if case == "video":
        film = picture(5, 16, 24)
        film[1:, :, :8] = film[0, :, :8]  # never changes
        film[2, 8:] = film[1, 8:]
        film[4] = film[3]
        return [film]
    return {"text": [], "image": [picture(1, 12, 20)], "images": [picture(1, 12, 20), picture(1, 8, 8), picture(1, 20, 12)]}[case]


def merge(case: str) -> int:
    return 2 if case == "video" else 1


def patches(film: np.ndarray, m: int) -> np.ndarray:
    """[T P 3 p p] flattened: the reference sheet's formula."""
    from einops import rearrange

    pixels = ((film.astype(np.float32) / 255.0 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    return rearrange(pixels, "t c (hb mh p) (wb mw q) -> t (hb wb mh mw) (c p q)", mh=m, mw=m, p=PATCH, q=PATCH)


def mask(film: np.ndarray, m: int) -> np.ndarray:
    """Kept merged tokens [T N], by the released formula in float64."""
    tokens = patches(film, m).astype(np.float64).reshape(len(film), -1, m * m * 3 * PATCH**2)
    keep = np.ones(tokens.shape[:2], bool)
    keep[1:] = np.abs(tokens[1:] - tokens[:-1]).mean(-1) * 255 > 0.1
    keep[:, 0] |= ~keep.any(1)
    return keep


def text(case: str, seed: int = 0) -> str:
    """The prompt, placeholders and all, written out by hand."""
    shown = ""
    if case == "video":
        counts = mask(frames(case, seed)[0], 2).sum(1)
        shown = ",".join(f"Time {t}.0s:" + "<|video_pad|>" * n for t, n in enumerate(counts)) + "\n"
    else:
        shown = "".join("<|image_pad|>" * (f.shape[1] * f.shape[2] // PATCH**2) + "\n" for f in frames(case, seed))
    return f"<|im_start|>user\n{shown}what is here?<|im_end|>\n<|im_start|>assistant\n"


@functools.cache
def model(seed: int = 0):
    """The torch model, float32, weights rounded to float16."""
    import torch
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

    torch.manual_seed(seed)
    made = VideoLlama3ForConditionalGeneration._from_config(VideoLlama3Config(**config()), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            spread = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if "vision" in name else 0.3
            parameter.copy_((scale * spread + 0.7 * (parameter.ndim == 1 and "norm" in name)).half().float())
    made.generation_config.eos_token_id = None  # all 64 steps
    return made


def inputs(case: str, seed: int = 0) -> dict:
    """What transformers' processor would give to the model."""
    import torch

    found = {"input_ids": torch.tensor([tokenizer().encode(text(case, seed)).ids])}
    found["attention_mask"] = torch.ones_like(found["input_ids"])
    m, shown = merge(case), frames(case, seed)
    if shown:
        suffix, kind = ("_videos", "video") if case == "video" else ("", "image")
        found[f"pixel_values{suffix}"] = torch.tensor(np.concatenate([patches(f, m).reshape(-1, 3 * PATCH**2) for f in shown]))
        found[f"{kind}_grid_thw"] = torch.tensor([[len(f), f.shape[1] // PATCH, f.shape[2] // PATCH] for f in shown])
        found[f"{kind}_merge_sizes"] = torch.tensor([m] * len(shown))
    if case == "video":
        found["video_compression_mask"] = torch.tensor(mask(shown[0], m).reshape(-1))
    return found


def reference(cases: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Of one case, or of a batch of cases padded in front: {"logits" [B S V] of the prompt, "tokens" [B STEPS] greedy, "chosen" [B STEPS V] their logits}."""
    import torch

    each = [inputs(case, seed) for case in cases]
    length = max(one["input_ids"].shape[1] for one in each)
    pad = lambda x: torch.nn.functional.pad(x, (length - x.shape[1], 0))
    together = {name: torch.cat([pad(one[name]) for one in each]) for name in ("input_ids", "attention_mask")}
    for one in each:
        together |= {name: value for name, value in one.items() if name not in together}
    with torch.no_grad():
        positions = torch.clamp(torch.cumsum(together["attention_mask"], 1) - 1, min=0)
        logits = model(seed)(**together, position_ids=positions).logits
        made = model(seed).generate(**together, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True)
    found = {"logits": logits, "tokens": made.sequences[:, length:], "chosen": torch.stack(made.logits, 1)}
    return {name: value.numpy() for name, value in found.items()}


def main() -> None:
    arrays = {f"weight/{name}": value.numpy().astype(np.float16) for name, value in model().state_dict().items() if name != "lm_head.weight"}
    for cases in (*((case,) for case in CASES), BATCH):
        found, name = reference(cases), "+".join(cases)
        rows = found["logits"][:, ::ROWS] if len(cases) == 1 else found["logits"][:, -1:]
        arrays |= {f"{name}/logits": rows, f"{name}/tokens": found["tokens"].astype(np.int32), f"{name}/chosen": found["chosen"][:, ::16]}
    np.savez_compressed(FILE, config=np.array(json.dumps(config())), **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
