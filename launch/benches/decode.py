"""`launch.bench decode`: constrained answers for 64 windows by a decoder of 100 M parameters, prefill left out, beside transformers' `generate`.

Both decode greedily in float32 behind a cache of 192 tokens a row, answers of the same length: here under the grammar of "from 12 to 31 .", whose forced tokens
are read with the chosen ones, and its opening "from" with the question, as a token more of prefill ("opening and all" reads it in a call of its own, which
nothing but this bench does); there with a static cache, eager and compiled. Runs take turns, A B A B; figures are medians. Numbers are one token each as the
shipped model has them, or digits (LLaMA's and Qwen's tokenizers), which leaves more to choose.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import numpy as np

from launch.benches.commands import by_turns
from revision_jax.config import DecoderConfig, ExperimentConfig, GroundingConfig, LevelConfig, PromptConfig, VisionConfig

ROWS, FRAMES, PROMPT = 64, 120, 192
DECODER = DecoderConfig(vocab=4096, width=768, layers=12, heads=12, kv_heads=12, head_dim=64, mlp=2304, tie_embeddings=True, scan=False)  # 95 M parameters


def decode(options: argparse.Namespace) -> dict[str, float | int]:
    """Seconds for all rows, and how many times as fast this is as the peers."""
    figures: dict[str, float | int] = {}
    for name, digits in (("numbers are tokens", False), ("numbers are digits", True)):
        ours, whole, steps, calls = answerer(digits)
        peers = {"eager": generator(steps, False), "compiled": generator(steps, True)}
        seconds = by_turns({"ours": ours, "ours, opening and all": whole, **peers})
        for mine in ("ours", "ours, opening and all"):
            figures |= {f"{name}: {mine}, times as fast as generate, {kind}": seconds[kind] / seconds[mine] for kind in peers}
            figures |= {f"{name}: {mine} (s)": seconds[mine]}
        figures |= {f"{name}: generate, {kind} (s)": seconds[kind] for kind in peers}
        figures |= {f"{name}: tokens of an answer": steps, f"{name}: decoder calls": calls}
    return figures


def answerer(digits: bool) -> tuple[Callable[[], Callable[[], None]], Callable[[], Callable[[], None]], int, int]:
    """(what makes ready a run that decodes an answer of every row, the same with its opening, tokens of an answer, the decoder calls that it takes)."""
    import jax
    import jax.numpy as jnp

    from revision_jax.grounding import generate
    from revision_jax.grounding.prompt import span_grammar
    from revision_jax.models.cache import init_cache
    from revision_jax.models.decoder import init_decoder, split_layers
    from revision_jax.planning.vocabulary import stand_in

    config = ExperimentConfig(
        vision=VisionConfig(), text=None,
        decoder=DECODER if digits else DecoderConfig(**{**vars(DECODER), "time": "token"}),
        grounding=GroundingConfig(levels=(LevelConfig(name="dense", tokens=FRAMES, prompt=PromptConfig(digits=1 + digits)),)),
    )  # fmt: skip
    grammar = span_grammar(stand_in(config), config.grounding.levels[0].prompt, FRAMES)
    state = {"params": {"decoder": jax.device_put(split_layers(init_decoder(config.decoder, jax.random.key(0))["params"]))}, "lora/dense": {}}
    rng = np.random.default_rng(0)
    opening = grammar.token[grammar.opening]
    logits = jnp.asarray(rng.standard_normal((ROWS, 1 + len(opening), config.decoder.vocab)), jnp.float32)

    @functools.partial(jax.jit, donate_argnums=1, static_argnums=3)
    def run(state: dict, cache: dict, logits: jax.Array, whole: bool) -> tuple[generate.Decoded, dict]:
        asked = generate.Asked(cache, logits, jnp.full(ROWS, PROMPT), PROMPT, None)
        if whole:
            tokens = jnp.broadcast_to(jnp.asarray(opening), (ROWS, len(opening)))
            weights = generate.variables(state, "dense")
            read, cache = generate.feed(config, weights, asked, cache, tokens, tokens >= 0, jnp.zeros(ROWS, jnp.int32), 0, 1)
            behind = PROMPT + len(opening)
            asked = generate.Asked(cache, jnp.concatenate([logits[:, :1], read], 1), jnp.full(ROWS, behind), behind, None)
        return generate.beam(config, state, "dense", asked, grammar, jnp.full(ROWS, FRAMES), 1)

    def readier(whole: bool) -> Callable[[], Callable[[], generate.Decoded]]:
        def ready() -> Callable[[], generate.Decoded]:
            cache = init_cache(config.decoder, ROWS, PROMPT + whole * len(opening) + grammar.slots)
            cache["valid"] = cache["valid"].at[:, :PROMPT].set(True)
            jax.block_until_ready(cache)
            return lambda: jax.block_until_ready(run(state, cache, logits, whole)[0])

        return ready

    ready = readier(False)
    return ready, readier(True), int(ready()().length.max()), grammar.rounds - 1


@functools.cache
def _peer():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    c = DECODER
    config = LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.width, num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
        intermediate_size=c.mlp, tie_word_embeddings=True, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def generator(steps: int, compiled: bool) -> Callable[[], Callable[[], None]]:
    """What makes ready a run of `generate`: a cache of the prompt, behind which the first token of an answer stands; the run adds the others."""
    import torch
    from transformers import CompileConfig, StaticCache

    model = _peer()
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(0, DECODER.vocab, (ROWS, PROMPT + 1), generator=noise)
    states = torch.randn((ROWS, DECODER.kv_heads, PROMPT, DECODER.head_dim), generator=noise)
    how = {"compile_config": CompileConfig(fullgraph=False)} if compiled else {"disable_compile": True}

    def ready() -> Callable[[], None]:
        cache = StaticCache(config=model.config, max_cache_len=PROMPT + steps)
        for layer in range(DECODER.layers):
            cache.update(states, states, layer, {"cache_position": torch.arange(PROMPT)})

        def run() -> None:
            with torch.inference_mode():
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=steps - 1, min_new_tokens=steps - 1, do_sample=False,
                    pad_token_id=0, **how,
                )  # fmt: skip
            assert made.shape[1] == PROMPT + steps

        return run

    return ready
