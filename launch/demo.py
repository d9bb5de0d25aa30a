"""`make demo`: renders an hour that no training saw, asks three questions about it, and writes outputs/demo/.

One thing that happens once, one that happens several times, one that does not happen; the answers are printed beside the truth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from launch import ground, synthesize
from launch.cli import Parser, run

KINDS = ("one", "several", "absent")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m launch.demo", description="Renders a video, asks it three questions, writes the answers.")
    parser.add_argument("--seed", type=int, default=7, help="of the video (default 7)")
    parser.add_argument("--duration", type=float, default=3600.0, metavar="SECONDS", help="of the video (default 3600)")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), metavar="DIR", help="default outputs/demo")
    parser.add_argument("--checkpoint", default=str(ground.DEFAULT_CHECKPOINT), metavar="DIR", help="default: the shipped tiny model")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    began = time.perf_counter()
    out: Path = options.out
    print(f"Rendering {options.duration / 60:.0f} minutes of video into {out} ...", flush=True)
    synthesize.main(["--seed", str(options.seed), "--duration", str(options.duration), "--out", str(out)])
    truth = json.loads((out / "annotations.json").read_text(encoding="utf-8"))["queries"]
    asked = chosen(truth, still_questions(options.seed, options.duration))
    print(f"Asking {len(asked)} questions ...", flush=True)
    arguments = [str(out / "video.mp4"), "--checkpoint", options.checkpoint, "--cache", str(out / "cache")]
    for entry in asked:
        arguments += ["--query", entry["query"]]
    arguments += ["--json", str(out / "answers.json"), "--html", str(out / "answers.html"), "--png", str(out / "answers.png")]
    ground.main(arguments)

    answers = json.loads((out / "answers.json").read_text(encoding="utf-8"))["results"]
    right = 0
    print("\nBeside the truth:")
    for entry, answer in zip(asked, answers, strict=True):
        found = [(moment["start_s"], moment["end_s"]) for moment in answer["moments"] if moment["accepted"]]
        correct = is_right(entry["moments"], found)
        right += correct
        spans = lambda pairs: ", ".join(f"{start:.1f}-{end:.1f} s" for start, end in sorted(pairs)) or "not present"
        print(f"  {'right' if correct else 'WRONG'}  {entry['query']!r} ({entry['kind']})")
        print(f"         true: {spans(entry['moments'])}\n         said: {spans(found)}")
    print(f"\n{right} of {len(asked)} right, {time.perf_counter() - began:.0f} s in all. See {out / 'answers.html'} and {out / 'answers.png'}.")
    return 0


def still_questions(seed: int, duration_s: float) -> set[str]:
    """Ids of the questions about how a thing looks, not how it moves or changes: the demo asks those where it can."""
    from revision_jax.data.synthetic.questions import ask
    from revision_jax.data.synthetic.script import make_script

    return {question.query_id for question in ask(make_script(seed, duration_s)) if question.query.form == "static"}


def chosen(truth: list[dict], first: set[str]) -> list[dict]:
    """One question of each kind there is, those of `first` before others."""
    order = sorted(truth, key=lambda entry: entry["query_id"] not in first)
    found = [next((entry for entry in order if entry["kind"] == kind), None) for kind in KINDS]
    return [entry for entry in found if entry is not None]


def is_right(moments: list, found: list) -> bool:
    """Every true moment is met by an accepted one (temporal IoU of at least 0.3), and no accepted one meets none."""

    def overlap(a: Sequence[float], b: Sequence[float]) -> float:
        shared = min(a[1], b[1]) - max(a[0], b[0])
        return shared / (max(a[1], b[1]) - min(a[0], b[0])) if shared > 0 else 0.0

    met = all(any(overlap(moment, span) >= 0.3 for span in found) for moment in moments)
    return met and all(any(overlap(moment, span) >= 0.3 for moment in moments) for span in found)


if __name__ == "__main__":
    run(main)
