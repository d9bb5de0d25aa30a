"""The conversation: questions about images and videos, answered in free text, turn after turn.

    from revision_jax import Chat
    chat = Chat.from_pretrained("VideoLLaMA3-2B")
    for piece in chat.ask("What happens here?", videos=["film.mp4"]):
        print(piece, end="", flush=True)
    print(chat.say("And then?"))

Keys and values of all turns stay in one cache: a turn reads what is new, no more. What was shown once is encoded once, and kept for when it is shown again.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from revision_jax import checkpoint, paths
from revision_jax.chat import budget
from revision_jax.chat.engine import Engine, slots_for, used
from revision_jax.chat.sampling import Sampling
from revision_jax.config import ExperimentConfig
from revision_jax.convert import formats
from revision_jax.convert.plan import Plan
from revision_jax.convert.source import open_source
from revision_jax.convert.transforms import ordered
from revision_jax.data.chat_template import END, Message, Shown, check_text, encode, render, specials
from revision_jax.data.media import Medium, look, read
from revision_jax.data.processing import Rules, read_rules
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError

KEPT = 16  # images and videos whose visual tokens are remembered


@dataclass(frozen=True)
class Turn:
    """A question and its answer, as they stand in the cache. `complete`: the model ended it, not max_new_tokens (or the reader)."""

    question: str
    answer: str
    ids: tuple[int, ...]  # tokens of the answer, end token included
    visual: int  # visual tokens shown with the question, after pruning
    complete: bool


def _on_device(plan: Plan, dtype: str) -> dict:
    """The state that a plan gives, tensor by tensor to the device as the file has them: no layer is stacked on the host, to be taken off again there."""
    leaves = {}
    for path, index, array in plan.apply():
        name = path if index is None else path.replace("/layers/", f"/layers/{index}/", 1)
        leaves[name] = jax.device_put(ordered(array, checkpoint.DTYPES[dtype]))  # a copy: no buffer depends on a mapped file
    return paths.unflatten(leaves)


class Chat:
    """One model and one conversation. Not for several threads."""

    def __init__(
        self, config: ExperimentConfig, state: dict, tokenizer: Tokenizer, rules: Rules = Rules(), *,  # noqa: B008  frozen
        token_budget: int = budget.DEFAULT, max_pixels: int | None = None, system: str | None = None,
    ):
        """rules: which frames are looked at, and how large. token_budget: slots of the conversation, answers included. max_pixels: of an image or a frame.

        Raises UserError: a tokenizer without the special tokens (all named), a model that cannot chat, a budget that is none.
        """
        if tokenizer.vocab_size > config.decoder.vocab:
            raise UserError(f"decoder.vocab: {config.decoder.vocab} is below the tokenizer's {tokenizer.vocab_size} tokens")
        if token_budget < 1:
            raise UserError(f"token_budget: must be above 0, is {token_budget}")
        self.specials = specials(tokenizer)
        self.engine = Engine(config, state)
        self.config, self.tokenizer, self.rules = config, tokenizer, rules
        self.token_budget, self.max_pixels, self.system = token_budget, max_pixels, system
        self.vision = config.encoder(config.patch_encoder)
        self._media: OrderedDict[tuple, tuple[Medium, Shown, np.ndarray]] = OrderedDict()
        self.reset()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, rules: Rules | None = None, dtype: str | None = None, **options) -> Chat:
        """Reads our layout, or a directory of VideoLLaMA3 as transformers or its own repository writes it.

        rules: default those of the processor files in the directory. dtype: of the weights and of the arithmetic; default the checkpoint's. options: see
        `Chat`. Raises UserError for what cannot be read or is no such model.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such checkpoint folder")
        if dtype is not None and dtype not in checkpoint.DTYPES:
            raise UserError(f"dtype: {dtype!r} is not one of {', '.join(checkpoint.DTYPES)}")
        with_dtype = lambda config: config if dtype is None else dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, dtype=dtype))
        problems: list[str] = []  # of what is cheap to find out, before gigabytes are read
        try:
            tokenizer = Tokenizer.load(path)
            specials(tokenizer)
        except UserError as error:
            problems.append(str(error))
        try:
            source = open_source(path)
            found = formats.detect(source)
            if found.name not in ("revision_jax", *formats.WHOLE):
                problems.append(f"{path}: holds a {found.name}, which is a part of a model; to chat a whole one is needed ({', '.join(formats.WHOLE)})")
        except UserError as error:
            problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))
        config = with_dtype(found.config(source, ExperimentConfig(name=path.name), ""))
        plan, needed = found.plan(source, config, "", dtype), formats.target(config, used(config))
        missing = [name for name in needed if name not in plan.target]
        if missing:
            raise UserError(f"{path}: {len(missing)} of the tensors that a conversation needs are missing: {', '.join(paths.heads(missing))}")
        state = _on_device(plan.without([name for name in plan.target if name not in needed]), config.decoder.dtype)
        return cls(config, state, tokenizer, rules or read_rules(path), **options)

    def reset(self) -> None:
        """Forgets the conversation; images and videos stay encoded."""
        self.turns: list[Turn] = []
        self.used = 0  # slots of the cache that hold something
        self._cache: dict | None = None
        self._seen = jnp.zeros((1, self.config.decoder.vocab), bool)
        self._open = False  # the last answer lacks its end token

    def say(self, question: str, **options) -> str:
        """`ask`, as one text."""
        return "".join(self.ask(question, **options))

    def ask(
        self, question: str, *, images: Sequence[str | Path] = (), videos: Sequence[str | Path] = (), sampling: Sampling = Sampling(),  # noqa: B008  frozen
        max_new_tokens: int = 512, seed: int = 0,
    ) -> Iterator[str]:
        """The answer, piece by piece. The turn counts as soon as the first piece is taken; a reader who stops early ends the answer there.

        images, videos: files shown with this question, in this order, in front of it. Raises UserError at once, before anything is decoded or allocated:
        files that cannot be read, reserved words, a turn that does not fit into the budget.
        """
        check_text(question, self.tokenizer)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: must be at least 1, is {max_new_tokens}")
        media = look(images, videos, self.rules, self.vision, self.max_pixels)
        one_each = [Shown((1,) * medium.shape.frames, medium.seconds) for medium in media]
        text = len(self.tokenizer.encode(self._text(question, one_each))) - sum(shown.tokens for shown in one_each)
        budget.check(budget.need(self.used, text, media, self.vision.patch, max_new_tokens), self.token_budget, self.config.decoder)
        return self._answer(question, media, sampling, max_new_tokens, seed)

    def shown(self, medium: Medium) -> tuple[Shown, np.ndarray]:
        """A medium's place in the prompt and its visual tokens, made once."""
        key = dataclasses.astuple(dataclasses.replace(medium, path=""))
        if key not in self._media:
            medium, pictures = read(medium, self.rules, self.vision, self.config.pruner)
            tokens = self.engine.encode(pictures.frames, pictures.keep, medium.merge)
            self._media[key] = (Shown(tuple(map(int, pictures.keep.sum(1))), medium.seconds), tokens)
        self._media.move_to_end(key)
        while len(self._media) > KEPT:
            self._media.popitem(last=False)
        return self._media[key]

    # ----------------------------------------------------------------------------------------------------------------------- parts

    def _text(self, question: str, shown: Sequence[Shown]) -> str:
        """What this turn adds to the conversation's text, up to where the answer begins."""
        messages = [Message("user", (*shown, question))]
        if self.used:  # behind an answer: its end, where it is not there yet, and the line break
            return f"{END if self._open else ''}\n" + render(messages, self.rules, self.specials)
        if self.system is not None:
            messages.insert(0, Message("system", (check_text(self.system, self.tokenizer),)))
        return render(messages, self.rules, self.specials)

    def _answer(self, question: str, media: Sequence[Medium], sampling: Sampling, limit: int, seed: int) -> Iterator[str]:
        encoded = [self.shown(medium) for medium in media]
        shown = [place for place, _ in encoded]
        prompt = encode(self._text(question, shown), self.tokenizer, self.specials, sum(place.tokens for place in shown))
        visual = [tokens for _, tokens in encoded] or [np.zeros((0, self.config.decoder.width), np.float32)]
        batch = self.engine.batch([prompt], [np.concatenate(visual)])
        slots = slots_for(self.used + len(prompt.ids) + limit, self.token_budget)
        cache, self._cache = self._cache, None  # it is used up, whatever happens
        try:
            cache = self.engine.new_cache(1, slots) if cache is None else self.engine.grown(cache, slots)
            logits, cache = self.engine.read(cache, batch._replace(positions=batch.positions + self.used), self.used)
        except BaseException:
            self.reset()
            raise
        self.used += len(prompt.ids)
        seen, key = self._seen | self.engine.seen([prompt.ids]), jax.random.key(seed)
        ids: list[int] = []
        told, complete = "", False
        try:
            while len(ids) < limit and not complete:
                token, seen = self.engine.pick(logits, seen, jax.random.fold_in(key, len(ids)), sampling)
                # The next step is under way while this token is read: it needs the token on the device alone.
                logits, cache = self.engine.step(cache, token, np.asarray([self.used], np.int32), self.used)
                ids.append(int(token[0]))
                self.used += 1
                complete = ids[-1] in self.specials.stops
                text = self.tokenizer.decode(ids[:-1] if complete else ids)
                if complete or len(ids) == limit or not text.endswith("\ufffd"):  # half a character is not shown
                    told, piece = text, text[len(told) :]
                    if piece:
                        yield piece
        finally:
            self._cache, self._seen = cache, seen
            self._open = not ids or ids[-1] != self.specials.end
            self.turns.append(Turn(question, told, tuple(ids), sum(place.tokens for place in shown), complete))
