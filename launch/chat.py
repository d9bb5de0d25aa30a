"""Talks about images and videos: `python -m launch.chat --checkpoint DIR --video film.mp4 --prompt "What happens?"`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from launch.cli import Parser, run

COMMANDS = "/image FILE, /video FILE (shown with the next question), /reset, /quit"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.chat", description="Answers questions about images and videos in free text; without --prompt a conversation of several turns.",
        epilog=f"In a conversation: {COMMANDS}. Exit status: 0 answered, 2 bad input, 130 stopped by Ctrl-C.",
    )
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="VideoLLaMA3 as transformers or its own repository writes it, or converted")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="shown with the first question; may be given several times")
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="as --image")
    parser.add_argument("--prompt", metavar="TEXT", help="what to ask; without it questions are read from the terminal, one a line")
    parser.add_argument("--system", metavar="TEXT", help="a system line in front of the conversation (default: none)")
    parser.add_argument("--fps", type=float, metavar="N", help="frames a second that are looked at (default: the checkpoint's, 1)")
    parser.add_argument("--max-frames", type=int, metavar="N", help="frames of a video at most (default: the checkpoint's, 180)")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="pixels of an image or frame at most")
    parser.add_argument("--token-budget", type=int, metavar="N", help="tokens of the whole conversation at most (default 20480)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="tokens of an answer at most (default 512)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, always takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of this mass (default 1: all)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens (default 0: all)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: less of what was said before (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing (default 0)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of weights and arithmetic (default: the checkpoint's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax.errors import UserError

    for name in ("fps", "max_frames", "max_pixels", "token_budget", "max_new_tokens"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')}: must be above 0, is {value}")
    # What is cheap to find out is found out before jax is loaded.
    from revision_jax.data.processing import Rules, read_image, read_rules
    from revision_jax.data.video import probe

    for path in options.image:
        read_image(path, Rules())
    for path in options.video:
        probe(path)
    rules = changed(read_rules(options.checkpoint), fps=options.fps, max_frames=options.max_frames)

    from revision_jax.chat.chat import Chat
    from revision_jax.chat.sampling import Sampling

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.repetition_penalty)
    limits = {"token_budget": options.token_budget} if options.token_budget else {}
    chat = Chat.from_pretrained(options.checkpoint, rules=rules, dtype=options.dtype, max_pixels=options.max_pixels, system=options.system, **limits)
    asking = {"sampling": sampling, "max_new_tokens": options.max_new_tokens, "seed": options.seed}
    if options.prompt is not None:
        show(chat.ask(options.prompt, images=options.image, videos=options.video, **asking))
        return
    converse(chat, list(options.image), list(options.video), asking)


def changed(rules: Any, **values: Any) -> Any:
    """`rules` with the values that are given."""
    import dataclasses

    return dataclasses.replace(rules, **{name: value for name, value in values.items() if value is not None})


def show(pieces: Any) -> None:
    """An answer as it comes."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def converse(chat: Any, images: list[str], videos: list[str], asking: dict[str, Any]) -> None:
    """Turns until the input ends. On a terminal a question that cannot be answered is told in a line, and what was to be shown waits for the next one."""
    from revision_jax.errors import UserError

    talking = sys.stdin.isatty()
    if talking:
        print(COMMANDS, file=sys.stderr)
    while True:
        if talking:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()  # empty at the end of the input, and there alone
        command, _, rest = line.strip().partition(" ")
        if not line or command == "/quit":
            return
        if command == "/reset":
            chat.reset()
        elif command in ("/image", "/video"):
            (images if command == "/image" else videos).append(rest.strip())
        elif command.startswith("/"):
            print(f"error: {command} is no command; there are {COMMANDS}", file=sys.stderr)
        elif line.strip():
            try:
                show(chat.ask(line.strip(), images=images, videos=videos, **asking))
                images, videos = [], []
            except UserError as error:
                if not talking:  # a script should not go on
                    raise
                print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
