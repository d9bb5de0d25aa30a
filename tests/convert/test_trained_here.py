"""The shipped model, which was trained here, in transformers and PEFT; and a LoRA that was trained there, here. The same logits both ways round."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.convert import main
from revision_jax import checkpoint, paths
from revision_jax.models.decoder import Decoder

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "tiny"
IDS = np.random.default_rng(0).integers(0, 500, (2, 17))


def logits(folder: Path, level: str | None) -> np.ndarray:
    """Of text alone, with or without a level's LoRA."""
    read = checkpoint.load(folder, dtype="float32")
    decoder = Decoder(read.config.decoder)
    tree = {"params": read.state["params"]["decoder"], **({"lora": read.state[f"lora/{level}"]} if level else {})}

    @jax.jit
    def run(tree, ids):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        hidden, _ = decoder.apply(tree, decoder.apply(tree, ids, method=Decoder.embed), positions, jnp.ones(ids.shape, bool))
        return decoder.apply(tree, hidden, method=Decoder.logits)

    return np.asarray(run(tree, jnp.asarray(IDS)))


def close(ours, theirs) -> bool:
    return bool(np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max())


@pytest.mark.torch
@pytest.mark.slow
def test_there_and_back_again(tmp_path):
    torch, peft, transformers = pytest.importorskip("torch"), pytest.importorskip("peft"), pytest.importorskip("transformers")
    for target in ("qwen2", "peft:dense"):
        main(["--target", target, "--path", str(SHIPPED), "--out", str(tmp_path / target), "--dtype", "float32"])
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "qwen2", dtype=torch.float32).eval()
    theirs = lambda model: model(input_ids=torch.from_numpy(IDS)).logits
    with torch.no_grad():
        assert close(logits(SHIPPED, None), theirs(base).numpy())
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft:dense", is_trainable=True).eval()
    assert close(logits(SHIPPED, "dense"), theirs(model).detach().numpy())
    assert not close(logits(SHIPPED, "dense"), logits(SHIPPED, None))

    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    before = theirs(model).detach().numpy()
    torch.nn.functional.cross_entropy(theirs(model)[:, :-1].flatten(0, 1), torch.from_numpy(IDS)[:, 1:].flatten()).backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "trained there")
    main(["--path", str(SHIPPED), "--source", "auto", "--source", "peft:dense", "--path", str(tmp_path / "trained there"), "--dtype", "float32",
          "--out", str(tmp_path / "ours")])  # fmt: skip
    wanted = theirs(model).detach().numpy()
    assert close(logits(tmp_path / "ours", "dense"), wanted) and not close(before, wanted)
    # The rest of the model is what it was: the search signal of the level too, of which PEFT knows nothing.
    kept, made = (paths.flatten(checkpoint.load(folder, dtype="float32").state) for folder in (SHIPPED, tmp_path / "ours"))
    assert set(kept) == set(made)
    for name in kept:
        pair = name.startswith("lora/dense/layers/") and name.endswith(("/a", "/b"))
        assert np.array_equal(kept[name], made[name]) != pair, name
