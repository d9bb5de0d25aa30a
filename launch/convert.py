"""Released checkpoints into this project's layout, and back: `python -m launch.convert --source video_llama_3 --path DIR --out DIR`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from launch.cli import Parser, run

EXAMPLES = """
examples:
  python -m launch.convert --path VideoLLaMA3-2B --out checkpoints/videollama3_2b
  python -m launch.convert --config revisionllm_7b_mad --source llama --path vicuna-7b-v1.5 --source clip --path clip-vit-large-patch14 \\
      --source vtimellm:dense --path mm_projector.bin --source peft:dense --path revisionllm-dense ... --out checkpoints/revisionllm_7b_mad
  python -m launch.convert --source qwen2 --path Qwen2.5-7B --source peft --path my-lora --merge-lora --out DIR
  python -m launch.convert --target peft:dense --path checkpoints/mine --out DIR
"""


class _Parser(Parser):
    """--help ends with the table of formats, which nothing else has to import for."""

    def format_help(self) -> str:
        from revision_jax.convert import formats

        rows = []
        for name in formats.MODULES:
            form = formats.named(name)
            written = ", written" if form.writable else ""
            rows.append(f"  {name + (':LEVEL' if form.needs_level else ''):20}{form.says} (read{written})")
        return super().format_help() + "\nformats:\n" + "\n".join(rows) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m launch.convert", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES + "\nExit status: 0 written, 2 bad input.",
        description="Turns released checkpoints into one of this project (model.safetensors, config.json, tokenizer.json), or one of this project into theirs.",
    )
    parser.add_argument("--source", action="append", metavar="FORMAT[:LEVEL]", help="what --path holds, in the same order; 'auto', or none at all: found out")
    parser.add_argument("--path", action="append", metavar="DIR", required=True, help="a directory or file; several are parts of one model")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write; written as a whole or not at all")
    parser.add_argument("--config", metavar="CONFIG", help="a preset of configs/, or a Python file: the levels that LoRAs and adapters belong to")
    parser.add_argument("--target", metavar="FORMAT[:LEVEL]", help="write this format; --path is then a checkpoint of this project")
    parser.add_argument(
        "--merge-lora", nargs="?", const="", metavar="LEVEL",
        help="fold LoRAs into the decoder: those given without a level; with --target, that of LEVEL. Otherwise a LoRA is kept apart for its level",
    )  # fmt: skip
    parser.add_argument("--dtype", metavar="DTYPE", help="of the weights: float16, bfloat16 or float32 (default: as they are)")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json of the decoder, where it does not lie beside its weights")
    parser.add_argument("--shard-bytes", type=int, default=5 * 10**9, metavar="N", help="with --target: length from which files are split (default 5e9)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax.checkpoint import DTYPES
    from revision_jax.errors import UserError

    if options.dtype is not None and options.dtype not in DTYPES:
        raise UserError(f"--dtype: {options.dtype!r} is not one of {', '.join(DTYPES)}")
    out = Path(options.out)
    for path in options.path:
        if out.resolve() == Path(path).resolve():
            raise UserError(f"--out: {out} is what is read; choose another folder")
    began = time.perf_counter()
    (_export if options.target else _import)(options, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s")


def _import(options: argparse.Namespace, out: Path) -> None:
    from launch.train import load_config
    from revision_jax.convert.assemble import Part, assemble
    from revision_jax.convert.write import write_checkpoint
    from revision_jax.errors import UserError

    names = options.source or ["auto"] * len(options.path)
    if len(names) != len(options.path):
        raise UserError(f"--source: {len(names)} formats for {len(options.path)} --path; give one for each, in the same order, or none")
    if options.merge_lora:
        raise UserError(f"--merge-lora: {options.merge_lora!r} is not needed; LoRAs given without a level (--source peft) are merged")
    parts = []
    for name, path in zip(names, options.path, strict=True):
        kind, _, level = name.partition(":")
        parts.append(Part(path, "" if kind == "auto" else kind, level))
    base = load_config(options.config) if options.config else None
    made = assemble(parts, base, dtype=options.dtype, merge_lora=options.merge_lora is not None, tokenizer=options.tokenizer)
    write_checkpoint(out, made.config, made.plans, made.files, dtype=options.dtype)
    for note in made.notes:
        print(f"note: {note}")


def _export(options: argparse.Namespace, out: Path) -> None:
    from revision_jax.convert.assemble import export
    from revision_jax.convert.write import write_external, write_torch
    from revision_jax.errors import UserError

    if len(options.path) != 1 or options.config or options.tokenizer:
        raise UserError("--target: one --path, a checkpoint of this project, is written; --config and --tokenizer have no place then")
    if options.merge_lora == "":
        raise UserError("--merge-lora: with --target it needs the level whose LoRA is merged")
    name, _, level = options.target.partition(":")
    made = export(options.path[0], name, level, merge_lora=options.merge_lora)
    if made.format.weights.endswith(".bin"):
        write_torch(out, made.tensors, made.format.weights, made.files, dtype=options.dtype)
    else:
        write_external(
            out, made.tensors, made.config, options.shard_bytes, stem=made.format.weights, config_name=made.format.config_name, files=made.files,
            dtype=options.dtype,
        )  # fmt: skip
    for note in made.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    run(main)
