"""`launch.bench video`: 720p H.264, one frame a second of it, decoded and resized, beside other ways to do the same.

Ours is `data.video.read_frames` as extraction calls it. Naive: PyAV decodes every frame and turns each into an array; lean: decodes every frame and turns those
that are wanted. FFmpeg: its own `fps=1` and `scale` filters behind its decoder, through PyAV's filter graph. All in one process, to 224 x 224 pixels. Runs take
turns; medians, of ten minutes, told for an hour. They are a minute of pictures with grain, encoded once (keyframes every 10 s) and put behind itself.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from launch.benches.commands import by_turns

WIDTH, HEIGHT, FPS, GAP_S, MINUTES = 1280, 720, 25, 10, 10
SIZE, RATE = (224, 224), 1.0
REPEATS = 3


def video(options: argparse.Namespace) -> dict[str, float | int]:
    """Seconds an hour of video, and how many times as fast ours is."""
    path = film(options.workdir / "video", MINUTES)
    ways: dict[str, Callable[[Path], int]] = {"ours": ours, "naive": naive, "lean": lean, "FFmpeg's filters": filtered}
    counts: dict[str, int] = {}

    def ready(name: str) -> Callable[[], object]:
        return lambda: counts.update({name: ways[name](path)})

    seconds = by_turns({name: lambda name=name: ready(name) for name in ways}, REPEATS)
    if max(counts.values()) - min(counts.values()) > 1:
        raise AssertionError(f"the ways do not agree on the number of frames: {counts}")
    figures: dict[str, float | int] = {f"times as fast as {name}": seconds[name] / seconds["ours"] for name in ways if name != "ours"}
    return figures | {f"{name} (s an hour)": taken * 60 / MINUTES for name, taken in seconds.items()} | {"frames": counts["ours"]}


def ours(path: Path) -> int:
    from revision_jax.data.video import read_frames

    return sum(len(chunk) for chunk in read_frames(path, RATE, size=SIZE))


def _array(frame) -> np.ndarray:
    return frame.reformat(width=SIZE[1], height=SIZE[0], format="rgb24", interpolation="BICUBIC").to_ndarray()


def naive(path: Path) -> int:
    return len(_decoded(path, every=True))


def lean(path: Path) -> int:
    return len(_decoded(path, every=False))


def _decoded(path: Path, every: bool) -> list[np.ndarray]:
    import av

    taken: list[np.ndarray] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            wanted = frame.time >= len(taken) / RATE - 1e-6
            picture = _array(frame) if every or wanted else None
            if wanted:
                taken.append(picture)
    return taken


def filtered(path: Path) -> int:
    import av
    from av.filter import Graph

    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = Graph()
        nodes = [
            graph.add_buffer(template=stream), graph.add("fps", str(RATE)), graph.add("scale", f"{SIZE[1]}:{SIZE[0]}:flags=bicubic"),
            graph.add("format", "rgb24"), graph.add("buffersink"),
        ]  # fmt: skip
        for one, other in itertools.pairwise(nodes):
            one.link_to(other)
        graph.configure()

        def pull() -> int:
            pulled = 0
            while True:
                try:
                    graph.pull().to_ndarray()
                except (av.BlockingIOError, av.EOFError):
                    return pulled
                pulled += 1

        for frame in container.decode(stream):
            graph.push(frame)
            count += pull()
        graph.push(None)
        return count + pull()


def film(folder: Path, minutes: int) -> Path:
    """The video, made once: a minute, remuxed behind itself."""
    import av

    path = folder / f"{WIDTH}x{HEIGHT}-{minutes}.mp4"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    minute, part = folder / "minute.mp4", folder / "part.mp4"
    _minute(minute)
    length = 60 * FPS
    with av.open(str(part), "w") as out, av.open(str(minute)) as source:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number in range(minutes):
            source.seek(0, stream=stream)
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue
                shift = round(number * length / FPS / stream.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                out.mux(packet)
    part.rename(path)
    return path


def _minute(path: Path) -> None:
    """Discs that move over a slope of light, with film grain."""
    import av

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    slope = (80 + 60 * rows / HEIGHT + 40 * columns / WIDTH)[..., None] * np.array([1.0, 0.9, 0.8])
    grain = rng.normal(0, 6, (8, HEIGHT, WIDTH, 1))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23", "g": str(GAP_S * FPS), "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(60 * FPS):
            picture = slope + grain[number % len(grain)]
            for disc in range(6):
                y, x = HEIGHT * (0.5 + 0.4 * np.sin(0.013 * number * (disc + 1))), WIDTH * (0.5 + 0.4 * np.cos(0.007 * number * (disc + 2)))
                box = np.s_[max(int(y) - 60, 0) : int(y) + 60, max(int(x) - 60, 0) : int(x) + 60]
                inside = (rows[box] - y) ** 2 + (columns[box] - x) ** 2 < 3600
                picture[box][inside] = 40 * disc + np.array([20.0, 60.0, 10.0])
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), "rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
