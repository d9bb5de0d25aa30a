"""Thresholds that cannot be are refused by name."""

import pytest

from revision_jax.config import ConfigError, override
from revision_jax.curation.config import CurationConfig


def test_fields_are_given_by_name():
    given = ["similarity=0.25", "duplicates.picture=-1", 'filters.refused=["animated"]', "short.prompt=Say what it is.", "aesthetic=5"]
    config = override(CurationConfig(), given)
    assert (config.similarity, config.aesthetic, config.duplicates.picture, config.filters.refused) == (0.25, 5.0, -1.0, ("animated",))
    assert config.short.prompt == "Say what it is." and config.detailed == CurationConfig().detailed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("similarity=1.5", r"similarity: is a probability: must lie in \[0, 1\], is 1.5"), ("similarity=high", "config.similarity: must be float, is 'high'"),
        ("filters.max_ratio=0.5", "filters.max_ratio: must be at least 1"), ('filters.refused=["grey"]', "'grey' is not one of animated, cmyk"),
        ("filters.min_side=0", "filters.min_side: must be above 0"), ("duplicates.features=2", "duplicates.features: is a cosine"),
        ("duplicates.neighbours=0", "duplicates.neighbours: must be above 0"), ("balance.share=0.5", "balance.share: must be at least 1, or 0"),
        ("endpoint.parallel=0", "endpoint.parallel: must be above 0"), ("endpoint.rate=-1", "endpoint.rate: must not be negative"),
        ("endpoint.quality=0", r"endpoint.quality: must lie in 1..100"), ("short.prompt=", "prompt: is empty"),
        ("short.prompt=<image> What?", "must not contain <image>"), ("block=0", "block: must be above 0"),
        ("aesthetic=NaN", "aesthetic: must be a number"), ("sharpness=3", "unknown field"),
    ],
)  # fmt: skip
def test_what_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        override(CurationConfig(), [given])
