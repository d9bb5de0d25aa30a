"""A feature store without a file, whose features say where they come from: frame k of film v holds k in frame[0], v in frame[1]."""

from pathlib import Path

import numpy as np

from revision_jax.data.features import FeatureHeader

E, N = 8, 4
BLOCK = 60  # frames


class MemoryStore:
    """`FeatureStore`'s reading side. The path tells all: "<film>-<frames>-<rate>"."""

    def __init__(self, path: Path):
        self.path = path
        film, frames, rate = path.name.split("-")
        self.frames, rate = int(frames), float(rate)
        arrays = {"frame": ((E,), "float32"), "tokens": ((N, E), "float32"), "change": ((N,), "float32")}
        self.header = FeatureHeader("hash", "encoder", rate, self.frames / rate, arrays)
        number = np.arange(self.frames, dtype=np.float32)
        frame = np.random.default_rng(int(film)).standard_normal((self.frames, E)).astype(np.float32)
        frame[:, 0], frame[:, 1] = number, int(film)
        tokens = np.repeat(frame[:, None], N, 1)
        self.data = {"frame": frame, "tokens": tokens, "change": tokens[..., 0]}
        self.starts = np.minimum(np.arange(0, self.frames + BLOCK, BLOCK), self.frames)
        self.regular = True
        self.reads: list[tuple[str, int, int]] = []  # array, first frame, frames

    def read_block(self, name: str, block: int, low: int, high: int, scratch: np.ndarray) -> tuple[np.ndarray, int]:
        assert self.starts[block] <= low < high <= self.starts[block + 1]
        self.reads.append((name, low, high - low))
        scratch[: high - low] = self.data[name][low:high]
        return scratch[: high - low], low


def store_path(film: int, seconds: float, rate: float = 1.0) -> Path:
    return Path(f"{film}-{round(seconds * rate)}-{rate}")
