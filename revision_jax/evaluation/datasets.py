"""The videos and questions of an exam: the rendered world's splits, a folder of annotated videos, or one of the field's datasets.

A field's dataset is read as `launch.datasets` built it, or from its owners' annotations, beside a folder of its videos.

A folder holds one folder a video: annotations.json as `launch.synthesize` writes it ({"duration_s", "queries": [{"query_id", "query", "kind",
"moments"}]}, and if wanted "tags": {query_id: [tag, ...]}) beside exactly one video file. A split of the world is such a folder, rendered when it is missing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revision_jax.config import DataConfig
from revision_jax.data.datasets import registry
from revision_jax.data.datasets.corpus import store_of
from revision_jax.data.datasets.schema import Example
from revision_jax.data.synthetic import world
from revision_jax.data.synthetic.style import PLAIN, Style
from revision_jax.errors import UserError
from revision_jax.evaluation.outcome import ABSENT_KINDS, KINDS, Outcome

DATASETS = ("synthetic", "folder", *registry.GROUNDING)
ANNOTATIONS = "annotations.json"
VIDEO_ENDINGS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".mpg", ".mpeg", ".ogv", ".flv", ".wmv")
FPS = 5

Progress = Callable[[int, int], None]  # videos ready, of


@dataclass(frozen=True)
class Asked:
    query_id: str
    query: str
    kind: str
    truth: tuple[tuple[float, float], ...]  # seconds
    tags: tuple[str, ...] = ()  # of whoever annotated it; figures are told for each as well


@dataclass(frozen=True)
class Item:
    """A video with its questions."""

    name: str
    video: Path  # its file, or the store of its features
    duration_s: float
    questions: tuple[Asked, ...]
    features: bool = False  # there are features alone


def videos_of(split: str, data: DataConfig) -> int:
    """How many videos a split of the world has, for this config."""
    world.split_range(split)  # raises for an unknown one
    counts = {"train": data.train_videos, "validation": data.validation_videos, "test": data.test_videos}
    return counts.get(split, data.validation_videos)


def synthetic(split: str, folder: Path, count: int, duration_s: float | None = None, progress: Progress | None = None, style: Style = PLAIN) -> list[Item]:
    """The first `count` videos of a split of the world: `rendered`."""
    return rendered(split, folder, range(count), duration_s, progress, style)


def rendered(
    split: str, folder: Path, numbers: Sequence[int], duration_s: float | None = None, progress: Progress | None = None, style: Style = PLAIN
) -> list[Item]:
    """Videos of a split of the world by their numbers, an hour each (the length split: three) unless told otherwise, in
    folder/synthetic-v<version>/<split>-<seconds>s[-<style>]/<number>. Rendered by worker processes where missing or of another world.

    Raises UserError for an unknown split or number and where the folder cannot be written.
    """
    duration = world.SPLIT_DURATION_S.get(split, 3600.0) if duration_s is None else duration_s
    name = "-".join(part for part in (split, f"{duration:g}s", style.name) if part)
    places = [(folder / f"synthetic-v{world.WORLD_VERSION}" / name / f"{index:03d}", index) for index in numbers]
    missing = [(place, index) for place, index in places if not _is_rendered(place, split, index, duration)]
    if missing:
        world.split_seed(split, max(index for _, index in missing))
        done = len(places) - len(missing)
        workers = min(len(missing), os.cpu_count() or 1)
        # Spawned, not forked: this process may hold a started backend.
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                for _ in concurrent.futures.as_completed([pool.submit(_render, split, index, duration, str(place), style) for place, index in missing]):
                    _.result()
                    done += 1
                    if progress is not None:
                        progress(done, len(places))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [read_item(place, f"{split}-{index:03d}") for place, index in places]


def _render(split: str, index: int, duration_s: float, place: str, style: Style) -> None:
    from revision_jax.data.synthetic.script import split_script
    from revision_jax.data.synthetic.write import write

    write(split_script(split, index, duration_s, FPS), place, style=style)


def _is_rendered(place: Path, split: str, index: int, duration_s: float) -> bool:
    """annotations.json is moved in after the video, so a complete one of the right world means that both are there."""
    try:
        about = json.loads((place / ANNOTATIONS).read_text(encoding="utf-8"))
        same = about["seed"] == world.split_seed(split, index) and about["world_version"] == world.WORLD_VERSION and abs(about["duration_s"] - duration_s) < 1
        return bool(same) and (place / "video.mp4").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def folder(path: Path, count: int | None = None) -> list[Item]:
    """Every annotated video below a folder, by name, or the first `count`. Raises UserError where there is none."""
    if not path.is_dir():
        raise UserError(f"--data: {path} is no folder; give one that holds a folder with {ANNOTATIONS} and a video for each video")
    places = sorted(place.parent for place in path.rglob(ANNOTATIONS))
    if not places:
        raise UserError(f"--data: {path} holds no {ANNOTATIONS}")
    return [read_item(place, place.relative_to(path).as_posix() if place != path else path.name) for place in places[:count]]


def field(name: str, data: Path, split: str, videos: Path | None = None, count: int | None = None, features: Path | None = None) -> list[Item]:
    """A split of one of the field's datasets: its videos that have a file, or the first `count`, in the order of their first question.

    name: NAME or NAME/CONFIG; data: where `launch.datasets build` put it, or the folder with the owners' annotations, which are then read by the dataset's
    own rules; videos: a folder with a file for each video, called by its id (default: `data`); features: in its place, a folder of feature stores. Raises
    UserError for what cannot be read, and for videos without a file.
    """
    if not data.is_dir():
        raise UserError(f"--data: {data} is no folder; give the one with built datasets, or with the annotation files of {name}")
    asked: dict[str, list[Any]] = {}
    for example in annotated(name, data, split):
        asked.setdefault(example.video_id, []).append(example)
    if features is not None:
        return _with_features(asked, features, count)
    chosen = list(asked)[:count]
    files = video_files(videos or data, chosen)
    return [_item(asked[video], files[video]) for video in chosen]


def video_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The file of each of the field's videos, called by its id, somewhere below a folder. Raises UserError for videos without one."""
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_ENDINGS}
    by_name = {Path(key).name: path for key, path in files.items()}
    found = {name: files.get(name) or files.get(f"{name}/video") or by_name.get(name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        said = f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        raise UserError(f"--videos: {folder} lacks {len(missing)} of {len(found)} videos: {said}; a file is called by its video's id")
    return {name: path for name, path in found.items() if path is not None}


def films(about: dict[str, Any], outcomes: Sequence[Outcome], place: Path, progress: Progress | None = None) -> dict[str, Path]:
    """The file of each video that the answers are about. about: the "run" of their report; place: the folder that the run had as --data, or of a field's
    dataset as --videos. Videos of the world that are not there are rendered, these alone.

    Raises UserError for a video that is not there, or is not the one that the questions were asked about.
    """
    dataset, split = str(about.get("dataset")), str(about.get("split"))
    lasts = {outcome.video: outcome.duration_s for outcome in outcomes}
    if dataset not in ("synthetic", "folder"):
        return video_files(place, list(lasts))
    if dataset == "folder":
        items = folder(place)
    else:
        numbers: dict[float, list[int]] = {}
        for name, seconds in lasts.items():
            numbers.setdefault(seconds, []).append(_number(name, split))
        items = [item for seconds, some in numbers.items() for item in rendered(split, place, some, seconds, progress)]
    by_name = {item.name: item for item in items}
    for outcome in outcomes:
        item = by_name.get(outcome.video)
        if item is None:
            raise UserError(f"--videos: {place} lacks {outcome.video}; give the folder that launch.evaluate had as --data")
        if (outcome.query, outcome.truth) not in [(asked.query, asked.truth) for asked in item.questions]:
            raise UserError(f"{item.video}: is not the video that question {outcome.query_id} was asked about; evaluate again")
    return {name: by_name[name].video for name in lasts}


def _number(name: str, split: str) -> int:
    """Of a video that `rendered` named."""
    number = name.removeprefix(f"{split}-")
    if not number.isdecimal():
        raise UserError(f"the report's video {name!r} is not one of the split {split!r}; give a --json file of launch.evaluate")
    return int(number)


def annotated(name: str, place: Path, split: str) -> Iterable[Example]:
    """The questions of a split of one of the field's datasets. place: as `data` of `field`, or the owners' file, where it is one a split.

    Raises UserError for what cannot be read.
    """
    from revision_jax.data.datasets import build
    from revision_jax.data.datasets.base import Tally
    from revision_jax.data.datasets.files import OwnersFile

    dataset, _, config = name.partition("/")
    builder = registry.builder(dataset)
    if (place / dataset).is_dir():
        return build.examples(build.find(place, dataset, config), split)
    preset = config or next(iter(builder.RULES))
    if preset not in builder.RULES:
        raise UserError(f"--dataset: {dataset} has no preset {preset!r}, only {', '.join(builder.RULES)}")
    rules = dataclasses.replace(builder.RULES[preset], splits=(split,))
    if not place.is_file():
        return builder.examples(split, place, rules)
    if [wanted.role for wanted in builder.wanted(rules)] != [split]:
        raise UserError(f"{place}: split {split!r} of {dataset} is not one file; give the folder with the owners' files")
    tally = Tally()
    examples = list(builder.checked(split, {split: OwnersFile(place)}, rules, tally))
    if rules.on_error == "raise":
        tally.refuse(str(place))
    return examples


def _with_features(asked: dict[str, list[Any]], folder: Path, count: int | None) -> list[Item]:
    chosen = {video: store_of(folder, video) for video in list(asked)[:count]}
    missing = [video for video, store in chosen.items() if store is None]
    if missing:
        said = f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        raise UserError(f"--features: {folder} lacks those of {len(missing)} of {len(chosen)} videos: {said}; a store is called VIDEO_ID.features")
    return [dataclasses.replace(_item(asked[video], store), features=True) for video, store in chosen.items()]


def _item(examples: list[Any], video: Path) -> Item:
    return Item(examples[0].video_id, video, examples[0].duration_s, tuple(Asked(e.query_id, e.query, e.kind, e.spans) for e in examples))


def read_item(place: Path, name: str) -> Item:
    """One annotated video. Raises UserError that names the file and the field."""
    path = place / ANNOTATIONS
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    films = sorted(file for file in place.iterdir() if file.suffix.lower() in VIDEO_ENDINGS)
    if len(films) != 1:
        raise UserError(f"{place}: must hold exactly one video beside {ANNOTATIONS}, holds {len(films)}")
    try:
        duration = float(about["duration_s"])
        tags = about.get("tags", {})
        questions = tuple(_question(path, entry, duration, tags.get(str(entry["query_id"]), [])) for entry in about["queries"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is not an annotation file ({type(error).__name__}: {error})") from None
    if len({q.query_id for q in questions}) != len(questions):
        raise UserError(f"{path}: query_id must differ from question to question")
    return Item(name, films[0], duration, questions)


def _question(path: Path, entry: dict[str, Any], duration_s: float, tags: Any) -> Asked:
    where = f"{path}: question {entry['query_id']}"
    truth = tuple((float(start), float(end)) for start, end in entry["moments"])
    kind = entry.get("kind") or ("absent" if not truth else "one" if len(truth) == 1 else "several")
    if kind not in KINDS:
        raise UserError(f"{where}: kind {kind!r} is not one of {', '.join(KINDS)}")
    if (kind in ABSENT_KINDS) != (not truth):
        raise UserError(f"{where}: is {kind!r} and has {len(truth)} moments")
    for start, end in truth:
        if not 0 <= start < end <= duration_s + 1.0:
            raise UserError(f"{where}: moment [{start:g}, {end:g}] must lie inside the video's {duration_s:g} s and start before it ends")
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise UserError(f"{where}: tags must be a list of words, are {json.dumps(tags)}")
    return Asked(str(entry["query_id"]), str(entry["query"]), kind, truth, tuple(dict.fromkeys(tags)))
