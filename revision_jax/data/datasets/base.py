"""What every builder shares. A dataset is a table of the owners' files and a generator of their annotations; the rest is here.

    class Film(GroundingBuilder):
        name = "film"
        ASKED = "https://..., after signing a form"
        RULES = {"default": Rules(lowercase=True)}
        FILES = (Wanted("annotations", ("film_train.json",), splits=("train",)),)

        def rows(self, split, files):              # Annotation or Problem
            ...

These are TFDS builders (`file_format="array_record"`, nothing of TensorFlow is imported), so `download_and_prepare` and `as_data_source` work on them;
`build.build` is the same without TFDS's folders, bars and printing. The config of a builder is `Config(name, rules)`: each rule is a field of `config.rules`.
The dataset's metadata tells the rules, the SHA-256 of every file read, and how many annotations were kept, filtered and skipped, by reason.

Without TensorFlow these parts of TFDS work (4.9.10): generator builders, ArrayRecord, `as_data_source`, `builder_from_directory`, Text, Tensor with one unknown
dimension, Sequence of Text or of a dict of scalars. These do not: `as_dataset`, TFRecord, the Image, Video and Audio features, a split without examples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from revision_jax.config import ConfigError, _build
from revision_jax.data.datasets import schema
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, find
from revision_jax.data.datasets.rules import SPLITS, Rules
from revision_jax.data.datasets.schema import Annotation, Example, Problem
from revision_jax.errors import UserError

FILE_FORMAT = "array_record"
TOLD = 10  # problems that a message spells out


@dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """A builder's config: `name` is part of the built dataset's path, `rules` say all that may be decided about its content."""

    name: str = "default"
    rules: Any = None


class Tally:
    """Counts what became of the annotations of each split, and remembers the errors."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter] = {}
        self.errors: list[Problem] = []
        self.found = 0

    def kept(self, split: str) -> None:
        self.counts.setdefault(split, Counter())["kept"] += 1

    def left_out(self, split: str, problem: Problem) -> None:
        self.counts.setdefault(split, Counter())[f"{'filtered' if problem.filtered else 'skipped'}: {problem.reason}"] += 1
        if not problem.filtered:
            self.found += 1
            if len(self.errors) < TOLD:
                self.errors.append(problem)

    def of(self, split: str) -> dict[str, int]:
        return dict(sorted(self.counts.get(split, {}).items()))

    def refuse(self, name: str) -> None:
        """Raises UserError with all errors, if there are any."""
        if self.found:
            more = f"; and {self.found - len(self.errors)} more" if self.found > len(self.errors) else ""
            advice = "mend the file, or leave such annotations out with --rule on_error=skip"
            raise UserError(f"{name}: {self.found} bad annotation{'s' if self.found > 1 else ''}: {'; '.join(map(str, self.errors))}{more}; {advice}")


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The shared half: the owners' files, and examples counted on their way to TFDS. Subclasses are grounding datasets or conversations."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    url_infos = None  # nothing is downloaded; TFDS would look for checksums with a package that it does not depend on
    ASKED: ClassVar[str] = ""  # where the files are asked for, and what to do there
    RULES: ClassVar[dict[str, Any]] = {}  # name -> rules; the first is the default
    FILES: ClassVar[tuple[Wanted, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.BUILDER_CONFIGS = [Config(name=name, rules=rules) for name, rules in cls.RULES.items()]
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"{', '.join(str(wanted) for wanted in cls.FILES)}: {cls.ASKED}"

    # of a dataset

    @classmethod
    def wanted(cls, rules: Any) -> tuple[Wanted, ...]:
        """The files that these rules need."""
        return tuple(wanted for wanted in cls.FILES if not wanted.splits or set(wanted.splits) & set(rules.splits))

    @classmethod
    def checked(cls, split: str, files: dict[str, OwnersFile], rules: Any, tally: Tally) -> Iterator[Any]:
        """A split's examples (with `record()`), in the owners' order; what gives none is counted in `tally`."""
        raise NotImplementedError

    @classmethod
    def feature_table(cls) -> Any:
        raise NotImplementedError

    # shared

    @classmethod
    def located(cls, manual: Path, rules: Any) -> dict[str, OwnersFile]:
        """role -> file. Raises UserError that lists what is missing and where it is asked for."""
        known = [split for split in SPLITS if any(split in (*wanted.splits, *preset.splits) for wanted in cls.FILES for preset in cls.RULES.values())]
        unknown = [split for split in rules.splits if split not in known]
        if unknown:
            raise ConfigError(f"{cls.name} rule.splits: {', '.join(unknown)} is not one of {', '.join(known)}")
        found = {wanted: find(manual, wanted) for wanted in cls.wanted(rules)}
        missing = [wanted for wanted, file in found.items() if file is None]
        if missing:
            some = sorted({split for wanted in missing for split in wanted.splits})
            without = f"; or build without {', '.join(some)}: --rule splits=..." if some and set(some) < set(rules.splits) else ""
            raise UserError(f"{manual}: lacks {'; '.join(map(str, missing))}. {cls.name} is asked for at {cls.ASKED}{without}")
        return {wanted.role: file for wanted, file in found.items()}

    @classmethod
    def sources(cls, files: Mapping[str, OwnersFile]) -> dict[str, str]:
        """What was read: name -> SHA-256."""
        return {file.name: file.digest() for file in files.values()}

    @classmethod
    def examples(cls, split: str, manual: Path, rules: Any) -> Iterator[Any]:
        """The examples of one split straight from the owners' files, nothing written. Raises UserError as a build does."""
        tally = Tally()
        yield from cls.checked(split, cls.located(manual, dataclasses.replace(rules, splits=(split,))), rules, tally)
        if rules.on_error == "raise":
            tally.refuse(cls.name)

    def _info(self) -> Any:
        self._tally = Tally()
        about = (self.__doc__ or self.name).strip()
        return tfds.core.DatasetInfo(
            builder=self, description=about, features=self.feature_table(), metadata=tfds.core.MetadataDict(), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        rules = self.builder_config.rules
        files = self.located(Path(dl_manager.manual_dir), rules)
        self.info.metadata.update(rules=dataclasses.asdict(rules), sources=self.sources(files), counts={})
        self._open = len(rules.splits)
        return {split: self._filled(split, self._generate_examples(split, files)) for split in rules.splits}

    def _filled(self, split: str, examples: Iterator) -> Iterator:
        """The same examples. TFDS would fail on a split without any, with a message that helps nobody."""
        first = next(examples, None)
        if first is None:
            if self.builder_config.rules.on_error == "raise":
                self._tally.refuse(self.name)
            raise UserError(f"{self.name}: split {split!r} is left without an example ({self._tally.of(split) or 'its files are empty'})")
        return chain([first], examples)

    def _generate_examples(self, split: str, files: dict[str, OwnersFile]) -> Iterator[tuple[int, dict]]:
        for number, example in enumerate(self.checked(split, files, self.builder_config.rules, self._tally)):
            yield number, example.record()
        self.info.metadata["counts"][split] = self._tally.of(split)
        self._open -= 1
        if not self._open and self.builder_config.rules.on_error == "raise":
            self._tally.refuse(self.name)  # after the last split: all findings in one message


class GroundingBuilder(Builder, skip_registration=True):
    """A dataset of questions with moments: `rows` gives the owners' annotations."""

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: Any) -> Iterable[Row]:
        """The owners' annotations of a split, as they are, in their order."""
        raise NotImplementedError

    @classmethod
    def feature_table(cls) -> Any:
        return schema.features()

    @classmethod
    def checked(cls, split: str, files: dict[str, OwnersFile], rules: Rules, tally: Tally) -> Iterator[Example]:
        seen: set[bytes] = set()
        durations: dict[str, float] = {}
        for row in cls.rows(split, files, rules):
            found = schema.check(row, rules, split) if isinstance(row, Annotation) else row
            if isinstance(found, Example):
                found = _alone(found, row.where, seen, durations)
            if isinstance(found, Example):
                tally.kept(split)
                yield found
            else:
                tally.left_out(split, found)


def _alone(example: Example, where: str, seen: set[bytes], durations: dict[str, float]) -> Example | Problem:
    """The example, or why it does not go with those before it. Ids are kept as 8 bytes each: a dataset has millions."""
    key = hashlib.blake2b(example.query_id.encode(), digest_size=8).digest()
    if key in seen:
        return Problem(where, "duplicate_id", f"query_id {example.query_id!r} is there twice")
    known = durations.setdefault(example.video_id, example.duration_s)
    if abs(known - example.duration_s) > 1.0:
        return Problem(where, "duration", f"video {example.video_id!r} lasts {example.duration_s:g} s here and {known:g} s before")
    seen.add(key)
    return example


def named(builder: type[Builder], preset: str = "", assignments: Iterable[str] = ()) -> Config:
    """A config: a preset of the builder ("" = its first) with rules changed by `field=value`; values are JSON, plain text, or text,text for a list.

    Changed rules get a name of their own, so that what was built by other rules is never taken for this. Raises ConfigError for an unknown preset or
    field, and for a value that does not fit.
    """
    preset = preset or next(iter(builder.RULES))
    if preset not in builder.RULES:
        raise ConfigError(f"{builder.name}: has no preset {preset!r}; there are {', '.join(builder.RULES)}")
    rules = builder.RULES[preset]
    values = dataclasses.asdict(rules)
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--rule {assignment}: a rule is written field=value")
        try:
            values[field] = json.loads(text)
        except ValueError:
            values[field] = [part for part in text.split(",") if part] if isinstance(values.get(field), tuple) else text
    new = _build(type(rules), values, f"{builder.name} rule")
    if new == rules:
        return next(config for config in builder.BUILDER_CONFIGS if config.name == preset)
    digest = hashlib.blake2b(repr(sorted(dataclasses.asdict(new).items())).encode(), digest_size=4).hexdigest()
    return Config(name=f"{preset}-{digest}", rules=new)
