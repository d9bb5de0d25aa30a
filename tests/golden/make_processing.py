"""Makes processing.npz: what VideoLLaMA3's processors make of some pictures and videos, for tests without torch and torchvision.

    python -m tests.golden.make_processing [--original FILE]     # from the repository's root; needs torch, torchvision, transformers, jinja2

The video processor of transformers needs torchvision. A torchvision that was not built for the installed torch loads once the schemas that it misses are
defined (none of them is used here). FILE is image_processing_videollama3.py of the original repository (github.com/DAMO-NLP-SG/VideoLLaMA3);
without it the original's sizes stay as they are in the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import types

import numpy as np

PATH = pathlib.Path(__file__).with_name("processing.npz")
TOKEN = "<|video_pad|>"
FRAMES = 2
BOUNDS = {"shortest_edge": 12 * 28 * 28, "longest_edge": FRAMES * 16 * 28 * 28}  # of the videos below: small enough for a file in git
RESIZED = {"shrunk": (190, 250), "enlarged": (40, 70), "tall": (300, 90)}  # height, width of videos that are resized
STAMPS = [0.0, 0.25, 0.35, 1.0, 2.45, 9.96, 59.95, 61.04, 3599.949, 32399.5]


def picture(height: int, width: int, seed: int = 0, frames: int = 1) -> np.ndarray:
    """uint8 [frames height width 3]: gradients, edges and texture that move; later frames partly equal to the one before."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    film = []
    for t in range(frames):
        waves = [127 + 80 * np.sin(x / (5 + c) + t * 0.3 + c) * np.cos(y / (7 - c)) for c in range(3)]
        image = np.stack(waves, -1)
        image[height // 3 : height // 2, (width // 4 + t) % width : width // 2] = (250, 20, 40)
        film.append(image)
    film = np.stack(film) + rng.normal(0, 6, (1, height, width, 3))
    film[:, :, width // 2 :] = film[:1, :, width // 2 :]  # the right half stands still
    return np.clip(film, 0, 255).astype(np.uint8)


def still(frames: int = 8) -> np.ndarray:
    """uint8 [frames 84 112 3] in multiples of 28, so that nothing is resized: blocks change by sums around the pruner's threshold, one frame not at all."""
    rng = np.random.default_rng(3)
    film = np.repeat(picture(84, 112, 1) // 2 + 50, frames, 0).astype(np.int32)
    for t in range(1, frames):
        film[t] = film[t - 1]
        for row in range(0, 84, 28):
            for column in range(0, 112, 28):
                block = film[t, row : row + 28, column : column + 28].reshape(-1)
                at = rng.choice(2352, 0 if t == 4 else rng.choice([0, 60, 116, 117, 118, 119, 200]), replace=False)
                block[at] += rng.choice([-1, 1], len(at))
                film[t, row : row + 28, column : column + 28] = block.reshape(28, 28, 3)
    return film.astype(np.uint8)


def samplings() -> list[tuple[int, float, float]]:
    """(frames of the video, their rate, frames wanted per second)."""
    rng = np.random.default_rng(5)
    rows = [(1, 25.0, 1.0), (3, 30.0, 1.0), (100, 25.0, 1.0), (110, 25.0, 2.0), (5400, 30.0, 1.0), (5431, 29.97, 1.0), (64800, 24.0, 1.0), (777, 12.5, 0.5)]
    return rows + [(int(rng.integers(4, 65_000)), float(rng.choice([15, 23.976, 25, 29.97, 60])), float(rng.choice([0.5, 1, 2]))) for _ in range(40)]


def shapes() -> list[list[tuple[str, int, int, int]]]:
    """Samples of (kind, height, width, frames) for the original's rule."""
    rng = np.random.default_rng(6)
    side = lambda: int(rng.choice([20, 56, 90, 224, 360, 480, 640, 720, 1080, 1920, 3000]))
    rows = [[("video", 720, 1280, 180)], [("image", 10, 30, 1)], [("image", 3000, 4000, 1)], [("video", 720, 1280, 30), ("image", 1000, 800, 1)]]
    rows += [[("image", side(), side(), 1) for _ in range(int(rng.integers(1, 5)))] for _ in range(30)]
    rows += [[("video", side(), side(), int(rng.integers(1, 200)))] for _ in range(30)]
    return rows + [[("video", side(), side(), int(rng.integers(2, 100))), ("image", side(), side(), 1)] for _ in range(10)]


def _transformers() -> dict[str, np.ndarray]:
    import torch
    from transformers.models.video_llama_3.processing_video_llama_3 import VideoLlama3Processor
    from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor
    from transformers.video_utils import VideoMetadata

    processor = VideoLlama3VideoProcessor(size=BOUNDS)
    arrays = {}
    for i, (name, (height, width)) in enumerate(RESIZED.items()):
        out = processor(videos=[torch.tensor(picture(height, width, i, frames=FRAMES)).permute(0, 3, 1, 2)], return_tensors="pt")
        pixels = out["pixel_values_videos"].numpy()
        levels = np.round((pixels * 0.5 + 0.5) * 255)
        assert np.abs((levels / 255 - 0.5) / 0.5 - pixels).max() < 1e-6  # they are whole grey levels: a byte holds them
        arrays |= {f"{name}/levels": levels.astype(np.uint8), f"{name}/grid": out["video_grid_thw"].numpy()}
    film = still()
    out = processor(videos=[torch.tensor(film).permute(0, 3, 1, 2)], return_tensors="pt", do_resize=False)
    mask = out["video_compression_mask"].numpy()
    arrays |= {"still/mask": mask, "still/pixels": out["pixel_values_videos"].numpy()[:4], "still/grid": out["video_grid_thw"].numpy()}
    indices = []
    for total, rate, fps in samplings():
        found = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=rate), fps=fps).numpy()
        indices.append(found[found < total])  # for some lengths its rounding adds the frame behind the last
    arrays |= {"sampled/indices": np.concatenate(indices).astype(np.int32), "sampled/lengths": np.array([len(x) for x in indices])}
    inputs = {"video_grid_thw": out["video_grid_thw"], "video_merge_sizes": out["video_merge_sizes"], "video_compression_mask": out["video_compression_mask"]}
    metadata = VideoMetadata(total_num_frames=240, fps=29.97, frames_indices=[30 * i for i in range(len(film))])
    text = VideoLlama3Processor.replace_video_token(types.SimpleNamespace(video_token=TOKEN), {**inputs, "video_metadata": [metadata]}, 0)
    stamped = [VideoMetadata(total_num_frames=1, fps=1.0, frames_indices=[seconds]).timestamps[0] for seconds in STAMPS]
    return arrays | {"text/video": np.array(text), "text/transformers": np.array([f"Time {t:.1f}s:" for t in stamped])}


def _original(file: str) -> dict[str, np.ndarray]:
    import jinja2
    import transformers.image_utils
    from transformers.video_utils import VideoInput

    transformers.image_utils.VideoInput = VideoInput  # where older versions had it
    spec = importlib.util.spec_from_file_location("original", file)
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    sizes = []
    for sample in shapes():
        blank = [np.zeros((frames, height, width, 3) if kind == "video" else (height, width, 3), np.uint8) for kind, height, width, frames in sample]
        merges = [2 if kind == "video" else 1 for kind, *_ in sample]
        settings = {"min_tokens": 16, "max_tokens": 16384, "input_data_format": "channels_last"}
        if len(set(merges)) == 1:
            sizes += original.simple_batched_resize(blank, factor=14 * merges[0], **settings)
        else:
            sizes += original.batched_resize(blank, factors=[14 * merge for merge in merges], **settings)
    template = jinja2.Template("{{- 'Time ' + t | round(1) | string + 's:' -}}")  # the expression of its chat template
    return {"original/sizes": np.array(sizes, np.int32), "text/original": np.array([template.render(t=np.float64(t)) for t in STAMPS])}


def load() -> dict[str, np.ndarray]:
    """The committed arrays."""
    with np.load(PATH) as file:
        return {name: file[name] for name in file.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="FILE")
    file = parser.parse_args().original
    import torch

    library = torch.library.Library("torchvision", "DEF")  # must live as long as torchvision is used, and come before it
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    kept = {name: array for name, array in load().items() if name in ("original/sizes", "text/original")} if file is None else _original(file)
    np.savez_compressed(PATH, **_transformers(), **kept)
    print(f"{PATH.name}: {PATH.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
