"""The stages of one block of images, each measured once and then read from its journal.

    open        the header: unreadable, too many pixels, animated, ..., too small; later the pixels, where they cannot be decoded
    ratio       sides
    aesthetic   a head over the image vectors, or a user's scorer
    caption     the coarse caption: what came with the image, or a captioner's
    similarity  how well it fits the image, by the towers
    short, detailed   captions of those that stand at the end

Between similarity and the new captions all blocks are looked at together (`selection.py`). Measures are kept, decisions are not: they follow from measures and
thresholds, so that other thresholds measure only what was not measured before.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from revision_jax.claims import claim
from revision_jax.curation import pictures, towers
from revision_jax.curation.aesthetics import Head, HttpScorer
from revision_jax.curation.captions import Captioner, captioner, clean
from revision_jax.curation.config import CurationConfig
from revision_jax.curation.endpoint import Endpoint, Refused, Unavailable, ask_all
from revision_jax.curation.items import Block, Item
from revision_jax.curation.journal import Journal, packed, unpacked
from revision_jax.errors import UserError

RECAPTIONS = ("short", "detailed")
STAGES = ("open", "ratio", "aesthetic", "caption", "similarity", "duplicate", "balance", *RECAPTIONS)
LOOKED_AT = 64  # headers between two writes
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """What is done, to what, by whom; a worker on another machine needs no more. Empty names leave their stage out.

    aesthetic: a head's file or a scorer's URL. coarse, short, detailed: captioners, see `captions.py`; without `coarse` the captions that came with the images
    are the coarse ones.
    """

    images: str
    checkpoint: str
    out: str
    aesthetic: str = ""
    coarse: str = ""
    short: str = ""
    detailed: str = ""
    config: CurationConfig = CurationConfig()  # noqa: RUF009  frozen

    @property
    def work(self) -> Path:
        return Path(self.out) / "work"


@dataclass(frozen=True)
class Drop:
    """Why an image goes. `measure` is the number that `threshold` was held against; `of` the image that stays instead; failed: no answer for now, the next
    run asks again."""

    id: str
    image: str
    stage: str
    reason: str
    measure: float | None = None
    threshold: float | None = None
    of: str = ""
    note: str = ""
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Without what there is not to say."""
        always = ("id", "image", "stage", "reason", "measure", "threshold")
        return {name: value for name, value in vars(self).items() if name in always or value}


@dataclass
class Standing:
    """An image that no stage has dropped, and what is known of it."""

    item: Item
    content: str  # hash of its bytes
    pixels: int = 0
    features: towers.Features = field(default_factory=dict)  # "tokens" only up to its similarity
    thumb: np.ndarray | None = None  # uint8 [8 8 3]
    aesthetic: float | None = None
    caption: str = ""
    similarity: float | None = None


@dataclass
class Measured:
    """A block after its stages."""

    standing: list[Standing]
    dropped: list[Drop]


@dataclass
class Recaptioned:
    """New captions of a block: kind -> [(item, caption)]."""

    captions: dict[str, list[tuple[Item, str]]]
    dropped: list[Drop]


