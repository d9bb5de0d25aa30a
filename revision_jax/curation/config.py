"""Every threshold and limit of cleaning, as frozen dataclasses; a changed one is given as `field=value`, such as `similarity=0.6` or `endpoint.parallel=8`.

VideoLLaMA3 names its stages (arXiv 2501.13106, section 3.1) but not its thresholds: the defaults are this project's, and docs/data.md says what they do.
"""

from __future__ import annotations

from dataclasses import dataclass

from revision_jax.config import ConfigError

TRAITS = ("animated", "cmyk", "rotated", "alpha", "deep")


def _check(condition: bool, where: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: {message}")


@dataclass(frozen=True)
class FilterConfig:
    """What is told from a file's header, before it is decoded."""

    # Pictures that look otherwise to a reader that does not convert as this one does (VideoLLaMA3's, for one, turns nothing by its EXIF tag).
    # animated: several frames; cmyk: four inks; rotated: an EXIF tag says to turn it; alpha: see-through; deep: more than 8 bits a channel.
    refused: tuple[str, ...] = TRAITS
    max_pixels: int = 64_000_000  # more is a bomb, or a map
    min_side: int = 64  # pixels of the shorter side
    max_ratio: float = 4.0  # longer side to shorter side

    def __post_init__(self):
        for trait in self.refused:
            _check(trait in TRAITS, "filters.refused", f"{trait!r} is not one of {', '.join(TRAITS)}")
        _check(self.max_pixels > 0, "filters.max_pixels", f"must be above 0, is {self.max_pixels}")
        _check(self.min_side > 0, "filters.min_side", f"must be above 0, is {self.min_side}")
        _check(self.max_ratio >= 1, "filters.max_ratio", f"must be at least 1 (a square), is {self.max_ratio}")


@dataclass(frozen=True)
class DuplicateConfig:
    """Of two near-duplicates the smaller one goes: those whose features and whose thumbnails both agree."""

    features: float = 0.93  # cosine of the encoder's vectors from which two images show the same thing
    picture: float = 0.9  # correlation of their thumbnails from which they are the same picture of it; -1: the features decide alone
    neighbours: int = 32  # nearest ones looked at, per image and pass
    exact: int = 50_000  # up to so many images are compared with all others; more are looked up in an inverted file
    probes: int = 16  # lists of the inverted file that are looked into

    def __post_init__(self):
        for name in ("features", "picture"):
            _check(-1 <= getattr(self, name) <= 1, f"duplicates.{name}", f"is a cosine: must lie in [-1, 1], is {getattr(self, name)}")
        for name in ("neighbours", "probes"):
            _check(getattr(self, name) > 0, f"duplicates.{name}", f"must be above 0, is {getattr(self, name)}")
        _check(self.exact >= 0, "duplicates.exact", f"must not be negative, is {self.exact}")


@dataclass(frozen=True)
class BalanceConfig:
    """No category, a cluster of features, may hold more than its share."""

    share: float = 3.0  # of images in a category, at most so many times the mean of all categories; 0: nothing is balanced
    categories: int = 0  # 0: the square root of the number of images
    seed: int = 0  # of the clustering, and of the choice within a category

    def __post_init__(self):
        _check(self.share == 0 or self.share >= 1, "balance.share", f"must be at least 1, or 0 for no balancing, is {self.share}")
        _check(self.categories >= 0, "balance.categories", f"must not be negative, is {self.categories}")


@dataclass(frozen=True)
class CaptionConfig:
    """What a captioner is asked, which is also the question in the training sample, and how long its answer may be. A longer one counts as failed."""

    prompt: str = "Describe this image in one sentence."
    tokens: int = 96

    def __post_init__(self):
        _check(bool(self.prompt.strip()), "prompt", "is empty")
        _check("<image>" not in self.prompt and "<video>" not in self.prompt, "prompt", "must not contain <image> or <video>; the image is put in front of it")
        _check(self.tokens > 0, "tokens", f"must be above 0, is {self.tokens}")


@dataclass(frozen=True)
class EndpointConfig:
    """How a user's HTTP endpoint is asked."""

    parallel: int = 4  # requests under way at once, of one process
    rate: float = 0.0  # requests a second at most, of one process; 0: no limit
    timeout_s: float = 120.0  # of one request, up to its first byte, and up to its last
    tries: int = 5  # of a request that fails for the moment: no connection, too slow, 408, 429, 5xx, an answer that makes no sense
    backoff_s: float = 1.0  # before the second try; doubled for each one after it, less a random part, unless the server says how long
    longest_wait_s: float = 60.0  # between two tries, whatever the server says
    give_up: int = 16  # images in a row without an answer end the run
    key_env: str = "OPENAI_API_KEY"  # environment variable with the key; sent where it is set, written nowhere
    side: int = 1024  # images are sent as JPEG, their longer side at most so many pixels
    quality: int = 90  # of the JPEG

    def __post_init__(self):
        for name in ("parallel", "timeout_s", "tries", "give_up", "side"):
            _check(getattr(self, name) > 0, f"endpoint.{name}", f"must be above 0, is {getattr(self, name)}")
        for name in ("rate", "backoff_s", "longest_wait_s"):
            _check(getattr(self, name) >= 0, f"endpoint.{name}", f"must not be negative, is {getattr(self, name)}")
        _check(1 <= self.quality <= 100, "endpoint.quality", f"must lie in 1..100, is {self.quality}")


@dataclass(frozen=True)
class CurationConfig:
    """All of it. A stage whose scorer or captioner is not given is left out, whatever its threshold."""

    filters: FilterConfig = FilterConfig()
    aesthetic: float = 4.5  # least score, in the head's or the scorer's own unit; LAION's heads give about 1 to 10
    similarity: float = 0.5  # least probability, of the towers, that the image shows what its coarse caption says
    duplicates: DuplicateConfig = DuplicateConfig()
    balance: BalanceConfig = BalanceConfig()
    coarse: CaptionConfig = CaptionConfig()
    short: CaptionConfig = CaptionConfig("Describe this image briefly.", 128)
    detailed: CaptionConfig = CaptionConfig("Describe this image in detail.", 768)
    endpoint: EndpointConfig = EndpointConfig()
    block: int = 256  # images of one piece of work: what one process does at a time, and what a Beam worker gets

    def __post_init__(self):
        _check(0 <= self.similarity <= 1, "similarity", f"is a probability: must lie in [0, 1], is {self.similarity}")
        _check(self.aesthetic == self.aesthetic, "aesthetic", "must be a number")
        _check(self.block > 0, "block", f"must be above 0, is {self.block}")
