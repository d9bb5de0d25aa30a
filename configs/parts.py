"""The released parts that the presets are made of, by their published numbers."""

from revision_jax.config import DecoderConfig, LoraConfig, TextConfig, VisionConfig

# CLIP ViT-L/14 of OpenAI: what ReVisionLLM and the features of MAD are made with. Merged over the whole picture: only the frame vector is read.
CLIP_VISION = VisionConfig(
    width=1024, layers=24, heads=16, mlp=4096, patch=14, position="learned", grids=((16, 16),), merge=16, pool="cls", class_token=True, pre_norm=True,
    projection=768, activation="quick_gelu", norm_eps=1e-5, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
)  # fmt: skip
CLIP_TEXT = TextConfig(vocab=49408, width=768, layers=12, heads=12, mlp=3072, max_len=77, projection=768, causal=True, pool="eos", activation="quick_gelu")

# SigLIP so400m, patch 14, 384 pixels: 27 x 27 patches, frame vector by the attention head, width 1152 on both sides.
SIGLIP_VISION = VisionConfig(width=1152, layers=27, heads=16, mlp=4304, patch=14, position="learned", grids=((27, 27),), merge=27, pool="attention")
SIGLIP_TEXT = TextConfig(
    vocab=32000, width=1152, layers=27, heads=16, mlp=4304, max_len=64, projection=1152, causal=False, pool="last", activation="gelu_tanh", norm_eps=1e-6,
    pad_id=1,
)  # fmt: skip

# VL3-SigLIP-NaViT: SigLIP's tower without its positions and its head. Frames of 16:9 become 196 x 336, upright and square ones as large.
NAVIT = VisionConfig(width=1152, layers=27, heads=16, mlp=4304, patch=14, position="rope2d", grids=((14, 24), (24, 14), (18, 18)), merge=2, pool="none")

# Decoders, in the dtype they are released in. A level's LoRA is the preset's business.
NO_LORA = LoraConfig(rank=0)
REVISION_LORA = LoraConfig(rank=64, alpha=128.0, dropout=0.05)
VICUNA_7B = DecoderConfig(
    vocab=32000, width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp=11008, norm_eps=1e-5, rope_theta=10000.0, remat="full", dtype="bfloat16"
)
QWEN25_1B5 = DecoderConfig(
    vocab=151936, width=1536, layers=28, heads=12, kv_heads=2, head_dim=128, mlp=8960, norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, tie_embeddings=True,
    lora=NO_LORA, remat="full", dtype="bfloat16",
)  # fmt: skip
QWEN25_7B = DecoderConfig(
    vocab=152064, width=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp=18944, norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, lora=NO_LORA,
    remat="full", dtype="bfloat16",
)  # fmt: skip
