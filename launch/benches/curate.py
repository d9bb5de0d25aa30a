"""`launch.bench curate`: how well each filter of `launch.curate` finds what was planted among rendered stills.

The towers are those of the shipped tiny model. The aesthetic head is fitted here, by ridge regression, to stills that are not among those of the trial.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from revision_jax.curation.towers import Towers
    from revision_jax.data.synthetic.spoilt import Planted

SEED = 1  # 0 is what thresholds were chosen on
FITTED = 600  # stills that the aesthetic head is fitted to, half of them spoilt
OTHERS = ("similarity=0.1", "similarity=0.3", "similarity=0.7", "duplicates.picture=-1")  # beside the defaults
GOOD, UGLY = 7.0, 3.0  # what they are said to score: the default threshold lies between, nearer to the ugly ones, of which there are fewer
BROKEN = ("empty", "truncated", "text", "bomb", "animated", "cmyk", "rotated", "alpha")
# Stage -> the kinds that it is there for. Near-duplicates and balance are told apart from these: who goes depends on who stays.
MEANT = {"open": (*BROKEN, "small"), "ratio": ("ratio",), "aesthetic": ("ugly",), "similarity": ("wrong", "near_miss")}


def curate(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a whole run over some thousand images, into WORKDIR/curate; also sheets of what each stage dropped, to look at."""
    from launch import curate as command
    from revision_jax.curation.towers import Towers
    from revision_jax.data.synthetic.spoilt import CAPTIONS, IMAGES, write_spoilt

    folder: Path = options.workdir / "curate"
    shutil.rmtree(folder, ignore_errors=True)
    planted = write_spoilt(folder, SEED)
    fit_head(Towers(options.checkpoint), folder / "head.safetensors")
    arguments = [folder / IMAGES, "--captions", folder / CAPTIONS, "--checkpoint", options.checkpoint, "--out", folder / "out"]
    began = time.perf_counter()
    arguments = [str(argument) for argument in (*arguments, "--aesthetic", folder / "head.safetensors")]
    command.main(arguments)
    seconds = time.perf_counter() - began
    dropped = _dropped(folder)
    for stage in sorted({drop["stage"] for drop in dropped}):
        sheet(folder / IMAGES, [drop for drop in dropped if drop["stage"] == stage]).save(folder / f"dropped_{stage}.png")
    found = {"images": len(planted), "seconds": seconds, "images a second": len(planted) / seconds, **figures(planted, dropped)}
    for other in OTHERS:  # measures are there: only decided anew
        began = time.perf_counter()
        command.main([*arguments, other])
        found[f"with {other}: seconds"] = time.perf_counter() - began
        figured = figures(planted, _dropped(folder))
        stage = "duplicate" if other.startswith("duplicates") else "similarity"
        found |= {f"with {other}: {name}": figured[f"{stage}: {name}"] for name in ("dropped", "precision", "recall")}
    command.main(arguments)
    return found


def _dropped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]