class Curator:
    """Runs a recipe's stages, from any number of threads. Models are loaded when something has to be measured with them."""

    def __init__(self, recipe: Recipe):
        """Raises UserError for a checkpoint, head, captioner or endpoint that cannot be used."""
        self.recipe, self.config = recipe, recipe.config
        self.identity = towers.identity(recipe.checkpoint)
        self._endpoints: dict[str, Endpoint] = {}
        self._lock, self._towers = threading.Lock(), None
        width = towers.width(recipe.checkpoint)
        self.head: Head | None = None
        self.scorer: HttpScorer | None = None
        if recipe.aesthetic.startswith(("http://", "https://")):
            self.scorer = HttpScorer(self._endpoint(recipe.aesthetic))
        elif recipe.aesthetic:
            self.head = Head(recipe.aesthetic, width)
        self.captioners: dict[str, Captioner] = {
            kind: captioner(getattr(recipe, kind), getattr(self.config, kind), self._endpoint) for kind in ("coarse", *RECAPTIONS) if getattr(recipe, kind)
        }  # fmt: skip

    def _endpoint(self, url: str) -> Endpoint:
        if url not in self._endpoints:
            self._endpoints[url] = Endpoint(url, self.config.endpoint)
        return self._endpoints[url]

    @property
    def towers(self) -> towers.Towers:
        with self._lock:
            if self._towers is None:
                self._towers = towers.Towers(self.recipe.checkpoint)
            return self._towers

    # ------------------------------------------------------------------------------------------------------------------ of a block

    def measure(self, block: Block, captioned: bool, wait: bool = True) -> Measured | None:
        """All stages up to similarity. captioned: whether there is anything to compare images with. None where another process has it and `wait` is not
        wanted. Raises UserError where nothing can be written, and where an endpoint is not what it was taken for."""
        with claim(self._place("block", block), wait) as mine:
            if not mine:
                return None
            dropped: list[Drop] = []
            standing = self._open(block, dropped)
            standing = self._features(block, standing, dropped)
            standing = self._aesthetic(block, standing, dropped)
            if captioned:
                standing = self._coarse(block, standing, dropped)
                standing = self._similarity(block, standing, dropped)
            for one in standing:
                one.features.pop("tokens", None)
            return Measured(standing, dropped)

    def recaption(self, block: Block, chosen: frozenset[str], wait: bool = True) -> Recaptioned | None:
        """New captions of the images with the ids `chosen`, which `measure` has left standing. As `measure`."""
        with claim(self._place("block", block), wait) as mine:
            if not mine:
                return None
            dropped: list[Drop] = []
            headers = self._journal("open", block)
            standing = [Standing(item, headers[item.id]["content"]) for item in block.items if item.id in chosen]
            made: dict[str, list[tuple[Item, str]]] = {}
            for kind in RECAPTIONS:
                if kind in self.captioners:
                    made[kind] = [(one.item, caption) for one, caption in self._captions(kind, block, standing, dropped)]
            return Recaptioned(made, dropped)

    def _place(self, name: str, block: Block) -> Path:
        return self.recipe.work / name / f"{block.name}.jsonl"

    def _journal(self, name: str, block: Block) -> Journal:
        return Journal(self._place(name, block))

    def _path(self, item: Item) -> Path:
        return Path(self.recipe.images) / item.image

    # --------------------------------------------------------------------------------------------------------------------- stages

    def _open(self, block: Block, dropped: list[Drop]) -> list[Standing]:
        """Headers; a file is looked at again when its size or time of change is another. Drops by what they say, then by the ratio of the sides."""
        journal, filters = self._journal("open", block), self.config.filters
        stamps = {item.id: pictures.stamp(self._path(item)) for item in block.items}
        known = lambda row, stamp: row["stamp"] == stamp and pictures.looked_at(row, filters.max_pixels)
        new = [item for item in block.items if stamps[item.id] and not (item.id in journal and known(journal[item.id], stamps[item.id]))]
        for start in range(0, len(new), LOOKED_AT):
            part = new[start : start + LOOKED_AT]
            journal.add((item.id, {"stamp": stamps[item.id], **pictures.look(self._path(item), filters.max_pixels)}) for item in part)
        standing = []
        for item in block.items:
            row = journal[item.id] if stamps[item.id] else {"wrong": "missing", "note": "no such file"}
            refused = pictures.refusal(row, filters)
            if refused is not None:
                dropped.append(_drop(item, "open", *refused))
            elif pictures.ratio(row) > filters.max_ratio:
                dropped.append(_drop(item, "ratio", "ratio", pictures.ratio(row), filters.max_ratio))
            else:
                standing.append(Standing(item, row["content"], row["width"] * row["height"]))
        return standing

    def _features(self, block: Block, standing: list[Standing], dropped: list[Drop]) -> list[Standing]:
        """Decodes and encodes; drops what cannot be decoded."""
        journal = self._journal(f"features-{self.identity}", block)
        new = [one for one in _once(standing) if one.content not in journal]
        for start in range(0, len(new), LOOKED_AT):
            rows: dict[str, dict[str, Any]] = {}
            fitted = {}
            for one in new[start : start + LOOKED_AT]:
                picture = pictures.decode(self._path(one.item))
                if isinstance(picture, str):
                    rows[one.content] = {"wrong": picture}
                else:
                    fitted[one.content] = self.towers.fit(picture)
                    rows[one.content] = {"thumb": packed(pictures.thumbnail(picture))}
            for content, features in zip(fitted, self.towers.features(list(fitted.values())) if fitted else [], strict=True):
                rows[content] |= {name: packed(array) for name, array in features.items()}
            journal.add(rows.items())
        kept = []
        for one in standing:
            row = journal[one.content]
            if "wrong" in row:
                dropped.append(_drop(one.item, "open", "unreadable", note=row["wrong"]))
                continue
            one.features = {name: unpacked(value) for name, value in row.items()}
            one.thumb = one.features.pop("thumb")
            kept.append(one)
        return kept

    def _aesthetic(self, block: Block, standing: list[Standing], dropped: list[Drop]) -> list[Standing]:
        if self.head is not None and standing:
            for one, score in zip(standing, self.head.scores(np.stack([one.features["frame"] for one in standing])), strict=True):
                one.aesthetic = float(score)
        elif self.scorer is not None:
            scored = self._asked("aesthetic", f"aesthetic-{self.scorer.identity}", block, standing, self._score, self.config.endpoint.parallel, dropped)
            standing = []
            for one, score in scored:
                one.aesthetic = score
                standing.append(one)
        else:
            return standing
        return _at_least(standing, "aesthetic", self.config.aesthetic, dropped)

    def _coarse(self, block: Block, standing: list[Standing], dropped: list[Drop]) -> list[Standing]:
        if "coarse" in self.captioners:
            captioned = self._captions("coarse", block, standing, dropped)
        else:
            captioned = []
            for one in standing:
                try:
                    captioned.append((one, clean(one.item.caption)))
                except Refused as error:
                    dropped.append(_drop(one.item, "caption", "refused" if one.item.caption else "none", note=str(error)))
        kept = []
        for one, caption in captioned:
            one.caption = caption
            kept.append(one)
        return kept

    def _similarity(self, block: Block, standing: list[Standing], dropped: list[Drop]) -> list[Standing]:
        journal = self._journal(f"similarity-{self.identity}", block)
        keys = [hashlib.blake2b(f"{one.content} {one.caption}".encode(), digest_size=16).hexdigest() for one in standing]
        new = {key: one for key, one in zip(keys, standing, strict=True) if key not in journal}
        rows: list[tuple[str, dict[str, Any]]] = []
        texts = {}
        for key, one in new.items():
            try:
                texts[key] = self.towers.caption_ids(one.caption)
            except UserError as error:
                rows.append((key, {"refused": str(error)}))
        if texts:
            values = self.towers.similarity([new[key].features for key in texts], list(texts.values()))
            rows += [(key, {"similarity": float(value)}) for key, value in zip(texts, values, strict=True)]
        if rows:
            journal.add(rows)
        kept = []
        for key, one in zip(keys, standing, strict=True):
            row = journal[key]
            if "refused" in row:
                dropped.append(_drop(one.item, "caption", "refused", note=row["refused"]))
            else:
                one.similarity = row["similarity"]
                kept.append(one)
        return _at_least(kept, "similarity", self.config.similarity, dropped)

    # ------------------------------------------------------------------------------------------------------------- what is asked for

    def _captions(self, kind: str, block: Block, standing: list[Standing], dropped: list[Drop]) -> list[tuple[Standing, str]]:
        """Captions of one kind; drops the images that get none."""
        maker = self.captioners[kind]
        stage = "caption" if kind == "coarse" else kind
        try:
            return self._asked(stage, f"{kind}-{maker.identity}", block, standing, partial(self._caption, maker), maker.workers, dropped)
        except BaseException:
            maker.stop()
            raise

    def _caption(self, maker: Captioner, one: Standing) -> str:
        return maker.caption(self._path(one.item), self._picture(one))

    def _score(self, one: Standing) -> float:
        return self.scorer.score(self._picture(one))

    def _picture(self, one: Standing) -> np.ndarray:
        picture = pictures.decode(self._path(one.item))
        if isinstance(picture, str):
            raise Refused(picture)  # it could be decoded before: the file has changed under our hands
        return picture

    def _asked(
        self, stage: str, name: str, block: Block, standing: list[Standing], ask: Callable[[Standing], T], workers: int, dropped: list[Drop]
    ) -> list[tuple[Standing, T]]:
        """`ask` of every image's content, each answer in the journal `name` as soon as it is there. Drops what is refused, or gets no answer for now."""
        journal = self._journal(name, block)
        new = [one for one in _once(standing) if one.content not in journal]
        failed: dict[str, str] = {}
        for number, answer in ask_all(ask, new, workers, self.config.endpoint.give_up):
            content = new[number].content
            if isinstance(answer, Unavailable):
                failed[content] = str(answer)
            else:
                journal.add([(content, {"refused": str(answer)} if isinstance(answer, Refused) else {"answer": answer})])
        kept = []
        for one in standing:
            row = journal.rows.get(one.content)
            if row is None:
                dropped.append(Drop(one.item.id, one.item.image, stage, "failed", note=failed[one.content], failed=True))
            elif "refused" in row:
                dropped.append(_drop(one.item, stage, "refused", note=row["refused"]))
            else:
                kept.append((one, row["answer"]))
        return kept


def _drop(item: Item, stage: str, reason: str, measure: float | None = None, threshold: float | None = None, note: str = "") -> Drop:
    return Drop(item.id, item.image, stage, reason, measure, threshold, note=note)


def _at_least(standing: list[Standing], name: str, least: float, dropped: list[Drop]) -> list[Standing]:
    """Those whose measure `name`, which is also the stage, is at least `least`."""
    kept = []
    for one in standing:
        value = getattr(one, name)
        if value >= least:
            kept.append(one)
        else:
            dropped.append(_drop(one.item, name, name, value, least))
    return kept


def _once(standing: list[Standing]) -> list[Standing]:
    """The first image of each content."""
    return list({one.content: one for one in reversed(standing)}.values())[::-1]
