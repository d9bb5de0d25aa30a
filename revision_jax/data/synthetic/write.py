"""A script as files: an H.264 MP4 and its annotations, byte for byte repeatable, and never half written."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from revision_jax.data.synthetic.questions import Question, ask
from revision_jax.data.synthetic.render import check_size, render
from revision_jax.data.synthetic.script import Script
from revision_jax.data.synthetic.style import PLAIN, Style
from revision_jax.data.synthetic.world import FRAME, WORLD_VERSION, split_of
from revision_jax.errors import UserError

KEYFRAME_S = 10
# one thread and no wall-clock metadata: two runs give the same bytes
_ENCODER = {"preset": "veryfast", "crf": "23", "x264-params": "scenecut=0"}


def write_mp4(script: Script, path: Path, size: int = FRAME, progress: Callable[[int], None] | None = None, style: Style = PLAIN) -> None:
    """Renders and encodes the video, frame by frame. `progress` is called with the number of the script's frames done."""
    import av

    fps, written = style.fps or script.fps, 0
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = KEYFRAME_S * fps
        stream.codec_context.options = {**_ENCODER, "crf": str(style.crf)}
        for number, image in enumerate(render(script, size, style=style)):
            while written * script.fps // fps == number:  # none, one or several pictures show this frame of the script
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = written, Fraction(1, fps)
                container.mux(stream.encode(frame))
                written += 1
            if progress is not None:
                progress(number + 1)
        container.mux(stream.encode(None))


def annotations(script: Script, questions: list[Question], style: Style = PLAIN) -> dict:
    """The content of annotations.json: {"duration_s", "queries": [{"query_id", "query", "kind", "moments": [[s, e], ...]}]}, where it comes from,
    and what sort of question each is: {"tags": {query_id: [tag, ...]}}."""
    return {
        "duration_s": script.duration_s,
        "fps": style.fps or script.fps,
        "seed": script.seed,
        "split": split_of(script.seed),
        "world_version": WORLD_VERSION,
        **({"style": style.changes} if style.changes else {}),
        "queries": [{"query_id": q.query_id, "query": q.text, "kind": q.kind, "moments": q.seconds(script.fps)} for q in questions],
        "tags": {q.query_id: q.tags for q in questions},
    }


def write(
    script: Script, directory: str | Path, questions: int | None = None, size: int = FRAME, progress: Callable[[int], None] | None = None, style: Style = PLAIN
) -> Path:
    """Writes directory/video.mp4 and directory/annotations.json; returns the directory.

    Both are made in a hidden folder beside their place and moved in when complete; on any error or Ctrl-C nothing of them is left behind. Raises
    UserError where the directory cannot be written or the disk is full.
    """
    directory = Path(directory)
    check_size(size)
    content = json.dumps(annotations(script, ask(script, questions), style), indent=1) + "\n"
    made: list[Path] = []  # folders that did not exist before, innermost last
    try:
        for folder in [*reversed(directory.parents), directory]:
            if not folder.exists():
                with contextlib.suppress(FileExistsError):  # another process, which renders a film beside this one, was quicker
                    folder.mkdir()
                    made.append(folder)
        partial = Path(tempfile.mkdtemp(prefix=".synthesize-", dir=directory))
        try:
            write_mp4(script, partial / "video.mp4", size, progress, style)
            (partial / "annotations.json").write_text(content, encoding="utf-8")
            for name in ("video.mp4", "annotations.json"):
                (partial / name).replace(directory / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except BaseException as error:
        for folder in reversed(made):
            try:
                folder.rmdir()  # only where still empty
            except OSError:
                break
        if isinstance(error, OSError):
            raise UserError(f"{directory}: cannot be written ({error.strerror or error})") from error
        raise
    return directory
