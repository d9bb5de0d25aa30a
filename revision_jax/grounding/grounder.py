"""The public API: a model that answers questions about videos.

    from revision_jax import Grounder
    grounder = Grounder.from_pretrained("checkpoints/tiny")
    video = grounder.encode("film.mp4")
    answers = grounder.ground(video, ["a red ring turns green"])
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from revision_jax import checkpoint, paths
from revision_jax.config import ExperimentConfig, LevelConfig
from revision_jax.convert import assemble, formats
from revision_jax.convert.load import load_state
from revision_jax.convert.source import open_source
from revision_jax.data import video as files
from revision_jax.data.features import FeatureStore, matches
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError
from revision_jax.extraction import cache
from revision_jax.extraction import video as extraction
from revision_jax.extraction.patches import TOGETHER, Seen, encode_windows, encoder_programs
from revision_jax.extraction.text import text_identity
from revision_jax.grounding import answer as answers
from revision_jax.grounding.answer import Answer
from revision_jax.grounding.confidence import Calibrator
from revision_jax.grounding.found import Found
from revision_jax.grounding.level_functions import level_state
from revision_jax.grounding.levels import Window
from revision_jax.grounding.memory import fitted, stored_dtype
from revision_jax.grounding.program_shapes import program_shapes
from revision_jax.grounding.programs import Programs
from revision_jax.grounding.retrieve import RankedVideo, rank_videos
from revision_jax.grounding.search import Searcher
from revision_jax.grounding.source import Source, StoreSource
from revision_jax.models import revision
from revision_jax.models.quantize import STACKS, quantized_leaf, scale_name
from revision_jax.stored_programs import stored_json, use_compile_cache

if TYPE_CHECKING:
    from revision_jax.grounding.asking import AskingGrounder

PATCH_WINDOWS = 64  # patch windows whose features are remembered


def default_cache() -> Path:
    """Where encoded videos and compiled programs are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "revision_jax"


@dataclass(frozen=True)
class EncodedVideo:
    """A video and its features on disk. `size`: (height, width) in pixels that its frames are seen at, None where there are features alone; `patch_size`: that
    the patch level sees them at, where it has an encoder of its own. `seconds`: what encoding took, 0 from the cache."""

    path: str
    duration_s: float
    fps: float
    source: Source = field(repr=False)
    size: tuple[int, int] | None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    patch_size: tuple[int, int] | None = None


