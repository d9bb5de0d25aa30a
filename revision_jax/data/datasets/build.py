"""Building a dataset from the owners' files, at once or not at all, and reading it back: no network, no TensorFlow, the same bytes every time.

    OUT/NAME/CONFIG/VERSION/    dataset_info.json, features.json, metadata.json (rules, SHA-256 of what was read, counts), ArrayRecord files

This is TFDS's own layout: `tfds.builder_from_directory(path).as_data_source("train")` reads it as well.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revision_jax.data.datasets import registry
from revision_jax.data.datasets.schema import Example
from revision_jax.errors import UserError
from revision_jax.files import new_folder

METADATA = "metadata.json"


@dataclass(frozen=True)
class Built:
    """A dataset on disk."""

    name: str
    config: str
    path: Path
    metadata: dict[str, Any]  # rules, sources, counts

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """split -> "kept", "filtered: reason", "skipped: reason" -> number of annotations."""
        return self.metadata["counts"]


def build(name: str, manual: str | Path, out: str | Path, preset: str = "", rules: Iterable[str] = ()) -> Built:
    """Builds a dataset, or returns the one that was built before from the same files by the same rules.

    name: of `registry.NAMES`; manual: the folder with the owners' files; preset, rules: see `base.named`. Raises UserError for missing files (all of
    them, and where they are asked for), for bad annotations, and where `out` cannot be written; then nothing is left behind.
    """
    from revision_jax.data.datasets.base import FILE_FORMAT, named

    builder_class = registry.builder(name)
    config = named(builder_class, preset, rules)
    manual, out = Path(manual), Path(out)
    if not manual.is_dir():
        raise UserError(f"{manual}: no such folder; {name} is asked for at {builder_class.ASKED}")
    files = builder_class.located(manual, config.rules)
    place = out / name / config.name
    with contextlib.suppress(UserError):
        old = opened(place)
        if old.metadata["sources"] == builder_class.sources(files) and old.path.name == str(builder_class.VERSION):
            return old
    fresh = [folder for folder in (out, out / name) if not folder.exists()]
    try:
        with new_folder(place) as building, _quiet() as tfds:
            builder = builder_class(data_dir=building / "tfds", config=config, file_format=FILE_FORMAT)
            download = tfds.download.DownloadConfig(
                manual_dir=manual, try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP, num_shards=None
            )
            builder.download_and_prepare(download_dir=building / "tfds" / "downloads", download_config=download)
            Path(builder.data_dir).rename(building / str(builder.version))
            shutil.rmtree(building / "tfds")
    except BaseException:
        for folder in reversed(fresh):
            with contextlib.suppress(OSError):
                folder.rmdir()  # where still empty
        raise
    return opened(place)


def opened(path: str | Path) -> Built:
    """A built dataset: `path` is its folder OUT/NAME/CONFIG, or the version's below. Raises UserError where there is none."""
    path = Path(path)
    below = [path] if (path / METADATA).is_file() else sorted(path.glob(f"[0-9]*/{METADATA}"))
    below = [found if found.is_dir() else found.parent for found in below]
    if not below:
        raise UserError(f"{path}: holds no built dataset; build it with python -m launch.datasets build")
    try:
        metadata = json.loads((below[-1] / METADATA).read_text(encoding="utf-8"))
        info = json.loads((below[-1] / "dataset_info.json").read_text(encoding="utf-8"))
        lacking = {"counts", "sources", "rules"} - set(metadata)
        if lacking:
            raise ValueError(f"{METADATA} lacks {', '.join(sorted(lacking))}")
        return Built(info["name"], info["configName"], below[-1], metadata)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{below[-1]}: not a dataset built by this program ({type(error).__name__}: {error}); build it again") from None


def at(path: str | Path) -> Built:
    """The built dataset that a user points at: OUT/NAME, OUT/NAME/CONFIG or the version's folder. Raises UserError as `find` and `opened` do."""
    path = Path(path)
    return find(path.parent, path.name) if any(path.glob(f"[!.]*/[0-9]*/{METADATA}")) else opened(path)


def find(out: str | Path, name: str, config: str = "") -> Built:
    """The built dataset `name` under `out`. Raises UserError where there is none, and where there are several and `config` names none of them."""
    root = Path(out) / name
    configs = sorted(path.parent.parent.name for path in root.glob(f"[!.]*/[0-9]*/{METADATA}"))  # not those that a killed build left unfinished
    if not configs or (config and config not in configs):
        advice = f" {config!r}; there are {', '.join(configs)}" if configs else "; build it with python -m launch.datasets build"
        raise UserError(f"{root}: holds no built dataset{advice}")
    if not config and len(configs) > 1:
        raise UserError(f"{root}: holds several built datasets: {', '.join(configs)}; name one of them, as NAME/CONFIG")
    return opened(root / (config or configs[0]))


def read(built: Built, split: str) -> Sequence[dict]:
    """A split's records in order, with random access; every record as TFDS gives it (text is bytes). Raises UserError for a split that is not there."""
    if split not in built.counts:
        raise UserError(f"{built.path}: has no split {split!r}, only {', '.join(built.counts)}")
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(built.path).as_data_source(split)


def examples(built: Built, split: str) -> Iterator[Example]:
    """The examples of a grounding dataset's split."""
    for record in read(built, split):
        yield Example.of(record)


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """TFDS without its bars, its printing and its warnings about configs that are not its own."""
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging
    from tensorflow_datasets.core.utils import tqdm_utils

    level, active = absl_logging.get_verbosity(), tqdm_utils._active
    tfds.disable_progress_bar()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield tfds
    finally:
        absl_logging.set_verbosity(level)
        logging.getLogger("absl").setLevel(logging.NOTSET)
        if active:
            tfds.enable_progress_bar()
