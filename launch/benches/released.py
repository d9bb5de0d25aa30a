"""The released ReVisionLLM procedure in PyTorch, for `launch.bench ground`: written from what is published about it, over transformers' LLaMA.

For every question anew: the sparse adapter makes a token of every window, once for each of the two sparse models; the language model is asked about every
dense window, and about groups of 100 and of 33 windows at three zooms. Nothing is shared between questions. What a procedure of its own cannot be asked to do
by itself is given to it: weights, prompts, the question's features, and answers that end after as many tokens as the longest of ours. It decodes greedily, as
many rows at once as our levels do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from launch.benches.tokens import DENSE, SPARSE
from revision_jax.config import DecoderConfig, LevelConfig
from revision_jax.errors import UserError
from revision_jax.grounding.programs import Programs, Question

WINDOW = 625  # features of a window, both kinds


def language_model(decoder: DecoderConfig) -> Any:
    """transformers' LLaMA of the decoder's sizes, random. Raises UserError where it is not installed."""
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UserError(f"bench ground: needs torch and transformers ({error}): pip install torch transformers") from error
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=decoder.vocab, hidden_size=decoder.width, num_hidden_layers=decoder.layers, num_attention_heads=decoder.heads, head_dim=decoder.head_dim,
        num_key_value_heads=decoder.kv_heads, intermediate_size=decoder.mlp, rms_norm_eps=decoder.norm_eps, tie_word_embeddings=decoder.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": decoder.rope_theta}, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa",
    )).eval()  # fmt: skip


class Released:
    """The procedure over one film's features [T E], with the weights of `programs`."""

    def __init__(self, model: Any, programs: Programs, film: np.ndarray):
        import torch

        self.torch, self.model, self.programs = torch, model, programs
        self.film = torch.from_numpy(film)
        self.levels = {level.name: level for level in programs.config.grounding.levels}
        as_torch = lambda tree: {name: as_torch(x) if isinstance(x, dict) else torch.from_numpy(np.array(x)) for name, x in tree.items()}
        self.adapters = {name: as_torch(programs.state[f"adapter/{name}"]) for name in self.levels}

    # ------------------------------------------------------------------------------------------------------------------------- adapters

    def window(self, start: int, frames: int) -> Any:
        """[frames E] of the window at feature `start`, resampled from its start to its end, both included; moved back where it runs over the film's end."""
        start = min(start, len(self.film) - 1 - WINDOW)
        return self.film[self.torch.linspace(start, start + WINDOW, frames, dtype=self.torch.float64).long()]

    def dense_tokens(self, first: int, count: int) -> Any:
        """[count T H] of `count` dense windows."""
        p = self.adapters["dense"]["mm_projector"]
        windows = self.torch.stack([self.window(WINDOW * i // 2, DENSE[1]) for i in range(first, first + count)])
        return self.torch.nn.functional.linear(windows, p["weight"], p["bias"])

    def sparse_tokens(self, name: str, question: Question, first: int, count: int) -> Any:
        """[count H] of `count` sparse windows in the light of a question, one after another in batches of a dozen."""
        level, stride = self.levels[name], SPARSE[0]
        query = self.torch.from_numpy(np.array(question.tokens[question.mask]))
        starts = [stride * i for i in range(first, first + count)]
        with self.torch.inference_mode():
            parts = [
                self._sparse(self.adapters[name], self.torch.stack([self.window(s, level.frames) for s in starts[i : i + 12]]), query, level)
                for i in range(0, count, 12)
            ]
        return self.torch.cat(parts)

    def _sparse(self, p: dict, frames: Any, query: Any, level: LevelConfig) -> Any:
        """Frames [W T E] read the question [S E]; a learned token reads the frames and becomes the window's. Post-norm layers as DETR's, but for the first
        two's norm1, which stands on a side path."""
        torch, functional, heads = self.torch, self.torch.nn.functional, level.adapter.heads
        width, count = frames.shape[-1], frames.shape[1]
        phase = torch.arange(1, count + 1) / (count + 1e-6) * 2 * torch.pi
        angle = phase[:, None] / 10000.0 ** (torch.arange(0, width, 2) / width)
        position = torch.stack([angle.sin(), angle.cos()], -1).reshape(count, width)
        linear = lambda part, x: functional.linear(x, part["weight"], part["bias"])
        norm = lambda part, x: functional.layer_norm(x, (width,), part["weight"], part["bias"], 1e-5)
        forward = lambda part, x: linear(part["linear2"], linear(part["linear1"], x).relu())

        def attend(part: dict, q: Any, k: Any, v: Any) -> Any:
            weights, biases = part["in_proj_weight"].chunk(3), part["in_proj_bias"].chunk(3)
            split = lambda x, i: functional.linear(x, weights[i], biases[i]).unflatten(-1, (heads, -1)).transpose(1, 2)
            read = functional.scaled_dot_product_attention(split(q, 0), split(k, 1), split(v, 2))
            return linear(part["out_proj"], read.transpose(1, 2).flatten(-2))

        words = query.expand(len(frames), -1, -1)
        for layer in p["t2v_encoder"]["layers"].values():
            y = frames + attend(layer["self_attn"], frames + position, words, words)
            frames = norm(layer["norm2"], y + forward(layer, norm(layer["norm1"], y)))
        x = torch.cat([p["global_rep_token"].expand(len(frames), 1, -1), frames], 1)
        place = torch.cat([p["global_rep_pos"][None], position])
        for layer in p["encoder"]["layers"].values():
            x = norm(layer["norm1"], x + attend(layer["self_attn"], x + place, x + place, x))
            x = norm(layer["norm2"], x + forward(layer, x))
        return linear(p["mm_projector"], x[:, 0])

    # ------------------------------------------------------------------------------------------------------------------ language model

    def prompts(self, name: str, question: Question, tokens: Any) -> Any:
        """[B S H]: what the language model reads of one question about B windows or groups, whose visual tokens [B N H] are given."""
        ids, mask = question.after[name]
        text = lambda x: self.model.get_input_embeddings()(self.torch.as_tensor(np.array(x), dtype=self.torch.long)).expand(len(tokens), -1, -1)
        return self.torch.cat([text(self.programs.functions.before[name]), tokens, text(ids[mask])], 1)

    def ask(self, name: str, question: Question, tokens: Any, answer: int = 0) -> None:
        """Answers of `answer` tokens (default: of our longest) about B windows or groups."""
        length = answer or self.programs.functions.grammar(self.levels[name]).steps
        with self.torch.inference_mode():
            made = self.model.generate(
                inputs_embeds=self.prompts(name, question, tokens), max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
            )
        assert made.shape[1] == length

    def logits(self, name: str, question: Question, tokens: Any) -> np.ndarray:
        """[B V] of the first token of the answers."""
        with self.torch.inference_mode():
            return self.model(inputs_embeds=self.prompts(name, question, tokens), logits_to_keep=1).logits[:, -1].numpy()
