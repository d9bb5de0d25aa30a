"""From a folder of images to training data: all blocks, what they decide together, new captions, and the files that are written.

    OUT/captions/coarse.jsonl, short.jsonl, detailed.jsonl    the images that stay, as data/datasets/conversations.py reads them
    OUT/dropped.jsonl       every image that went: id, stage, reason, measure, threshold
    OUT/report.json         counts by stage and reason, and the thresholds
    OUT/work/               measures, block by block: what makes a second run quick; may be removed when nothing is to be changed any more

Killed at any moment and started again, the run goes on where it was and ends with the same bytes. Any number of processes may run the same command on one OUT:
each takes blocks that no other has.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from revision_jax.claims import claim
from revision_jax.curation.curator import RECAPTIONS, STAGES, Curator, Drop, Measured, Recaptioned
from revision_jax.curation.duplicates import import_faiss
from revision_jax.curation.items import Block, Item, blocks_of
from revision_jax.curation.selection import select
from revision_jax.errors import UserError
from revision_jax.files import write_lines, write_text

CAPTIONS, DROPPED, REPORT = "captions", "dropped.jsonl", "report.json"
Progress = Callable[[str, int, int], None]  # what is being done, images done, of
Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What a run came to. kept: captions file -> images in it; stages: of each that ran, how many came and went, and why."""

    images: int
    stages: list[Row]
    kept: dict[str, int]
    failed: list[Drop]  # got no answer: they are asked for again by the next run


def captioned(curator: Curator, items: Sequence[Item]) -> bool:
    """Whether there are coarse captions. Raises UserError where nothing gives any caption at all."""
    given = "coarse" in curator.captioners or any(item.caption for item in items)
    if not given and not any(kind in curator.captioners for kind in RECAPTIONS):
        raise UserError("nothing gives captions: name a list that holds them (--captions), or a captioner (--coarse, --short, --detailed)")
    return given


def run(
    curator: Curator, items: Sequence[Item], progress: Progress | None = None, measure: Callable | None = None, recaption: Callable | None = None
) -> Report:
    """The whole of it. measure([block, ...]), recaption([(block, ids), ...]): called first where others do the work, such as Beam's workers: what
    they leave undone is done here. Raises UserError: faiss is missing, nothing gives captions, OUT cannot be written, an endpoint is not what it should be.
    """
    import_faiss()
    given = captioned(curator, items)
    blocks = blocks_of(items, curator.config.block)
    if measure is not None:
        measure(blocks)
    dropped: list[Drop] = []
    standing = []
    for _, measured in _each(blocks, lambda block, wait: curator.measure(block, given, wait), len(items), "measuring", progress):
        standing += measured.standing
        dropped += measured.dropped
    if progress is not None:
        progress("comparing", 0, len(standing))
    dropped += select(standing, curator.config, curator.recipe.work, curator.identity)
    gone = {drop.id for drop in dropped}
    standing = [one for one in standing if one.item.id not in gone]
    files: dict[str, Iterable[tuple[Item, str]]] = {"coarse": [(one.item, one.caption) for one in standing]} if given else {}
    if any(kind in curator.captioners for kind in RECAPTIONS):
        ids = {one.item.id for one in standing}
        chosen = {block: frozenset(item.id for item in block.items if item.id in ids) for block in blocks}
        chosen = {block: names for block, names in chosen.items() if names}
        if recaption is not None:
            recaption(list(chosen.items()))
        made: dict[str, list[tuple[Item, str]]] = {kind: [] for kind in RECAPTIONS if kind in curator.captioners}
        for _, done in _each(list(chosen), lambda block, wait: curator.recaption(block, chosen[block], wait), len(standing), "captioning", progress, chosen):
            dropped += done.dropped
            for kind, pairs in done.captions.items():
                made[kind] += pairs
        files |= made
    return _written(curator, items, files, dropped, given)


def _each(
    blocks: Sequence[Block], work: Callable[[Block, bool], T | None], images: int, what: str, progress: Progress | None, parts: dict | None = None
) -> Iterator[tuple[Block, T]]:
    """(block, result), in the blocks' order. Blocks that another process has are left for the end, and waited for."""
    results: dict[Block, Measured | Recaptioned] = {}
    done = 0
    for wait in (False, True):
        for block in blocks:
            if block not in results and (result := work(block, wait)) is not None:
                results[block] = result
                done += len(block.items if parts is None else parts[block])
                if progress is not None:
                    progress(what, done, images)
    for block in blocks:
        yield block, results[block]


def _written(curator: Curator, items: Sequence[Item], files: dict[str, Iterable[tuple[Item, str]]], dropped: list[Drop], given: bool) -> Report:
    """Writes OUT, in the images' order."""
    out, config = Path(curator.recipe.out), curator.config
    place = {item.id: number for number, item in enumerate(items)}
    order = lambda drop: (place[drop.id], STAGES.index(drop.stage))
    dropped = sorted(dropped, key=order)
    kept = {}
    with claim(out / REPORT, wait=True):
        for kind, pairs in files.items():
            prompt = getattr(config, kind).prompt
            lines = (json.dumps(sample(item, prompt, caption), ensure_ascii=False) for item, caption in pairs)
            kept[f"{kind}.jsonl"] = write_lines(out / CAPTIONS / f"{kind}.jsonl", lines)
        write_lines(out / DROPPED, (json.dumps(drop.to_json(), ensure_ascii=False) for drop in dropped))
        stages = _stages(len(items), dropped, _ran(curator, given))
        thresholds = {name: value for name, value in asdict(config).items() if name not in ("endpoint", "block")}
        whole = {"images": len(items), "stages": stages, "kept": kept, "checkpoint": curator.identity, "config": thresholds}
        write_text(out / REPORT, json.dumps(whole, indent=1) + "\n")
    return Report(len(items), stages, kept, [drop for drop in dropped if drop.failed])


def sample(item: Item, prompt: str, caption: str) -> Row:
    """A line of VideoLLaMA3's annotation format."""
    turns = [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": caption}]
    return {"id": item.id, "image": [item.image], "conversations": turns}


def _ran(curator: Curator, given: bool) -> list[str]:
    """The stages that this recipe has, in order."""
    left_out = set() if given else {"caption", "similarity"}
    left_out |= {kind for kind in RECAPTIONS if kind not in curator.captioners}
    if curator.head is None and curator.scorer is None:
        left_out.add("aesthetic")
    if not curator.config.balance.share:
        left_out.add("balance")
    return [stage for stage in STAGES if stage not in left_out]


def _stages(images: int, dropped: Sequence[Drop], ran: Sequence[str]) -> list[Row]:
    """Of each stage: images that came, that went, and reasons. `short` and `detailed` both begin with what the last common stage left."""
    rows, standing = [], images
    for stage in ran:
        reasons = Counter(drop.reason for drop in dropped if drop.stage == stage)
        gone = sum(reasons.values())
        rows.append({"stage": stage, "images": standing, "dropped": gone, "reasons": dict(sorted(reasons.items()))})
        if stage not in RECAPTIONS:
            standing -= gone
    return rows