def fit_head(towers: Towers, path: Path) -> None:
    """A linear head that tells good stills from ugly ones, in LAION's layout."""
    import numpy as np
    from safetensors.numpy import save_file

    from revision_jax.data.synthetic.spoilt import ugly
    from revision_jax.data.synthetic.stills import still
    from revision_jax.data.synthetic.world import Dice

    pictures = [still(2**40 + number)[0] for number in range(FITTED)]
    spoilt = [number % 2 == 1 for number in range(FITTED)]
    pictures = [ugly(picture, Dice("head", number))[0] if bad else picture for number, (picture, bad) in enumerate(zip(pictures, spoilt, strict=True))]
    vectors = np.stack([one["frame"] for one in towers.features([towers.fit(picture) for picture in pictures])]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.concatenate([vectors, np.ones((FITTED, 1))], 1)
    wanted = np.where(spoilt, UGLY, GOOD)
    weights = np.linalg.solve(rows.T @ rows + 1e-3 * np.eye(rows.shape[1]), rows.T @ wanted)
    save_file({"weight": weights[None, :-1].astype(np.float32), "bias": weights[-1:].astype(np.float32)}, path)


def figures(planted: Sequence[Planted], dropped: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Precision and recall of each filter, among the images that came as far as it."""
    from revision_jax.curation.curator import STAGES

    kind = {one.image: one.kind for one in planted}
    gone = {drop["image"]: STAGES.index(drop["stage"]) for drop in dropped}
    found: dict[str, float | int] = {}

    def came(stage: str) -> list[str]:
        return [one.image for one in planted if gone.get(one.image, len(STAGES)) >= STAGES.index(stage)]

    def told(name: str, right: int, of_dropped: int, of_planted: int) -> None:
        found[f"{name}: dropped"], found[f"{name}: planted"] = of_dropped, of_planted
        found[f"{name}: precision"] = right / max(of_dropped, 1)
        found[f"{name}: recall"] = right / max(of_planted, 1)

    for stage, kinds in MEANT.items():
        went = [drop["image"] for drop in dropped if drop["stage"] == stage]
        there = came(stage)
        told(stage, sum(kind[image] in kinds for image in went), len(went), sum(kind[image] in kinds for image in there))
        for one in kinds if len(kinds) < 3 else ():
            found[f"{stage}: recall of {one}"] = sum(kind[image] == one for image in went) / max(sum(kind[image] == one for image in there), 1)
    group = {one.image: one.of or one.image for one in planted}
    there = came("duplicate")
    went = [drop for drop in dropped if drop["stage"] == "duplicate"]
    surplus = sum(count - 1 for count in Counter(group[image] for image in there).values())
    told("duplicate", sum(group[drop["image"]] == group[drop["of"]] for drop in went), len(went), surplus)
    how = {one.image: one.how for one in planted if one.kind == "copy"}
    pairs = {image for image in there if image in how and group[image] in there}
    caught = {drop["image"] for drop in went} | {drop["of"] for drop in went if group[drop["image"]] == group[drop["of"]]}
    for one in sorted(set(how.values())):
        mine = [image for image in pairs if how[image] == one]
        found[f"duplicate: recall of {one}"] = sum(image in caught for image in mine) / max(len(mine), 1)
    before = came("balance")
    after = [image for image in before if image not in gone]
    found["balance: dropped"] = len(before) - len(after)
    found["balance: precision"] = (_count(kind, before) - _count(kind, after)) / max(len(before) - len(after), 1)
    found["balance: share of the common images before it"], found["balance: share behind it"] = (_count(kind, one) / len(one) for one in (before, after))
    found["stay"] = len(after)
    found["stay: with a planted fault"] = sum(kind[image] not in ("good", "common", "copy") for image in after)
    found["stay: share of the good ones, a copy standing for its original"] = len({group[image] for image in after if kind[image] in ("good", "copy")}) / sum(
        one.kind == "good" for one in planted
    )
    return found


def _count(kind: dict[str, str], images: Iterable[str]) -> int:
    return sum(kind[image] == "common" for image in images)


def sheet(images: Path, dropped: Sequence[dict[str, Any]], columns: int = 10, rows: int = 8) -> Image.Image:
    """A contact sheet of dropped images, evenly taken, each with its reason and measure; grey where it cannot be decoded."""
    from PIL import Image, ImageDraw

    from revision_jax.curation.pictures import decode

    picked = dropped[:: max(1, len(dropped) // (columns * rows))][: columns * rows]
    side, line = 120, 26
    page = Image.new("RGB", (columns * side, -(-len(picked) // columns) * (side + line)), "white")
    for number, drop in enumerate(picked):
        x, y = number % columns * side, number // columns * (side + line)
        picture = "too large" if drop["reason"] == "pixels" else decode(images / drop["image"])
        shown = Image.new("RGB", (side, side), "grey") if isinstance(picture, str) else Image.fromarray(picture)
        shown.thumbnail((side - 4, side - 4))
        page.paste(shown, (x, y))
        measure = "" if drop["measure"] is None else f" {drop['measure']:.3g}"
        ImageDraw.Draw(page).text((x, y + side - 2), f"{drop['image'].split('.')[0]}\n{drop['reason']}{measure}", fill="black")
    return page
