"""Converting streams: what it keeps in memory does not grow with the model. A process of its own converts 300 MB in many tensors and is watched."""

from __future__ import annotations

import itertools
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch.benches.convert import anonymous
from revision_jax.config import DecoderConfig, ExperimentConfig, LoraConfig
from revision_jax.convert import formats
from revision_jax.convert.rehearsal import random_checkpoint
from revision_jax.convert.source import open_source

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the memory")

PROGRAM = '''
import sys
from launch.convert import main
from revision_jax.config import ExperimentConfig
from revision_jax.convert import formats
from revision_jax.convert.assemble import Part, assemble

small, large, out = sys.argv[1:]
main(["--path", small, "--out", out + ".small"])       # loads and compiles what has nothing to do with size
say = lambda word: (print(word, flush=True), sys.stdin.readline())
say("ready")
main(["--path", large, "--out", out])
say("converted")
plan, = assemble([Part(large)]).plans
hoard = [array.copy() for _, _, array in plan.apply()]  # what a conversion that does not stream would do: the meter must see it
say("hoarded")
'''


def config(layers: int) -> ExperimentConfig:
    decoder = DecoderConfig(vocab=2048, width=512, layers=layers, heads=8, kv_heads=8, head_dim=64, mlp=1536, qkv_bias=True, lora=LoraConfig(rank=0))
    return ExperimentConfig(text=None, decoder=decoder)


def as_torch(folder: Path) -> None:
    """The safetensors of a directory as pytorch_model.bin."""
    torch = pytest.importorskip("torch")
    source = open_source(folder)
    torch.save({name: torch.from_numpy(source.read(name).view("uint16").copy()).view(torch.bfloat16) for name in source.tensors}, folder / "pytorch_model.bin")
    for file in folder.glob("model*"):
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", pytest.param("torch", marks=pytest.mark.torch)])
def test_memory_does_not_grow_with_the_model(tmp_path, kind):
    small, large = (random_checkpoint(tmp_path / name, "qwen2", config(layers), shard_bytes=10**8) for name, layers in (("small", 1), ("large", 43)))
    if kind == "torch":
        as_torch(small)
        as_torch(large)
    tensors = open_source(large).tensors.values()
    sizes = [2 * info.shape[0] * (info.shape[1] if len(info.shape) > 1 else 1) for info in tensors]
    assert sum(sizes) > 290e6 and len(sizes) > 500
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(small), str(large), str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, cwd=Path(__file__).parents[2])  # fmt: skip
    # Read by a thread: several lines may come at once, and `select` does not see what a buffered reader has already taken.
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in itertools.chain(process.stdout, [""])], daemon=True).start()
    peaks: dict[str, int] = {}
    word = ""
    try:
        while word != "hoarded":
            peaks[word] = max(peaks.get(word, 0), anonymous(process.pid))
            try:
                line = lines.get(timeout=0.01)
            except queue.Empty:
                continue
            assert line, f"the conversion failed after {word or 'its start'}"
            if line.strip() in ("ready", "converted", "hoarded"):
                word = line.strip()
                peaks[f"at {word}"] = anonymous(process.pid)
                process.stdin.write("go on\n")
                process.stdin.flush()
    finally:
        process.kill()
        process.wait()
    base, peak = peaks["at ready"], peaks["ready"]
    print(f"{kind}: {base / 2**20:.0f} MiB before, {peak / 2**20:.0f} MiB at most, largest tensor {max(sizes) / 2**20:.1f} MiB")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 290e6
    assert peak < 3 * max(sizes) + 2**30  # what is promised
    assert peak - base < 100 * 2**20, peaks  # what is kept: a third of the model would already be too much
    assert peaks["at hoarded"] - base > 250 * 2**20, peaks  # and the meter sees a model that is held
    assert formats.detect(open_source(tmp_path / "out")).name == "revision_jax"
