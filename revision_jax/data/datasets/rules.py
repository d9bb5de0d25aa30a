"""What may be done to the owners' annotations on the way to examples: every filter and every repair is a named field with a default that a paper gives.

A *filter* is what the papers leave out without a word (a moment that begins behind its end, say): it is always allowed, and always counted. An *error*
is what should not be there: it stops the build (`on_error="raise"`, all findings in one message) or leaves that annotation out and counts it ("skip").
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from revision_jax.config import ConfigError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Rules:
    """Of every grounding dataset; a builder whose files leave more to decide has its own subclass."""

    splits: tuple[str, ...] = SPLITS  # which are built; the owners' files of the others need not be there
    on_error: Literal["raise", "skip"] = "raise"
    # text
    nfc: bool = True  # one code point for é, however it was typed
    collapse_blanks: bool = True  # blanks and line breaks become one space, none at the ends
    lowercase: bool = False
    ending: Literal["keep", "bare", "question"] = "keep"  # bare: no final period; question: exactly one question mark
    empty_query: Literal["error", "drop"] = "error"
    # moments
    no_moment: Literal["error", "drop"] = "error"  # an annotation that does not say when
    reversed_moment: Literal["error", "drop", "swap"] = "error"  # start >= end; swap cannot mend start == end, which is then dropped
    outside_moment: Literal["error", "drop", "clip"] = "error"  # clip: cut to the video; what lies wholly outside is dropped
    slack_s: float = 0.0  # a moment may lie this far outside and is cut without a word: durations are often rounded
    longest_share: float = 1.0  # below 1: moments that cover at least this share of their video are dropped

    def __post_init__(self):
        if not self.splits or len(set(self.splits)) != len(self.splits):
            raise ConfigError(f"splits: must name at least one split, none twice, are {self.splits}")
        if not self.slack_s >= 0:
            raise ConfigError(f"slack_s: must be at least 0 seconds, is {self.slack_s}")
        if not 0 < self.longest_share <= 1:
            raise ConfigError(f"longest_share: must be above 0 and at most 1, is {self.longest_share}")


def normalise(text: str, rules: Rules) -> str:
    """A query as the rules want it; "" where nothing is left of it."""
    if rules.nfc:
        text = unicodedata.normalize("NFC", text)
    if rules.collapse_blanks:
        text = " ".join(text.split())
    if rules.lowercase:
        text = text.lower()
    if rules.ending == "bare":
        text = text.rstrip(" .")
    elif rules.ending == "question":
        bare = text.rstrip(" ?")
        text = f"{bare}?" if bare else ""
    return text if text.strip() else ""