class Grounder:
    """One model. Encodes videos once, answers any number of questions about them."""

    def __init__(
        self, config: ExperimentConfig, state: dict, tokenizer: Tokenizer, calibrator: Calibrator | None = None, cache_dir: str | Path | None = None,
        text_tokenizer: Tokenizer | None = None,
    ):
        """`from_pretrained` reads these from a folder. Raises ConfigError where they do not fit together."""
        self.config, self.calibrator = config, calibrator
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache()
        self.programs = Programs(config, state, tokenizer, text_tokenizer)
        self.searcher = Searcher(config, self.programs, calibrator)
        self.cache_limit = cache.LIMIT  # bytes of features that are kept
        self.decoders: int | None = None  # processes that decode a long video; None: by the cores
        self.encoded_patches = 0  # that went through the patch level's encoder so far, padding among them
        self._encoder = ""
        self._patches: OrderedDict[tuple, dict[str, np.ndarray] | None] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, cache_dir: str | Path | None = None, *, ask: bool = True, weights: str | None = None, memory_limit: int | None = None
    ) -> Grounder | AskingGrounder:
        """Reads config.json, model.safetensors, tokenizer.json and, where there are any, calibration.json and text_tokenizer/tokenizer.json (of a text tower
        whose vocabulary is not the decoder's).

        VideoLLaMA3, converted or a directory as it is, has no levels to search with: it is asked window by window (`AskingGrounder`), unless `ask` forbids it.
        weights: "float32", "bfloat16", or "int8" for the matrices of the decoder's layers (`models/quantize.py`); None: as the activations are.
        memory_limit: bytes of device memory that it answers within (`memory.py`); None: the config's batches and prefix cache.
        Of another project's directory that holds a part of a model alone an error says what is missing. Raises UserError: no such folder, a file missing or
        unreadable, tensors that do not match the config (all of them named), a limit that is too small.
        """
        asked = weights is not None and "--weights: chooses how this project's own checkpoints are held; convert this one first (launch.convert)"
        asked = asked or (memory_limit is not None and "--memory-limit: is for this project's own checkpoints; convert this one first (launch.convert)")
        if assemble.is_foreign(path):
            if asked:
                raise UserError(asked)
            if ask and formats.detect(open_source(path)).name in formats.WHOLE:
                return _asking(path)
            return cls.from_parts([assemble.Part(path)], cache_dir=cache_dir)
        cache_dir = Path(cache_dir) if cache_dir is not None else default_cache()
        use_compile_cache(cache_dir / "xla")
        config = checkpoint.load_config(path)
        if config.text is None and ask:
            if asked:
                raise UserError(f"{asked.split(':')[0]}: a model that is asked window by window has no such choice; leave it out")
            return _asking(path)
        dtype = stored_dtype(config, weights)
        if memory_limit is not None and config.text is not None:  # before a weight is read
            config = fitted(config, Tokenizer.load(Path(path) / checkpoint.TOKENIZER), weights, memory_limit)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        each = _quantized_on(device) if weights == "int8" else None
        shipped = checkpoint.load(path, expected_shapes, dtype=dtype, shardings=device, each=each, apart=STACKS)
        calibrator = None if shipped.calibration is None else Calibrator.from_dict(shipped.calibration, str(Path(path) / checkpoint.CALIBRATION))
        text = Path(path) / checkpoint.TEXT_TOKENIZER
        return cls(config, shipped.state, Tokenizer.load(shipped.tokenizer), calibrator, cache_dir, Tokenizer.load(text) if text.is_dir() else None)

    @classmethod
    def from_parts(cls, parts: Sequence[assemble.Part], config: ExperimentConfig | None = None, cache_dir: str | Path | None = None) -> Grounder:
        """A model from released parts, converted in memory and straight onto the device: what `launch.convert` and `from_pretrained` do, without the files.

        config: the preset whose levels the parts fill. Raises UserError with the findings of all parts, and for a model that lacks what searching needs.
        """
        cache_dir = Path(cache_dir) if cache_dir is not None else default_cache()
        names = ", ".join(str(part.path) for part in parts)
        made = assemble.assemble(parts, config, dtype="float32")
        if made.config.text is None or not any(level.kind in ("sparse", "dense") for level in made.config.grounding.levels):
            missing = "levels with an adapter and a LoRA each, and an image-text pair,"
            way = "add them (launch.convert --config with a preset such as revision_2b, then launch.train), or talk with the model as it is (launch.chat)"
            raise UserError(f"{names}: nothing to search with: {missing} are missing; {way}")
        if made.lacking:
            raise UserError(f"{names}: {'; '.join(made.notes)}")
        use_compile_cache(cache_dir / "xla")
        dtype = "bfloat16" if made.config.decoder.dtype == "bfloat16" else "float32"
        state = load_state(made.plans, dtype=dtype, shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]), apart=STACKS)
        text = assemble.tokenizer(made.files, checkpoint.TEXT_TOKENIZER)
        return cls(made.config, state, assemble.tokenizer(made.files), None, cache_dir, text)

    @property
    def threshold(self) -> float:
        """Confidence at which a moment is accepted, unless a call says otherwise: the calibration's, or the config's."""
        fitted = self.calibrator is not None and self.config.grounding.confidence == "calibrated"
        return self.calibrator.threshold if fitted else self.config.grounding.threshold

    @property
    def further(self) -> float | None:
        """Confidence at which further moments are accepted where one is already; None: `threshold` as well."""
        fitted = self.calibrator is not None and self.config.grounding.confidence == "calibrated"
        return self.calibrator.further if fitted else None

    def compile(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Makes every program ready that any video or question can ask for, in this process and, stored, for later ones; returns how many there are.

        progress(programs done, programs in all).
        """
        programs, state = self.programs, self.programs.state
        wanted = encoder_programs(self.config, state["params"])
        for shape in program_shapes(programs.functions, state):
            wanted.append((programs.stored(shape.kind, shape.level), (level_state(state, shape.level), *shape.arrays)))
        for done, (program, shapes) in enumerate(wanted):
            if progress:
                progress(done, len(wanted))
            program.prepare(*shapes)
        return len(wanted)

    def encode(self, path: str | Path, progress: Callable[[float, float], None] | None = None) -> EncodedVideo:
        """Looks at every frame once and keeps what was seen, by the file's content and the encoder: a second call reads it from disk.

        progress(seconds done, seconds in all). Raises UserError for what is no readable video, and where the cache cannot be written.
        """
        began = time.perf_counter()
        info, content = files.probe(path), files.content_hash(path)
        self._encoder = self._encoder or extraction.encoder_identity(self.config, self.programs.state["params"])
        rate = self.config.grounding.rate
        kept = self.cache_dir / "features" / f"{content}-{self._encoder}-{rate:g}{cache.SUFFIX}"
        make = lambda: extraction.extract(path, self.config, self.programs.state["params"], kept, decoders=self.decoders, progress=progress)
        store, made = cache.kept(kept, lambda: _open(kept, content, self._encoder, rate), make, self.cache_limit)
        seconds = time.perf_counter() - began if made else 0.0
        size = extraction.frame_size(self.config, info)
        own = None if self.config.patch_vision is None else extraction.frame_size(self.config, info, self.config.patch_encoder)
        return EncodedVideo(str(path), info.duration_s, info.fps, StoreSource(store), size, tuple(store.header.warnings), seconds, own)

    def open_features(self, store: str | Path, duration_s: float | None = None) -> EncodedVideo:
        """A video of which there are features alone, such as MAD's: those of `data.encoder`, or of this model's own encoder. The patch level is left out.

        duration_s: of the video, where it is known. Raises UserError for features of another encoder, rate or width, and for such that end before it.
        """
        found, config = FeatureStore(store), self.config
        wanted = config.data.encoder
        if not wanted:
            wanted = self._encoder = self._encoder or extraction.encoder_identity(config, self.programs.state["params"])
        found.require(None, wanted, config.grounding.rate, width=config.vision.output, duration_s=duration_s)
        return EncodedVideo(str(store), duration_s or found.header.duration_s, 0.0, StoreSource(found), None, tuple(found.header.warnings))

    def use_queries(self, store: str | Path) -> None:
        """Takes the features of questions from a store, by their text, in place of the text tower. Raises UserError for those of another encoder."""
        found, data = TextFeatureStore(store), self.config.data
        found.require(data.query_encoder or data.encoder or text_identity(self.config, self.programs.state["params"]))
        self.programs.queries = found

    def find(
        self, video: EncodedVideo | str | Path, queries: Sequence[str], *, top_k: int = 5, start_s: float | None = None, end_s: float | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Found]:
        """`ground` without the decision: candidates with their features, and the traces of all levels."""
        video = video if isinstance(video, EncodedVideo) else self.encode(video)
        start, end = _stretch(video, start_s, end_s)
        if top_k < 1:
            raise UserError(f"top_k: must be at least 1, is {top_k}")
        refine = None if video.size is None else lambda windows, level: self._patch_features(video, windows, level)
        return self.searcher.search(video.source, list(queries), start_s=start, end_s=end, top_k=top_k, refine=refine, progress=progress)

    def ground(
        self, video: EncodedVideo | str | Path, queries: Sequence[str], top_k: int = 5, threshold: float | None = None, start_s: float | None = None,
        end_s: float | None = None, progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Answer]:
        """When each thing happens in seconds [start_s, end_s] of a video (default: all of it), or that it does not.

        At most `top_k` moments a question, ranked; accepted from `threshold` up (default: the checkpoint's, which may have another for moments beside the
        first). Raises UserError for a question, range or number that cannot be used.
        """
        video = video if isinstance(video, EncodedVideo) else self.encode(video)
        threshold, further = (self.threshold, self.further) if threshold is None else (threshold, None)
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold: must lie in [0, 1], is {threshold}")
        found = self.find(video, queries, top_k=top_k, start_s=start_s, end_s=end_s, progress=progress)
        return [answers.answer(one, threshold, video.duration_s, {"encode": video.seconds}, further) for one in found]

    def rank(self, videos: Sequence[EncodedVideo | str | Path], queries: Sequence[str]) -> list[list[RankedVideo]]:
        """Which of the videos each question is about: all of them, best first. Raises ConfigError for a model without a level of whole videos."""
        encoded = [video if isinstance(video, EncodedVideo) else self.encode(video) for video in videos]
        return rank_videos(self.programs, [video.source for video in encoded], list(queries))

    def to_json(self, video: EncodedVideo, given: Iterable[Answer]) -> dict[str, Any]:
        """One video's part of the JSON that `launch.ground` writes."""
        return answers.result(video.path, video.duration_s, video.fps, list(given), video.warnings)

    def check(self, query: str) -> None:
        """Raises UserError for a question that cannot be asked, before any video is read."""
        self.programs.question(query)

    def _patch_features(self, video: EncodedVideo, windows: Sequence[Window], level: LevelConfig) -> list[dict[str, np.ndarray] | None]:
        """Patch features of a few seconds each, read from the video itself; None where there is nothing to read. As many windows as fit are encoded at once."""
        keys = [(video.source.key, level, self.config.pruner, window) for window in windows]
        found = {key: self._patches[key] for key in keys if key in self._patches}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        together = max(1, TOGETHER // level.tokens)
        for i in range(0, len(missing), together):
            part = missing[i : i + together]
            pictures = [self._pictures(video, window, level) for *_, window in part]
            seen, patches = encode_windows(self.config, self.programs.state["params"], pictures)
            self.encoded_patches += patches
            found |= {key: _filled(one, level.tokens) if len(one.tokens) else None for key, one in zip(part, seen, strict=True)}
        for key in keys:
            self._patches[key] = found[key]
            self._patches.move_to_end(key)
        while len(self._patches) > PATCH_WINDOWS:
            self._patches.popitem(last=False)
        return [found[key] for key in keys]

    def _pictures(self, video: EncodedVideo, window: Window, level: LevelConfig) -> np.ndarray:
        """The level's frames of a window, uint8 [n h w 3]; none beyond the end of a cut file, where the coarser boundaries stand."""
        size = video.patch_size or video.size
        try:
            reader = files.read_frames(video.path, level.rate, start_s=window.start_s, end_s=window.end_s, size=size, chunk=level.tokens)
            return np.concatenate([chunk.frames for chunk in reader])[: level.tokens]
        except (UserError, ValueError):
            return np.zeros((0, *size, 3), np.uint8)


def _asking(path: str | Path) -> AskingGrounder:
    from revision_jax.grounding.asking import AskingGrounder  # all of chat/, which a search does not need

    return AskingGrounder.from_pretrained(path)


def _quantized_on(device: jax.sharding.Sharding) -> Callable[[str, jax.Array], dict[str, jax.Array]]:
    """Quantises leaves one by one: the float model is never there as a whole."""
    return lambda name, leaf: quantized_leaf(name, leaf, {part: device for part in (name, scale_name(name)) if part})


def expected_shapes(config: ExperimentConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model of this config has."""
    make = lambda: {name: leaf.shape for name, leaf in paths.flatten(revision.abstract_state(config)).items()}
    return {name: tuple(shape) for name, shape in stored_json("state shapes", config.to_json(), make).items()}


def _open(path: Path, content: str, encoder: str, rate: float) -> FeatureStore | None:
    """The store, if it is there and was made from this. One that is damaged or of another version is made anew."""
    if not path.is_file():
        return None
    try:
        store = FeatureStore(path)
    except UserError:
        return None
    return store if matches(store.header, content, encoder, rate) else None


def _filled(seen: Seen, slots: int) -> dict[str, np.ndarray]:
    """A window as the patch level's programs read it, with nothing in the slots behind its last frame."""
    count = len(seen.tokens)
    pad = lambda x: np.concatenate([x, np.zeros((slots - count, *x.shape[1:]), x.dtype)])
    return {"tokens": pad(seen.tokens), "change": pad(seen.change), "valid": np.arange(slots) < count}


def _stretch(video: EncodedVideo, start_s: float | None, end_s: float | None) -> tuple[float, float]:
    start = 0.0 if start_s is None else float(start_s)
    end = video.duration_s if end_s is None else min(float(end_s), video.duration_s)
    if not 0 <= start < end:
        raise UserError(f"{video.path}: nothing to search from {start:g} s to {end:g} s; the video lasts {video.duration_s:.1f} s")
    return start, end
