"""The config of a stage that trains on conversations: part of `StageConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from revision_jax.config.fields import _check, _one_of, _positive


@dataclass(frozen=True)
class RowConfig:
    """A static shape of packed conversations: what one row of a batch has room for. A conversation goes into the first shape that holds it."""

    length: int = 16384  # S: tokens, text and visual
    visual: int = 12288  # N: visual tokens among them, after pruning
    labels: int = 4096  # tokens that are learnt: the rows of the vocabulary head
    slots: tuple[tuple[int, int], ...] = ((12, 1024),)  # (how many, patches of each): the encoder's attention stays inside a slot, which pictures share

    def __post_init__(self):
        w = "conversation.rows"
        _positive(w, length=self.length, labels=self.labels)
        _check(0 <= self.visual <= self.length, f"{w}.visual", f"must lie in 0 to length ({self.length}), is {self.visual}")
        _check(all(count > 0 and patches > 0 for count, patches in self.slots), f"{w}.slots", f"must be (how many, patches) above 0, are {self.slots}")
        _check(bool(self.slots) == (self.visual > 0), f"{w}.slots", f"{self.slots} with {self.visual} visual tokens: one needs the other")


@dataclass(frozen=True)
class ConversationConfig:
    """What a stage of conversations reads, how it is shown, and how it is packed. Defaults as VideoLLaMA3 was trained."""

    mixture: tuple[tuple[str, float], ...] = ()  # (dataset, how often an epoch sees it): 0.5 is another half each epoch, 2.0 everything twice
    image_merge: int = 1  # m of images: m x m patches are one token
    video_merge: int = 2
    pruning: bool = False  # tokens of a video that `pruner` drops are not shown to the decoder
    processor: Literal["original", "transformers"] = "original"  # whose rules size pictures and sample frames
    fps: float = 1.0  # frames looked at per second of video
    max_frames: int = 180
    visual: int = 10240  # visual tokens of one conversation at most, before pruning: its pictures are sized to fit (processor "original")
    stream_ends: bool = False  # of a stream, learn what follows each frame too (line break and end token), as the original trainer does
    rows: tuple[RowConfig, ...] = (RowConfig(),)
    window: int = 1024  # conversations that are packed together; more fill the rows better

    def __post_init__(self):
        w = "conversation"
        _positive(w, image_merge=self.image_merge, video_merge=self.video_merge, fps=self.fps, max_frames=self.max_frames)
        _positive(w, visual=self.visual, window=self.window)
        _one_of(f"{w}.processor", self.processor, ("original", "transformers"))
        _check(len(self.rows) > 0, f"{w}.rows", "needs at least one shape")
        names = [name for name, _ in self.mixture]
        _check(len(names) == len(set(names)), f"{w}.mixture", f"names must differ, are {', '.join(names)}")
        for name, weight in self.mixture:
            _check(weight > 0, f"{w}.mixture", f"weight of {name} must be above 0, is {weight}")
